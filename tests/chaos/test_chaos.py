"""The killer as a test, for half a minute; `make chaos` runs it for as long as wanted."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .killer import decisions

SECONDS = float(os.environ.get("LDMFS_CHAOS_SECONDS", "30"))


def test_the_same_seed_decides_the_same() -> None:
    first, again, other = (list(itertools.islice(decisions(seed), 100)) for seed in (5, 5, 6))
    assert first == again != other


@pytest.mark.timeout(SECONDS + 300)
def test_kills_at_random_are_survived_as_promised(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos", "--seconds", str(SECONDS)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
