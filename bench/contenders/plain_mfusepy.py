"""The echo device in mfusepy: ctypes over the high level of libfuse, in one thread.

Run: python plain_mfusepy.py DIRECTORY
"""

from __future__ import annotations

import errno
import stat
import sys
from typing import Any

import mfusepy


class Echo(mfusepy.Operations):
    """One file `echo`; each open handle gives back what was last written to it."""

    use_ns = True

    def __init__(self) -> None:
        self.replies: dict[int, bytes] = {}
        self.last = 0

    @mfusepy.overrides(mfusepy.Operations)
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return the attributes of the directory or of the file."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path == "/echo":
            return {"st_mode": stat.S_IFREG | 0o666, "st_nlink": 1}
        raise mfusepy.FuseOSError(errno.ENOENT)

    @mfusepy.overrides(mfusepy.Operations)
    def open(self, path: str, flags: int) -> int:
        """Make a handle."""
        self.last += 1
        self.replies[self.last] = b""
        return self.last

    @mfusepy.overrides(mfusepy.Operations)
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Keep the message."""
        self.replies[fh] = data
        return len(data)

    @mfusepy.overrides(mfusepy.Operations)
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Give the message back, once."""
        reply, self.replies[fh] = self.replies[fh], b""
        return reply[:size]

    @mfusepy.overrides(mfusepy.Operations)
    def flush(self, path: str, fh: int) -> int:
        """Do nothing, as C and pyfuse3 do."""
        return 0

    @mfusepy.overrides(mfusepy.Operations)
    def release(self, path: str, fh: int) -> int:
        """Forget the handle."""
        del self.replies[fh]
        return 0


if __name__ == "__main__":
    mfusepy.FUSE(
        Echo(), sys.argv[1], foreground=True, nothreads=True, direct_io=True, attr_timeout=300, entry_timeout=300
    )
