"""The program that measures calls, run as a child process: a client of `contenders/peers.py` and a clock.

Run: python -m bench.caller '{"name": "pyzmq", "addresses": ["SOCKET"], "cpus": [0], "operations": [["once", 32, 99]]}'

An operation is `once` or `many` of `peers.Calls`, with a size in bytes and a count.  The servers at several addresses
are called in turn, so that what disturbs the machine meets them all.  It prints one line of JSON: for each operation,
for each address, the median and the 99th percentile of the time of a request in nanoseconds.  A reply is kept until the
next one is there, or malloc might give its memory back to the kernel each time, and page faults be measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from time import perf_counter_ns as now
from typing import Any, NamedTuple

from .contenders.peers import CLIENTS, MANY, Calls

TURNS = 10
"""Times that each of several addresses has its turn."""

WARM_UP = 8
"""Operations before those that count, besides a fifth of their number.

Of replies of 16 MiB, it takes malloc five or so until it has memory for them that it keeps.
"""

Operation = tuple[str, int, int]
Found = list[list[dict[str, float]]]


class Batch(NamedTuple):
    """Calls to be made one after the other, and where their times go."""

    call: Callable[[bytes], Any]
    data: bytes
    reply: object
    times: int
    took: list[int]
    kept: list[object]
    """The last reply, over all batches of an operation."""


def call(name: str, addresses: list[str], cpus: list[int], operations: list[Operation]) -> Found:
    """Measure the calls of one client."""
    os.sched_setaffinity(0, cpus)
    clients = [CLIENTS[name](address) for address in addresses]
    gc.disable()
    if name == "dbus-fast":
        return asyncio.run(_measure_async(clients, operations))
    if name == "ldmfs trio":
        import trio

        return trio.run(_measure_async, clients, operations)
    return _measure(clients, operations)


def _measure(clients: list[contextlib.AbstractContextManager[Calls]], operations: list[Operation]) -> Found:
    found: Found = []
    with contextlib.ExitStack() as stack:
        for batch in _batches([stack.enter_context(client) for client in clients], operations, found):
            send, data, reply = batch.call, batch.data, batch.kept.pop()
            for _ in range(batch.times):
                begin = now()
                reply = send(data)
                batch.took.append(now() - begin)
            assert reply == batch.reply, "the reply is not what was sent"
            batch.kept.append(reply)
    return found


async def _measure_async(
    clients: list[contextlib.AbstractAsyncContextManager[Calls]], operations: list[Operation]
) -> Found:
    found: Found = []
    async with contextlib.AsyncExitStack() as stack:
        for batch in _batches([await stack.enter_async_context(client) for client in clients], operations, found):
            send, data, reply = batch.call, batch.data, batch.kept.pop()
            for _ in range(batch.times):
                begin = now()
                reply = await send(data)
                batch.took.append(now() - begin)
            assert reply == batch.reply, "the reply is not what was sent"
            batch.kept.append(reply)
    return found


def _batches(clients: list[Calls], operations: list[Operation], found: Found) -> Iterator[Batch]:
    """Give what is to be called, and put what was found into `found`."""
    for what, size, count in operations:
        data = os.urandom(size)
        reply = data if what == "once" else [data] * MANY
        turns = min(TURNS, count) if len(clients) > 1 else 1
        each = [Batch(getattr(client, what), data, reply, count // turns, [], [None]) for client in clients]
        for batch in each:
            yield batch._replace(times=WARM_UP + count // 5, took=[])
        for _ in range(turns):
            yield from each
        found.append([_summary(batch.took, 1 if what == "once" else MANY) for batch in each])


def _summary(took: list[int], requests: int) -> dict[str, float]:
    took = sorted(took)
    return {"p50": took[len(took) // 2] / requests, "p99": took[len(took) * 99 // 100] / requests}


if __name__ == "__main__":
    print(json.dumps(call(**json.loads(sys.argv[1]))), flush=True)
