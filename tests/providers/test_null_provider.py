"""The plug-in null."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldmfs import InvalidRequest, NotSupported, RequestType
from ldmfs.container.settings import ConfigurationError

MAX = 16 << 20


@pytest.mark.parametrize("type", [RequestType.READ, RequestType.CALL, RequestType.FLUSH, RequestType.NON_STANDARD])
async def test_null_gives_nothing_for_anything(host: Any, ask: Any, type: RequestType) -> None:
    assert await ask(await host("null"), "null", b"anything", type=type, length=100) == b""


async def test_echo_gives_back_data_and_metadata(host: Any, answer: Any) -> None:
    reply = await answer(await host("null"), "echo", memoryview(b"hello\n"), metadata=b"more")
    assert (reply.data, reply.metadata) == (b"hello\n", b"more")


async def test_echo_gives_back_the_object_itself(host: Any, answer: Any) -> None:
    thing = object()
    reply = await answer(await host("null"), "echo", type=RequestType.NON_STANDARD, object=thing)
    assert reply.object is thing


async def test_echo_copies_nothing(host: Any, answer: Any) -> None:
    data = memoryview(b"hello")
    reply = await answer(await host("null"), "echo", data)
    assert reply.data is data


async def test_a_read_of_echo_gives_nothing(host: Any, ask: Any) -> None:
    assert await ask(await host("null"), "echo", type=RequestType.READ, length=100) == b""


@pytest.mark.parametrize("length", [0, 1, 4096, MAX])
async def test_a_read_of_zero_gives_as_many_zeros_as_it_asks_for(host: Any, ask: Any, length: int) -> None:
    assert await ask(await host("null"), "zero", type=RequestType.READ, length=length) == bytes(length)


@pytest.mark.parametrize(("text", "length"), [(b"5", 5), (b"5\n", 5), (b" 007 \n", 7), (b"0", 0), (b"16777216", MAX)])
async def test_a_call_of_zero_gives_the_number_that_it_holds(host: Any, ask: Any, text: bytes, length: int) -> None:
    assert await ask(await host("null"), "zero", text) == bytes(length)


@pytest.mark.parametrize("text", [b"", b"\n", b"many", b"-1", b"1.5", b"0x10", b"1_000", b"\xff", b"1 2", b"9" * 5000])
async def test_zero_refuses_what_is_no_number(host: Any, ask: Any, text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="expected a number of bytes such as 4096"):
        await ask(await host("null"), "zero", text)


@pytest.mark.parametrize(
    "request_", [{"data": b"16777217"}, {"data": b"9" * 20}, {"type": RequestType.READ, "length": MAX + 1}]
)
async def test_zero_refuses_more_than_16_mib(host: Any, ask: Any, request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="at most 16777216 bytes"):
        await ask(await host("null"), "zero", **request_)


@given(st.binary(max_size=30))
def test_any_text_is_a_number_or_refused(text: bytes) -> None:
    from ldmfs_providers.null import number

    with contextlib.suppress(InvalidRequest):
        assert number(text) >= 0


async def test_zero_refuses_a_flush(host: Any, ask: Any) -> None:
    with pytest.raises(NotSupported):
        await ask(await host("null"), "zero", type=RequestType.FLUSH)


def test_a_key_is_refused_by_its_place(configured: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"test\.toml: box\.null\.size: there is no such key"):
        configured("null", size=1)
