"""The plug-ins that the mounted tests use.

`probe` has one device at its start, `factory`, which makes the devices that a test wants while the container runs:

    create KIND NAME        one of `KINDS`, empty at its start
    destroy NAME            as a provider does it
    release NAME            let the requests of a gate end, from now on

What happens to a device is written to the file `log`, a line each: its name, what happened, the consumer id.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from ldmfs import Device, InvalidRequest, Kind, LdmError, Provider, Request, RequestType, Settings

BLOCK_BYTES = 64 << 10


class Logged(Device):
    """A device that tells of its consumers."""

    description = "a device to try"
    takes = "anything"
    gives = "what the test wants"

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        self.tell = tell

    def open(self, consumer_id: int) -> None:
        self.tell("open", consumer_id)

    def close(self, consumer_id: int) -> None:
        self.tell("close", consumer_id)


class Echo(Logged):
    """Gives back what it got; a READ gives `read N`, N being counted."""

    reads = 0

    def request(self, consumer_id: int, request: Request) -> bytes:
        if request.type is RequestType.CALL:
            return bytes(request.data)
        self.reads += 1
        return f"read {self.reads}\n".encode()


class AsyncEcho(Echo):
    """The same, by an `async` handler."""

    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        return super().request(consumer_id, request)


class ThreadEcho(Echo):
    """The same, in a thread."""

    thread = True


class Gate(Logged):
    """An `async` handler that waits until it is released; a request `now...` does not wait."""

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        super().__init__(tell)
        self.released = trio.Event()

    def release(self) -> None:
        self.released.set()

    async def request(self, consumer_id: int, request: Request) -> bytes:
        self.tell("start", consumer_id)
        try:
            if not bytes(request.data).startswith(b"now"):
                await self.released.wait()
        except trio.Cancelled:
            self.tell("cancelled", consumer_id)
            raise
        self.tell("done", consumer_id)
        return bytes(request.data) or b"read\n"


class ThreadGate(Logged):
    """A blocking handler in a thread that waits until it is released."""

    thread = True

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        super().__init__(tell)
        self.released = threading.Event()

    def release(self) -> None:
        self.released.set()

    def request(self, consumer_id: int, request: Request) -> bytes:
        self.tell("start", consumer_id)
        self.released.wait()
        self.tell("done", consumer_id)
        return bytes(request.data)


class Fail(Logged):
    """A plain handler that raises what a request names: `ldm ERRNO`, `error`, `exit`, `keyboard` or `type`."""

    def request(self, consumer_id: int, request: Request) -> object:
        what, _, number = bytes(request.data).decode().partition(" ")
        if what == "ldm":
            raise LdmError("as it was asked for", errno=int(number))
        if what == "error":
            raise ZeroDivisionError("a bug of this provider")
        if what == "exit":
            raise SystemExit(3)
        if what == "keyboard":
            raise KeyboardInterrupt
        return 42 if what == "type" else bytes(request.data)


class AsyncFail(Fail):
    """An `async` one."""

    async def request(self, consumer_id: int, request: Request) -> object:
        await trio.lowlevel.checkpoint()
        return super().request(consumer_id, request)


class ThreadFail(Fail):
    """One in a thread."""

    thread = True


class Zeros(Logged):
    """Gives as many bytes as the request says, 0, 1, 2, ... of them."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return (bytes(range(256)) * (int(bytes(request.data)) // 256 + 1))[: int(bytes(request.data))]


class Memory(Logged):
    """A block device in memory."""

    kind = Kind.BLOCK
    size = BLOCK_BYTES

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        super().__init__(tell)
        self.memory = bytearray(self.size)

    async def request(self, consumer_id: int, request: Request) -> bytes:
        await trio.lowlevel.checkpoint()
        begin = request.offset
        if request.type is RequestType.READ:
            return bytes(self.memory[begin : begin + request.length])
        if request.type is RequestType.WRITE:
            self.memory[begin : begin + len(request.data)] = request.data
        elif request.type is RequestType.FLUSH:
            self.tell("flush", consumer_id)
        return b""


