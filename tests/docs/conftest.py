"""Fixtures of the tests of the documents: a tree that is not mounted, and a directory to work in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounted.trees import LDMFS, Tree

from .documents import CHECKOUT
from .sessions import Shell


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Give a tree that is not mounted yet; at the end it is gone without a trace."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing on this machine, or not for this user")
    base = tmp_path / "tree"
    base.mkdir()
    tree = Tree(base, tmp_path)
    tree.environment["PATH"] = f"{Path(LDMFS).parent}:{tree.environment['PATH']}"
    tree.environment["PYTHONUNBUFFERED"] = "1"
    yield tree
    tree.end()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Give a directory to work in, in which the examples are at hand."""
    path = tmp_path / "work"
    path.mkdir()
    (path / "examples").symlink_to(CHECKOUT / "examples")
    return path


@pytest.fixture
def shell(tree: Tree, work: Path) -> Callable[[], Shell]:
    """Give what starts a shell for a session."""

    def start() -> Shell:
        return Shell(tree.root, work, tree.environment)

    return start
