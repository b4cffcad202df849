"""Every error of the model and its errno: the one table that all edges use.

An edge turns an `LdmError` into its `errno` for the kernel or the wire, and `from_errno` turns a number that came
back into the class again, so that a consumer sees the same class on every path.
"""

from __future__ import annotations

import errno as _errno
import os


class LdmError(Exception):
    """An error that a consumer is told of.

    `errno` is the number that it gets on every path.  A handler raises a subclass, or `LdmError(message, errno=N)`
    for a number that has no class here.  Anything else that a handler raises is logged and reaches the consumer as
    `EIO`.
    """

    errno: int = _errno.EIO

    def __init__(self, message: str = "", *, errno: int | None = None) -> None:
        super().__init__(message)
        if errno is not None:
            self.errno = errno

    def __str__(self) -> str:
        return super().__str__() or os.strerror(self.errno)


class NoSuchDevice(LdmError):
    """The container has no device of that name, or there is no such container."""

    errno = _errno.ENOENT


class DeviceExists(LdmError):
    """A device of that name is there already."""

    errno = _errno.EEXIST


class DeviceBusy(LdmError):
    """The device has consumers, or the open file's last request is still running."""

    errno = _errno.EBUSY


class AccessDenied(LdmError):
    """The device's mode, owner and group do not let this consumer in."""

    errno = _errno.EACCES


class NotPermitted(LdmError):
    """The operation is not for this caller, or not for a file that is a device."""

    errno = _errno.EPERM


class InvalidRequest(LdmError):
    """The request's contents make no sense to the provider."""

    errno = _errno.EINVAL


class NotSupported(LdmError):
    """The device does not take requests of this type."""

    errno = _errno.EOPNOTSUPP


class MessageTooLong(LdmError):
    """The request is larger than `MAX_MESSAGE`."""

    errno = _errno.EMSGSIZE


class NameTooLong(LdmError):
    """A container's or device's name is longer than `MAX_NAME` bytes."""

    errno = _errno.ENAMETOOLONG


class WouldBlock(LdmError):
    """The file is in non-blocking mode and the reply is not there yet."""

    errno = _errno.EAGAIN


class QueueFull(WouldBlock):
    """As many requests are outstanding as may be; this one was refused at the entrance."""


class Interrupted(LdmError):
    """The caller has a signal pending."""

    errno = _errno.EINTR


class RequestCancelled(LdmError):
    """The consumer went away, or cancelled the request."""

    errno = _errno.ECANCELED


class TimedOut(LdmError):
    """The time that was allowed has passed."""

    errno = _errno.ETIMEDOUT


class ProviderDied(LdmError):
    """The provider's process ended while the request was outstanding."""

    errno = _errno.ECONNABORTED


class NotServed(LdmError):
    """Nobody serves the container at the moment."""

    errno = _errno.ENOTCONN


class StaleHandle(LdmError):
    """The device was opened under an instance of its provider that is gone."""

    errno = _errno.ESTALE


class DeviceLoop(LdmError):
    """Opening the device would close a cycle of devices that consume each other."""

    errno = _errno.ELOOP


class HandleClosed(LdmError):
    """The consumer has closed the device."""

    errno = _errno.EBADF


class NoSpace(LdmError):
    """The device is full, or the offset lies behind its end."""

    errno = _errno.ENOSPC


class ProtocolError(LdmError):
    """The other side sent what the protocol does not allow."""

    errno = _errno.EPROTO


class ProviderFailed(LdmError):
    """A handler raised something that is no `LdmError`; the container's log has the traceback."""

    errno = _errno.EIO


class StateDamaged(LdmError):
    """What was written over the container's state is none of its own: nothing of it can be trusted."""

    errno = _errno.EUCLEAN


class StateConflict(WouldBlock):
    """Another transaction has changed what this one has read; nothing was changed.  It may be tried again."""


BY_ERRNO: dict[int, type[LdmError]] = {cls.errno: cls for cls in LdmError.__subclasses__() if "errno" in cls.__dict__}


def from_errno(number: int, message: str = "") -> LdmError:
    """Return the error that `number` stands for, an unspecific `LdmError` where no class has it."""
    cls = BY_ERRNO.get(number)
    return cls(message) if cls else LdmError(message or os.strerror(number), errno=number)
