"""The file that the output of a container's processes goes to."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..consumer import tree

LOG_LINES = 10
"""Lines of a container's output that tell why it ended."""

MAX_LOG = 1 << 20
"""Bytes of a container's log file, beyond which it is begun anew at the next start."""

MAX_TAIL = 1 << 16
"""Bytes of it in which these lines are looked for."""


class Log:
    """The log of one container, to which a standby writes, too."""

    def __init__(self, root: Path, container: str) -> None:
        self.path = tree.log_file(root, container)

    def begin(self) -> int:
        """Return where the lines of an instance begin that starts now; what is too long is begun anew."""
        with contextlib.suppress(OSError):
            size = self.path.stat().st_size
            if size <= MAX_LOG:
                return size
            os.truncate(self.path, 0)
        return 0

    def last_lines(self, begin: int) -> str:
        """Return the last lines behind `begin`, each on a line of its own, indented."""
        try:
            with open(self.path, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(begin if begin <= end else 0, end - MAX_TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "".join(f"\n    {line}" for line in lines[-LOG_LINES:])
