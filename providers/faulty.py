"""faulty: another plug-in's devices, with faults: for tests of what goes wrong.

The container has the devices that the wrapped plug-in makes.  A request is delayed, then the fault of its turn happens,
or else it is answered as ever.  Turns are counted for each device by itself, over all of its consumers; a request of a
type that the device does not take has none.  Where more than one fault falls on a turn, the process exits rather than
the handler raises, and raises rather than fails.  Each device has random numbers of its own: runs can be repeated.

    $ echo one > /ldm/bad/upper; cat /ldm/bad/upper
    ONE
    $ echo two > /ldm/bad/upper
    sh: 2: echo: echo: I/O error

Configuration, in which `bad.faulty` is the container and the plug-in; only `provider` is required:

    [bad.faulty]
    provider = "text"        # the wrapped plug-in: its name, or module:Class
    delay = "0 s"            # wait before each request; like jitter it makes every request handler async
    jitter = "0 s"           # wait up to so much longer
    seed = 0                 # where jitter starts from
    exit_every = 0           # every how many requests the process ends at once, as by a crash; 0: never
    raise_every = 0          # every how many the handler raises a RuntimeError: logged, and EIO; 0: never
    fail_every = 2           # every how many the consumer gets the error `errno`; default 0: never
    errno = "EIO"
    exit_status = 1
    on_open = "none"         # what happens instead of an open: none, exit, raise, fail
    on_close = "none"        # what happens instead of a close
    [bad.faulty.settings]    # the wrapped plug-in's own keys
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeAlias

import trio

from ldmfs import Container, Doc, Duration, LdmError, Provider, Settings
from ldmfs.container.plug_ins import PlugIn, found
from ldmfs.container.provider import configure, load
from ldmfs.container.settings import ConfigurationError

Fault: TypeAlias = Literal["none", "exit", "raise", "fail"]


class FaultySettings(Settings):
    """Keys of `[container.faulty]`."""

    provider: Annotated[str, Doc("the wrapped plug-in: its name, or module:Class")]
    settings: Annotated[dict[str, Any], Doc("the wrapped plug-in's own keys")] = {}
    delay: Annotated[Duration, Doc("wait before each request")] = Duration(0)
    jitter: Annotated[Duration, Doc("wait up to so much longer, at random")] = Duration(0)
    seed: Annotated[int, Doc("where jitter starts from")] = 0
    exit_every: Annotated[int, Doc("every how many requests the process ends; 0: never")] = 0
    raise_every: Annotated[int, Doc("every how many requests the handler raises; 0: never")] = 0
    fail_every: Annotated[int, Doc("every how many requests one fails; 0: never")] = 0
    errno: Annotated[str, Doc("the error of what fails, by its name")] = "EIO"
    exit_status: Annotated[int, Doc("the status of a process that exits, 0 to 255")] = 1
    on_open: Annotated[Fault, Doc("what happens instead of an open")] = "none"
    on_close: Annotated[Fault, Doc("what happens instead of a close")] = "none"

    def __post_init__(self) -> None:
        for key in ("exit_every", "raise_every", "fail_every"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: expected 0 or more, got {getattr(self, key)}")
        if not 0 <= self.exit_status <= 255:
            raise ValueError(f"exit_status: expected 0 to 255, got {self.exit_status}")
        if not (self.errno.startswith("E") and hasattr(errno, self.errno)):
            raise ValueError(f'errno: expected a name such as "EIO", got {self.errno!r}')

    def happen(self, fault: Fault) -> None:
        """Let a fault happen."""
        if fault == "exit":
            os._exit(self.exit_status)
        if fault == "raise":
            raise RuntimeError("faulty raises this as it is configured to")
        if fault == "fail":
            raise LdmError("faulty fails as it is configured to", errno=getattr(errno, self.errno))

    def of_turn(self, turn: int) -> Fault:
        """Return the fault of a device's request number `turn`, counted from 1."""
        faults: dict[Fault, int] = {"exit": self.exit_every, "raise": self.raise_every, "fail": self.fail_every}
        return next((fault for fault, every in faults.items() if every and turn % every == 0), "none")


class FaultyContainer:
    """The container as the wrapped plug-in sees it: the devices that are created in it have faults."""

    def __init__(self, container: Container, faults: FaultySettings) -> None:
        self.container, self.faults = container, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def create_device(self, name: str, *handlers: Any, **attributes: Any) -> Any:
        """`Container.create_device`; the faults are in place before the loop lets anybody open the device."""
        device, faults = self.container.create_device(name, *handlers, **attributes), self.faults
        turns, chance = itertools.count(1), random.Random(f"{faults.seed} {name}")
        device.open_handler = self._handler(device.open_handler, lambda: faults.on_open)
        device.close_handler = self._handler(device.close_handler, lambda: faults.on_close)
        device.request_handler = self._handler(device.request_handler, lambda: faults.of_turn(next(turns)))
        if faults.delay or faults.jitter:
            device.request_handler = self._delayed(device.request_handler, device.request_execution, chance)
            device.request_execution = type(device.request_execution).ASYNC
        return device

    def _handler(self, handler: Callable[..., Any], fault: Callable[[], Fault]) -> Callable[..., Any]:
        """Return the handler with a fault before it, run as the handler is: the caller awaits an async one."""

        def faulty(*args: Any) -> Any:
            self.faults.happen(fault())
            return handler(*args)

        return faulty

    def _delayed(self, handler: Callable[..., Any], execution: Any, chance: random.Random) -> Callable[..., Any]:
        """Return an async handler that waits, then runs `handler` as its `execution` says."""

        async def delayed(*args: Any) -> Any:
            await trio.sleep(self.faults.delay + chance.uniform(0, self.faults.jitter))
            if execution.value == "thread":
                return await self.container.dispatch.runtime.in_thread(handler, *args)
            value = handler(*args)
            return await value if execution.value == "async" else value

        return delayed


class Faulty(Provider):
    """Another plug-in's devices, with delays and faults, for tests."""

    Settings = FaultySettings
    settings: FaultySettings

    def __init__(self, container: Container, name: str, *settings: Any) -> None:
        super().__init__(container, name, *settings)
        installed, target = found(), self.settings.provider
        if ":" not in target:
            if target not in installed:
                raise ValueError(f"provider: there is no plug-in {target!r}; installed are: {', '.join(installed)}")
            target = installed[target].value
        view: Any = FaultyContainer(container, self.settings)
        try:
            provider = load(target)
        except ConfigurationError as error:
            raise ValueError(f"provider: {error}") from None
        try:
            self.wrapped = configure(provider, view, PlugIn(name, target, "settings", self.settings.settings))
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    def start(self) -> Awaitable[None] | None:
        """Start the wrapped plug-in."""
        return self.wrapped.start()

    def stop(self) -> Awaitable[None] | None:
        """Stop the wrapped plug-in."""
        return self.wrapped.stop()
