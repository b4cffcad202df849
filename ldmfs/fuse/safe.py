"""What pyfuse3 may see of an operation: errors that have a number, and a loop that goes on while it waits."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import trio
from pyfuse3 import FUSEError

from ..core.errors import LdmError
from .lean import inline, unanswered

log = logging.getLogger("ldmfs.fuse")

P = ParamSpec("P")
T = TypeVar("T")


def errno_of(error: BaseException) -> int:
    """Return the errno of anything that an operation raised; log it where it is not the model's."""
    if isinstance(error, LdmError):
        return error.errno
    log.error("an operation of the file edge raised", exc_info=error)
    return errno.EIO


def operation(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make an operation safe for pyfuse3: its errors are FUSEErrors, and others are served while it is suspended."""

    @functools.wraps(function)
    async def safe(*args: P.args, **kwargs: P.kwargs) -> T:
        unanswered.count += 1
        try:
            return await inline(function(*args, **kwargs))
        except (FUSEError, trio.Cancelled):
            raise
        except Exception as error:
            raise FUSEError(errno_of(error)) from None
        finally:
            unanswered.done()

    return safe
