#!/usr/bin/env bash
# Installs what ldmfs is built and run with: Debian packages (as root), a virtual environment, ldmfs itself.
# PYTHON and VENV come from the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/packages.sh attr fuse3 gcc libfuse3-dev pkg-config python3-dev python3-venv

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet -e '.[all,dev]'
