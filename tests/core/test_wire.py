"""The layout of frames and blocks, and what is put into them."""

from __future__ import annotations

import array
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldmfs.core.errors import InvalidRequest
from ldmfs.core.request import RequestType
from ldmfs.core.wire import (
    BLOCK,
    HEADER,
    LAYOUTS,
    MAX_INLINE,
    TYPES,
    FrameKind,
    Layout,
    Limit,
    as_bytes,
    as_text,
    cut,
    encode,
    pack,
    unpack,
)

each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
LONG = MAX_INLINE + 1


@each_layout
def test_fields_are_naturally_aligned(layout: Layout) -> None:
    sizes = {field.name: struct.calcsize("<" + field.format[-1]) for field in layout.fields}
    assert [name for name, offset in layout.offsets.items() if offset % sizes[name]] == []


@each_layout
def test_a_layout_is_as_a_c_compiler_lays_it_out(layout: Layout) -> None:
    native = struct.Struct("@" + "".join(field.format for field in layout.fields) + "0q")
    assert native.size == layout.size


@each_layout
def test_each_field_has_a_name_of_its_own(layout: Layout) -> None:
    assert len(layout.offsets) == len(layout.fields)


@each_layout
def test_an_offset_is_where_the_packed_field_is(layout: Layout) -> None:
    for place, field in enumerate(layout.fields):
        values = [b"" if each.format.endswith("s") else 0 for each in layout.fields]
        values[place] = b"\1" if field.format.endswith("s") else 1
        assert layout.struct.pack(*values).index(1) == layout.offsets[field.name]


def test_the_sizes_are_those_of_version_1() -> None:
    assert {layout.name: layout.size for layout in LAYOUTS} == {"frame": 56, "greeting": 24, "opened": 16, "block": 384}


def test_a_block_begins_on_a_cache_line_of_its_own() -> None:
    assert BLOCK.size % 64 == 0


def test_two_frames_fit_into_the_default_buffer_of_a_socket() -> None:
    assert Limit.MAX_FRAME + 32 <= 212_992


def test_every_request_type_has_its_number() -> None:
    assert {TYPES[number]: number for number in TYPES} == {type: type.value for type in RequestType}


HEADERS = st.tuples(
    *(
        st.integers(-(1 << 63), (1 << 63) - 1) if field.format == "q" else st.integers(0, 256**size - 1)
        for field in HEADER.fields
        for size in [struct.calcsize("<" + field.format)]
    )
)


@given(HEADERS)
def test_a_header_comes_back_as_it_was(header: tuple[int, ...]) -> None:
    assert unpack(pack(*header)) == header


@given(st.binary(max_size=100), st.binary(max_size=100), st.integers(0, (1 << 64) - 1))
def test_a_frame_has_its_sizes_in_its_header(data: bytes, metadata: bytes, id: int) -> None:
    (frame,) = encode(FrameKind.OPEN, data, id=id, metadata=metadata)
    _, _, _, _, sent, _, _, _, data_size, metadata_size, *_ = unpack(frame)
    assert (sent, frame[HEADER.size :][:data_size], metadata_size) == (id, data, len(metadata))


@pytest.mark.parametrize("size", [LONG, 2 * MAX_INLINE, 2 * MAX_INLINE + 1])
def test_the_pieces_of_a_long_message_are_the_message(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    frames = cut(bytes(HEADER.size), 9, data, b"")
    assert b"".join(frame[HEADER.size :] for frame in frames) == data


def test_metadata_follows_the_data_of_a_long_message() -> None:
    assert cut(bytes(HEADER.size), 9, bytes(MAX_INLINE), b"about")[-1][HEADER.size :] == b"about"


def test_no_frame_of_a_long_message_is_longer_than_a_packet() -> None:
    assert {len(frame) <= Limit.MAX_FRAME for frame in cut(bytes(HEADER.size), 9, bytes(3 * LONG), b"")} == {True}


def test_all_but_the_last_frame_of_a_long_message_are_filled() -> None:
    assert {len(frame) for frame in cut(bytes(HEADER.size), 9, bytes(3 * LONG), b"")[:-1]} == {Limit.MAX_FRAME}


def test_pieces_carry_the_id_of_their_message() -> None:
    assert unpack(cut(bytes(HEADER.size), 9, bytes(LONG), b"")[1])[:5] == (FrameKind.CONTINUE, 0, 0, 0, 9)


def test_data_is_counted_in_bytes_whatever_it_is_made_of() -> None:
    assert len(as_bytes(memoryview(array.array("I", [1, 2])))) == 8


def test_an_empty_view_is_no_bytes() -> None:
    assert bytes(as_bytes(memoryview(array.array("I")))) == b""


@pytest.mark.parametrize("data", [memoryview(b"abcd")[::2], "text", 5, None], ids=["gaps", "str", "int", "None"])
def test_what_is_no_buffer_is_an_invalid_request(data: object) -> None:
    with pytest.raises(InvalidRequest):
        as_bytes(data)  # type: ignore[arg-type]


@given(st.text(st.characters(), max_size=3000))
def test_the_text_of_an_error_is_bounded_valid_and_a_prefix(message: str) -> None:
    text = as_text(message)
    assert len(text) <= Limit.MAX_TEXT
    assert message.encode(errors="replace").decode().startswith(text.decode())
