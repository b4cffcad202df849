"""The structures of `kmod/ldm.h` and `runtime.h` that both sides of a shared object know; a test compares them."""

from __future__ import annotations

import enum
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, ClassVar

VERSION = 1
"""`LDM_RUNTIME_VERSION`: of all of this."""

LATER = 1
"""`LDM_LATER`: what a request handler returns that completes the request later."""

MAX_DATA = 16 << 20
"""`LDM_MAX_DATA`: bytes of one part of a request."""

MAX_CHAIN = 16
"""`LDM_MAX_CHAIN`: devices in a row, each consuming the next."""

Address = int
Fields = list[tuple[str, Any]]


class Part(enum.IntEnum):
    """`enum ldm_part`."""

    INPUT = 0
    INPUT_METADATA = 1
    OUTPUT = 2
    OUTPUT_METADATA = 3


class ParameterType(enum.IntEnum):
    """`enum ldm_param_type`."""

    BOOL = 0
    UINT = 1
    SIZE = 2
    STRING = 3


class Data(Structure):
    """`struct ldm_data`."""

    data: Address | None
    size: int
    _fields_: ClassVar[Fields] = [("data", c_void_p), ("size", c_size_t)]


class RequestBlock(Structure):
    """`struct ldm_request`."""

    type: int
    offset: int
    length: int
    input: Data
    input_metadata: Data
    output: Data
    output_metadata: Data
    object: Address | None
    consumer_id: int
    status: int
    _fields_: ClassVar[Fields] = [
        ("type", c_int),
        ("offset", c_int64),
        ("length", c_int64),
        ("input", Data),
        ("input_metadata", Data),
        ("output", Data),
        ("output_metadata", Data),
        ("object", c_void_p),
        ("consumer_id", c_uint64),
        ("status", c_int),
        ("data", c_void_p),
    ]


class DeviceSpec(Structure):
    """`struct ldm_device_spec`."""

    name: bytes | None
    description: bytes | None
    takes: bytes | None
    gives: bytes | None
    kind: int
    size: int
    accepts: int
    mode: int
    uid: int
    gid: int
    marshal: Address | None
    unmarshal: Address | None
    _fields_: ClassVar[Fields] = [
        ("name", c_char_p),
        ("description", c_char_p),
        ("takes", c_char_p),
        ("gives", c_char_p),
        ("kind", c_int),
        ("size", c_uint64),
        ("accepts", c_uint32),
        ("mode", c_uint),
        ("uid", c_uint),
        ("gid", c_uint),
        ("thread", c_bool),
        ("context", c_void_p),
        ("open", c_void_p),
        ("close", c_void_p),
        ("request", c_void_p),
        ("cancel", c_void_p),
        ("unmarshal", c_void_p),
        ("marshal", c_void_p),
    ]


class About(Structure):
    """`struct ldm_about`."""

    _fields_: ClassVar[Fields] = [
        ("consumer_id", c_uint64),
        ("size", c_uint64),
        ("accepts", c_uint32),
        ("kind", c_uint16),
        ("execution", c_uint16),
    ]


class ProviderRecord(Structure):
    """`struct ldm_provider`."""

    name: bytes
    description: bytes
    _fields_: ClassVar[Fields] = [
        ("name", c_char_p),
        ("description", c_char_p),
        ("start", c_void_p),
        ("stop", c_void_p),
        ("context", c_void_p),
        ("world", c_void_p),
    ]


class _Value(Union):
    bool_value: Any
    uint_value: Any
    size_value: Any
    string_value: Any
    _fields_: ClassVar[Fields] = [
        ("bool_value", POINTER(c_bool)),
        ("uint_value", POINTER(c_uint)),
        ("size_value", POINTER(c_uint64)),
        ("string_value", POINTER(c_char_p)),
    ]


class ParameterRecord(Structure):
    """`struct ldm_param`."""

    name: bytes
    description: bytes
    type: int
    value: _Value
    _fields_: ClassVar[Fields] = [("name", c_char_p), ("description", c_char_p), ("type", c_int), ("value", _Value)]


class HostTable(Structure):
    """`struct ldm_host`: what the container does for a shared object."""

    _fields_: ClassVar[Fields] = [
        ("log", CFUNCTYPE(None, c_int, c_char_p)),
        ("create_device", CFUNCTYPE(c_int, c_void_p, POINTER(DeviceSpec))),
        ("destroy_device", CFUNCTYPE(c_int, c_void_p)),
        ("complete_request", CFUNCTYPE(None, c_void_p, c_int)),
        ("open_device", CFUNCTYPE(c_int, c_char_p, c_void_p, c_void_p, POINTER(About))),
        ("close_device", CFUNCTYPE(None, c_void_p)),
        ("send_request", CFUNCTYPE(c_int, c_void_p, c_void_p)),
        ("send_soon", CFUNCTYPE(c_int, c_void_p, c_void_p)),
        ("cancel_request", CFUNCTYPE(None, c_void_p)),
        ("release", CFUNCTYPE(None, c_uint64)),
    ]


class RuntimeTable(Structure):
    """`struct ldm_runtime`: what a shared object does for the container."""

    version: int
    provider: Any
    params: Any
    params_end: Any
    init: Any
    start: Any
    stop: Any
    new_consumer: Any
    open: Any
    close: Any
    free_consumer: Any
    request: Any
    marshal: Any
    cancel: Any
    end: Any
    new_request: Any
    free_request: Any
    fill: Any
    lend: Any
    lender: Any
    lend_room: Any
    parent: Any
    inherits_input: Any
    _fields_: ClassVar[Fields] = [
        ("version", c_uint32),
        ("provider", POINTER(ProviderRecord)),
        ("params", c_void_p),
        ("params_end", c_void_p),
        ("init", CFUNCTYPE(None, POINTER(HostTable))),
        ("start", CFUNCTYPE(c_int)),
        ("stop", CFUNCTYPE(None)),
        ("new_consumer", CFUNCTYPE(c_void_p, c_void_p, c_uint64)),
        ("open", CFUNCTYPE(c_int, c_void_p)),
        ("close", CFUNCTYPE(None, c_void_p)),
        ("free_consumer", CFUNCTYPE(None, c_void_p)),
        ("request", CFUNCTYPE(c_int, c_void_p, c_void_p, c_bool)),
        ("marshal", CFUNCTYPE(c_int, c_void_p, c_void_p)),
        ("cancel", CFUNCTYPE(None, c_void_p, c_void_p)),
        ("end", CFUNCTYPE(None, c_void_p, c_int)),
        ("new_request", CFUNCTYPE(c_void_p, c_uint, c_int)),
        ("free_request", CFUNCTYPE(None, c_void_p)),
        ("fill", CFUNCTYPE(c_int, c_void_p, c_int, c_void_p, c_size_t)),
        ("lend", CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_size_t, c_uint64)),
        ("lender", CFUNCTYPE(c_uint64, c_void_p, c_int)),
        ("lend_room", CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)),
        ("parent", CFUNCTYPE(c_void_p, c_void_p)),
        ("inherits_input", CFUNCTYPE(c_bool, c_void_p)),
    ]
