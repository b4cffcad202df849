# SPDX-License-Identifier: GPL-2.0-only
# What a guest does after init.  The share has the command, and gets its output, its status and the kernel's messages.
# Set before: DIRECTORY, LIMIT (seconds), CONSOLE (the command is a shell on the console: 0 or 1).

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 VM=/run/vm
leaks=/sys/kernel/debug/kmemleak

say() {
	echo "vm: $*" >/dev/kmsg
}

leave() {
	dmesg >$VM/dmesg
	cat /proc/sys/kernel/tainted >$VM/tainted
	echo "$1" >$VM/status.new
	mv $VM/status.new $VM/status
	exec busybox reboot -f
}

# Where everything has stopped, the kernel still knows what waits where.
watch() {
	sleep "$LIMIT"
	say "time limit"
	echo w >/proc/sysrq-trigger
	echo l >/proc/sysrq-trigger
	leave "time limit"
}

cd "$DIRECTORY" || leave "no such directory: $DIRECTORY"
echo 7 >/proc/sys/kernel/printk
say begin
if [ "$CONSOLE" = 1 ]; then
	setsid -c -w sh $VM/command </dev/ttyS0 >/dev/ttyS0 2>&1
	leave $?
fi
watch &
watcher=$!
setsid -w sh $VM/command </dev/null >$VM/output 2>&1
status=$?
kill $watcher
say end
if [ -w $leaks ]; then
	# An object is reported when it is 5 s old (MSECS_MIN_AGE) and two scans have not found a pointer to it.
	# The kernel gives up looking when it has no memory for that: no leak is known then, which is no good news.
	echo scan >$leaks || echo "unreferenced object, maybe: kmemleak has ended" >>$VM/leaks
	sleep 5
	echo scan >$leaks
	cat $leaks >>$VM/leaks
fi
leave $status
