"""A sample request and its reply for each device of the bundled providers."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from datetime import datetime
from typing import Any

from ldmfs import Request, RequestType

READ = Request(RequestType.READ, length=100)


def is_json(data: bytes) -> bool:
    return isinstance(json.loads(data), dict)


def is_seconds(data: bytes) -> bool:
    return float(data) >= 0


def is_date(data: bytes) -> bool:
    return datetime.fromisoformat(data.decode().strip()).tzinfo is not None


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


def digests() -> dict[str, dict[str, Any]]:
    lengths = {"shake_128": (32,), "shake_256": (64,)}
    names = sorted(hashlib.algorithms_guaranteed)
    found = {name: hashlib.new(name, b"abc").hexdigest(*lengths.get(name, ())) for name in names}
    found["crc32"] = f"{zlib.crc32(b'abc'):08x}"
    return {name: {"request": b"abc", "reply": f"{digest}\n".encode()} for name, digest in found.items()}


SAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "text": {
        "upper": {"request": b"hello\n", "reply": b"HELLO\n"},
        "lower": {"request": b"HELLO", "reply": b"hello"},
        "reverse": {"request": b"hello\n", "reply": b"olleh\n"},
        "rot13": {"request": b"hello", "reply": b"uryyb"},
    },
    "hash": digests(),
    "codec": {
        "gzip-encode": {"request": b"hello", "reply": lambda data: gzip.decompress(data) == b"hello"},
        "gzip-decode": {"request": gzip.compress(b"hello"), "reply": b"hello"},
        "zstd-encode": {"request": b"hello", "reply": zstd(b"hello")},
        "zstd-decode": {"request": zstd(b"hello"), "reply": b"hello"},
        "base64-encode": {"request": b"hello", "reply": b"aGVsbG8=\n"},
        "base64-decode": {"request": b"aGVsbG8=\n", "reply": b"hello"},
    },
    "clock": {
        "utc": {"request": READ, "reply": is_date},
        "monotonic": {"request": READ, "reply": is_seconds},
        "uptime": {"request": READ, "reply": is_seconds},
    },
    "sensor": {name: {"request": READ, "reply": is_json} for name in ("cpu", "memory", "load", "disk")},
    "null": {
        "null": {"request": b"hello", "reply": b""},
        "echo": {"request": b"hello", "reply": b"hello"},
        "zero": {"request": b"5", "reply": bytes(5)},
    },
}  # fmt: skip

STACKS: dict[str, dict[str, Any]] = {
    "line": {"request": b"hello", "reply": b"HELLO"},
    "tree": {"request": b"hello", "reply": b"HELLOolleh"},
}
"""Devices of `relay` over those of `text`."""

DEVICES = [(provider, device) for provider, devices in SAMPLES.items() for device in devices]
