"""Fixtures of the tests of stacks: those of the mounted tests, and one mounted tree for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted.fixtures import _can_mount, mount, new_tree, plug_ins
from mounted.trees import Tree

__all__ = ["_can_mount", "mount", "new_tree", "plug_ins", "stacks"]

STACKS = """\
[text.text]
[a.relay.a]
lower = "text/upper"
[y.relay.y]
lower = "a/a"
[x.relay.x]
lower = "y/y"
[x.relay.tree]
lower = ["y/y", "a/a"]
[x.relay.cycle]
lower = "y/cycle"
[y.relay.cycle]
lower = "x/cycle"
[x.relay.mutual]
lower = "y/y"
[y.relay.mutual]
lower = "x/x"
"""


@pytest.fixture(scope="session")
def stacks(tmp_path_factory: pytest.TempPathFactory, plug_ins: Path) -> Iterator[Tree]:
    """Give a tree with lines, a tree and a cycle of devices over the containers x, y, a and text."""
    tree = Tree(tmp_path_factory.mktemp("stacks"), plug_ins)
    done = tree.mount(STACKS)
    assert (done.returncode, done.stderr) == (0, "")
    yield tree
    tree.end()
