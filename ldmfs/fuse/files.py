"""Open files: one of a message device, of a block device, or of one that is gone.

An open file is one consumer.  It ends with `release`, which the kernel sends once, when the last descriptor is closed
or its owner died, and some time after `close` returned; what must be visible when `close` returns is done in `flush`,
which comes at each `close` of each duplicate.
"""

from __future__ import annotations

from ..core.device import Consumer, Kind
from .block_file import BlockFile, StaleFile
from .message_file import MessageFile
from .surroundings import Surroundings

File = MessageFile | BlockFile


def open_file(around: Surroundings, consumer: Consumer, flags: int) -> File:
    """Return the open file for a consumer that `open` has just made."""
    kind = MessageFile if consumer.device.kind is Kind.MESSAGE else BlockFile
    return kind(around, consumer, flags)


def adopted_file(around: Surroundings, consumer: Consumer) -> File:
    """Return the open file of a consumer that was adopted from an earlier instance of the container."""
    if consumer.stale:
        return StaleFile(around, consumer, consumer.flags)
    file = open_file(around, consumer, consumer.flags)
    if isinstance(file, MessageFile):
        file.resume()
    return file
