"""Builds a provider in C: `python -m ldmfs.native upper.c` makes `upper.so` beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .build import BuildError, build


def main() -> int:
    """Build what the arguments name; a mistake is told in one line, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m ldmfs.native", description="Build a provider in C.")
    parser.add_argument("source", type=Path, help="its source")
    parser.add_argument("-o", dest="output", type=Path, help="the shared object; default: the source's name with .so")
    arguments = parser.parse_args()
    try:
        build(arguments.source, arguments.output or arguments.source.with_suffix(".so"))
    except BuildError as error:
        print(f"ldmfs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
