"""The calls of `kmod/ldm_ioctl.h`, with the same layouts; a test compares them with the header."""

from __future__ import annotations

from ..core.wire import Field, Layout

ABOUT = Layout(
    "ldm_about",
    Field("consumer_id", "Q", "the id by which the provider knows this open"),
    Field("size", "Q", "bytes of a block device"),
    Field("accepts", "I", "bit 1 << t is set for each RequestType t that the device takes"),
    Field("kind", "H", "place in Kind, from 1"),
    Field("execution", "H", "place in Execution, from 1"),
)

CALL = Layout(
    "ldm_call",
    Field("type", "H", "a RequestType"),
    Field("reserved", "6s", "0"),
    Field("id", "Q", "by which it can be cancelled"),
    Field("offset", "q", "bytes from the device's begin"),
    Field("length", "q", "bytes to read or trim"),
    Field("input", "Q", "address of the input data"),
    Field("input_size", "Q", "its bytes"),
    Field("input_metadata", "Q", "address of the metadata that goes with it"),
    Field("input_metadata_size", "Q", "its bytes"),
    Field("output", "Q", "address of room for the reply's data"),
    Field("output_size", "Q", "bytes of that room; after the call those of the reply"),
    Field("output_metadata", "Q", "address of room for the metadata that comes with it"),
    Field("output_metadata_size", "Q", "bytes of that room; after the call those of the metadata"),
)

CALL_ID = Layout("__u64", Field("id", "Q", "of the call that is cancelled"))

LAYOUTS = (ABOUT, CALL)

MAX_DATA = 16 << 20
"""Bytes of the data of one request or reply: `LDM_MAX_DATA`."""

MAX_METADATA = 64 << 10
"""Bytes of its metadata: `LDM_MAX_METADATA`."""

_WRITE, _READ = 1, 2
_TYPE = 0xDE


def _number(direction: int, number: int, layout: Layout) -> int:
    """Return the number of a call, as `_IOC` of `asm-generic/ioctl.h` does; mips, powerpc and sparc have their own."""
    return direction << 30 | layout.size << 16 | _TYPE << 8 | number


SEND = _number(_READ | _WRITE, 1, CALL)
TELL = _number(_READ, 2, ABOUT)
CANCEL = _number(_WRITE, 3, CALL_ID)
