# Devices of the kernel from a shell: files, attributes, stacks within the kernel.
#
# modules: ldm; gate; many; ldm_crc32; ldm_ramdisk size=1M; ldm_relay lower=c1=kernel/plain,c2=kernel/c1,c3=kernel/c2,c4=kernel/c3,c5=kernel/c4,c6=kernel/c5,c7=kernel/c6,c8=kernel/c7,c9=kernel/c8,c10=kernel/c9,c11=kernel/c10,c12=kernel/c11,c13=kernel/c12,c14=kernel/c13,c15=kernel/c14,c16=kernel/c15,sum=kernel/crc32,twice=kernel/sum,self=kernel/self,none=kernel/nothing,held=kernel/gate

attribute() {
	cat "/sys/class/ldm/$1/$2"
}

held() {
	[ "$(sed -n "s/.*held \([0-9]*\).*/\1/p" $kernel/keeper)" = "$1" ]
}

case_echo_and_cat() {
	printf abc >$kernel/crc32
	same "$(cat $kernel/crc32)" 352441c2
}

case_one_descriptor_sends_and_receives() {
	exec 3<>$kernel/plain
	for word in one two three; do
		printf %s $word >&3
		same "$(cat <&3)" $word
	done
}

case_the_error_of_a_handler_is_echos() {
	fails 'Protocol error' bash -c "printf 'fail 71' >$kernel/plain"
}

case_a_type_that_is_not_taken_is_refused() {
	fails 'Operation not supported' cat $kernel/crc32
}

case_a_device_is_a_character_device_of_its_name() {
	for device in gate plain crc32 ramdisk; do
		[ -c $kernel/$device ]
	done
	same "$(stat -c '%t:%T' $kernel/crc32)" "$(printf '%x:%x' $(attribute crc32 dev | tr : ' '))"
}

case_attributes_tell_of_a_device() {
	same "$(attribute plain description)" 'an echo'
	same "$(attribute plain takes)" anything
	same "$(attribute plain gives)" 'the same'
	same "$(attribute plain kind)" message
	same "$(attribute plain provider)" gate
	same "$(attribute plain container)" kernel
	same "$(attribute plain consumers)" 0
	same "$(attribute ramdisk kind)" block
	same "$(attribute ramdisk size)" 1048576
}

case_consumers_are_counted() {
	exec 3<$kernel/plain 4<>$kernel/plain 5<&3
	same "$(attribute plain consumers)" 2
	exec 3<&-
	same "$(attribute plain consumers)" 2
	exec 4<&- 5<&-
	same "$(attribute plain consumers)" 0
}

case_attributes_cannot_be_written() {
	for file in /sys/class/ldm/plain/{description,kind,size,consumers}; do
		[ ! -e $file ] || fails 'Permission denied' bash -c "echo x >$file"
	done
}

case_a_stack_within_the_kernel_answers() {
	for device in sum twice; do
		printf abc >$kernel/$device
		same "$(cat $kernel/$device)" 352441c2
	done
}

case_the_longest_stack_answers_and_a_longer_one_is_refused() {
	printf hello >$kernel/c15
	same "$(cat $kernel/c15)" hello
	printf 'fail 71' >$kernel/c15
	fails 'Protocol error' cat $kernel/c15
	fails 'Too many levels of symbolic links' bash -c "exec 3<>$kernel/c16"
}

case_requests_are_refused_at_their_limit() {
	printf '5000 kernel/gate' >$kernel/many
	same "$(cat $kernel/many)" 'refused 905 cancelled 4095 other 0'
	held 0
}

case_a_device_that_consumes_itself_is_refused() {
	fails 'Too many levels of symbolic links' bash -c "exec 3<>$kernel/self"
}

case_a_device_that_consumes_nothing_is_refused() {
	fails 'No such file or directory' bash -c "exec 3<>$kernel/none"
}

case_a_consumer_that_is_killed_cancels_down_the_stack() {
	sh -c "exec 3<>$kernel/held; printf hello >&3; cat <&3" &
	soon held 1
	kill -9 $!
	wait $! || same $? 137
	soon held 0
	soon same "$(attribute held consumers)$(attribute gate consumers)" 00
}

case_dd_writes_and_reads_a_block_device() {
	head -c 1M /dev/urandom >/tmp/data
	dd if=/tmp/data of=$kernel/ramdisk bs=10000 conv=fsync status=none
	dd if=$kernel/ramdisk of=/tmp/found bs=7777 status=none
	cmp /tmp/data /tmp/found
	fails 'No space left on device' dd if=/tmp/data of=$kernel/ramdisk bs=1M seek=1 status=none
	rm /tmp/data /tmp/found
}

case_a_file_system_is_made_on_a_block_device() {
	busybox mkdosfs $kernel/ramdisk 1024
	same "$(dd if=$kernel/ramdisk bs=1 skip=510 count=2 status=none | od -An -tx1 | tr -d ' ')" 55aa
}

case_who_may_use_a_device_is_told_by_its_mode() {
	chmod 600 $kernel/plain
	fails 'Permission denied' setpriv --reuid 65534 --regid 65534 --clear-groups cat $kernel/plain
	chmod 644 $kernel/plain
	same "$(setpriv --reuid 65534 --regid 65534 --clear-groups cat $kernel/plain)" READ
}
