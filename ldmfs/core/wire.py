"""Frames of the direct channel: the one definition of what is in them.

A frame is one packet of a `SOCK_SEQPACKET` socket: a header, then `data_size` bytes of data, then `metadata_size` bytes
of metadata.  Numbers are little endian and naturally aligned.  Fields that a kind does not use are 0 and not looked at.

    kind        from      id  other fields                      data                       metadata
    HELLO       consumer                                        GREETING, container name
    WELCOME     provider                                        GREETING, container name
    OPEN        consumer  *   flags                             device name                call chain, joined by NUL
    OPENED      provider  *   consumer_id                       OPENED
    CLOSE       consumer  *   consumer_id
    CLOSED      provider  *   consumer_id
    REQUEST     consumer  *   consumer_id type offset length    input data                 input metadata
                              flags arena block blocks
    REPLY       provider  *   flags status                      output data, or message    output metadata
    CANCEL      consumer  *
    ARENA       consumer      arena blocks length
    MEMORY      consumer      arena                             (and the arena's descriptor)
    ARENA_GONE  both          arena
    ERROR       both          status                            message
    CONTINUE    both      *                                     the next piece
    MOVING      provider  *   flags

MEMORY follows ARENA at once.  It is the only frame with a descriptor, so that the provider need not ask for one with
each packet, which costs 0.8 us: the kernel drops those that come unasked.

A REQUEST or REPLY with more than `MAX_INLINE` bytes is cut: its first frame has `MAX_INLINE` of them and the sizes of
the whole, CONTINUE frames that follow at once have the rest, each but the last filled.

With the flag IN_BLOCK data and metadata are not in the frame but in parameter block `block` of arena `arena`.  The
provider may use the `blocks - 1` blocks behind that one for requests of its own until it has replied.

MOVING says that the provider's process is going to end and another one takes its place at the socket.  It has taken
what has an id up to that of the frame, answers it, and ends the connection.  OPEN and REQUEST frames behind that never
were: they are for the next connection.  With the flag INNER it takes those still that come on behalf of its own
container, which it may be waiting for; a second MOVING without it follows.  CLOSE is taken in any case.

What a version may change: anything but the header's size and the frames HELLO, WELCOME and ERROR.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from .device import Execution, Kind
from .errors import InvalidRequest
from .request import RequestType

MAGIC = int.from_bytes(b"LDMF", "little")
VERSION = 1

Buffer: TypeAlias = bytes | bytearray | memoryview
Frames: TypeAlias = tuple[bytes, ...]
"""Frames in the order in which they have to be sent."""


@enum.unique
class Limit(enum.IntEnum):
    """What one side accepts from the other, in bytes where nothing else is said."""

    MAX_FRAME = 128 << 10
    """A packet.  A Unix socket takes 212,960 by default; this much lets two of them wait in it."""
    MAX_PAYLOAD = 64 << 20
    """Data and metadata of one request or reply that travels inline, over all its frames."""
    MAX_METADATA = 64 << 10
    """Metadata of one request or reply, inline or in a block."""
    MAX_OUTSTANDING = 1024
    """Requests and opens of one connection that are not answered yet, the cancelled ones counted."""
    MAX_CONSUMERS = 16384
    """Consumer ids that are open over one connection."""
    MAX_CHAIN = 64
    """Devices in a call chain."""
    MAX_ARENAS = 32
    """Arenas of one connection."""
    MAX_ARENA = 1 << 30
    """One arena."""
    MAX_BLOCKS = 512
    """Parameter blocks of one arena."""
    MAX_TEXT = 2048
    """The message of an error."""
    MAX_ERRNO = 4095
    """The highest status, as in Linux."""


class FrameKind(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1
    WELCOME = 2
    OPEN = 3
    OPENED = 4
    CLOSE = 5
    CLOSED = 6
    REQUEST = 7
    REPLY = 8
    CANCEL = 9
    ARENA = 10
    ARENA_GONE = 11
    ERROR = 12
    CONTINUE = 13
    MEMORY = 14
    MOVING = 15


class Flag(enum.IntFlag):
    """Bits of `flags` in a frame."""

    IN_BLOCK = 1
    """REQUEST, REPLY: data and metadata are in a parameter block."""
    INNER = 2
    """MOVING: what comes on behalf of the provider's own container is taken still."""
    AGAIN = 4
    """OPEN: the consumer had the device open over a connection that has moved."""


class Field(NamedTuple):
    """One field of a layout; `format` is the character of `struct`."""

    name: str
    format: str
    meaning: str


