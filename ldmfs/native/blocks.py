"""Parameter blocks of a shared object, and the way of requests and replies into them and out again.

Data in an arena stays where it is: the block's part is lent its address, and what the provider hands on of it, by
ldm_forward_request() or ldm_take_output(), is passed on as it came.  Everything else is copied, since the provider may
write into its parts.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

from ..channel.memory import Place, SharedArena
from ..core.errors import InvalidRequest, LdmError, MessageTooLong
from ..core.extents import Extent
from ..core.request import Reply, Request, RequestType
from .layout import MAX_DATA, Address, Data, Part, RequestBlock, RuntimeTable

BLOCKS = 4
"""Parameter blocks of a chain that begins at a device in C: the request itself and some hops; more are got singly."""


class Pointer:
    """The object of a NON_STANDARD request between providers in C of one container."""

    def __init__(self, address: Address) -> None:
        self.address = address


class Marshalled:
    """The object of a NON_STANDARD request of another container, as the bytes that `unmarshal` and `marshal` know."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class InputOnly(Place):
    """The place of a request that is passed on: the output area is for the reply of who passes it on."""

    def output(self, size: int) -> memoryview | None:
        """Return None."""
        return None


class Blocks:
    """The parameter blocks of one shared object, and what it is lent."""

    def __init__(self, runtime: RuntimeTable) -> None:
        self._runtime = runtime
        self._lent: dict[int, tuple[Any, Reply | None]] = {}
        """By number: what keeps the memory, and the reply whose data it is."""
        self._numbers = itertools.count(1)

    def release(self, number: int) -> None:
        """Take back what was lent."""
        del self._lent[number]

    # -- requests that come

    def receive(self, request: Request) -> tuple[Address, memoryview | None]:
        """Return a block with a request, to be freed, and the memory of the arena that its output may go to."""
        if len(request.data) > MAX_DATA:
            raise MessageTooLong(f"{len(request.data)} bytes are more than the {MAX_DATA} that a part may have")
        address: Address = self._runtime.new_request(BLOCKS, request.type)
        if not address:
            raise _no_memory()
        try:
            return address, self._put(address, request)
        except BaseException:
            self.free(address)
            raise

    def _put(self, address: Address, request: Request) -> memoryview | None:
        block = RequestBlock.from_address(address)
        block.offset, block.length = request.offset, request.length
        self._fill(address, Part.INPUT_METADATA, request.metadata)
        if isinstance(request.object, Marshalled):
            self._fill(address, Part.INPUT, request.object.data)
            return None
        if isinstance(request.object, Pointer):
            block.object = request.object.address
        place: Place | None = request.place
        if place is None:
            self._fill(address, Part.INPUT, bytes(request.data))
            return None
        if place.data is not None:
            self._lend(address, Part.INPUT, place.shared, place.data)
        else:
            self._fill(address, Part.INPUT, bytes(request.data))
        area = place.block.output_area
        room = place.output(area.size)
        if room is not None:
            self._runtime.lend_room(address, _address(place.shared, area)[0], area.size)
        return room

    def reply(self, address: Address, room: memoryview | None) -> Reply:
        """Return the reply that the provider has put into a block."""
        block = RequestBlock.from_address(address)
        where, size, metadata = block.output.data, block.output.size, _copy(block.output_metadata)
        pointer = Pointer(block.object) if block.object else None
        number = self._runtime.lender(address, Part.OUTPUT)
        if number:
            _, lower = self._lent[number]
            if lower is not None and len(lower.data) == size:
                return Reply(lower.data, metadata, pointer, lower.place)
        if room is not None and size and where == ctypes.addressof(ctypes.c_char.from_buffer(room)):
            return Reply(room[:size], metadata, pointer)
        return Reply(_copy(block.output), metadata, pointer)

    def free(self, address: Address) -> None:
        """Free a block."""
        self._runtime.free_request(address)

    # -- requests that the provider sends

    def parent(self, address: Address) -> Address | None:
        """Return the block that one was forwarded from."""
        parent: Address | None = self._runtime.parent(address)
        return parent

    def request(self, address: Address, upper: Request | None) -> Request:
        """Return the request in a block, which was forwarded from `upper` if that is not None."""
        block = RequestBlock.from_address(address)
        try:
            type = RequestType(block.type)
        except ValueError:
            raise InvalidRequest(f"there is no request type {block.type}") from None
        pointer = Pointer(block.object) if block.object else None
        request = Request(type, b"", block.offset, block.length, _copy(block.input_metadata), pointer)
        inherited = upper is not None and self._runtime.inherits_input(address)
        request.data = upper.data if upper is not None and inherited else _copy(block.input)
        place: Place | None = upper.place if upper is not None else None
        if place is not None:
            data, view = (place.data, place.input) if inherited else (None, None)
            request.place = InputOnly(place.shared, place.block, place.chain, data, view)
        return request

    def take(self, address: Address, request: Request, reply: Reply) -> None:
        """Put the reply to a request into its block."""
        if len(reply.data) > MAX_DATA:
            raise MessageTooLong(f"{len(reply.data)} bytes are more than the {MAX_DATA} that a part may have")
        if (where := _where(request, reply)) is not None:
            self._lend(address, Part.OUTPUT, *where, reply)
        else:
            self._fill(address, Part.OUTPUT, bytes(reply.data))
        self._fill(address, Part.OUTPUT_METADATA, reply.metadata)
        if isinstance(reply.object, Pointer):
            RequestBlock.from_address(address).object = reply.object.address

    # -- parts

    def _fill(self, address: Address, part: Part, data: bytes) -> None:
        if data and self._runtime.fill(address, part, data, len(data)):
            raise _no_memory()

    def _lend(
        self, address: Address, part: Part, shared: SharedArena, extent: Extent, reply: Reply | None = None
    ) -> None:
        where, keep = _address(shared, extent)
        number = next(self._numbers)
        self._lent[number] = keep, reply
        self._runtime.lend(address, part, where, extent.size, number)


def _where(request: Request, reply: Reply) -> tuple[SharedArena, Extent] | None:
    """Return where in an arena the data of a reply is, None where it is not in one."""
    if reply.place is not None:
        return reply.place.shared, reply.place.data
    if request.place is not None and (extent := request.place.extent_of(reply.data)) is not None:
        return request.place.shared, extent
    return None


def _address(shared: SharedArena, extent: Extent) -> tuple[Address, object]:
    """Return the address of bytes of an arena, and what keeps them mapped."""
    keep = ctypes.c_char.from_buffer(shared.mapping)
    return ctypes.addressof(keep) + extent.location, keep


def _copy(part: Data) -> bytes:
    return ctypes.string_at(part.data, part.size) if part.data and part.size else b""


def _no_memory() -> LdmError:
    return LdmError("there is no memory for the request", errno=12)
