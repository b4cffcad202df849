"""The conformance suite: what every device does, whoever wrote it, in whatever world it runs and by whatever path.

    async def test_upper_is_a_device():
        container = ldmfs.Container("box")
        container.create_device("upper", Upper())
        await ldmfs.testing.check_device("upper", container=container, request=b"hello", reply=b"HELLO")

    def test_upper_is_a_device_in_a_tree():
        ldmfs.testing.check_device_blocking("text/upper", request=b"hello", reply=b"HELLO")

A device of a container in this process is used by plain calls (`local`) and over a channel of its own (`channel`), a
device of a mounted tree over its channel and through its file (`file`), one of the kernel by calls of the module
(`ioctl`) and through its file.  Each rule is a function of `rules` or `block_rules`; the one that is broken is named by
the `AssertionError`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..consumer.name import parse
from ..container.host import Container
from ..core.request import Request, RequestType
from . import block_rules, rules
from .paths import ways_to_container, ways_to_tree
from .subject import Expected, Rule, Subject, Way

__all__ = ["check_device", "check_device_blocking"]

SECONDS = 30.0
"""After which a rule is taken to hang."""

Sample = Request | bytes | None

RULES: tuple[Rule, ...] = (
    rules.each_open_is_a_consumer_of_its_own,
    rules.requests_are_answered_in_order,
    rules.a_device_is_opened_again_after_its_close,
    rules.a_close_without_a_request_is_fine,
    rules.a_request_after_the_close_is_refused,
    rules.a_second_close_does_nothing,
    rules.many_consumers_at_once_are_answered,
    rules.many_requests_at_once_are_answered,
    rules.types_that_it_does_not_take_are_refused,
    rules.an_unusual_size_is_answered_or_refused,
    rules.a_cancelled_request_leaves_the_device_usable,
    rules.a_close_ends_what_is_outstanding,
    rules.a_device_that_is_not_there_is_refused,
    block_rules.what_was_written_is_read,
    block_rules.a_read_ends_at_the_end,
    block_rules.a_write_ends_at_the_end,
    rules.a_killed_consumer_is_forgotten,
    rules.no_consumer_is_left,
)
"""In this order, by each path."""


async def check_device(
    name: str,
    *,
    container: Container | None = None,
    root: str | os.PathLike[str] | None = None,
    paths: tuple[str, ...] | None = None,
    request: Sample = None,
    reply: Expected = None,
    slow: Sample = None,
    writable: bool = True,
) -> None:
    """Run a device through every rule by each path; raise `AssertionError` for the first that it breaks.

    `name` is that of a device in `container`, which this trio run hosts, or `container/device` in the tree at `root`.
    `paths` are those to try: `local` and `channel`, or `channel` and `file`, or `ioctl` and `file`.  `request` is a
    sample, bytes being a CALL, that can be repeated and is answered with `reply`, or with what `reply` returns True
    for.  `slow` is one whose handler waits for long, to be cancelled and killed.  A block device that is `writable` is
    written, and gets back what was there.
    """
    broken: list[AssertionError] = []
    async with contextlib.AsyncExitStack() as stack:
        if container is None:
            ways = ways_to_tree(parse(name, root), paths)
        else:
            ways = await stack.enter_async_context(ways_to_container(name, container, paths or ("local", "channel")))
        try:
            await _check(ways, _as_request(request), reply, _as_request(slow), writable=writable)
        except AssertionError as error:
            broken.append(error)  # to be raised outside of the nursery that is in the stack, which would wrap it
    if broken:
        raise broken[0]


async def _check(
    ways: dict[str, Way], request: Request | None, reply: Expected, slow: Request | None, *, writable: bool
) -> None:
    subjects = [await _subject(path, way, request, reply, slow, writable) for path, way in ways.items()]
    for subject in subjects:
        for rule in RULES:
            await _apply(rule, subject)
    for other in subjects[1:]:
        await _apply(functools.partial(rules.the_paths_give_the_same, subjects[0]), other)


def check_device_blocking(name: str, **arguments: Any) -> None:
    """Run `check_device` in a trio run of its own."""
    trio.run(functools.partial(check_device, name, **arguments))


async def _subject(
    path: str, way: Way, request: Request | None, reply: Expected, slow: Request | None, writable: bool
) -> Subject:
    others = way.consumers()
    handle = await way.open_named(way.name)
    await handle.close()
    about = handle.kind, handle.size, handle.accepts
    subject = Subject(
        way.name, path, way.open_named, way.consumers, others, way.at, *about, request, reply, slow, writable
    )
    await subject.only_others_are_left()
    return subject


async def _apply(rule: Callable[[Subject], Awaitable[None]], subject: Subject) -> None:
    named: Any = rule.func if isinstance(rule, functools.partial) else rule
    broken = f"{subject.name} by {subject.path} breaks the rule {named.__name__}"
    try:
        with trio.fail_after(SECONDS):
            await rule(subject)
    except trio.TooSlowError:
        raise AssertionError(f"{broken}: it hangs") from None
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, AssertionError):
            raise AssertionError(f"{broken}: {cause}") from error
        raise AssertionError(f"{broken}: {type(cause).__name__}: {cause}") from error


def _as_request(sample: Sample) -> Request | None:
    return Request(RequestType.CALL, sample) if isinstance(sample, bytes) else sample
