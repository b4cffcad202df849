#!/usr/bin/env bash
# tools/kmod-install.sh [RELEASE]: gives ldm.ko and the providers in C to DKMS, which builds and installs them for the
# kernel that runs, or for another one, and anew for each kernel that is installed later.
set -euo pipefail
cd "$(dirname "$0")/.."

release=${1:-$(uname -r)}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' ldmfs/__init__.py)
tree=/usr/src/ldmfs-$version

if [ ! -e "/lib/modules/$release/build" ]; then
	echo "kmod-install: the headers of the kernel $release are not installed" >&2
	exit 1
fi
if ((EUID)); then
	echo "kmod-install: run as root" >&2
	exit 1
fi
tools/packages.sh dkms make gcc

if dkms status -m ldmfs -v "$version" | grep -q .; then
	dkms remove -m ldmfs -v "$version" --all
fi
rm -rf "$tree"
mkdir -p "$tree/kmod" "$tree/providers"
cp kmod/*.[ch] kmod/Makefile kmod/Kbuild kmod/LICENSE "$tree/kmod"
rm -f "$tree"/kmod/*.mod.c
cp providers/*.c "$tree/providers"
sed "s/@VERSION@/$version/" kmod/dkms.conf >"$tree/dkms.conf"
number=1
for source in providers/*.c; do
	cat >>"$tree/dkms.conf" <<-END
		BUILT_MODULE_NAME[$number]="ldm_$(basename "$source" .c)"
		BUILT_MODULE_LOCATION[$number]="kmod"
		DEST_MODULE_LOCATION[$number]="/updates"
	END
	number=$((number + 1))
done
dkms install -m ldmfs -v "$version" -k "$release"
echo "modprobe ldm; modprobe ldm_crc32"
