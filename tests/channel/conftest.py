"""Fixtures of the channel's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted.fixtures import mount, new_tree, plug_ins

from .served import Blocking, Side, Trio

__all__ = ["mount", "new_tree", "plug_ins"]


@pytest.fixture(params=[Blocking, Trio], ids=["blocking", "trio"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    """Give one of the two APIs."""
    made: Side = request.param(tmp_path)
    return made


@pytest.fixture(params=[8, 0], ids=["arena", "inline"])
def blocks(request: pytest.FixtureRequest) -> int:
    """Give the number of parameter blocks of a chain; with 0 everything travels inline."""
    count: int = request.param
    return count


@pytest.fixture
def public() -> Iterator[Path]:
    """Give a directory that other users can see: pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="ldmfs-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
