"""The plug-in codec."""

from __future__ import annotations

import base64
import contextlib
import gzip
import random
import sys
import threading
from typing import Any

import pytest
import trio
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmfs import InvalidRequest, MessageTooLong, NotSupported, RequestType
from ldmfs.container.settings import ConfigurationError
from ldmfs.core.device import Execution

FORMATS = ["gzip", "zstd", "base64"]
COMPRESSIONS = ["gzip", "zstd"]
NOISE = random.Random(1).randbytes(300_000)


@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=2000) | st.builds(lambda part, n: part * n, st.binary(max_size=9), st.integers(0, 9999)))
def test_what_was_encoded_is_decoded(host: Any, ask: Any, format: str, data: bytes) -> None:
    async def round_trip() -> bytes:
        container = await host("codec", formats=[format])
        return await ask(container, f"{format}-decode", await ask(container, f"{format}-encode", data))

    assert trio.run(round_trip) == data


@pytest.mark.parametrize("format", FORMATS)
async def test_what_does_not_compress_is_decoded(host: Any, ask: Any, format: str) -> None:
    container = await host("codec")
    assert await ask(container, f"{format}-decode", await ask(container, f"{format}-encode", NOISE)) == NOISE


@pytest.mark.parametrize("format", FORMATS)
async def test_a_view_of_shared_memory_is_encoded_and_decoded(host: Any, ask: Any, format: str) -> None:
    container = await host("codec")
    encoded = await ask(container, f"{format}-encode", memoryview(b"hello"))
    assert await ask(container, f"{format}-decode", memoryview(encoded)) == b"hello"


async def test_gzip_encode_gives_what_gunzip_takes(host: Any, ask: Any) -> None:
    assert gzip.decompress(await ask(await host("codec"), "gzip-encode", b"hello\n")) == b"hello\n"


async def test_gzip_encode_gives_the_same_bytes_each_time(host: Any, ask: Any) -> None:
    assert (await ask(await host("codec"), "gzip-encode", b"hello\n"))[4:8] == bytes(4)  # the time stamp


async def test_zstd_encode_gives_what_zstd_takes(host: Any, ask: Any) -> None:
    encoded = await ask(await host("codec"), "zstd-encode", b"hello\n")
    assert zstandard.ZstdDecompressor().decompress(encoded) == b"hello\n"


async def test_base64_encode_gives_one_line(host: Any, ask: Any) -> None:
    assert await ask(await host("codec"), "base64-encode", bytes(300)) == base64.b64encode(bytes(300)) + b"\n"


@pytest.mark.parametrize("text", [b"aGVsbG8=", b"aGVsbG8=\n"])
async def test_base64_decode_takes_a_line_with_and_without_its_newline(host: Any, ask: Any, text: bytes) -> None:
    assert await ask(await host("codec"), "base64-decode", text) == b"hello"


