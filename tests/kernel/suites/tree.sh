# A tree that has the kernel's modules loaded at its mount: what the command line tells of them.

install_modules() {
	local target=/lib/modules/$(uname -r)/updates
	mkdir -p $target
	sed 's/^[^ ]* //' $VM/modules | xargs cp -t $target
	depmod -a 2>/dev/null
}

configure() {
	cat >/tmp/tree.toml <<-END
		[system]
		start_timeout = "10 min"
		stop_timeout = "2 min"
		kernel_modules = [$1]
		[null.null]
	END
}

mounted() {
	ldmfs "$@" --root /tmp/ldm
}

case_modules_are_loaded_at_mount_and_told_of_and_stay() {
	install_modules
	configure '"ldm_crc32", "ramdisk size=4M"'
	mounted mount --background --config /tmp/tree.toml
	same "$(cat /sys/module/ldm/parameters/root)" /tmp/ldm
	same "$(readlink /tmp/ldm/kernel)" /dev/ldm/kernel
	same "$(ls /tmp/ldm/kernel)" "$(printf 'crc32\nramdisk')"
	printf abc >/tmp/ldm/kernel/crc32
	same "$(cat /tmp/ldm/kernel/crc32)" 352441c2
	mounted ls >/tmp/ls
	grep -q '^kernel *running *2 .*crc32,ramdisk' /tmp/ls
	mounted ls kernel >/tmp/ls
	grep -q '^kernel/crc32 *message *crw-rw-rw- *0 .*CRC-32 of the message' /tmp/ls
	grep -q '^kernel/ramdisk *block *crw-rw---- *0 .*a disk in memory' /tmp/ls
	grep -q '^kernel *running *-' /tmp/ldm/system/containers
	mounted doctor >/tmp/doctor || :
	grep -q 'module ldm.*loaded, 2 devices' /tmp/doctor
	rmmod ldm_ramdisk
	same "$(ls /tmp/ldm/kernel)" crc32
	mounted umount
	[ -c $kernel/crc32 ]
	rmmod ldm_crc32
	rmmod ldm
	fails "its module, ldm, is not loaded; 'ldmfs doctor' says more" mounted ls kernel
}

case_a_module_that_cannot_be_loaded_is_the_configurations_mistake() {
	install_modules
	configure '"nothing"'
	fails 'Module ldm_nothing not found in directory /lib/modules/'"$(uname -r)" \
		ldmfs mount --background --root /tmp/ldm --config /tmp/tree.toml
	configure '"ramdisk size=-5"'
	fails 'Invalid argument' mounted mount --background --config /tmp/tree.toml
	[ ! -e /tmp/ldm ]
	rmmod ldm
}
