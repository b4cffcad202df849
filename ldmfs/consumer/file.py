"""The way to a device through its file: for the kernel's container, and where no channel is to be had."""

from __future__ import annotations

import os
import stat

from ..core.device import BLOCK_TYPES, MESSAGE_TYPES, Kind
from ..core.errors import LdmError, NotSupported, from_errno
from ..core.request import Reply, Request, RequestType
from .name import DeviceName

READ_BYTES = 1 << 20


class File:
    """An open device file; its consumer id is the provider's secret, so that 0 stands for it."""

    consumer_id = 0

    def __init__(self, name: DeviceName) -> None:
        self.name = name
        try:
            self._fd = self._open(name)
        except OSError as error:
            raise from_errno(error.errno or 5, f"{name}: {error.strerror}") from None
        about = os.fstat(self._fd)
        self.kind = Kind.BLOCK if about.st_size or stat.S_ISBLK(about.st_mode) else Kind.MESSAGE
        self.size = about.st_size
        self.accepts = BLOCK_TYPES if self.kind is Kind.BLOCK else MESSAGE_TYPES - {RequestType.NON_STANDARD}

    @staticmethod
    def _open(name: DeviceName) -> int:
        try:
            return os.open(name.file, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return os.open(name.file, os.O_RDONLY | os.O_CLOEXEC)

    def request(self, request: Request) -> Reply:
        """Send a request and wait for the reply.  Raises the error that the system call fails with."""
        try:
            return Reply(self._request(request))
        except OSError as error:
            raise from_errno(error.errno or 5, f"{self.name}: {error.strerror}") from None

    def _request(self, request: Request) -> bytes:
        match request.type, self.kind:
            case RequestType.CALL, Kind.MESSAGE:
                os.write(self._fd, request.data)
                return self._read_all()
            case RequestType.READ, Kind.MESSAGE:
                return self._read_all()
            case RequestType.READ, _:
                return os.pread(self._fd, request.length, request.offset)
            case RequestType.WRITE, Kind.BLOCK:
                os.pwrite(self._fd, request.data, request.offset)
            case RequestType.FLUSH, _:
                os.fsync(self._fd)
            case _:
                raise NotSupported(f"{request.type.name} cannot be sent to {self.name} through its file")
        return b""

    def _read_all(self) -> bytes:
        parts = []
        while part := os.read(self._fd, READ_BYTES):
            parts.append(part)
        return b"".join(parts)

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
