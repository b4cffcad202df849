# bash case.sh SUITE CASE: runs one case of a suite that is a script; it fails with the first command that does.
set -euo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND: exit status $?"' ERR
set -E
kernel=/dev/ldm/kernel

# load MODULE PARAMETER…
load() {
	local module=$1
	shift
	insmod "$(sed -n "s/^$module //p" $VM/modules)" "$@"
}

# same FOUND EXPECTED
same() {
	[ "$1" = "$2" ] || { echo "found: $1"; echo "expected: $2"; return 1; }
}

# fails MESSAGE COMMAND…: the command fails, and what it says ends with the message and maybe a full stop
fails() {
	local message=$1 said
	shift
	if said=$("$@" 2>&1); then
		echo "$* did not fail: $said"
		return 1
	fi
	case ${said%.} in *"$message") ;; *) echo "$*: $said, not $message"; return 1 ;; esac
}

# soon COMMAND…: it succeeds, now or within a minute
soon() {
	local said
	for _ in $(seq 1200); do
		if said=$("$@" 2>&1); then
			return 0
		fi
		sleep 0.05
	done
	echo "$*: $said"
	return 1
}

. "$1"
"case_$2"
