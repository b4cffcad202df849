"""`ldmfs mount`, `umount`, `start`, `stop`, `restart`."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..consumer import tree
from ..container.settings import ConfigurationError
from ..core.errors import LdmError, NoSuchDevice, from_errno
from ..supervisor.tree import clean, supervisor_of
from .main import EXIT_FAILED, EXIT_USAGE, UsageError

if TYPE_CHECKING:  # what a supervisor is made of is imported where one is run: the other commands need not wait for it
    from ..supervisor.child import Child
    from ..supervisor.configuration import Configuration
    from ..supervisor.supervisor import Supervisor

READY = "ready\n"


def mount(root: Path | None, config: Path | None, *, background: bool, ready: int | None) -> int:
    """Run a supervisor in the foreground, or start one in the background and return when it is ready."""
    from ..supervisor.configuration import read

    configuration = read(config)
    at = chosen_root(root, configuration)
    if background:
        return _in_background(at, config)
    import trio

    from ..supervisor.supervisor import Supervisor

    logging.basicConfig(format="ldmfs: %(message)s", level=logging.INFO, stream=sys.stderr)
    return trio.run(_supervise, Supervisor(configuration, at), ready)


def chosen_root(root: Path | None, configuration: Configuration | None = None) -> Path:
    """Return the root: that of the command line, of the environment, of the configuration, or the default."""
    if root is not None:
        return root.absolute()
    if configuration is not None and configuration.system.root and "LDMFS_ROOT" not in os.environ:
        return Path(configuration.system.root).absolute()
    return tree.default_root()


def without_supervisor(root: Path) -> str:
    """Return what is to be said of a tree whose supervisor was killed."""
    return f"{root}: the supervisor was killed; containers go on, and 'ldmfs mount --root {root}' takes them over"


async def _supervise(supervisor: Supervisor, ready: int | None) -> int:
    import trio

    from ..supervisor.supervisor import describe_failures

    status = 0
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def obey_signals() -> None:
                async for _ in signals:
                    supervisor.shut_down()

            nursery.start_soon(obey_signals)
            async with trio.open_nursery() as running:
                children = await running.start(supervisor.run)
                failures = describe_failures(children)
                if ready is None:
                    # In a thread: it lists the containers, which may wait for this loop to hand on the answer to INIT.
                    await trio.to_thread.run_sync(_greet, supervisor.tree.root, children, failures)
                else:
                    _report(ready, failures, children)
                status = EXIT_FAILED if failures else 0
            nursery.cancel_scope.cancel()
    return 0 if ready is None else status


def _report(ready: int, failures: list[str], children: list[Child]) -> None:
    """Tell the process that started us how it went, and let go of its terminal."""
    usage = any(child.usage for child in children)
    with os.fdopen(ready, "w") as file:
        file.write(READY if not failures else ("usage\n" if usage else "failed\n") + "\n".join(failures) + "\n")


def _greet(root: Path, children: list[Child], failures: list[str]) -> None:
    print(f"{root} is mounted. Containers:")
    running = {child.name for child in children if child.state == "running"}
    for child in children:
        devices = "  ".join(sorted(os.listdir(root / child.name))) if child.name in running else f"({child.state})"
        print(f"  {child.name + '/':<10} {devices}")
    for failure in failures:
        print(f"ldmfs: {failure}", file=sys.stderr)
    print("Try, from another terminal:")
    for container, line in (
        ("text", f"echo hello > {root}/text/upper && cat {root}/text/upper"),
        ("clock", f"cat {root}/clock/utc"),
        ("system", f"cat {root}/system/containers"),
    ):
        if container in {*running, "system"}:
            print(f"  {line}")
    print("Ctrl-C unmounts.", flush=True)


def _in_background(root: Path, config: Path | None) -> int:
    """Start a supervisor that outlives this process; return when its containers are ready, or say which are not."""
    command = [sys.executable, "-m", "ldmfs.cli.main", "mount", "--root", str(root)]
    if config is not None:
        command += ["--config", str(config)]
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [*command, "--ready-fd", str(ours)],
        pass_fds=[ours],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    os.close(ours)
    with open(theirs, encoding="utf-8") as file:
        report = file.read()
    if not report:
        _, errors = process.communicate()
        sys.stderr.write(errors)
        return process.returncode or EXIT_FAILED
    if report == READY:
        return 0
    kind, *failures = report.splitlines()
    for failure in failures:
        print(f"ldmfs: {failure}", file=sys.stderr)
    print(f"ldmfs: the other containers run; 'ldmfs umount --root {root}' ends them", file=sys.stderr)
    return EXIT_USAGE if kind == "usage" else EXIT_FAILED


def umount(root: Path | None) -> int:
    """End the supervisor and wait until the tree is gone; clean what a killed one left, or this one if it is killed."""
    at = chosen_root(root)
    pid = supervisor_of(at)
    if pid is not None and not _terminate(at, pid):
        return umount(root)  # it has ended by itself, and another one may have taken its place
    try:
        cleaned = clean(at)
    except ConfigurationError:
        if pid is None:
            raise
        cleaned = True  # the tree is mounted again already
    if pid is None and not cleaned:
        raise UsageError(f"{at}: no tree is mounted there; 'ldmfs mount --root {at}' mounts one")
    return 0


def _terminate(root: Path, pid: int) -> bool:
    """Send SIGTERM to a supervisor, and wait for its end; tell whether it was there."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        select.select([fd], (), ())
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        raise UsageError(f"{root}: the supervisor, process {pid}, is another user's") from None
    finally:
        os.close(fd)


def command(root: Path | None, verb: str, container: str) -> int:
    """Send a command to `system/control`."""
    at = chosen_root(root)
    call(at, "system/control", f"{verb} {container}\n".encode())
    return 0


def call(root: Path, device: str, message: bytes) -> bytes:
    """Write a message to a device's file and return the reply.  Raises the `LdmError` that it fails with."""
    try:
        fd = os.open(root / device, os.O_RDWR)
    except FileNotFoundError:
        if not (root / "system").exists():
            raise UsageError(f"{root}: no tree is mounted there; 'ldmfs mount --root {root}' mounts one") from None
        raise NoSuchDevice(f"there is no device {device}") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise UsageError(without_supervisor(root)) from None
        if not isinstance(error, PermissionError):
            raise
        raise UsageError(f"{root / device}: you may not use this device; only its owner may") from None
    try:
        os.write(fd, message)
        reply = b""
        while part := os.read(fd, 1 << 20):
            reply += part
        return reply
    except OSError as error:
        raise _named(error, message) from None
    finally:
        os.close(fd)


def _named(error: OSError, message: bytes) -> LdmError | ConfigurationError:
    what = message.decode(errors="replace").strip()
    if error.errno == 2:
        return ConfigurationError(f"{what}: there is no such container")
    return from_errno(error.errno or 5, f"{what}: {error.strerror}; 'ldmfs ls' tells the reason")
