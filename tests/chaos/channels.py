"""Consumers over the direct channel: blocking, with completion handlers, and in trio."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import Any

import trio

import ldmfs
from ldmfs import LdmError

from .consumers import Consumer, wrong


class Channel(Consumer):
    """Sends one request after the other; opens the device anew when its provider has died."""

    path = "channel"
    retry = False
    device: ldmfs.OpenDevice | None = None

    def exchange(self) -> None:
        device = self.device
        if device is None:
            device = self.device = ldmfs.open_device(self.name(), root=self.root, retry=self.retry)
        try:
            self.use(device)
            if self.random.random() < 0.05:
                self.end()
        except LdmError:
            with contextlib.suppress(LdmError):  # of which it was told
                self.end()
            raise

    def use(self, device: ldmfs.OpenDevice) -> None:
        message = self.message()
        self.check(message, ldmfs.send_request(device, message))

    def end(self) -> None:
        device, self.device = self.device, None
        if device is not None:
            device.close()


class RetryingChannel(Channel):
    """Leaves that to the library."""

    path = "retry"
    retry = True


class Completions(Channel):
    """Sends several requests at a time: each completion handler runs once."""

    AT_A_TIME = 12

    def use(self, device: ldmfs.OpenDevice) -> None:
        messages = [self.message() for _ in range(self.random.randrange(1, self.AT_A_TIME))]
        calls: Counter[int] = Counter()
        outcomes: dict[int, Any] = {}
        all_done = threading.Event()

        def done(number: int, outcome: Any) -> None:
            calls[number] += 1
            outcomes[number] = outcome
            if len(outcomes) == len(messages):
                all_done.set()

        failure: LdmError | None = None
        for number, message in enumerate(messages):
            try:
                ldmfs.send_request(device, message, done, number)
            except LdmError as error:  # refused at the entrance, and so without a call
                done(number, error)
        all_done.wait()
        for number, message in enumerate(messages):
            outcome = outcomes[number]
            if isinstance(outcome, LdmError):
                self.suffer(outcome)
                failure = outcome
            else:
                self.check(message, outcome)
        if set(calls.values()) != {1}:
            wrong(f"completion handlers were called {calls} times")
        if failure is not None:
            self.end()


class RetryingCompletions(Completions):
    """The same, with `retry`."""

    path = "retry"
    retry = True


class Trio(Consumer):
    """Several tasks that share a connection, and cancel some of their requests."""

    path = "channel"
    retry = False
    TASKS = 3

    def run(self) -> None:
        trio.run(self.main)

    async def main(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self.TASKS):
                nursery.start_soon(self.task)

    async def task(self) -> None:
        while not self.ledger.stopping:
            with self.promised():
                async with await ldmfs.aio.open_device(self.name(), root=self.root, retry=self.retry) as device:
                    for _ in range(self.random.randrange(1, 20)):
                        await self.send(device)
                        self.ledger.exchanged(self.slot)

    async def send(self, device: ldmfs.aio.OpenDevice) -> None:
        message = self.message()
        seconds = 0.001 if self.random.random() < 0.1 else 1000
        with trio.move_on_after(seconds):
            self.check(message, await ldmfs.aio.send_request(device, message))


class RetryingTrio(Trio):
    """The same, with `retry`."""

    path = "retry"
    retry = True
