"""The rules of block devices: others keep them by having nothing to do with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from ..core.device import Kind
from ..core.errors import NoSpace
from ..core.request import Request, RequestType
from .rules import raises
from .subject import Handle, Subject


async def what_was_written_is_read(subject: Subject) -> None:
    """Bytes written at any offset are read there, by the same and by another consumer, before and after a FLUSH."""
    if not _is_writable_block(subject):
        return
    size, places = _places(subject)
    async with _restored(subject) as handle, subject.opened() as other:
        for offset in places:
            length = min(size, subject.size - offset)
            data = os.urandom(length)
            await handle.send(Request(RequestType.WRITE, data, offset=offset))
            await _reads(handle, offset, data)
            await handle.send(Request(RequestType.FLUSH))
            await _reads(other, offset, data)
        await handle.send(Request(RequestType.WRITE, b"", offset=0))


async def a_read_ends_at_the_end(subject: Subject) -> None:
    """A READ gives fewer bytes at the device's end, and none behind it."""
    if subject.kind is not Kind.BLOCK or RequestType.READ not in subject.accepts:
        return
    async with subject.opened() as handle:
        for offset, length in (
            (subject.size - 1, 1),
            (subject.size - 1, 100),
            (subject.size, 1),
            (subject.size + 9, 9),
        ):
            data = (await handle.send(Request(RequestType.READ, offset=offset, length=length))).data
            due = max(0, min(length, subject.size - offset))
            assert len(data) == due, f"READ of {length} bytes at {offset} of {subject.size} gave {len(data)}, not {due}"


async def a_write_ends_at_the_end(subject: Subject) -> None:
    """A WRITE that would go beyond the device's end raises `NoSpace`, and the device is not longer then."""
    if not _is_writable_block(subject):
        return
    async with _restored(subject) as handle:
        for offset, length in ((subject.size, 1), (subject.size - 1, 2), (subject.size + 4096, 4096)):
            request = Request(RequestType.WRITE, bytes(length), offset=offset)
            await raises(NoSpace, handle.send(request), what=f"WRITE of {length} bytes at {offset} of {subject.size}")
    async with subject.opened() as handle:
        assert handle.size == subject.size, f"its size was {subject.size} and is {handle.size}"


async def _reads(handle: Handle, offset: int, data: bytes) -> None:
    found = bytes((await handle.send(Request(RequestType.READ, offset=offset, length=len(data)))).data)
    assert found == data, f"{len(data)} bytes at {offset} are not what was written there"


def _is_writable_block(subject: Subject) -> bool:
    return subject.writable and subject.kind is Kind.BLOCK and RequestType.WRITE in subject.accepts


def _places(subject: Subject) -> tuple[int, list[int]]:
    """Return how many bytes the rules write at a time, and where."""
    size = min(subject.size, 4096)
    return size, sorted({0, 1, subject.size // 2, subject.size - size})


@contextlib.asynccontextmanager
async def _restored(subject: Subject) -> AsyncIterator[Handle]:
    """Open a block device; at the end the places that the rules write have what they had before."""
    size, places = _places(subject)
    async with subject.opened() as handle:
        before = [(await handle.send(Request(RequestType.READ, offset=place, length=size))).data for place in places]
        kept = [(place, bytes(data)) for place, data in zip(places, before, strict=True)]
        try:
            yield handle
        finally:
            for place, data in reversed(kept):
                await handle.send(Request(RequestType.WRITE, data, offset=place))
