"""Running a coroutine where it is called for as long as it needs no waiting."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def run_inline(coroutine: Coroutine[Any, Any, T], suspended: Callable[[], object]) -> Generator[Any, Any, T]:
    """Run `coroutine` in the task that awaits this; if it suspends, call `suspended` first, once.

    Exceptions and cancellation pass through in both directions.
    """
    try:
        trap = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    suspended()
    while True:
        try:
            value = yield trap
        except BaseException as error:  # whatever the loop throws in belongs to the coroutine
            step: Callable[[], Any] = _thrower(coroutine, error)
        else:
            step = _sender(coroutine, value)
        try:
            trap = step()
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def _thrower(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)


def _sender(coroutine: Coroutine[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: coroutine.send(value)
