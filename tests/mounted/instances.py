"""Instances of one container, started and ended by the test: what a supervisor does at an upgrade, and no more.

Run as a program it is such an instance: it waits for a line before it takes over, serves a container with the devices
of `Things`, and for each line with a number hands over within so many seconds and ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from ldmfs import Device, Kind, LdmError, Provider, Request, RequestType
from ldmfs.channel.address import listen
from ldmfs.consumer.tree import channel_socket
from ldmfs.container import state
from ldmfs.container.host import Container
from ldmfs.container.process import hosting, serving
from ldmfs.container.state import SharedState
from ldmfs.fuse.mount import Connection

from .waiting import SECONDS

BOX = "box"
FIRST_IDS = 1 << 32


class Instances:
    """A mount, and the instances behind it, one after the other; `log` is where devices tell of their consumers."""

    def __init__(self, base: Path, *, reissue: bool = False) -> None:
        self.root = base / "ldm"
        self.path = self.root / BOX
        self.log = base / "events"
        self.gate = base / "gate"
        self.log.touch()
        self.path.mkdir(parents=True)
        at = channel_socket(self.root, BOX)
        at.parent.mkdir(parents=True)
        self.listener = listen(at)
        self.connection = Connection.mount(self.path)
        self.state_fd = state.create()
        self.reissue = reissue
        self.started = 0
        self.serving = -1
        """The place of the instance that serves among the processes."""
        self.processes: list[subprocess.Popen[str]] = []
        for _ in range(2):
            self.spawn()

    def spawn(self) -> subprocess.Popen[str]:
        """Start a process, which waits until it is to take over.

        The new process closes its copies of this one's files, and each close of a device's file waits for the request
        that runs: so the first two are started beforehand.
        """
        device = self.connection.device(reissue=self.reissue)
        fds = self.connection.fd, device, self.listener.fileno(), self.state_fd
        first_id = self.started * FIRST_IDS + 1
        self.started += 1
        arguments = [*map(str, fds), str(self.root), str(first_id), str(int(self.reissue)), str(self.gate)]
        process = subprocess.Popen(
            [sys.executable, "-m", "mounted.instances", *arguments, self.connection.init.hex()],
            pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent.parent, env={**os.environ, "EVENTS": str(self.log)},
        )  # fmt: skip
        os.close(device)
        self.processes.append(process)
        return process

    def activate(self) -> subprocess.Popen[str]:
        """Let the process that waits take over; return it when it serves."""
        self.serving += 1
        process = self.processes[self.serving]
        tell(process, "go")
        assert told(process) == "ready"
        return process

    @property
    def current(self) -> subprocess.Popen[str]:
        return self.processes[self.serving]

    def upgrade(self, seconds: float = SECONDS) -> None:
        """Let the instance that serves hand over to the one that waits."""
        process = self._with_next()
        with self._or_end():
            tell(process, str(seconds))
            assert told(process) == "handed over"
            self._end(process)
            if self.reissue and self.connection.can_resend:
                self.connection.resend()
            self.activate()

    @contextlib.contextmanager
    def _or_end(self) -> Iterator[None]:
        """End the connection where something goes wrong: the test waits in it, and nobody would answer any more."""
        try:
            yield
        except BaseException:
            for process in self.processes:
                process.kill()
            self.connection.unmount()
            raise

    def kill(self) -> None:
        """Kill the instance that serves, and let the next one take over."""
        process = self._with_next()
        process.kill()
        self._end(process)
        if self.reissue and self.connection.can_resend:
            self.connection.resend()
        self.activate()

    def _with_next(self) -> subprocess.Popen[str]:
        """Return the instance that serves; one that waits is there, too."""
        if self.serving == len(self.processes) - 1:
            self.spawn()
        return self.current

    def events(self, name: str) -> list[tuple[str, int]]:
        """Return what has happened to a device: what, and to which consumer."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(what, int(number)) for device, what, number in lines if device == name]

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.wait(SECONDS)
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()

    def close(self) -> None:
        """End everything, in order where the test got so far."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                self._end(process)
            except subprocess.TimeoutExpired:
                process.kill()
                self._end(process)
        if self.connection.fd >= 0:
            self.connection.unmount()
        self.listener.close()
        os.close(self.state_fd)


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Send a line to an instance."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> str:
    """Return the next line of an instance."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@contextlib.contextmanager
