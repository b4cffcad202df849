"""Providers for the plug-in faulty to wrap: devices of every form, which note what is called."""

from __future__ import annotations

import threading
from typing import Annotated, Any

import trio

from ldmfs import Device, Doc, Kind, Provider, Request, Settings

calls: list[Any] = []
"""What was called since a test cleared it."""


class Inline(Device):
    """Plain handlers."""

    mode, uid, gid = 0o640, 7, 8
    description, takes, gives = "a description", "what it takes", "what it gives"

    def open(self, consumer_id: int) -> None:
        calls.append("open")

    def close(self, consumer_id: int) -> None:
        calls.append("close")

    def request(self, consumer_id: int, request: Request) -> bytes:
        calls.append("request")
        return b"inline"


class Async(Device):
    """Handlers that wait."""

    async def open(self, consumer_id: int) -> None:
        await trio.lowlevel.checkpoint()
        calls.append("open")

    async def close(self, consumer_id: int) -> None:
        await trio.lowlevel.checkpoint()
        calls.append("close")

    async def request(self, consumer_id: int, request: Request) -> bytes:
        await trio.lowlevel.checkpoint()
        calls.append("request")
        return b"async"


class Threaded(Device):
    """A request handler that blocks, and nothing to open or close."""

    thread = True

    def request(self, consumer_id: int, request: Request) -> bytes:
        calls.append(threading.current_thread() is not threading.main_thread())
        return b"thread"


class SampleSettings(Settings):
    """Keys of the sample."""

    word: Annotated[str, Doc("what the device `word` answers")] = "hello"


class Sample(Provider):
    """One device of each form."""

    Settings = SampleSettings

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()
        calls.append("start")
        self.create_device("inline", Inline())
        self.create_device("async", Async())
        self.create_device("thread", Threaded())
        self.create_device(
            "word", request_handler=lambda *args: self.settings.word.encode(), description="three handlers"
        )
        block = Inline()
        block.kind, block.size = Kind.BLOCK, 4096
        self.create_device("block", block)

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        calls.append("stop")
