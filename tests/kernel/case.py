"""python case.py SUITE CASE: runs one case of a suite in Python."""

from __future__ import annotations

import runpy
import sys

suite, case = sys.argv[1:]
runpy.run_path(suite)[f"case_{case}"]()
