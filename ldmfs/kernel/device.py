"""An open device of the kernel: each request is one call of the module, instead of a write and a read."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.device import Kind
from ..core.errors import (
    AccessDenied,
    HandleClosed,
    InvalidRequest,
    MessageTooLong,
    NoSuchDevice,
    NotSupported,
    RequestCancelled,
    from_errno,
)
from ..core.request import Reply, Request, RequestType
from ..core.wire import KINDS, as_bytes
from .ioctl import ABOUT, CALL, CALL_ID, CANCEL, MAX_DATA, MAX_METADATA, SEND, TELL

DIRECTORY = Path("/dev/ldm/kernel")
"""Where the kernel's devices are; `<root>/kernel` is a symlink to it."""

SPARE_ROOMS = 4
"""Rooms that an open device keeps for its next requests, one for each thread that sends at the same time."""

LARGE = 1 << 20
"""Bytes from which on the memory of a room is given back after its request."""

PAUSE = 0.001
"""Seconds until a call that is cancelled, and has not got to the module yet, is looked for again."""

_ALL, _READ = frozenset(RequestType), frozenset({RequestType.READ})
_WAYS = (os.O_RDWR, _ALL), (os.O_RDONLY, _READ), (os.O_WRONLY, _ALL - _READ)

_PARTS = (MAX_DATA, MAX_METADATA, MAX_DATA, MAX_METADATA)


class Room:
    """Memory that one request and its reply fit into, whatever their sizes; it is taken up as it is written."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, sum(_PARTS), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.places = [sum(_PARTS[:part]) for part in range(len(_PARTS))]
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.addresses = [base + place for place in self.places]

    def put(self, part: int, data: memoryview | bytes) -> None:
        """Write the input, 0, or its metadata, 1."""
        place = self.places[part]
        self.memory[place : place + len(data)] = data

    def get(self, part: int, size: int) -> bytes:
        """Return so many bytes of the output, 2, or its metadata, 3."""
        place = self.places[part]
        return self.memory[place : place + size]

    def drop(self) -> None:
        """Give the memory back; the room stays."""
        self.memory.madvise(mmap.MADV_DONTNEED)


class Call:
    """One request's call of the module: it is handed to `KernelDevice.request`, and to `cancel` in another thread."""

    _ids = itertools.count(1)

    def __init__(self) -> None:
        self.id = os.getpid() << 32 | next(self._ids)  # a descriptor may be shared with a child that counts as well
        self.cancelled = False


