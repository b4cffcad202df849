"""Fixtures of the tests of the command line."""

from mounted.fixtures import _can_mount, mount, new_tree, nobodys, plug_ins, start, tree

__all__ = ["_can_mount", "mount", "new_tree", "nobodys", "plug_ins", "start", "tree"]
