"""The echo device in plain pyfuse3: its own session loop under trio, nothing of ldmfs.

Run: python plain_pyfuse3.py DIRECTORY
"""

from __future__ import annotations

import errno
import stat
import sys

import pyfuse3
import trio

ECHO = pyfuse3.InodeT(2)


class Echo(pyfuse3.Operations):
    """One file `echo`; each open handle gives back what was last written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[int, bytes] = {}
        self.last = 0

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return the attributes of the directory or of the file."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o666 if inode == ECHO else stat.S_IFDIR | 0o755)
        entry.attr_timeout = entry.entry_timeout = 300
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find the file."""
        if name != b"echo":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(ECHO, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Make a handle."""
        self.last += 1
        self.replies[self.last] = b""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self.last), direct_io=True, keep_cache=False, nonseekable=True)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Keep the message."""
        self.replies[fh] = buf
        return len(buf)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Give the message back, once."""
        reply, self.replies[fh] = self.replies[fh], b""
        return reply[:size]

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing, as C and mfusepy do."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Forget the handle."""
        del self.replies[fh]


if __name__ == "__main__":
    pyfuse3.init(Echo(), sys.argv[1], set(pyfuse3.default_options))
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
