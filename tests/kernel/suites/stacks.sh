# Stacks over both worlds: the four directions, the seed's figures, and deaths in them.
#
# modules: ldm timeout=600; many; ldm_crc32; ldm_relay lower=upper=text/upper,sum=kernel/crc32,line=y/kernel,slow=slow/upper,none=none/none,ring=x/ring,echo=null/echo

ask() {
	printf %s "$2" >$1 && cat $1
}

consumers() {
	[ "$(getfattr --only-values -n user.ldm.consumers /ldm/$1)" = "$2" ]
}

# crash CONTAINER DEVICE: kills the container, with all that is outstanding in it, and waits for the next one
crash() {
	local before
	before=$(cat /ldm/.ldmfs/run/$1)
	kill -9 $before
	soon replaced $1 $before
	soon getfattr -n user.ldm.consumers /ldm/$1/$2
}

replaced() {
	[ "$(cat /ldm/.ldmfs/run/$1)" != $2 ]
}

# Begins a request that is not answered; `pid` is who waits for it.
wait_in_the_kernel() {
	bash -c "exec 3<>$kernel/slow; printf hello >&3; exec cat <&3" 2>/tmp/said &
	pid=$!
}

case_user_to_user() {
	same "$(ask /ldm/x/line hello)" HELLO
}

case_user_to_kernel() {
	same "$(ask /ldm/kernel/crc32 abc)" 352441c2
	same "$(ask /ldm/y/kernel abc)" 352441c2
}

case_kernel_to_user() {
	same "$(ask $kernel/upper hello)" HELLO
}

case_kernel_to_kernel() {
	same "$(ask $kernel/sum abc)" 352441c2
}

case_a_consumer_above_x_above_y_in_user_space_and_a_in_the_kernel() {
	same "$(ask /ldm/x/tree abc)" ABC352441c2
}

case_x_in_the_kernel_above_y_in_user_space_above_a_in_the_kernel() {
	same "$(ask $kernel/line abc)" 352441c2
}

case_the_same_source_relays_from_both_worlds_to_both() {
	same "$(ask /ldm/x/native_upper hello)" HELLO
	same "$(ask /ldm/x/native_sum abc)" 352441c2
	same "$(ask $kernel/upper hello)" HELLO
	same "$(ask $kernel/sum abc)" 352441c2
}

case_a_device_that_is_not_there_is_refused() {
	fails 'No such file or directory' bash -c "exec 3<>$kernel/none"
}

case_a_ring_through_both_worlds_is_refused() {
	fails 'Too many levels of symbolic links' bash -c "exec 3<>$kernel/ring"
	soon consumers x/ring 0
	same "$(ask $kernel/upper hello)" HELLO
}

case_the_longest_message_goes_through_the_kernel() {
	head -c 1044480 /dev/urandom >/tmp/data
	exec 3<>$kernel/echo
	dd if=/tmp/data bs=1044480 status=none >&3
	cat <&3 >/tmp/found
	cmp /tmp/data /tmp/found
}

case_requests_to_one_container_do_not_hold_up_others() {
	for _ in 1 2 3 4; do
		wait_in_the_kernel
	done
	soon consumers slow/upper 4
	same "$(ask $kernel/upper hello)" HELLO
	crash slow upper
	wait || :
}

case_a_provider_that_is_killed_ends_the_request_of_the_kernel() {
	wait_in_the_kernel
	soon consumers slow/upper 1
	crash slow upper
	! wait $pid
	same "$(sed 's/.*: //' /tmp/said)" 'Software caused connection abort'
	wait_in_the_kernel
	soon consumers slow/upper 1
	crash slow upper
	! wait $pid
}

case_a_consumer_that_is_killed_does_not_wait_for_user_space() {
	wait_in_the_kernel
	soon consumers slow/upper 1
	kill -9 $pid
	wait $pid || same $? 137
	soon grep -qx 0 /sys/class/ldm/slow/consumers
	crash slow upper
}

case_unloading_is_refused_while_user_space_has_a_request_of_the_kernel() {
	wait_in_the_kernel
	soon consumers slow/upper 1
	fails ' is in use' rmmod ldm_relay
	crash slow upper
	! wait $pid
}

case_a_handle_of_the_kernel_outlives_the_process_behind_it() {
	exec 3<>$kernel/upper
	printf one >&3
	same "$(cat <&3)" ONE
	crash text upper
	printf two >&3
	same "$(cat <&3)" TWO
}

case_a_request_that_takes_too_long_ends() {
	local limit=/sys/module/ldm/parameters/timeout
	echo 1 >$limit
	wait_in_the_kernel
	! wait $pid
	echo 600 >$limit
	same "$(sed 's/.*: //' /tmp/said)" 'Connection timed out'
	soon grep -qx 0 /sys/class/ldm/slow/consumers
	soon consumers slow/upper 0
}

case_requests_to_user_space_are_refused_at_their_limit() {
	same "$(ask $kernel/many '1100 slow/upper')" 'refused 76 cancelled 1024 other 0'
	soon consumers slow/upper 0
	same "$(ask $kernel/upper hello)" HELLO
}

case_the_graph_tells_what_the_kernel_consumes() {
	exec 3<>$kernel/upper
	python - <<'END'
import json, time
for _ in range(600):
    graph = json.load(open("/ldm/system/graph"))
    containers = {each["name"]: each for each in graph["containers"]}
    devices = {each["name"]: each for each in containers["text"]["devices"]}
    consumers = [(each["container"], each["path"], each["pid"]) for each in devices["upper"]["consumers"]]
    if consumers == [("kernel", "kernel", 0)]:
        break
    time.sleep(0.1)
assert consumers == [("kernel", "kernel", 0)], consumers
kernel = containers["kernel"]
assert kernel["state"] == "running" and kernel["providers"] == ["crc32", "many", "relay"], kernel
counts = {each["name"]: each["consumer_count"] for each in kernel["devices"]}
assert counts["upper"] == 1 and counts["crc32"] == 0, counts
END
	grep -q '"kernel" -> "text/upper"' /ldm/system/graph.dot
}
