"""text: what text becomes, as devices.

    upper, lower    the text in capital or in small letters
    reverse         its characters (code points) from the last to the first
    rot13           its Latin letters moved by 13 places

A request (CALL) is UTF-8 text, the reply is the converted text.  A newline at the end, as `echo` adds it, stays at the
end.  What is not UTF-8 is refused with EINVAL, and a READ with EOPNOTSUPP: without a text there is nothing to tell.

    $ echo hello > /ldm/text/reverse; cat /ldm/text/reverse
    olleh

Configuration, in which `text.text` is the container and the plug-in; there are no keys:

    [text.text]
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

from ldmfs import Device, InvalidRequest, Provider, Request, RequestType

CONVERSIONS: dict[str, tuple[Callable[[str], str], str]] = {
    "upper": (str.upper, "the text in capital letters"),
    "lower": (str.lower, "the text in small letters"),
    "reverse": (lambda text: text[::-1], "the text from its last character to its first"),
    "rot13": (lambda text: codecs.encode(text, "rot13"), "the text with its letters moved by 13 places"),
}


class TextDevice(Device):
    """Answers a text with its conversion."""

    accepts = frozenset({RequestType.CALL})
    takes = "UTF-8 text"

    def __init__(self, convert: Callable[[str], str], gives: str) -> None:
        self.convert = convert
        self.description = self.gives = gives

    def request(self, consumer_id: int, request: Request) -> bytes:
        """Convert the text, all but a newline at its end."""
        try:
            text = str(request.data, "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the request is not UTF-8 text: {error.reason} at byte {error.start}") from None
        body = text.removesuffix("\n")
        return (self.convert(body) + text[len(body) :]).encode()


class Text(Provider):
    """Text converted: upper, lower, reverse, rot13."""

    def start(self) -> None:
        """Create the devices."""
        for name, (convert, gives) in CONVERSIONS.items():
            self.create_device(name, TextDevice(convert, gives))
