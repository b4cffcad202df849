#!/usr/bin/env bash
# tools/packages.sh PACKAGE…: installs the Debian packages that are missing as root; as anyone else says which they are.
set -euo pipefail

missing=()
for package; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
((${#missing[@]})) || exit 0
if ((EUID)); then
	echo "set-up: these Debian packages are missing: ${missing[*]}" >&2
	echo "set-up: run as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
