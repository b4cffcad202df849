"""hash: checksums and digests, as devices.

One device for each algorithm that Python's hashlib has on every machine (md5, sha1, sha256, sha3_256, blake2b,
shake_128 and so on, see `ls /ldm/hash`), and crc32.

A request (CALL) is any bytes, the reply their digest in lower-case hexadecimal digits and a newline.  The newline that
`echo` adds is a byte like any other: use `printf`.

    $ printf abc > /ldm/hash/sha1; cat /ldm/hash/sha1
    a9993e364706816aba3e25717850c26c9cd0d89d

Configuration, in which `hash.hash` is the container and the plug-in:

    [hash.hash]
    shake_bytes = 16    # digest length of shake_128 and shake_256, in bytes; default 0: 32 and 64
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from functools import partial
from typing import Annotated

from ldmfs import Device, Doc, Provider, Request, RequestType, Settings

SHAKE_BYTES = {"shake_128": 32, "shake_256": 64}
"""Digest lengths at which the two are as strong as they can be."""

MAX_SHAKE_BYTES = 1 << 16


class HashSettings(Settings):
    """Keys of `[container.hash]`."""

    shake_bytes: Annotated[int, Doc("digest length of shake_128 and shake_256, in bytes; 0: 32 and 64")] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shake_bytes <= MAX_SHAKE_BYTES:
            raise ValueError(f"shake_bytes: expected 0 to {MAX_SHAKE_BYTES}, got {self.shake_bytes}")


class HashDevice(Device):
    """Answers bytes with their digest."""

    accepts = frozenset({RequestType.CALL})
    takes = "any bytes"

    def __init__(self, digest: Callable[[bytes | memoryview], str], name: str) -> None:
        self.digest = digest
        self.description = f"{name} of the request"
        self.gives = f"{name}, in hexadecimal digits, and a newline"

    def request(self, consumer_id: int, request: Request) -> bytes:
        """Return the digest of the data."""
        return self.digest(request.data).encode() + b"\n"


def hex_digest(name: str, length: int | None, data: bytes | memoryview) -> str:
    """Return the digest of `data` by hashlib's algorithm `name`; `length` is for the algorithms that need one."""
    digest = hashlib.new(name, data, usedforsecurity=False)
    return digest.hexdigest() if length is None else digest.hexdigest(length)  # type: ignore[call-arg]


def crc32(data: bytes | memoryview) -> str:
    """Return the CRC-32 of `data`, as gzip and zip have it."""
    return f"{zlib.crc32(data):08x}"


class Hash(Provider):
    """Digests: a device for each algorithm of hashlib, and crc32."""

    Settings = HashSettings
    settings: HashSettings

    def start(self) -> None:
        """Create the devices."""
        self.create_device("crc32", HashDevice(crc32, "crc32"))
        for name in sorted(hashlib.algorithms_guaranteed):
            length = (self.settings.shake_bytes or SHAKE_BYTES[name]) if name in SHAKE_BYTES else None
            self.create_device(name, HashDevice(partial(hex_digest, name, length), name))
