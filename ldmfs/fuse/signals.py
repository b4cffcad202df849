"""Who sends a request, and whether it is to wait no longer: what /proc tells.

A process that waits in a FUSE request can be neither interrupted nor killed before the request is answered, and pyfuse3
hands on no INTERRUPT.  So the edge looks, for a request that has become old, whether the thread that waits for it has a
signal pending.  Only `open` is told which thread that is; for a read or a flush it is found: a thread that is in a
system call on a descriptor of the device's inode, in the process that opened it or in any that got the descriptor.

Everything here reads a few lines of /proc and never a file of the mount itself, which would deadlock.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Iterator

from ..core.device import NO_SESSION, Consumer, Peer

PF_EXITING = 0x4
"""Flag of a task that is on its way out (`include/linux/sched.h`)."""

PF_KTHREAD = 0x200000
"""Flag of a thread of the kernel's own."""

_KILL_BIT = 1 << (signal.SIGKILL - 1)

_X86_64 = os.uname().machine == "x86_64"

_SHEDDING = {"436", *({"59", "322"} if _X86_64 else {"221", "281"})}
"""Numbers of close_range, execve and execveat: what a child gets rid of inherited descriptors with, in bulk."""

_CLOSE = "3" if _X86_64 else "57"

_FORKING = {"435", *({"56", "58"} if _X86_64 else {"220"})}
"""Numbers of clone3, clone and vfork, in which a thread stays whose child is on its way to another program."""


class Pending(enum.IntEnum):
    """What waits for a thread: nothing, a signal that it handles, or its end."""

    NONE = 0
    SIGNAL = 1
    FATAL = 2


def pending(tid: int) -> Pending:
    """Tell what is pending for a thread, which is FATAL for one that is gone.

    The kernel marks every thread of a process that a signal will end as having SIGKILL pending.
    """
    fields = _status(tid)
    if fields is None or fields.get("State", "?")[0] in "ZX":
        return Pending.FATAL
    own, shared, blocked = (int(fields.get(name, "0"), 16) for name in ("SigPnd", "ShdPnd", "SigBlk"))
    if own & _KILL_BIT or shared & _KILL_BIT:
        return Pending.FATAL
    return Pending.SIGNAL if (own | shared) & ~blocked else Pending.NONE


def exiting(tid: int) -> bool:
    """Tell whether a thread is exiting, a zombie, or gone."""
    stat = _stat(tid)
    return stat is None or stat[0] in "ZX" or bool(int(stat[6]) & PF_EXITING)


def is_kernel_thread(tid: int) -> bool:
    """Tell whether a thread is the kernel's own: the module ldm opens devices in such ones."""
    stat = _stat(tid)
    return stat is not None and bool(int(stat[6]) & PF_KTHREAD)


def process_of(tid: int) -> int:
    """Return the process that a thread belongs to; the thread's own number when it is gone."""
    try:
        os.close(os.pidfd_open(tid))  # takes a process's first thread only, and far less time than /proc
        return tid
    except OSError:
        fields = _status(tid)
        return int(fields["Tgid"]) if fields else tid


def session_of(tid: int) -> int:
    """Return the login session of a thread, NO_SESSION when it is gone.

    0 is a session like others: that of a leader outside this process's name space, as a command in a Docker container
    has it.
    """
    try:
        return os.getsid(tid)
    except OSError:
        return NO_SESSION


def peer_of(tid: int, uid: int, gid: int) -> Peer:
    """Return who sends a request, of which the kernel names the thread and its user and group."""
    session = session_of(tid)
    if not session and is_kernel_thread(tid):
        return Peer(0, uid, gid, path="kernel", container="kernel", tid=tid)
    return Peer(process_of(tid), uid, gid, session, tid=tid)


def waiting_on(inode: int, opener: int, openers: set[int]) -> Iterator[int]:
    """Yield the threads that are in a system call on the file of device `inode` that process `opener` opened.

    They are the opener's own, or, when none of these is, those of processes that can have got the descriptor from it:
    its descendants, or anyone once it is gone; not those of `openers`, which wait on files that they opened themselves.
    """
    own = list(_in_call_on(opener, inode))
    yield from own
    if own:
        return
    orphaned = exiting(opener)
    for pid in _processes():
        if pid not in openers and (orphaned or _descends(pid, opener)):
            yield from _in_call_on(pid, inode)


def exiting_with(opener: int) -> bool:
    """Tell whether a process is exiting that can hold a file which `opener` opened: it, or a descendant.

    One that is being killed is, and so is a child on its way to another program: what it closes is its parent's, which
    waits for it in `vfork`.
    """
    return exiting(opener) or any(_is_leaving(pid) and _descends(pid, opener) for pid in _processes())


def reader_pending(consumer: Consumer) -> Pending:
    """Tell what is pending for the thread that waits in a read or write of `consumer`'s file."""
    device, opener = consumer.device, consumer.peer.pid
    openers = {other.peer.pid for other in tuple(device.consumers.values())}
    for tid in waiting_on(device.id, opener, openers):
        found = pending(tid)
        if found is not Pending.NONE:
            return found
    return Pending.NONE


def closer_pending(consumer: Consumer) -> Pending:
    """Tell what is pending for who waits in a `close` of `consumer`'s file."""
    opener = consumer.peer.pid
    return Pending.FATAL if exiting_with(opener) else pending(opener)


def _in_call_on(pid: int, inode: int) -> Iterator[int]:
    fds: set[int] = set()
    for tid in _threads(pid):
        call = _read(f"/proc/{pid}/task/{tid}/syscall")
        if call is None or not call[0].isdigit():  # "running", or not ours to see
            continue
        # The thread's own list: that of a process is empty as soon as its first thread has ended.
        fds = fds or _descriptors(pid, tid, inode)
        if fds and int(call.split()[1], 16) in fds:
            yield tid


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        stat = _stat(pid)
        if stat is None:
            return False
        pid = int(stat[1])
    return False


def _is_leaving(pid: int) -> bool:
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return False
    return bool(int(stat[6]) & PF_EXITING) or _is_shedding(pid) or pending(pid) is Pending.FATAL


def _is_shedding(pid: int) -> bool:
    """Tell whether a process gets rid of what it has inherited: in bulk, or one by one before its parent goes on."""
    number = (_read(f"/proc/{pid}/syscall") or "").partition(" ")[0]
    if number == _CLOSE and (stat := _stat(pid)) is not None:
        parent = int(stat[1])
        calls = (_read(f"/proc/{parent}/task/{tid}/syscall") or "" for tid in _threads(parent))
        return any(call.partition(" ")[0] in _FORKING for call in calls)
    return number in _SHEDDING


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _descriptors(pid: int, tid: int, inode: int) -> set[int]:
    """Return the descriptors of a thread that are of `inode`, by what `fdinfo` says since Linux 5.14."""
    found: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/task/{tid}/fdinfo")
    except OSError:
        return found
    wanted = f"ino:\t{inode}\n"
    for name in names:
        text = _read(f"/proc/{pid}/task/{tid}/fdinfo/{name}")
        if text and wanted in text:
            found.add(int(name))
    return found


def _stat(tid: int) -> list[str] | None:
    """Return the fields of a thread's `stat` from the third on: state, parent, ..., at 6 its flags."""
    line = _read(f"/proc/{tid}/stat")
    return None if line is None else line[line.rindex(")") + 2 :].split()


def _status(tid: int) -> dict[str, str] | None:
    text = _read(f"/proc/{tid}/status")
    if text is None:
        return None
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read() or None
    except OSError:
        return None
