"""Memory for requests that is there before the kernel writes to it.

libfuse allocates a buffer for each task that reads, of the longest request's size, and its pages come one by one as the
kernel copies the first long requests there.  To a process that is being killed the kernel gives no page any more: the
copy fails, and the request ends with EIO (`fuse_dev_do_read`), neither aborted nor to be handed out again.  Measured:
one kill in ten, of a container whose block device is being written.  A buffer whose pages are there has no such moment.

glibc fills what it allocates when told to (M_PERTURB), and is told so for the moment in which libfuse allocates.
"""

from __future__ import annotations

import ctypes

import trio

M_PERTURB = -6
"""Of `mallopt(3)`: fill each block of memory that is allocated; 0 does not."""

MAX_FILLED = 64
"""Tasks that read with a buffer whose pages are all there, a good MiB each; those of more come as they are used."""

_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)


class Buffers:
    """Sees to it that the buffers of the tasks that read are there."""

    __slots__ = ("_filling", "_new", "_tasks", "pending")

    def __init__(self) -> None:
        self.pending = False
        """Whether `before_read` has anything to do."""
        self._new: set[trio.lowlevel.Task] = set()
        self._tasks = 0
        self._filling = False

    def begin(self) -> None:
        """Note that this task is about to read with a buffer that is to be allocated."""
        if self._tasks < MAX_FILLED and _mallopt is not None:
            self._new.add(trio.lowlevel.current_task())
            self.pending = True
        self._tasks += 1

    def end(self) -> None:
        """Note that this task reads no more."""
        self._new.discard(trio.lowlevel.current_task())
        self._tasks -= 1
        if self._filling and not self._tasks:
            self.before_read()

    def before_read(self) -> None:
        """Have what this task allocates next filled, if that is its buffer."""
        assert _mallopt is not None
        task = trio.lowlevel.current_task()
        if (task in self._new) != self._filling:
            self._filling = not self._filling
            _mallopt(M_PERTURB, int(self._filling))
        self._new.discard(task)
        self.pending = self._filling or bool(self._new)