def instances(base: Path, *, reissue: bool = False) -> Iterator[Instances]:
    """Give a container that is being served."""
    made = Instances(base, reissue=reissue)
    try:
        made.activate()
        yield made
    finally:
        made.close()


# -- the instance


class Told(Device):
    """A device that tells of its consumers, and adopts them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def tell(self, what: str, number: int) -> None:
        with open(os.environ["EVENTS"], "a", encoding="utf-8") as file:
            file.write(f"{self.name} {what} {number}\n")

    def open(self, consumer_id: int) -> None:
        self.tell("open", consumer_id)

    def adopt(self, consumer_id: int) -> None:
        self.tell("adopt", consumer_id)

    def close(self, consumer_id: int) -> None:
        self.tell("close", consumer_id)


class Shout(Told):
    """Gives a message in upper case; a READ gives the process's number."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        if request.type is RequestType.READ:
            return b"%d" % os.getpid()
        return bytes(request.data).upper()


class AsyncShout(Shout):
    """The same, by an `async` handler that takes a few turns of the loop."""

    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        for _ in range(len(request.data) % 5):
            await trio.lowlevel.checkpoint()
        return super().request(consumer_id, request)


class ThreadShout(Shout):
    """The same, in a thread."""

    thread = True


class Gate(Told):
    """Waits until there is the file `gate`."""

    def __init__(self, name: str, gate: str) -> None:
        super().__init__(name)
        self.gate = gate

    async def request(self, consumer_id: int, request: Request) -> bytes:
        self.tell("start", consumer_id)
        while not os.path.exists(self.gate):
            await trio.sleep(0.005)
        return bytes(request.data).upper()


class Counter(Told):
    """Counts its requests over all instances: each is carried out once, or this tells."""

    def __init__(self, name: str, provider: Provider) -> None:
        super().__init__(name)
        self.state = provider.state

    async def request(self, consumer_id: int, request: Request) -> bytes:
        await trio.lowlevel.checkpoint()

        def count(transaction: Any) -> int:
            number = int(transaction.get(self.name) or b"0") + 1
            transaction.put(self.name, b"%d" % number)
            return number

        return b"%d" % self.state.update(count)


class Disk(Told):
    """A block device that has a known byte at each offset."""

    kind = Kind.BLOCK
    size = 1 << 20

    async def request(self, consumer_id: int, request: Request) -> bytes:
        await trio.lowlevel.checkpoint()
        return disk_bytes(request.offset, request.length) if request.type is RequestType.READ else b""


def disk_bytes(offset: int, length: int) -> bytes:
    """Return what is on the disk."""
    return bytes(number % 251 for number in range(offset, offset + length))


class Keeping(Told):
    """Knows its consumers and adopts none."""

    adopt = Device.adopt  # type: ignore[assignment]

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data)


class Refusing(Told):
    """Refuses every request."""

    async def request(self, consumer_id: int, request: Request) -> bytes:
        raise LdmError("as it was asked for", errno=int(bytes(request.data)))


class Things(Provider):
    """The devices."""

    gate = ""

    def start(self) -> None:
        for device in (Shout("shout"), AsyncShout("async"), ThreadShout("thread"), Gate("gate", self.gate),
                       Counter("count", self), Keeping("keeping"), Disk("disk"), Refusing("refuse")):  # fmt: skip
            self.create_device(device.name, device)


async def serve(
    fuse_fd: int, device: int, listener_fd: int, state_fd: int, root: Path, first: int, reissue: bool, init: bytes
) -> None:
    """Be an instance."""
    shared = SharedState(state_fd)
    container = Container(BOX, first, root, shared, reissue=reissue)
    listener = socket.socket(fileno=listener_fd)
    async with (
        hosting(container, [Things(container, "things")]),
        serving(container, Connection(root / BOX, fuse_fd, init), device, listener) as service,
    ):
        print("ready", flush=True)
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if line:
            await service.hand_over(float(line))
    if line:
        print("handed over", flush=True)


def main() -> None:
    """Wait until it is to take over."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    fds, (root, first, reissue, gate, init) = map(int, sys.argv[1:5]), sys.argv[5:]
    Things.gate = gate
    if sys.stdin.readline():
        trio.run(serve, *fds, Path(root), int(first), bool(int(reissue)), bytes.fromhex(init))


if __name__ == "__main__":
    main()
