"""The plug-ins that are installed, and how a container is told which of them it hosts."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

GROUP = "ldmfs.providers"
"""The entry-point group in which plug-ins are found."""


class PlugIn(msgspec.Struct, frozen=True):
    """A plug-in as a container is told to host it: `target` is `module:class`, `where` its place in a configuration."""

    name: str
    target: str
    where: str
    table: dict[str, Any] = {}


def found() -> dict[str, EntryPoint]:
    """Return the plug-ins that are installed, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}
