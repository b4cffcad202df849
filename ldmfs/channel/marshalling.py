"""What a provider makes of NON_STANDARD requests of other containers: bytes on the way, any object to the handler."""

from __future__ import annotations

import logging
from typing import Any

from ..core.device import LogicalDevice
from ..core.errors import InvalidRequest, LdmError, NotSupported, ProviderFailed
from ..core.request import Reply, Request

log = logging.getLogger("ldmfs.channel")


def unmarshalled(device: LogicalDevice, request: Request) -> Any:
    """Return what a request is to its handler.  Raises `NotSupported`, `InvalidRequest`, or what the provider does."""
    if device.unmarshal is None:
        raise NotSupported(f"device {device.name!r} has no 'unmarshal' for NON_STANDARD requests of other containers")
    try:
        return device.unmarshal(bytes(request.data))
    except LdmError:
        raise
    except BaseException as error:  # whatever it is, it is no end of the container
        raise InvalidRequest(f"the request could not be unmarshalled: {type(error).__name__}: {error}") from None


def marshalled(device: LogicalDevice, reply: Reply) -> Reply:
    """Return a reply as it travels.  Raises `ProviderFailed`, or what the provider does."""
    if device.marshal is None:
        return reply
    try:
        return Reply(device.marshal(reply.object), reply.metadata)
    except LdmError:
        raise
    except BaseException as error:
        log.exception("device %s: its marshal raised", device.name)
        raise ProviderFailed(f"the reply of device {device.name!r} could not be marshalled: {error}") from None
