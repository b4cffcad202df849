"""What is said on the control link between the supervisor and a container: JSON messages, a line each.

It carries the container's life and what the graph tells, never a request.  The supervisor's end may vanish at any
time: a container that has started goes on without it, and is adopted by the next one (`container.adoption`).

    supervisor                container
    Prepare                   its plug-ins are imported, and it waits        Prepared, or Failed
    Start, with descriptors   it becomes the instance that serves            Ready, or Failed
    Describe                                                                 Description
    HandOver                  it ends, and its open files are for the next   HandedOver
    Stop                      it ends, in order

By hand, the container begins, with Join.  To a supervisor that adopts it, it says Kept first, with descriptors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ..fuse.unanswered import Unanswered
from .plug_ins import PlugIn


class StartFds(NamedTuple):
    """The descriptors that come with `Start`, in this order."""

    connection: int
    """The FUSE connection's own, from which nothing is read: it is kept."""
    device: int
    """That on which the instance serves."""
    channel: int
    """The listening socket of the direct channel."""
    adoption: int
    """The listening socket at which the instance waits for a supervisor, once it has none."""
    state: int = -1
    """The state area; a container that is run by hand has none."""


class KeptFds(NamedTuple):
    """The descriptors that come with `Kept`, in this order; as those of `StartFds`."""

    connection: int
    device: int
    channel: int
    state: int = -1


class Join(msgspec.Struct, tag="join", frozen=True):
    """A container that is run by hand asks for its mount; the answer is `Start` or `Failed`."""

    name: str


class Prepare(msgspec.Struct, tag="prepare", frozen=True):
    """Import these plug-ins, check their settings and wait for `Start`: the process is a standby."""

    name: str
    plug_ins: tuple[PlugIn, ...]


class Start(msgspec.Struct, tag="start", frozen=True):
    """What a new instance is to be.  With it come the descriptors of `StartFds`.

    An instance keeps it for a supervisor that adopts it.
    """

    name: str
    root: str
    plug_ins: tuple[PlugIn, ...]
    init: bytes = b""
    """The INIT request of the FUSE connection."""
    first_consumer_id: int = 1
    reissue: bool = False
    """What it leaves unanswered is for the next instance."""
    unanswered: tuple[Unanswered, ...] = ()
    """What is known of the last requests of those before it."""
    by_hand: bool = False
    restarts: int = 0
    options: dict[str, Any] = {}
    """What the configuration says of the container, for the supervisor alone."""
    log_begin: int = 0
    """Where in the log its lines begin."""


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Close all consumers, stop the providers and exit."""


class HandOver(msgspec.Struct, tag="hand over", frozen=True):
    """Answer no further request, let those that run end within `seconds`, leave the open files to the next instance."""

    seconds: float


class Describe(msgspec.Struct, tag="describe", frozen=True):
    """Answer with a `Description` of the same number."""

    number: int


class Prepared(msgspec.Struct, tag="prepared", frozen=True):
    """The standby's plug-ins are imported."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The container's devices are there and it serves them, since some time, in seconds since 1970."""

    since: float


class HandedOver(msgspec.Struct, tag="handed over", frozen=True):
    """The container has nothing any more that the next instance needs, and exits."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The container could not start; `usage` says that its configuration is to blame."""

    reason: str
    usage: bool = False


class Kept(msgspec.Struct, tag="kept", frozen=True):
    """What an instance has kept for a supervisor that adopts it.  With it come the descriptors of `KeptFds`."""

    start: Start
    pid: int
    ready: bool
    since: float
    """When it was ready, in seconds since 1970."""


class Description(msgspec.Struct, tag="description", frozen=True):
    """`Registry.describe` of the container."""

    number: int
    data: dict[str, Any]


Message = (
    Join | Prepare | Start | Stop | HandOver | Describe | Prepared | Ready | HandedOver | Failed | Kept | Description
)

decode = msgspec.json.Decoder[Message](Message).decode


def encode(message: Message) -> bytes:
    """Return a message as its line."""
    return msgspec.json.encode(message) + b"\n"