class Refusing(Logged):
    """Lets nobody open it."""

    def open(self, consumer_id: int) -> None:
        raise LdmError("nobody may", errno=13)

    def request(self, consumer_id: int, request: Request) -> None:
        """Never called."""


KINDS: dict[str, type[Logged]] = {
    "echo": Echo, "async": AsyncEcho, "thread": ThreadEcho, "gate": Gate, "threadgate": ThreadGate, "fail": Fail,
    "asyncfail": AsyncFail, "threadfail": ThreadFail, "zeros": Zeros, "block": Memory, "refusing": Refusing,
}  # fmt: skip


class Keeper(Gate):
    """A gate that takes over its consumers, and waits until the file `released` is there."""

    def __init__(self, tell: Callable[[str, int], None], released: Path) -> None:
        super().__init__(tell)
        self.file = released

    def adopt(self, consumer_id: int) -> None:
        self.tell("adopt", consumer_id)

    async def request(self, consumer_id: int, request: Request) -> bytes:
        self.tell("start", consumer_id)
        while not self.file.exists():
            await trio.sleep(0.01)
        return b"kept " + bytes(request.data)


class Tally(Device):
    """Counts its requests for as long as the tree is there; a request `end` ends the process behind its commit."""

    def __init__(self, probe: Probe) -> None:
        self.state = probe.state

    def request(self, consumer_id: int, request: Request) -> bytes:
        with self.state.transaction() as transaction:
            count = int(transaction.get("count") or 0) + 1
            transaction.put("count", b"%d" % count)
        if request.data == b"end":
            os._exit(9)
        return b"%d" % count


class Factory(Device):
    """Makes and unmakes devices."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def request(self, consumer_id: int, request: Request) -> bytes:
        verb, *words = bytes(request.data).decode().split()
        {"create": self.create, "destroy": self.probe.destroy_device, "release": self.release}[verb](*words)
        return b"ok"

    def create(self, kind: str, name: str) -> None:
        if kind not in KINDS:
            raise InvalidRequest(f"there is no kind {kind}")
        device = self.probe.made[name] = KINDS[kind](lambda what, consumer: self.probe.tell(name, what, consumer))
        self.probe.create_device(name, device)

    def release(self, name: str) -> None:
        device = self.probe.made[name]
        assert isinstance(device, (Gate, ThreadGate))
        device.release()


class ProbeSettings(Settings):
    """Keys of `[container.probe]`."""

    log: str
    meet: int = 0
    """How many containers have to be starting before this one has started."""
    crash: str = ""
    """A file: where it exists, the process says its last words and ends."""
    stuck: bool = False
    """The provider does not stop."""
    keeps: str = ""
    """Make the devices `keeper`, `loser` and `tally` at the start; the file that releases `keeper`."""


class Probe(Provider):
    """Devices for tests."""

    Settings = ProbeSettings
    settings: ProbeSettings

    async def start(self) -> None:
        self.made: dict[str, Device] = {}
        self.tell("-", "starting", os.getpid())
        if self.settings.crash and Path(self.settings.crash).exists():
            print("these are its last words", flush=True)
            os._exit(7)
        with trio.fail_after(30):
            while Path(self.settings.log).read_text().count("- starting") < self.settings.meet:
                await trio.sleep(0.01)
        self.create_device("factory", Factory(self))
        if self.settings.keeps:
            self.create_device("keeper", Keeper(self._teller("keeper"), Path(self.settings.keeps)))
            self.create_device("loser", Echo(self._teller("loser")))
            self.create_device("tally", Tally(self))

    def _teller(self, name: str) -> Callable[[str, int], None]:
        return lambda what, consumer: self.tell(name, what, consumer)

    async def stop(self) -> None:
        self.tell("-", "stopping", os.getpid())
        if self.settings.stuck:
            await trio.sleep_forever()

    def tell(self, name: str, what: str, number: int) -> None:
        with open(self.settings.log, "a", encoding="utf-8") as file:  # one write with O_APPEND, also from threads
            file.write(f"{name} {what} {number}\n")
