# What every suite's guest does before and after its cases.

export PATH=$PWD/.venv/bin:$PATH
modules=
tree=

# load_all: loads the modules that are named in lines of the input, with their parameters
load_all() {
	while read -r module parameters; do
		[ -n "$module" ] || continue
		insmod "$module" $parameters || exit
		modules="$(basename "$module" .ko) $modules"
	done
}

# mount_tree CONFIGURATION
mount_tree() {
	ldmfs mount --background --config "$1" || exit
	tree=/ldm
}

unload_all() {
	look_for_leaks
	[ -z "$tree" ] || ldmfs umount || return
	for module in $modules; do
		soon rmmod "$module" || return
	done
}

# Looks once while the modules are there, so that the kernel can tell their functions by name.
look_for_leaks() {
	leaks=/sys/kernel/debug/kmemleak
	[ -w $leaks ] || return 0
	echo scan >$leaks
	sleep 5
	echo scan >$leaks
	cat $leaks >$VM/leaks
}

# soon COMMAND…: a consumer that was killed is gone a moment later than its process
soon() {
	for _ in $(seq 1200); do
		if said=$("$@" 2>&1); then
			[ -z "$said" ] || echo "$said"
			return 0
		fi
		sleep 0.05
	done
	echo "$*: $said"
	return 1
}
