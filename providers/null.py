"""null: the simplest devices, to try things with.

    null    takes anything, gives nothing
    echo    gives back what it got; a READ gives nothing, since nothing was got
    zero    a READ gives as many zero bytes as it asks for, a CALL with a decimal number gives that many

zero gives at most 16 MiB; more is refused with EINVAL, and so is a request that holds no number.

    $ echo 5 > /ldm/null/zero; cat /ldm/null/zero | wc -c
    5
    $ echo hello > /ldm/null/echo; cat /ldm/null/echo
    hello

Configuration, in which `null.null` is the container and the plug-in; there are no keys:

    [null.null]
"""

from __future__ import annotations

from ldmfs import Device, InvalidRequest, Provider, Reply, Request, RequestType

MAX_ZEROS = 16 << 20


class Nothing(Device):
    """Takes anything, gives nothing."""

    description = "takes anything, gives nothing"
    takes = "any bytes"
    gives = "nothing"

    def request(self, consumer_id: int, request: Request) -> None:
        """Do nothing."""


class Echo(Device):
    """Gives back what it got."""

    description = "gives back what it got"
    takes = "any bytes"
    gives = "the same bytes"

    def request(self, consumer_id: int, request: Request) -> Reply:
        """Return the input area, and the object, as they came."""
        return Reply(request.data, request.metadata, request.object)


class Zero(Device):
    """Gives zero bytes."""

    accepts = frozenset({RequestType.READ, RequestType.CALL})
    description = "gives zero bytes"
    takes = "how many, a decimal number"
    gives = "that many zero bytes"

    def request(self, consumer_id: int, request: Request) -> bytes:
        """Return as many zero bytes as the request asks for."""
        count = request.length if request.type is RequestType.READ else number(bytes(request.data))
        if count > MAX_ZEROS:
            raise InvalidRequest(f"at most {MAX_ZEROS} bytes can be asked for, not {count}")
        return bytes(count)


def number(text: bytes) -> int:
    """Return the decimal number that `text` is."""
    digits = text.strip()
    if not digits.isdigit() or len(digits) > 20:
        raise InvalidRequest(f"expected a number of bytes such as 4096, got {text[:40]!r}")
    return int(digits)


class Null(Provider):
    """The simplest devices: null, echo, zero."""

    def start(self) -> None:
        """Create the devices."""
        self.create_device("null", Nothing())
        self.create_device("echo", Echo())
        self.create_device("zero", Zero())
