# SPDX-License-Identifier: GPL-2.0-only
"""A guest: a machine of qemu's that boots a kernel, runs one command and is gone.

It sees the host's files, at the same paths, and can write over them without the host seeing that.  One directory, the
share, is at `/run/vm` in the guest and is the host's own.  Nothing is shared between guests, so any number can run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .kernel import HERE, REPOSITORY, Kernel, VmError
from .reports import Report, reports

ACCELERATOR = os.environ.get("VM_ACCELERATOR", "tcg,thread=multi")
"""How qemu runs the guest: `kvm` is faster where it works."""

LIMIT = 300.0
"""Seconds that a command may take."""

GRACE = 600.0
"""Seconds that a guest has on top of it to boot, to look for leaks and to go down."""

CPUS = 2
MEMORY = "1G"

OPTIONS = (
    *("console=ttyS0", "quiet", "panic=-1", "oops=panic", "log_buf_len=4M", "printk.devkmsg=on"),
    *("mitigations=off", "nokaslr", "tsc=reliable"),  # which only make emulation slow
    "no_timer_check",  # which counts ticks at boot, and panics where the host gave no time for them
    *("watchdog_thresh=60", "workqueue.watchdog_thresh=120", "rcupdate.rcu_cpu_stall_timeout=120"),
)
"""For the command line of every kernel.  A busy host may keep an emulated processor waiting for long."""

TAIL = 40
"""Lines of the console that are told of a guest that died."""

TAINTS = {5: "bad page", 7: "oops", 9: "warning", 14: "soft lockup"}
"""Bits of /proc/sys/kernel/tainted that a sound module never sets."""


class Outcome(NamedTuple):
    """What a guest has left."""

    status: int | None
    """Of the command; None when it has not ended."""
    why: str
    """Why it has not: panic, or time limit."""
    output: str
    messages: str
    """The kernel's, from the start of the command on."""
    reports: list[Report]
    """What the kernel has found wrong."""

    def check(self) -> None:
        """Raise `AssertionError` unless the command ended with status 0 and the kernel has nothing to report."""
        assert self.status is not None, f"{self.why}\n{_tail(self.messages)}\n{_tail(self.output)}"
        assert self.status == 0, f"exit status {self.status}\n{self.output}"
        assert not self.reports, "\n".join(report.text for report in self.reports)


def run(kernel: Kernel, command: str, share: Path | None = None, limit: float = LIMIT) -> Outcome:
    """Boot a guest, run a command of the shell in it with the repository as its directory, and return what it left.

    `share` is the share, whose files `start`, `command`, `initrd`, `output`, `status`, `dmesg`, `tainted`, `leaks` and
    `console` are this function's; without it the run has one of its own.
    """
    with contextlib.ExitStack() as stack:
        if share is None:
            share = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ldmfs-vm-")))
        _prepare(kernel, command, share, limit)
        console = share / "console"
        timed_out = False
        with _machine(kernel, share, f"file:{console}") as machine:
            try:
                machine.wait(limit + GRACE)
            except subprocess.TimeoutExpired:
                timed_out = True
        return _outcome(share, timed_out, machine.returncode)


def shell(kernel: Kernel, command: str) -> int:
    """Boot a guest whose console is this terminal, run a command in it and return its status."""
    with tempfile.TemporaryDirectory(prefix="ldmfs-vm-") as name:
        share = Path(name)
        _prepare(kernel, command, share, limit=None)
        with _machine(kernel, share, "mon:stdio") as machine:
            machine.wait()
        return int(_text(share / "status") or 1)


# -- before


def _prepare(kernel: Kernel, command: str, share: Path, limit: float | None) -> None:
    for name in ("output", "status", "dmesg", "tainted", "leaks", "console"):
        (share / name).unlink(missing_ok=True)
    (share / "command").write_text(f"{command}\n")
    settings = f"DIRECTORY={shlex.quote(str(REPOSITORY))} LIMIT={limit or 0:.0f} CONSOLE={int(limit is None)}"
    (share / "start").write_text(f"{settings}\n. {shlex.quote(str(HERE / 'start.sh'))}\n")
    (share / "initrd").write_bytes(_initramfs(kernel))


def _initramfs(kernel: Kernel) -> bytes:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise VmError("a guest needs the package busybox-static")
    files = {"init": (HERE / "init").read_bytes(), "bin/busybox": Path(busybox).read_bytes()}
    files |= {f"modules/{module.name}": module.read_bytes() for module in kernel.modules}
    parts = [_entry(name, 0o040755, b"") for name in ("bin", "dev", "modules", "proc", "sys")]
    parts += [_entry(name, 0o100755, data) for name, data in files.items()]
    return b"".join([*parts, _entry("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, data: bytes) -> bytes:
    """Return a file of a cpio archive in the format `newc` (Documentation/driver-api/early-userspace)."""
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


@contextlib.contextmanager
def _machine(kernel: Kernel, share: Path, serial: str) -> Iterator[subprocess.Popen[bytes]]:
    # A kernel without ACPI finds its processors in the table that qemu makes of sockets only.
    if shutil.which("qemu-system-x86_64") is None:
        raise VmError("a guest needs the package qemu-system-x86")
    command = [
        *("setpriv", "--pdeathsig", "KILL"),  # no guest without its owner
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "pc", "-accel", ACCELERATOR, "-cpu", "max", "-m", MEMORY),
        *("-smp", f"{CPUS},sockets={CPUS},cores=1,threads=1", "-serial", serial),
        *("-kernel", str(kernel.image), "-initrd", str(share / "initrd"), "-append", _command_line(kernel)),
        *_files("root", Path("/"), "readonly=on,multidevs=remap"),
        *_files("share", share, "multidevs=remap"),
    ]
    stdin = subprocess.DEVNULL if serial.startswith("file:") else None
    with subprocess.Popen(command, stdin=stdin) as machine:
        try:
            yield machine
        finally:
            machine.kill()


def _files(tag: str, directory: Path, options: str) -> list[str]:
    where = str(directory).replace(",", ",,")
    return [
        *("-fsdev", f"local,id={tag},path={where},security_model=none,{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


def _command_line(kernel: Kernel) -> str:
    """Return the kernel's command line."""
    return " ".join([*OPTIONS, *kernel.options])


# -- after


def _outcome(share: Path, timed_out: bool, qemu_status: int) -> Outcome:
    status, console = _text(share / "status").strip(), _text(share / "console")
    messages = _since_begin(_text(share / "dmesg") or console)
    found = reports(messages, _text(share / "leaks"))
    tainted = int(_text(share / "tainted").strip() or 0)
    if not found:
        found = [Report(None, f"the kernel is tainted: {what}") for bit, what in TAINTS.items() if tainted >> bit & 1]
    if status.isdigit():
        return Outcome(int(status), "", _text(share / "output"), messages, found)
    if status:
        why = status
    elif timed_out:
        why = "time limit: the guest does nothing any more"
    elif "Kernel panic" in console:
        why = "kernel panic"
    else:
        why = f"the guest left no status; qemu's is {qemu_status}"
    return Outcome(None, why, _text(share / "output"), messages, found)


def _since_begin(messages: str) -> str:
    head, begin, rest = messages.partition("vm: begin\n")
    return rest if begin else head


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-TAIL:])
