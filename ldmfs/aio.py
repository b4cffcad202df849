"""The consumer API for trio: the names of the blocking one, to be awaited.  See `ldmfs.consumer.aio`."""

from .consumer.aio import OpenDevice, close_device, open_device, send_request

__all__ = ["OpenDevice", "close_device", "open_device", "send_request"]
