"""The state area as shared memory: a memfd that the supervisor keeps and each instance of the container maps.

It cannot be resized, so that no mapping of it can fault.  It is made once, before the first instance starts, and handed
from the supervisor to each instance by its descriptor.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from ..core.errors import StateDamaged
from ..core.state import SIZES, Sizes, StateArea

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(sizes: Sizes = SIZES) -> int:
    """Make an empty state area and return its descriptor.  Raises `OSError` where there is no memory for it."""
    fd = os.memfd_create("ldmfs-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, sizes.total)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        with mmap.mmap(fd, sizes.total) as mapping, memoryview(mapping) as view:
            StateArea.format(view, sizes)
    except BaseException:
        os.close(fd)
        raise
    return fd


class SharedState:
    """A state area, mapped into this process: `area`.  `close` lets go of it; what is in it stays.

    The descriptor stays the caller's, and may be closed; without one the area is new, and ends with the process.
    Raises `StateDamaged` for what is no state area.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            self._mapping = mmap.mmap(-1, SIZES.total)
            self._view = memoryview(self._mapping)
            StateArea.format(self._view)
            self.area = StateArea(self._view)
            return
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
                raise StateDamaged("a state area is a memfd that is sealed against being resized")
            self._mapping = mmap.mmap(fd, 0)
        except OSError as error:
            raise StateDamaged(f"the state area cannot be mapped: {error.strerror}") from None
        self._view = memoryview(self._mapping)
        try:
            self.area = StateArea(self._view)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the memory.  What is asked of `area` afterwards raises `ValueError`."""
        self._view.release()
        self._mapping.close()

    def __enter__(self) -> SharedState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
