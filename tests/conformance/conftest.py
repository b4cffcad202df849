"""Fixtures of the conformance tests: those of the mounted tests."""

from mounted.fixtures import _can_mount, mount, new_tree, plug_ins

__all__ = ["_can_mount", "mount", "new_tree", "plug_ins"]
