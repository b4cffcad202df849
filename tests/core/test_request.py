"""What a request handler may return."""

from __future__ import annotations

import array
from typing import Any

import pytest

from ldmfs.core.request import MAX_MESSAGE, Reply, RequestType, as_reply


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_the_data_of_a_reply(kind: type) -> None:
    assert bytes(as_reply(kind(b"data")).data) == b"data"


def test_bytes_are_not_copied() -> None:
    data = b"data"
    assert as_reply(data).data is data


def test_a_view_of_bytes_is_not_copied() -> None:
    view = memoryview(bytearray(b"data"))
    assert as_reply(view).data is view


def test_nothing_is_an_empty_reply() -> None:
    assert as_reply(None).data == b""


def test_a_reply_is_passed_on_as_it_is() -> None:
    reply = Reply(b"data", b"metadata", object())
    assert as_reply(reply) is reply


def test_a_subclass_of_bytes_is_bytes() -> None:
    class Special(bytes):
        pass

    assert as_reply(Special(b"data")).data == b"data"


@pytest.mark.parametrize(
    "view", [memoryview(array.array("i", [1, 2, 3])), memoryview(b"abcdef")[::2]], ids=["wide items", "gaps"]
)
@pytest.mark.parametrize("wrap", [lambda view: view, Reply], ids=["view", "reply"])
def test_the_length_of_a_reply_is_in_bytes(wrap: Any, view: memoryview) -> None:
    reply = as_reply(wrap(view))
    assert (len(reply.data), bytes(reply.data)) == (view.nbytes, view.tobytes())


def test_a_view_that_is_copied_keeps_its_metadata() -> None:
    marker = object()
    reply = as_reply(Reply(memoryview(b"abcdef")[::2], b"metadata", marker))
    assert (reply.metadata, reply.object) == (b"metadata", marker)


@pytest.mark.parametrize("value", ["text", 0, False, [b"x"], {"a": 1}, 1.5], ids=repr)
def test_anything_else_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=f"bytes, a Reply or None, not {type(value).__name__}"):
        as_reply(value)


@pytest.mark.parametrize("data", ["text", None, 3, [b"x"]], ids=repr)
def test_a_reply_whose_data_is_no_bytes_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError, match=f"data of a Reply is bytes, not {type(data).__name__}"):
        as_reply(Reply(data))


def test_the_numbers_of_the_types_are_fixed() -> None:
    assert {type_.name: type_.value for type_ in RequestType} == {
        "READ": 1,
        "WRITE": 2,
        "CALL": 3,
        "FLUSH": 4,
        "TRIM": 5,
        "NON_STANDARD": 6,
    }


def test_a_message_and_a_page_fit_in_the_largest_write_that_the_kernel_does_not_split() -> None:
    assert MAX_MESSAGE + 4096 == 1 << 20
