"""Devices that pass their requests on to other devices: the simplest stacks.

Each table makes one device.  `lower` names the device that it consumes, in this container or in another one, or several
of them, which then all get each request, in this order; the reply is theirs, joined.

    [x.relay.x]                # /ldm/x/x consumes y/y
    lower = "y/y"
    [y.relay.y]                # /ldm/y/y consumes the bundled text/upper
    lower = "text/upper"
    [t.relay.both]             # /ldm/t/both consumes two
    lower = ["text/upper", "hash/sha256"]

    $ echo hello > /ldm/x/x; cat /ldm/x/x
    HELLO

A lower device is opened when a consumer opens the upper one.  It need not be there before, and is opened again after
its provider was restarted; a request that was under way then fails with ECONNABORTED.  Opening a device that consumes
itself by some way round is refused with ELOOP.  Large data is not copied on its way: each hop gets the same memory.
"""

from __future__ import annotations

from typing import Annotated

import ldmfs


class RelaySettings(ldmfs.Settings):
    """The keys of a device's table."""

    lower: Annotated[str | tuple[str, ...], ldmfs.Doc("the device that it consumes, as container/device, or several")]


class RelayDevice(ldmfs.StackedDevice, ldmfs.Device):
    """Passes each request on to the devices below it."""

    takes = "what the device below takes"
    gives = "what it gives"

    def __init__(self, lowers: tuple[ldmfs.Lower, ...]) -> None:
        self.lowers = lowers
        self.description = "passes requests on to " + ", ".join(lower.name for lower in lowers)

    async def request(self, consumer_id: int, request: ldmfs.Request) -> ldmfs.Reply:
        """Send the request to each device below and join what they answer."""
        replies = [await lower.send(consumer_id, request.forward()) for lower in self.lowers]
        return replies[0] if len(replies) == 1 else ldmfs.Reply(b"".join(reply.data for reply in replies))


class Relay(ldmfs.Provider):
    """Creates a device for each table."""

    DeviceSettings = RelaySettings

    def start(self) -> None:
        """Create the devices; what is below them is opened later."""
        for name, settings in self.devices.items():
            names = (settings.lower,) if isinstance(settings.lower, str) else settings.lower
            lowers = tuple(ldmfs.Lower(self.container, name, lower) for lower in names)
            self.create_device(name, RelayDevice(lowers))