class KernelDevice:
    """A device of the kernel that was opened by its file.  Any thread may send requests, several at a time.

    Raises the error that the open is refused with, `NotSupported` for a file that is none of the module's.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._fd, self._types = _open(path, name)
        try:
            self.consumer_id, self.size, mask, kind, _ = ABOUT.struct.unpack(
                fcntl.ioctl(self._fd, TELL, bytes(ABOUT.size))
            )
        except OSError as error:
            os.close(self._fd)
            raise NotSupported(f"{name}: {path} is no device of the kernel module ldm: {error.strerror}") from None
        self.kind: Kind = KINDS[kind - 1]
        self._takes = frozenset(type for type in RequestType if mask >> type & 1)
        self.accepts = self._takes & self._types
        self._rooms: list[Room] = []
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        """Those that are under way."""
        self._users = 0
        """Calls that use the descriptor: the last one closes it, where the device was closed meanwhile."""
        self._closed = False

    def request(self, request: Request, call: Call | None = None) -> Reply:
        """Send a request and wait for its reply.  Raises the error that it ends with.

        `call` is what another thread can cancel it by: it ends with `RequestCancelled` then.
        """
        data = as_bytes(request.data)
        if len(data) > MAX_DATA or len(request.metadata) > MAX_METADATA:
            raise MessageTooLong(f"{self.name} takes {MAX_DATA} bytes, and {MAX_METADATA} of metadata")
        if request.type not in self._types:
            raise self._refusal(request)
        call = call or Call()
        with self._room(call) as room:
            used = len(data)
            try:
                room.put(0, data)
                room.put(1, request.metadata)
                size, metadata_size = self._call(request, call, room.addresses, len(data))
                used += size
                return Reply(room.get(2, size), room.get(3, metadata_size))
            finally:
                if used >= LARGE:
                    room.drop()

    def cancel(self, call: Call) -> None:
        """Have the kernel cancel a call; returns when it has, or when the call has ended.  Does not wait for that."""
        while not self._reached(call):
            time.sleep(PAUSE)

    def cancel_soon(self, call: Call) -> None:
        """Have the kernel cancel a call, without waiting for anything."""
        if not self._reached(call):
            threading.Thread(target=self.cancel, args=(call,), name="ldmfs-cancel", daemon=True).start()

    def _reached(self, call: Call) -> bool:
        """Cancel a call; tell whether it was reached, and has not just left for the module."""
        with self._lock:
            call.cancelled = True
            if call not in self._calls:
                return True
            self._users += 1
        try:
            fcntl.ioctl(self._fd, CANCEL, CALL_ID.struct.pack(call.id))
        except OSError as error:
            return error.errno != errno.ENOENT
        finally:
            self._leave(None)
        return True

    def _call(self, request: Request, known: Call, addresses: list[int], size: int) -> tuple[int, int]:
        """Have the module send what is in a room; return the sizes of the reply."""
        sizes = size, len(request.metadata), MAX_DATA, MAX_METADATA
        places = (value for pair in zip(addresses, sizes, strict=True) for value in pair)
        try:
            call = bytearray(CALL.struct.pack(request.type, b"", known.id, request.offset, request.length, *places))
        except struct.error as error:
            raise InvalidRequest(f"a number of the request is out of range: {error}") from None
        try:
            fcntl.ioctl(self._fd, SEND, call)
        except OSError as error:
            raise from_errno(error.errno or errno.EIO, f"{self.name}: {error.strerror}") from None
        *_, output_size, _, output_metadata_size = CALL.struct.unpack(call)
        return output_size, output_metadata_size

    def _refusal(self, request: Request) -> AccessDenied | NotSupported:
        if request.type in self._takes:
            return AccessDenied(f"{self.name} takes no {request.type.name} requests from this consumer")
        return NotSupported(f"{self.name} takes no {request.type.name} requests")

    @contextmanager
    def _room(self, call: Call) -> Iterator[Room]:
        with self._lock:
            if self._closed:
                raise HandleClosed(f"device {self.name} is closed")
            if call.cancelled:
                raise RequestCancelled(f"{self.name}: the request was cancelled before it was sent")
            self._calls.add(call)
            self._users += 1
            room = self._rooms.pop() if self._rooms else None
        try:
            room = room or Room()
            yield room
        finally:
            with self._lock:
                self._calls.discard(call)
            self._leave(room)

    def _leave(self, room: Room | None) -> None:
        with self._lock:
            self._users -= 1
            if room is not None and len(self._rooms) < SPARE_ROOMS:
                self._rooms.append(room)
            last = self._closed and not self._users
        if last:
            os.close(self._fd)

    def close(self) -> None:
        """Close the device; later calls return.  What is outstanding is cancelled, and ends with `RequestCancelled`."""
        with self._lock:
            if self._closed:
                return
            self._closed, calls = True, list(self._calls)
            self._users += 1
        for call in calls:
            self.cancel(call)
        self._leave(None)


def _open(path: Path, name: str) -> tuple[int, frozenset[RequestType]]:
    """Open a device's file as far as its mode allows; return the descriptor, and the types that it is good for."""
    for flags, types in _WAYS:
        try:
            return os.open(path, flags | os.O_CLOEXEC), types
        except PermissionError as error:
            refused = error.strerror
        except FileNotFoundError:
            raise _missing(path, name) from None
        except OSError as error:
            raise from_errno(error.errno or errno.EIO, f"{name}: {error.strerror}") from None
    raise AccessDenied(f"{name}: {refused}")


def _missing(path: Path, name: str) -> NoSuchDevice:
    if not path.parent.is_dir():
        return NoSuchDevice(f"{name}: the kernel module ldm is not loaded")
    return NoSuchDevice(f"{name}: the kernel has no such device")
