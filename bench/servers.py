"""Starting what answers requests, sending requests to it, and ending it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LDMFS = (sys.executable, "-m", "ldmfs.cli.main")
CONTENDERS = HERE / "contenders"

START_SECONDS, STOP_SECONDS, JOB_SECONDS = 60, 10, 120


class Setup:
    """What a measurement is given: a directory of its own, the CPUs, and whether it is to be short."""

    def __init__(self, directory: Path, *, quick: bool = False) -> None:
        self.directory = directory
        self.quick = quick
        self.cpus = sorted(os.sched_getaffinity(0))
        self._names = 0

    def new_directory(self) -> Path:
        """Return a new empty directory."""
        self._names += 1
        path = self.directory / str(self._names)
        path.mkdir()
        return path


class BenchError(Exception):
    """Something that was to be measured did not work; the message says what."""


@contextlib.contextmanager
def spawned(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process in a session of its own, which Ctrl-C does not reach; end it when the context ends."""
    process = subprocess.Popen([str(part) for part in command], start_new_session=True, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def plain(command: Sequence[str | Path], directory: Path) -> Iterator[int]:
    """Run a contender that mounts itself at `directory`; yields its process."""
    with spawned([*command, directory], stdout=subprocess.DEVNULL) as process:
        try:
            _wait_for_mount(process, directory)
            yield process.pid
        finally:
            detach(directory)  # ends the session loop, and with it the process
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


@contextlib.contextmanager
def tree(setup: Setup, configuration: str) -> Iterator[Path]:
    """Run a supervisor with its containers; yields the root when they are ready.

    It is a child of this process, and tells that it is ready as it does to `ldmfs mount --background`.
    """
    root, file = setup.new_directory() / "root", setup.new_directory() / "bench.toml"
    file.write_text(configuration)
    theirs, ours = os.pipe()
    command: list[str | Path] = [*LDMFS, "mount", "--root", root, "--config", file, "--ready-fd", str(ours)]
    try:
        with spawned(command, stdout=subprocess.DEVNULL, pass_fds=[ours]):
            os.close(ours)
            report = _report(theirs)
            if report != "ready\n":
                raise BenchError(f"ldmfs mount did not come up: {report.strip() or 'it told nothing'}")
            yield root
    finally:
        os.close(theirs)
        take_down(root)


def _report(pipe: int) -> str:
    """Return what a supervisor told of its start, nothing when it did not in `START_SECONDS`."""
    told = b""
    while select.select([pipe], [], [], START_SECONDS)[0] and (part := os.read(pipe, 1 << 16)):
        told += part
    return told.decode(errors="replace")


@contextlib.contextmanager
def provider(setup: Setup, file: Path, setting: str, devices: int) -> Iterator[tuple[Path, int]]:
    """Run a provider by hand, without a supervisor; yields its directory and process when it has made its devices."""
    root = setup.new_directory()
    try:
        with spawned(
            [*LDMFS, "run", file, "--set", setting, "--root", root], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            told = sum(1 for _, _ in zip(range(devices), process.stdout, strict=False))  # it prints each device's path
            if told != devices:
                raise BenchError(f"ldmfs run did not come up: {_errors(process)}")
            yield root / file.stem, process.pid
    finally:
        detach_below(root)


def pid_of(root: Path, container: str) -> int:
    """Return the process of a container, as the graph of the tree tells it."""
    graph = json.loads((root / "system" / "graph").read_bytes())
    return next(int(each["pid"]) for each in graph["containers"] if each["name"] == container)


def pin(pid: int, cpus: Sequence[int]) -> None:
    """Let all threads of a process run on these CPUs only."""
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(tid), cpus)


def consumer(**job: Any) -> list[str]:
    """Return the command of a consumer: an interpreter without site packages, whatever else is installed."""
    return [sys.executable, "-I", "-S", str(HERE / "consumer.py"), json.dumps(job)]


def consume(**job: Any) -> Any:
    """Run a consumer to its end and return what it measured."""
    return _result("the consumer", consumer(**job))


def call(name: str, addresses: Sequence[str], cpus: Sequence[int], operations: Sequence[tuple[str, int, int]]) -> Any:
    """Run a caller (`caller.py`) to its end and return what it measured."""
    job = {"name": name, "addresses": addresses, "cpus": cpus, "operations": operations}
    return _result(f"the caller of {name}", [sys.executable, "-m", "bench.caller", json.dumps(job)])


def _result(who: str, command: list[str]) -> Any:
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, start_new_session=True, capture_output=True, text=True, timeout=JOB_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BenchError(f"{who} did not end in {JOB_SECONDS} s") from None
    if done.returncode:
        raise BenchError(f"{who} failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(done.stdout)


def run_ldmfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of ldmfs to its end."""
    command = [*LDMFS, *map(str, arguments)]
    return subprocess.run(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        timeout=START_SECONDS, check=False,
    )  # fmt: skip


def take_down(root: Path) -> None:
    """End the supervisor of a tree, if there still is one, and take away what is mounted."""
    if mounts_below(root):
        run_ldmfs("umount", "--root", root)
        detach_below(root)


def detach_below(directory: Path) -> None:
    """Take away every mount at and below a directory."""
    for path in mounts_below(directory):
        detach(path)


def detach(directory: Path) -> None:
    """Take a mount away, lazily: who uses it gets errors from then on.  Nothing is done where there is none."""
    if directory in mounts_below(directory):
        command = ["umount", "-l"] if os.geteuid() == 0 else [shutil.which("fusermount3") or "fusermount3", "-uzq"]
        subprocess.run([*command, str(directory)], stderr=subprocess.DEVNULL, check=False)


def mounts_below(directory: Path) -> list[Path]:
    """Return the mounts at and below a directory, the latest first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        paths = [Path(line.split()[4]) for line in file]
    return [path for path in reversed(paths) if path == directory or directory in path.parents]


def _wait_for_mount(process: subprocess.Popen[str], directory: Path) -> None:
    for _ in range(START_SECONDS * 50):
        if directory in mounts_below(directory):
            os.stat(directory / "echo")
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            break
    raise BenchError(f"a contender ended or did not mount: {process.args!r}")


def _errors(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    process.terminate()
    return process.stderr.read().strip()
