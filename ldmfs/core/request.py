"""Requests and replies, as every path hands them to a device's request handler."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

MAX_MESSAGE = (1 << 20) - 4096
"""The longest request of a message device through its file, in bytes.

The kernel splits a longer write at 1 MiB, or a page below it when the buffer is not aligned, and the pieces could not
be told from two requests.
"""


class RequestType(enum.IntEnum):
    """What a request asks for.  The numbers are the same in `kmod/ldm.h`."""

    READ = 1
    """Bytes from `offset`, at most `length`; for a message device whatever it has to tell."""
    WRITE = 2
    """`data` goes to `offset` of a block device."""
    CALL = 3
    """`data` is a message, the reply is its answer: what a write to a message device's file sends."""
    FLUSH = 4
    """What was written before is made durable."""
    TRIM = 5
    """`length` bytes from `offset` are no longer needed."""
    NON_STANDARD = 6
    """`object` is anything that consumer and provider agree on, by their `marshal` and `unmarshal`."""


class Request(msgspec.Struct):
    """One request of one consumer to one device.

    `data` and `metadata` are the input area of the request's parameter block; they are valid until the handler ends.
    `offset` and `length` are in bytes.  `object` belongs to NON_STANDARD requests.
    """

    type: RequestType
    data: bytes | memoryview = b""
    offset: int = 0
    length: int = 0
    metadata: bytes = b""
    object: Any = None
    place: Any = None
    """Where the data is in shared memory, for the edges: see `channel.memory.Place`."""

    def forward(self, **changes: Any) -> Request:
        """Return the request for the next hop of a chain, with some fields changed.

        It takes the next parameter block of the chain.  Data that is passed on as it is stays where it is.
        """
        place = self.place.without_data() if self.place is not None and "data" in changes else self.place
        return msgspec.structs.replace(self, place=place, **changes)

    def buffer(self, size: int) -> memoryview:
        """Return writable memory of `size` bytes for the reply's data: where the consumer reads it, if there is room.

        A handler fills it and returns it, or a slice that begins where it begins.
        """
        if self.place is not None and (buffer := self.place.output(size)) is not None:
            return buffer  # type: ignore[no-any-return]
        return memoryview(bytearray(size))


class Reply(msgspec.Struct):
    """What a request handler answers: the output area of the parameter block.

    A handler may as well return just bytes, or nothing for an empty reply.
    """

    data: bytes | bytearray | memoryview = b""
    metadata: bytes = b""
    object: Any = None
    place: Any = None
    """Where the data is in shared memory, for the edges."""


EMPTY = Reply()


def as_reply(value: object) -> Reply:
    """Return what a handler returned as a `Reply`; raise `TypeError` for what cannot be one."""
    if type(value) is bytes:
        return Reply(value)
    if value is None:
        return EMPTY
    if isinstance(value, Reply):
        if type(value.data) is bytes is type(value.metadata):
            return value
        if not isinstance(value.data, (bytes, bytearray, memoryview)):
            raise TypeError(f"the data of a Reply is bytes, not {type(value.data).__name__}")
        if not isinstance(value.metadata, bytes):
            raise TypeError(f"the metadata of a Reply is bytes, not {type(value.metadata).__name__}")
        return value if _counts_bytes(value.data) else Reply(bytes(value.data), value.metadata, value.object)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Reply(value if _counts_bytes(value) else bytes(value))
    raise TypeError(f"a request handler returns bytes, a Reply or None, not {type(value).__name__}")


def _counts_bytes(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether `len` and slices of `data` are in bytes, as they are not in a view of wider items or with gaps."""
    return not isinstance(data, memoryview) or (data.itemsize == 1 and data.ndim == 1 and data.contiguous)
