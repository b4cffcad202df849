# Modules that are loaded and unloaded, with consumers and with requests outstanding.

busy=' is in use'

# What a case leaves when it fails is in nobody's way.
leave() {
	local status=$? module
	set +e
	trap - ERR
	kill -9 $(jobs -p)
	[ ! -e $kernel/keeper ] || echo release >$kernel/keeper
	for module in ldm_relay ldm_ramdisk ldm_crc32 gate ldm; do
		[ ! -d /sys/module/$module ] || rmmod $module
	done
	exit $status
} >/dev/null 2>&1
trap leave EXIT

state() {
	sed -n "s/.*$1 \([0-9]*\).*/\1/p" $kernel/keeper
}

held() {
	[ "$(state held)" = "$1" ]
}

gone() {
	[ ! -e $kernel/$1 ]
}

case_unloading_is_refused_while_a_device_is_open() {
	load ldm
	load ldm_crc32
	exec 3<>$kernel/crc32
	fails "$busy" rmmod ldm_crc32
	fails "$busy by: ldm_crc32" rmmod ldm
	printf abc >&3
	same "$(cat <&3)" 352441c2
	exec 3<&-
	soon rmmod ldm_crc32
	soon rmmod ldm
}

case_unloading_is_refused_while_a_request_is_outstanding() {
	load ldm
	load gate
	sh -c "exec 3<>$kernel/gate; printf hello >&3; cat <&3" &
	soon held 1
	fails "$busy" rmmod gate
	kill -9 $!
	wait $! || same $? 137
	soon rmmod gate
	rmmod ldm
}

case_unloading_is_refused_until_the_last_request_is_completed() {
	load ldm
	load gate
	sh -c "exec 3<>$kernel/stubborn; printf hello >&3; cat <&3" &
	soon held 1
	kill -9 $!
	wait $! || same $? 137
	fails "$busy" rmmod gate
	same "$(state held)" 1
	echo release >$kernel/keeper
	soon rmmod gate
	rmmod ldm
}

case_unloading_a_device_that_another_module_consumes_is_refused() {
	load ldm
	load gate
	load ldm_relay lower=kernel/plain
	exec 3<>$kernel/relay
	fails "$busy" rmmod gate
	fails "$busy" rmmod ldm_relay
	exec 3<&-
	soon rmmod gate
	fails 'No such file or directory' bash -c "exec 3<>$kernel/relay"
	rmmod ldm_relay
	rmmod ldm
}

case_a_kept_reply_does_not_hold_a_module() {
	load ldm
	load gate
	printf kept >$kernel/plain
	soon rmmod gate
	load gate
	same "$(cat $kernel/plain)" READ
	printf kept >$kernel/plain
	soon rmmod gate
	rmmod ldm
}

case_the_example_of_the_manual_answers() {
	load ldm
	load rot13 by=1
	printf 'Hal z!' >$kernel/rot13
	same "$(cat $kernel/rot13)" 'Ibm a!'
	soon rmmod rot13
	rmmod ldm
}

case_a_name_that_is_taken_is_refused_and_nothing_is_left() {
	load ldm
	load gate
	fails 'File exists' load ldm_relay lower=new=kernel/plain,plain=kernel/plain
	gone new
	same "$(cat $kernel/plain)" READ
	soon rmmod gate
	rmmod ldm
}

case_parameters_that_make_no_sense_are_refused() {
	load ldm
	fails 'Invalid parameters' load ldm_ramdisk size=-5
	fails 'Invalid parameters' load ldm_ramdisk size=12Q
	fails 'Invalid parameters' load ldm_relay lower=a/b=kernel/plain
	fails 'Invalid parameters' load ldm_relay lower=..=kernel/plain
	gone ramdisk
	rmmod ldm
}
