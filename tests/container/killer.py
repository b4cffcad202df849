"""Kill a process at random, again and again, while it changes a state area, and look at what it leaves each time.

`python killer.py SEED KILLS`.  The victim goes on where the last one was killed, through a sequence of operations that
is the same in every run, and notes in one byte of shared memory how many of them have returned.  So the state area must
be as after the last operation that returned, or as after the one that was in flight.
"""

from __future__ import annotations

import gc
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter

from ldmfs.container.state import SharedState, create
from ldmfs.core.device import Consumer, Device, LogicalDevice, Peer
from ldmfs.core.journal import BEING_WRITTEN, STRIDE
from ldmfs.core.state import Sizes, StateArea
from ldmfs.core.tables import Stage

SIZES = Sizes(consumers=20, capacity=64 << 10, files=4096)
OPEN = 15
"""Consumers that are in the table at a time."""
KINDS = 6
LONGEST = 0.0006
"""Seconds that a victim may live from its first operation on."""
BYTES = random.Random(0).randbytes(1 << 15)
"""What values are cut from."""

DEVICE = LogicalDevice("d", 77, Device(), "", (0, 0))


def value(number: int, key: int) -> bytes:
    """Return what commit `number` puts for a key: up to 10 kB that say whose they are."""
    begin = (number * 31 + key * 1009) % (1 << 14)
    return BYTES[begin : begin + (8, 100, 10_000)[(number + key) % 3]] + b"%d" % number


def keys(number: int) -> dict[str, bytes]:
    """Return what is in the store after commit `number`: keys that come and go, and keys that are changed each time."""
    if number < 0:
        return {}
    changed = {f"k{key}": value(number, key) for key in range(3)}
    return {"number": b"%d" % number, **changed, **{f"t{each}": b"" for each in range(max(0, number - 7), number + 1)}}


def consumer(id: int) -> Consumer:
    """Return a consumer that can be told by its id."""
    made = Consumer(id, DEVICE, Peer(pid=id % 99_991, uid=id % 65_537, gid=id % 257, session=id % 1009))
    made.since = float(id)
    return made


def do(area: StateArea, operation: int) -> None:
    """Do one operation of the sequence."""
    number, kind = divmod(operation, KINDS)
    if kind == 0:
        area.consumers.remove(number - OPEN)
    elif kind == 1:
        area.consumers.add(consumer(number), number % 1013)
    elif kind == 2:
        area.consumers.opened(number)
    elif kind == 3:
        area.consumers.answered(number)
    elif kind == 4:
        area.consumers.closing(number)
    else:
        with area.store("p").transaction() as transaction:
            for key, new in keys(number).items():
                if key[0] != "t" or key == f"t{number}":
                    transaction.put(key, new)
            transaction.delete(f"t{number - 8}")


def stages(operation: int) -> dict[int, Stage]:
    """Return which consumers are there after `operation` operations."""
    number, kind = divmod(operation, KINDS)
    there = dict.fromkeys(range(max(0, number - OPEN + (kind > 0)), number), Stage.CLOSING)
    return {**there, number: Stage(kind - 1)} if kind > 1 else there


def live(area: StateArea, operation: int, returned: memoryview, begun: int) -> None:
    """Be the victim, which is heard of when it begins.  It ends by itself, should the killer have ended before it."""
    os.write(begun, b"!")
    for each in range(operation, operation + 10_000):
        do(area, each)
        returned[0] = (each + 1) % 256
    os._exit(0)


def check(area: StateArea, operation: int, returned: int) -> int:
    """Look at what a victim left that began with `operation`; return how many operations have been done."""
    left = area.recover()
    assert (left.damaged, left.store_damage) == (0, "")
    store = area.store("p")
    there = {key: store.get(key) for key in store}
    number = int(there.get("number") or -1)
    assert there == keys(number), f"what is in the store is not commit {number}"
    found = {each.id: each.stage for each in left.consumers}
    done = [each for each in range(KINDS * (number + 1), KINDS * (number + 2)) if stages(each) == found]
    assert done, f"after commit {number}: {len(found)} consumers, {list(found.items())[-2:]}"
    done = [each for each in done if each >= operation and (each - returned) % 256 in (0, 1)]
    assert done, f"commit {number} is none of those that were last after {operation} operations, {returned} mod 256"
    for each in left.consumers:
        as_made = consumer(each.id)
        assert (each.peer, each.since, each.flags) == (as_made.peer, as_made.since, each.id % 1013)
    return done[-1]


def kill_one(area: StateArea, operation: int, returned: memoryview, delay: float) -> None:
    """Let a victim go on with the area, and kill it after a while."""
    begun, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        live(area, operation, returned, begins)
    os.read(begun, 1)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(begun)
    os.close(begins)


def main(seed: int, kills: int) -> None:
    """Kill `kills` victims; tell how many were in the middle of something that can be seen."""
    chance = random.Random(seed)
    returned = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    fd, operation, moments = create(SIZES), 0, Counter[str]()
    gc.freeze()  # so that a victim does not copy the pages of all objects
    shared, memory = SharedState(fd), mmap.mmap(fd, 0)
    for kill in range(kills):
        kill_one(shared.area, operation, returned, chance.uniform(0, LONGEST))
        shared.close()
        moments["superblock"] += BEING_WRITTEN in (memory[SIZES.journal], memory[SIZES.journal + STRIDE])
        try:
            shared = SharedState(fd)
            after = check(shared.area, operation, returned[0])
        except BaseException:
            print(f"seed {seed}, kill {kill}:", file=sys.stderr)
            raise
        moments["operation"] += after % 256 != returned[0]
        moments["operations"] += after - operation
        operation, returned[0] = after, after % 256
    print(dict(moments))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
