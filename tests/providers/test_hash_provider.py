"""The plug-in hash."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from ldmfs import NotSupported, RequestType
from ldmfs.container.settings import ConfigurationError

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


async def test_there_is_a_device_for_each_guaranteed_algorithm_and_crc32(host: Any) -> None:
    container = await host("hash")
    assert set(container.registry.devices) == hashlib.algorithms_guaranteed | {"crc32"}


@pytest.mark.parametrize(
    ("device", "data", "digest"),
    [
        ("sha256", b"abc", SHA256_OF_ABC),
        ("sha256", memoryview(b"abc"), SHA256_OF_ABC),
        ("md5", b"", "d41d8cd98f00b204e9800998ecf8427e"),
        ("sha1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("sha3_256", b"abc", "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
        ("shake_128", b"", "7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26"),
        ("crc32", b"123456789", "cbf43926"),
        ("crc32", b"", "00000000"),
    ],
)
async def test_a_known_digest_comes_as_hexadecimal_digits_and_a_newline(
    host: Any, ask: Any, device: str, data: bytes, digest: str
) -> None:
    assert await ask(await host("hash"), device, data) == digest.encode() + b"\n"


@pytest.mark.parametrize(("device", "length"), [("shake_128", 32), ("shake_256", 64)])
async def test_a_shake_digest_has_its_full_strength_by_default(host: Any, ask: Any, device: str, length: int) -> None:
    assert len(await ask(await host("hash"), device, b"abc")) == 2 * length + 1


async def test_shake_bytes_sets_the_length_of_a_shake_digest(host: Any, ask: Any) -> None:
    assert await ask(await host("hash", shake_bytes=4), "shake_256", b"") == b"46b9dd2b\n"


async def test_every_algorithm_answers(host: Any, ask: Any) -> None:
    container = await host("hash")
    for name in hashlib.algorithms_guaranteed - {"shake_128", "shake_256"}:
        assert await ask(container, name, b"abc") == hashlib.new(name, b"abc").hexdigest().encode() + b"\n"


async def test_a_read_is_refused(host: Any, ask: Any) -> None:
    with pytest.raises(NotSupported):
        await ask(await host("hash"), "sha256", type=RequestType.READ)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("32", "box.hash.shake_bytes: expected int, got str"),
        (-1, "box.hash: shake_bytes: expected 0 to 65536, got -1"),
        (1 << 17, "box.hash: shake_bytes: expected 0 to 65536, got 131072"),
    ],
)
def test_a_bad_length_is_refused_by_its_key(configured: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"test.toml: {message}")):
        configured("hash", shake_bytes=value)
