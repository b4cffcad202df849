"""The way to a device through its file: by calls of the kernel's module, or by read and write."""

from __future__ import annotations

import os
import stat
import threading

from ..core.device import BLOCK_TYPES, MESSAGE_TYPES, Kind
from ..core.errors import HandleClosed, LdmError, NoSpace, NotSupported, from_errno
from ..core.request import Reply, Request, RequestType
from ..kernel.device import DIRECTORY, KernelDevice
from .name import DeviceName

READ_BYTES = 1 << 20


def open_file(name: DeviceName) -> File | KernelDevice:
    """Open a device by its file: one of the kernel also where no tree is mounted."""
    if name.container != "kernel":
        return File(name)
    return KernelDevice(name.file if os.path.lexists(name.file.parent) else DIRECTORY / name.device, str(name))


class File:
    """An open device file; its consumer id is the provider's secret, so that 0 stands for it."""

    consumer_id = 0

    def __init__(self, name: DeviceName) -> None:
        self.name = name
        self._exchange = threading.Lock()
        """Held from a message to the end of its reply: an open file has one exchange at a time."""
        try:
            self._fd = self._open(name)
        except OSError as error:
            raise from_errno(error.errno or 5, f"{name}: {error.strerror}") from None
        about = os.fstat(self._fd)
        self.size = self._seek_end() if stat.S_ISCHR(about.st_mode) else about.st_size
        self.kind = Kind.BLOCK if self.size or stat.S_ISBLK(about.st_mode) else Kind.MESSAGE
        self.accepts = BLOCK_TYPES if self.kind is Kind.BLOCK else MESSAGE_TYPES - {RequestType.NON_STANDARD}

    @staticmethod
    def _open(name: DeviceName) -> int:
        try:
            return os.open(name.file, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return os.open(name.file, os.O_RDONLY | os.O_CLOEXEC)

    def _seek_end(self) -> int:
        """Return the size of a device of the kernel: a character device has positions, and an end, if it is a block."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            return 0

    def request(self, request: Request) -> Reply:
        """Send a request and wait for the reply.  Raises the error that the system call fails with."""
        if self._fd < 0:
            raise HandleClosed(f"device {self.name} is closed")
        try:
            return Reply(self._request(request))
        except OSError as error:
            raise from_errno(error.errno or 5, f"{self.name}: {error.strerror}") from None

    def _request(self, request: Request) -> bytes:
        match request.type, self.kind:
            case RequestType.CALL, Kind.MESSAGE:
                if not len(request.data):
                    raise NotSupported(f"an empty message cannot be sent to {self.name} through its file")
                with self._exchange:
                    os.write(self._fd, request.data)
                    return self._read_all()
            case RequestType.READ, Kind.MESSAGE:
                with self._exchange:
                    return self._read_all(request.length)
            case RequestType.READ, _:
                return self._pread(request.offset, request.length)
            case RequestType.WRITE, Kind.BLOCK:
                self._pwrite(request.offset, memoryview(request.data))
            case RequestType.FLUSH, _:
                os.fsync(self._fd)
            case _:
                raise NotSupported(f"{request.type.name} cannot be sent to {self.name} through its file")
        return b""

    def _read_all(self, first: int = 0) -> bytes:
        """Read a reply to its end; the size of the first read is the length of the READ that it may send."""
        parts: list[bytes] = []
        while part := os.read(self._fd, READ_BYTES if parts else min(first, READ_BYTES) or READ_BYTES):
            parts.append(part)
        return b"".join(parts)

    def _pread(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length and (part := os.pread(self._fd, min(length, READ_BYTES), offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _pwrite(self, offset: int, data: memoryview) -> None:
        if self.size and offset + len(data) > self.size:
            raise NoSpace(f"{len(data)} bytes at {offset} lie behind the end of {self.name}")
        while len(data):
            written = os.pwrite(self._fd, data, offset)
            offset, data = offset + written, data[written:]

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                raise self._named(error) from None

    def _named(self, error: OSError) -> LdmError:
        return from_errno(error.errno or 5, f"{self.name}: {error.strerror}")
