"""Run the killer: see `python -m chaos --help`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from mounted.trees import Tree, install_plug_ins

from .run import Run

CONFIGURATION = """\
[fail]
on_crash = "fail"
max_crashes = 1000000
max_pause = "0 s"
[fail.chaos]
log = @log
block = "{base}/block-fail"
[reissue]
on_crash = "reissue"
standby = true
max_crashes = 1000000
max_pause = "0 s"
[reissue.chaos]
log = @log
block = "{base}/block-reissue"
[upper]
max_crashes = 1000000
max_pause = "0 s"
[upper.relay.line]
lower = "fail/async"
"""


def main() -> int:
    """Mount a tree, put it under load, kill, and tell what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Kill at random, and look at what that does.")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long (default: 30)")
    parser.add_argument("--seed", type=int, help="what decides; by default another one each time")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ldmfs-chaos-") as name:
        base = Path(name)
        os.chmod(base, 0o755)
        (base / "plug-ins").mkdir()
        tree = Tree(base, install_plug_ins(base / "plug-ins" / "site"))
        wrong = Run(tree, CONFIGURATION.format(base=base), seed).run(arguments.seconds)
    for each in wrong:
        print(each, file=sys.stderr)
    print(f"seed {seed}: {len(wrong)} faults" if wrong else f"seed {seed}: all is well")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