@pytest.mark.parametrize(
    "text", [b"aGVsbG8", b"aGVs bG8=", b"aGVsbG8=\n\n", b"aGVs\nbG8=", b"=", b"aGVsbG8=x", b"a-_b"]
)
async def test_base64_decode_is_strict(host: Any, ask: Any, text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid base64"):
        await ask(await host("codec"), "base64-decode", text)


@pytest.mark.parametrize(("format", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
@pytest.mark.parametrize("parts", [(b"one", b"two"), (b"", b"two"), (b"one" * 999, NOISE, b"")])
async def test_several_members_are_decoded_one_after_the_other(
    host: Any, ask: Any, format: str, compress: Any, parts: tuple[bytes, ...]
) -> None:
    joined = b"".join(map(compress, parts))
    assert await ask(await host("codec"), f"{format}-decode", joined) == b"".join(parts)


async def test_zstd_of_unknown_size_is_decoded(host: Any, ask: Any) -> None:
    streamed = zstandard.ZstdCompressor().compressobj()
    encoded = streamed.compress(NOISE) + streamed.flush()
    assert await ask(await host("codec"), "zstd-decode", encoded) == NOISE


@pytest.mark.parametrize(("format", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_data_that_ends_too_early_is_refused(host: Any, ask: Any, format: str, compress: Any) -> None:
    container = await host("codec")
    encoded = compress(b"hello, world")
    for end in range(len(encoded)):
        with pytest.raises(InvalidRequest, match="ends too early"):
            await ask(container, f"{format}-decode", encoded[:end])


@pytest.mark.parametrize("format", COMPRESSIONS)
async def test_data_of_another_format_is_refused(host: Any, ask: Any, format: str) -> None:
    with pytest.raises(InvalidRequest, match=f"not valid {format}"):
        await ask(await host("codec"), f"{format}-decode", b"hello, world")


@pytest.mark.parametrize(("format", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_data_with_something_else_behind_it_is_refused(host: Any, ask: Any, format: str, compress: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"not valid {format}"):
        await ask(await host("codec"), f"{format}-decode", compress(b"hello") + b"something else")


@pytest.mark.parametrize(("format", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_data_is_decoded_or_refused_but_never_a_fault(
    host: Any, ask: Any, format: str, compress: Any, data: st.DataObject
) -> None:
    encoded = bytearray(compress(NOISE[:50] * 20))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))

    async def decode() -> None:
        with contextlib.suppress(InvalidRequest):
            await ask(await host("codec"), f"{format}-decode", bytes(encoded))

    trio.run(decode)


@pytest.mark.parametrize(("format", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_a_bomb_is_refused_at_the_limit(host: Any, ask: Any, format: str, compress: Any) -> None:
    with pytest.raises(MessageTooLong, match="longer than 1048576 bytes"):
        await ask(await host("codec", limit="1 MiB"), f"{format}-decode", compress(bytes(200 << 20)))


def test_a_bomb_is_refused_long_before_it_has_exploded() -> None:
    from ldmfs_providers import codec

    decoded = 0

    def count(data: Any) -> bytes:
        nonlocal decoded
        reply = bytes(decoder.decompress(data))
        decoded += len(reply)
        return reply

    decoder = zstandard.ZstdDecompressor().decompressobj()
    counting = type("Counting", (), {"eof": False, "unused_data": b"", "decompress": staticmethod(count)})
    with pytest.raises(MessageTooLong):
        codec.decompressed(counting, zstandard.compress(bytes(200 << 20)), 1 << 20)
    assert decoded <= (1 << 20) + (8 << 20)


@pytest.mark.parametrize("format", FORMATS)
async def test_a_reply_of_just_the_limit_is_given(host: Any, ask: Any, format: str) -> None:
    container = await host("codec", limit=1000)
    assert len(await ask(container, f"{format}-decode", await ask(container, f"{format}-encode", bytes(1000)))) == 1000


@pytest.mark.parametrize("format", FORMATS)
async def test_a_reply_of_one_byte_more_is_refused(host: Any, ask: Any, format: str) -> None:
    container = await host("codec", limit=1000)
    with pytest.raises(MessageTooLong):
        await ask(container, f"{format}-decode", await ask(container, f"{format}-encode", bytes(1001)))


async def test_the_handlers_run_in_threads(host: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    compress = gzip.compress
    monkeypatch.setattr(
        gzip, "compress", lambda data, mtime: threads.append(threading.current_thread()) or compress(data, mtime=mtime)
    )
    await ask(await host("codec"), "gzip-encode", b"hello")
    assert threads != [threading.main_thread()]


async def test_every_device_has_its_request_handler_in_a_thread(host: Any) -> None:
    container = await host("codec")
    assert {device.request_execution for device in container.registry} == {Execution.THREAD}


async def test_requests_are_answered_side_by_side(host: Any, ask: Any) -> None:
    container, replies = await host("codec"), {}

    async def encode(number: int) -> None:
        replies[number] = gzip.decompress(await ask(container, "gzip-encode", b"%d" % number))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(encode, number)
    assert replies == {number: b"%d" % number for number in range(20)}


async def test_a_read_is_refused(host: Any, ask: Any) -> None:
    with pytest.raises(NotSupported):
        await ask(await host("codec"), "gzip-encode", type=RequestType.READ)


async def test_formats_says_what_there_are_devices_for(host: Any) -> None:
    container = await host("codec", formats=["base64", "gzip", "gzip"])
    assert list(container.registry.devices) == ["base64-encode", "base64-decode", "gzip-encode", "gzip-decode"]


async def test_all_formats_are_there_by_default(host: Any) -> None:
    container = await host("codec")
    assert {name.partition("-")[0] for name in container.registry.devices} == set(FORMATS)


async def test_a_missing_package_is_told_with_the_command_that_installs_it(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"zstandard is not installed; run: pip install 'ldmfs\[zstd\]'"):
        await host("codec")


async def test_the_package_is_not_needed_without_its_format(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert len((await host("codec", formats=["gzip", "base64"])).registry) == 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"formats": ["lzma"]}, r"box\.codec\.formats\[0\]: expected one of .*'zstd'.* got 'lzma'"),
        ({"formats": "gzip"}, r"box\.codec\.formats: expected array, got str"),
        ({"limit": "64 chunks"}, r"box\.codec\.limit: expected a size"),
        ({"limit": -1}, r"box\.codec\.limit: expected a size"),
        ({"level": 3}, r"box\.codec\.level: there is no such key; known are: formats, limit"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(configured: Any, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"test\.toml: " + message):
        configured("codec", **table)