class Layout:
    """Fields that follow each other; `struct` packs and unpacks them in this order."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = fields
        self.struct = struct.Struct("<" + "".join(field.format for field in fields))
        self.size = self.struct.size
        self.offsets = dict(self._offsets())

    def _offsets(self) -> Iterator[tuple[str, int]]:
        offset = 0
        for field in self.fields:
            yield field.name, offset
            offset += struct.calcsize("<" + field.format)


HEADER = Layout(
    "frame",
    Field("kind", "B", "a FrameKind"),
    Field("type", "B", "a RequestType"),
    Field("flags", "H", "bits of Flag"),
    Field("status", "I", "errno; 0 is success"),
    Field("id", "Q", "what an answer names; each OPEN, CLOSE and REQUEST has a higher one than those before it"),
    Field("consumer_id", "Q", "who asks, as OPENED said"),
    Field("offset", "q", "bytes from the device's begin; not negative"),
    Field("length", "q", "bytes to read or trim, or of the arena; not negative"),
    Field("data_size", "I", "bytes of data, over all frames of the message"),
    Field("metadata_size", "I", "bytes of metadata, likewise"),
    Field("arena", "I", "an arena, as ARENA numbered it; from 1"),
    Field("block", "H", "index of the request's parameter block in the arena"),
    Field("blocks", "H", "how many blocks from `block` on are the request's, or are in the arena"),
)

GREETING = Layout(
    "greeting",
    Field("magic", "I", "MAGIC"),
    Field("version", "I", "VERSION; both sides need the same"),
    Field("max_outstanding", "I", "unanswered requests that the sender of this takes"),
    Field("max_arenas", "I", "arenas that it takes; 0 where all has to travel inline"),
    Field("max_payload", "Q", "bytes of an inline message that it takes"),
)

OPENED = Layout(
    "opened",
    Field("size", "Q", "bytes of a block device"),
    Field("accepts", "I", "bit 1 << t is set for each RequestType t that the device takes"),
    Field("kind", "H", "place in Kind, from 1"),
    Field("execution", "H", "place in Execution, from 1: how the request handler is run"),
)

BLOCK = Layout(
    "block",
    Field("type", "H", "a RequestType; 0 is a block that was not used yet"),
    Field("flags", "H", "0"),
    Field("status", "I", "errno of the reply"),
    Field("consumer_id", "Q", "who asks"),
    Field("offset", "q", "bytes from the device's begin"),
    Field("length", "q", "bytes to read or trim"),
    Field("area", "Q", "where the block's input area begins, in bytes from the arena's begin; its output area follows"),
    Field("input_capacity", "Q", "bytes of the input area"),
    Field("output_capacity", "Q", "bytes of the output area"),
    Field("input_location", "Q", "where the input data is; anywhere in the arena behind the headers"),
    Field("input_size", "Q", "its bytes"),
    Field("input_metadata_location", "Q", "where the input metadata is"),
    Field("input_metadata_size", "Q", "its bytes"),
    Field("output_location", "Q", "where the output data is, once replied"),
    Field("output_size", "Q", "its bytes"),
    Field("output_metadata_location", "Q", "where the output metadata is"),
    Field("output_metadata_size", "Q", "its bytes"),
    Field("reserved", "Q", "0"),
    Field("device", "256s", "the device's name, filled up with NUL"),
)

LAYOUTS = (HEADER, GREETING, OPENED, BLOCK)

MAX_INLINE = Limit.MAX_FRAME - HEADER.size
"""Bytes of data and metadata in one frame."""

TYPES = {int(type): type for type in RequestType}
"""Request types by number: a look-up that costs a third of `RequestType(number)`."""

KINDS, EXECUTIONS = tuple(Kind), tuple(Execution)
"""What the numbers of OPENED stand for, from 1."""

# Plain numbers, for what is done with each request: looking up a member of an enum costs as much as a call.
REQUEST, REPLY, OPEN, CLOSE = map(int, (FrameKind.REQUEST, FrameKind.REPLY, FrameKind.OPEN, FrameKind.CLOSE))
IN_BLOCK, INNER, AGAIN = map(int, (Flag.IN_BLOCK, Flag.INNER, Flag.AGAIN))
MAX_METADATA = int(Limit.MAX_METADATA)
HEADER_SIZE = HEADER.size

pack = HEADER.struct.pack
unpack = HEADER.struct.unpack_from
_CONTINUE = int(FrameKind.CONTINUE)


def encode(
    kind: int, data: bytes = b"", *, id: int = 0, consumer_id: int = 0, status: int = 0, metadata: bytes = b"",
    length: int = 0, arena: int = 0, blocks: int = 0, flags: int = 0,
) -> Frames:  # fmt: skip
    """Return the one frame of a message that fits into it; for all kinds but REQUEST, REPLY and CONTINUE."""
    sizes = len(data), len(metadata)
    return (pack(kind, 0, flags, status, id, consumer_id, 0, length, *sizes, arena, 0, blocks) + data + metadata,)


def cut(header: bytes, id: int, data: Buffer, metadata: bytes) -> Frames:
    """Return the frames of a message with more than `MAX_INLINE` bytes, given its header."""
    body = memoryview(b"".join((data, metadata)) if metadata else data)
    frames = [header + body[:MAX_INLINE]]
    for begin in range(MAX_INLINE, len(body), MAX_INLINE):
        piece = body[begin : begin + MAX_INLINE]
        frames.append(pack(_CONTINUE, 0, 0, 0, id, 0, 0, 0, len(piece), 0, 0, 0, 0) + piece)
    return tuple(frames)


def as_bytes(data: Buffer) -> memoryview:
    """Return a view of `data` by bytes; raise `InvalidRequest` where it is no buffer, or one with gaps."""
    try:
        view = memoryview(data)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, BufferError) as error:
        raise InvalidRequest(f"the data of a request or reply is bytes or the like: {error}") from None


def as_text(message: str) -> bytes:
    """Return an error's message in at most `MAX_TEXT` bytes, no character cut in two."""
    text = message.encode(errors="replace")
    if len(text) <= Limit.MAX_TEXT:
        return text
    return text[: Limit.MAX_TEXT].decode(errors="ignore").encode()
