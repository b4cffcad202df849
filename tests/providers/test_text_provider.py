"""The plug-in text."""

from __future__ import annotations

from typing import Any

import pytest

from ldmfs import InvalidRequest, NotSupported, RequestType
from ldmfs.container.settings import ConfigurationError


@pytest.mark.parametrize(
    ("device", "text", "reply"),
    [
        ("upper", "hello, Welt\n", "HELLO, WELT\n"),
        ("upper", "straße", "STRASSE"),
        ("lower", "HELLO Ä\n", "hello ä\n"),
        ("reverse", "abc\n", "cba\n"),
        ("reverse", "añb", "bña"),
        ("rot13", "Hello 1\n", "Uryyb 1\n"),
    ],
)
async def test_text_is_converted(host: Any, ask: Any, device: str, text: str, reply: str) -> None:
    assert await ask(await host("text"), device, text.encode()) == reply.encode()


@pytest.mark.parametrize("device", ["upper", "lower", "reverse", "rot13"])
async def test_only_the_last_newline_keeps_its_place(host: Any, ask: Any, device: str) -> None:
    reply = await ask(await host("text"), device, b"\n1\n2\n\n")
    assert reply == (b"\n2\n1\n\n" if device == "reverse" else b"\n1\n2\n\n")


@pytest.mark.parametrize("device", ["upper", "lower", "reverse", "rot13"])
async def test_an_empty_text_stays_empty(host: Any, ask: Any, device: str) -> None:
    assert await ask(await host("text"), device, b"") == b""


async def test_a_view_of_shared_memory_is_a_text(host: Any, ask: Any) -> None:
    assert await ask(await host("text"), "upper", memoryview(b"abc")) == b"ABC"


async def test_bytes_that_are_not_utf8_are_refused_with_their_place(host: Any, ask: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"not UTF-8 text: invalid start byte at byte 2"):
        await ask(await host("text"), "reverse", b"ab\xff")


async def test_a_read_is_refused(host: Any, ask: Any) -> None:
    with pytest.raises(NotSupported, match=r"'upper' takes no READ"):
        await ask(await host("text"), "upper", type=RequestType.READ)


def test_a_key_is_refused_by_its_place(configured: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"test\.toml: box\.text\.loud: there is no such key"):
        configured("text", loud=True)
