"""The template of the containers' processes: it has everything imported, and each container begins as a fork of it.

The supervisor runs one (`python -m ldmfs.container.template FD`).  On the socket that it is given, one packet asks for
a fork and brings two descriptors, the new process's control link and its log; packets of `REPORT` tell of each process
that it has begun, and later how it has ended.  No plug-in is imported here: what one does stays its container's affair.

At the end of the socket it waits for its processes, since they are its children, and ends with the last.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import struct
import sys

from . import process

REPORT = struct.Struct("<iii")
"""What is told (`BEGUN` or `ENDED`), the process, and what `waitpid` said of its end; with `BEGUN` comes its pidfd."""

BEGUN, ENDED, REFUSED = 1, 2, 3
"""`REFUSED`: there can be no more processes; in place of the process stands the errno."""

FORK = b"fork"

_FORK_FDS = 2


class Template:
    """Forks on demand, and reaps."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._selector = selectors.DefaultSelector()
        self._selector.register(end, selectors.EVENT_READ)
        self._children: dict[int, int] = {}
        self._open = True

    def run(self) -> int | None:
        """Serve until the end; in a new process, return its control link at once."""
        while self._open or self._children:
            for key, _ in self._selector.select():
                if key.fileobj is not self._end:
                    self._reap(key.fd)
                elif (link := self._take()) is not None:
                    return link
        return None

    def _take(self) -> int | None:
        try:
            packet, fds, _, _ = socket.recv_fds(self._end, len(FORK), _FORK_FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            packet, fds = b"", []
        if packet != FORK or len(fds) != _FORK_FDS:
            self._open = False
            self._selector.unregister(self._end)
            return None
        link, log = fds
        try:
            if (pid := os.fork()) == 0:
                self._become_container(log)
                return link
            self._begun(pid)
        except OSError as error:
            self._report(REFUSED, error.errno or 0)
        os.close(link)
        os.close(log)
        return None

    def _begun(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._report(BEGUN, pid, fds=[pidfd])

    def _reap(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        pid, status = os.waitpid(self._children.pop(pidfd), 0)
        self._report(ENDED, pid, status)

    def _report(self, what: int, pid: int, status: int = 0, fds: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone
            socket.send_fds(self._end, [REPORT.pack(what, pid, status)], fds or [])

    def _become_container(self, log: int) -> None:
        """Make this new process what a program is that was just started."""
        self._selector.close()
        self._end.close()
        for pidfd in self._children:
            os.close(pidfd)
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        gc.unfreeze()


def main() -> int:
    """Be a template on the socket whose descriptor stands in the arguments, and then perhaps a container."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which then stops its containers
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    gc.collect()
    gc.freeze()  # what is there now is shared between the processes as long as nobody writes to it
    link = Template(socket.socket(fileno=fd)).run()
    return 0 if link is None else process.serve_on(link)


if __name__ == "__main__":
    sys.exit(main())
