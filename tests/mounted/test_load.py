"""Many consumers at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from .trees import Tree, opened, read_all

HANDLES = 2000
THREADS = 20
ROUNDS = 50

MANY = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({HANDLES} + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
fds = [os.open(sys.argv[1], os.O_RDWR) for _ in range({HANDLES})]
for fd in fds:
    os.write(fd, b"%d" % fd)
print(os.getxattr(sys.argv[1], "user.ldm.consumers").decode())
print(all(os.read(fd, 100) == b"%d" % fd for fd in fds))
"""


@pytest.mark.parametrize("kind", ["echo", "async"])
def test_two_thousand_open_files_have_their_replies(tree: Tree, kind: str) -> None:
    with tree.made(kind) as device:
        done = tree.run([sys.executable, "-c", MANY, str(device)])
        assert (done.stdout, done.stderr) == (f"{HANDLES}\nTrue\n", "")
        device.wait("close", HANDLES)


@pytest.mark.parametrize("kind", ["echo", "async", "thread"])
def test_twenty_threads_get_each_their_own_replies(tree: Tree, kind: str) -> None:
    together = threading.Barrier(THREADS)

    def consume(number: int) -> list[bytes]:
        with opened(device) as fd:
            together.wait()
            replies = []
            for round in range(ROUNDS):
                os.write(fd, b"%d %d" % (number, round))
                replies.append(read_all(fd))
        return replies

    with tree.made(kind) as device, ThreadPoolExecutor(THREADS) as pool:
        for number, replies in enumerate(pool.map(consume, range(THREADS))):
            assert replies == [b"%d %d" % (number, round) for round in range(ROUNDS)]


def test_devices_come_and_go_while_others_are_used(tree: Tree) -> None:
    with tree.made("async") as device, ThreadPoolExecutor(4) as pool:

        def churn(number: int) -> None:
            for round in range(ROUNDS):
                name = f"churn-{number}-{round}"
                tree.order(f"create echo {name}")
                with opened(tree.root / "probe" / name) as fd:
                    os.write(fd, name.encode())
                    assert read_all(fd) == name.encode()

        def use() -> bytes:
            with opened(device) as fd:
                for _ in range(ROUNDS * 2):
                    os.write(fd, b"hello")
                    assert read_all(fd) == b"hello"
            return b"done"

        churning = [pool.submit(churn, number) for number in range(3)]
        assert pool.submit(use).result() == b"done"
        for each in churning:
            each.result()
    names = [name for name in os.listdir(tree.root / "probe") if name.startswith("churn-")]
    assert len(names) == 3 * ROUNDS
    subprocess.run(["rm", "--", *(tree.root / "probe" / name for name in names)], check=True)
