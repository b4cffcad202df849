"""codec: compression and base64, as devices.

    gzip-encode, gzip-decode        as the command gzip does it
    zstd-encode, zstd-decode        as the command zstd does it; needs the package zstandard
    base64-encode, base64-decode    on one line

A request (CALL) is the bytes to encode or to decode, the reply what they become.  base64-encode ends its line with a
newline, base64-decode takes it with or without one.  What cannot be decoded, or ends too early, is refused with EINVAL;
what would become longer than `limit` with EMSGSIZE, before it fills the memory.

    $ echo hello > /ldm/codec/gzip-encode; cat /ldm/codec/gzip-encode | gunzip
    hello
    $ printf hello > /ldm/codec/base64-encode; cat /ldm/codec/base64-encode
    aGVsbG8=

Configuration, in which `codec.codec` is the container and the plug-in; these are the defaults:

    [codec.codec]
    formats = ["gzip", "zstd", "base64"]    # what there are devices for
    limit = "64 MiB"                        # the longest reply of a decoder
"""

from __future__ import annotations

import binascii
import gzip
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from ldmfs import Device, Doc, InvalidRequest, MessageTooLong, Provider, Request, RequestType, Settings, Size, require

PIECE = 256
"""Bytes that are decoded at a time.  zstd makes at most 8 MiB of them, by blocks of 4 bytes that give 128 KiB each, so
that a reply is found to be too long before it is much longer than the limit."""

Data: TypeAlias = bytes | bytearray | memoryview
Convert: TypeAlias = Callable[[Data], Data]


class CodecSettings(Settings):
    """Keys of `[container.codec]`."""

    formats: Annotated[tuple[Literal["gzip", "zstd", "base64"], ...], Doc("what there are devices for")] = (
        "gzip", "zstd", "base64",
    )  # fmt: skip
    limit: Annotated[Size, Doc("the longest reply of a decoder")] = Size("64 MiB")


def decompressed(start: Callable[[], Any], data: Data, limit: int) -> Data:
    """Decode the members (gzip) or frames (zstd) of `data`, each with an object of its own from `start`."""
    reply, decoder, begin, view = bytearray(), start(), 0, memoryview(data)
    while begin < len(view):
        if decoder.eof:
            decoder = start()
        piece = view[begin : begin + PIECE]
        reply += decoder.decompress(piece)
        if len(reply) > limit:
            raise too_long(limit)
        begin += len(piece) - len(decoder.unused_data)
    if not decoder.eof:
        raise InvalidRequest("the compressed data ends too early")
    return reply


def too_long(limit: int) -> MessageTooLong:
    """Return the error for what is longer than `limit` when decoded."""
    return MessageTooLong(f"decoded it is longer than {limit} bytes, the limit of this device")


def gzip_codec(limit: int) -> tuple[Convert, Convert]:
    """Return what encodes and what decodes gzip."""

    def decode(data: Data) -> Data:
        try:
            return decompressed(lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), data, limit)
        except zlib.error as error:
            raise InvalidRequest(f"the request is not valid gzip: {error}") from None

    return lambda data: gzip.compress(data, mtime=0), decode


def zstd_codec(limit: int) -> tuple[Convert, Convert]:
    """Return what encodes and what decodes zstd."""
    zstandard = require("zstandard", "zstd")

    def decode(data: Data) -> Data:
        try:
            return decompressed(lambda: zstandard.ZstdDecompressor().decompressobj(), data, limit)
        except zstandard.ZstdError as error:
            raise InvalidRequest(f"the request is not valid zstd: {error}") from None

    return lambda data: bytes(zstandard.ZstdCompressor().compress(data)), decode


def base64_codec(limit: int) -> tuple[Convert, Convert]:
    """Return what encodes and what decodes base64."""

    def decode(data: Data) -> Data:
        try:
            reply = binascii.a2b_base64(bytes(data).removesuffix(b"\n"), strict_mode=True)
        except binascii.Error as error:
            raise InvalidRequest(f"the request is not valid base64: {error}") from None
        if len(reply) > limit:
            raise too_long(limit)
        return reply

    return binascii.b2a_base64, decode


CODECS = {"gzip": gzip_codec, "zstd": zstd_codec, "base64": base64_codec}


class CodecDevice(Device):
    """Answers bytes with what they become; in a thread, since a long request takes a while."""

    accepts = frozenset({RequestType.CALL})
    thread = True

    def __init__(self, convert: Convert, takes: str, gives: str) -> None:
        self.convert, self.takes, self.gives = convert, takes, gives
        self.description = f"{takes} become {gives}"

    def request(self, consumer_id: int, request: Request) -> Data:
        """Convert the data."""
        return self.convert(request.data)


class Codec(Provider):
    """Encoders and decoders: gzip, zstd, base64."""

    Settings = CodecSettings
    settings: CodecSettings

    def start(self) -> None:
        """Create the devices.  Raises `MissingExtra` for a format whose package is not installed."""
        for name in dict.fromkeys(self.settings.formats):
            encode, decode = CODECS[name](self.settings.limit)
            self.create_device(f"{name}-encode", CodecDevice(encode, "any bytes", f"{name} data"))
            self.create_device(f"{name}-decode", CodecDevice(decode, f"{name} data", "the bytes that were encoded"))
