"""The measuring program, run as a child process: sends requests to files and prints how long each took.

Run: python consumer.py '{"what": "exchange", "path": "FILE", "size": 32, "count": 2000, "cpus": [0]}'

It prints one line of JSON.  Times are in nanoseconds and were taken around the system calls only; the cost of reading
the clock, some 50 ns, is in them.  Everything that it imports comes with every interpreter.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections.abc import Callable
from time import perf_counter_ns as now

WARM_UP = 200
"""Operations before those that count."""

Job = dict[str, object]


def exchange(path: str, size: int, count: int) -> list[int]:
    """Write a message and read its reply, on one open file."""
    data = os.urandom(size)
    fd = os.open(path, os.O_RDWR)
    took = []
    try:
        for _ in range(WARM_UP + count):
            begin = now()
            os.write(fd, data)
            reply = os.read(fd, size + 16)
            took.append(now() - begin)
            assert reply == data, f"{len(reply)} bytes came back for {size}"
    finally:
        os.close(fd)
    return took[WARM_UP:]


def session(path: str, size: int, count: int) -> list[int]:
    """Open, write a message, read its reply, close."""
    data = os.urandom(size)
    took = []
    for _ in range(WARM_UP + count):
        begin = now()
        fd = os.open(path, os.O_RDWR)
        os.write(fd, data)
        reply = os.read(fd, size + 16)
        os.close(fd)
        took.append(now() - begin)
        assert reply == data, f"{len(reply)} bytes came back for {size}"
    return took[WARM_UP:]


def open_close(paths: list[str], count: int) -> list[int]:
    """Open and close files whose names the kernel knows, in turn."""
    took = []
    for number in range(WARM_UP + count):
        path = paths[number % len(paths)]
        begin = now()
        os.close(os.open(path, os.O_RDWR))
        took.append(now() - begin)
    return took[WARM_UP:]


def lookup(paths: list[str]) -> list[int]:
    """`stat` names that the kernel does not know yet: each is one LOOKUP, which brings the attributes along."""
    absent(os.path.dirname(paths[0]), WARM_UP)
    took = []
    for path in paths:
        begin = now()
        os.stat(path)
        took.append(now() - begin)
    return took


def absent(directory: str, count: int) -> list[int]:
    """`stat` names that do not exist: each is one LOOKUP that fails."""
    took = []
    for number in range(count):
        path = f"{directory}/absent-{number}"
        begin = now()
        try:
            os.stat(path)
        except FileNotFoundError:
            took.append(now() - begin)
    return took


def listing(directory: str, count: int) -> list[int]:
    """List a directory; the time is that of an entry."""
    took = []
    for _ in range(count):
        begin = now()
        entries = len(os.listdir(directory))
        took.append((now() - begin) // entries)
    return took


def throughput(path: str, size: int, seconds: float) -> int:
    """Write and read for some seconds; return how many times that was done."""
    data = os.urandom(size)
    fd = os.open(path, os.O_RDWR)
    done, end = 0, now() + int(seconds * 1e9)
    while now() < end:
        os.write(fd, data)
        os.read(fd, size + 16)
        done += 1
    os.close(fd)
    return done


def hold(paths: list[str], count: int) -> list[int]:
    """Open `count` handles, in turn over `paths`, and keep them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return [os.open(paths[number % len(paths)], os.O_RDWR) for number in range(count)]


def summary(took: list[int]) -> dict[str, int]:
    """Return the median and the 99th percentile."""
    took = sorted(took)
    return {"p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100]}


TIMED: dict[str, Callable[..., list[int]]] = {
    "exchange": exchange,
    "session": session,
    "open_close": open_close,
    "lookup": lookup,
    "absent": absent,
    "listing": listing,
}


def run(job: Job) -> object:
    """Do a job; `cpus` and `held` (paths and count of handles that are open meanwhile) are for any kind."""
    os.sched_setaffinity(0, job.pop("cpus"))  # type: ignore[arg-type]
    held = hold(**job.pop("held")) if "held" in job else []  # type: ignore[arg-type]
    what = str(job.pop("what"))
    gc.disable()
    if what == "throughput":
        print("ready", flush=True)
        sys.stdin.readline()
        return throughput(**job)  # type: ignore[arg-type]
    took = TIMED[what](**job)
    for fd in held:
        os.close(fd)
    return took if what == "lookup" else summary(took)


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))), flush=True)
