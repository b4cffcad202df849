#!/usr/bin/env bash
# Installs what ldmfs is built and run with: Debian packages (as root), a virtual environment, ldmfs itself.
# PYTHON and VENV come from the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(attr fuse3 gcc libfuse3-dev pkg-config python3-dev python3-venv)

missing=()
for package in "${PACKAGES[@]}"; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
	if ((EUID)); then
		echo "set-up: these Debian packages are missing: ${missing[*]}" >&2
		echo "set-up: run as root: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet -e '.[all,dev]'
