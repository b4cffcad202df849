"""The plug-in `chaos`: the devices under load.  Each tells of its consumers in the file `log`.

plain async thread      give back a message, reversed, by each kind of handler; a message `wait...` takes its time
block                   a block device, kept in a file
tally                   takes the numbers 1, 2, 3, ... of each client, once each, and commits them
"""

from __future__ import annotations

import os
import time

import trio

from ldmfs import Device, InvalidRequest, Kind, Provider, Request, RequestType, Settings

NOTHING = b"nothing was sent"
"""What a READ gives."""

BLOCK_BYTES = 1 << 20
SLOW_SECONDS = 0.003


class ChaosSettings(Settings):
    """Keys of `[container.chaos]`."""

    log: str
    block: str
    """The file of the block device."""


class Chaos(Provider):
    """The devices."""

    Settings = ChaosSettings
    settings: ChaosSettings

    def start(self) -> None:
        for name, kind in (("plain", Plain), ("async", Async), ("thread", Thread), ("block", Block), ("tally", Tally)):
            self.create_device(name, kind(self, name))

    def tell(self, device: str, what: str, consumer_id: int) -> None:
        line = f"{self.container.name}/{device} {what} {consumer_id} {os.getpid()}\n"
        with open(self.settings.log, "ab", buffering=0) as file:  # one write, with O_APPEND
            file.write(line.encode())


class Recorded(Device):
    """Tells of its consumers."""

    def __init__(self, chaos: Chaos, name: str) -> None:
        self.chaos = chaos
        self.name = name

    def open(self, consumer_id: int) -> None:
        self.chaos.tell(self.name, "open", consumer_id)

    def adopt(self, consumer_id: int) -> None:
        self.chaos.tell(self.name, "adopt", consumer_id)

    def close(self, consumer_id: int) -> None:
        self.chaos.tell(self.name, "close", consumer_id)


def reply_to(request: Request) -> bytes:
    if request.type is RequestType.READ:
        return NOTHING
    if request.type is not RequestType.CALL:
        raise InvalidRequest("send a CALL")
    return bytes(request.data)[::-1]


class Plain(Recorded):
    """A plain handler."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return reply_to(request)


class Async(Recorded):
    """One that waits, and whose open and close handlers wait."""

    async def open(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().open(consumer_id)
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:  # of which nobody hears again
            super().close(consumer_id)
            raise

    async def close(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().close(consumer_id)

    async def request(self, consumer_id: int, request: Request) -> bytes:
        if bytes(request.data[:4]) == b"wait":
            await trio.sleep(SLOW_SECONDS)
        await trio.lowlevel.checkpoint()
        return reply_to(request)


class Thread(Recorded):
    """One in a thread, as are its open and its close handler."""

    thread = True

    def request(self, consumer_id: int, request: Request) -> bytes:
        if bytes(request.data[:4]) == b"wait":
            time.sleep(SLOW_SECONDS)
        return reply_to(request)


class Block(Recorded):
    """What was written is in a file, so that it is there after a kill."""

    kind = Kind.BLOCK
    size = BLOCK_BYTES

    def __init__(self, chaos: Chaos, name: str) -> None:
        super().__init__(chaos, name)
        self.fd = os.open(chaos.settings.block, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(self.fd, self.size)

    async def request(self, consumer_id: int, request: Request) -> bytes:
        await trio.lowlevel.checkpoint()
        if request.type is RequestType.READ:
            return os.pread(self.fd, request.length, request.offset)
        if request.type is RequestType.WRITE:
            os.pwrite(self.fd, request.data, request.offset)
        return b""


class Tally(Recorded):
    """A request `CLIENT NUMBER` is done once, and repeated any number of times; the reply is the number."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        client, _, number = bytes(request.data).decode().partition(" ")
        with self.chaos.state.transaction() as transaction:
            done = int(transaction.get(client) or 0)
            if number and int(number) not in (done, done + 1):
                raise InvalidRequest(f"{client} sent {number} after {done}")
            if number:
                transaction.put(client, number.encode())
        return number.encode() or b"%d" % done
