"""Devices that consume devices, each in a container of its own: x -> y -> a -> text."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted.trees import Tree
from mounted.waiting import wait_until

import ldmfs

LARGE = 16 << 20

MODES = pytest.mark.parametrize("blocks", [8, 0], ids=["arena", "inline"])

LINE = ("x", "y", "a", "text")

DEATHS = """\
[text.text]
[a.relay.a]
lower = "text/upper"
[y.relay.y]
lower = "a/a"
[x.relay.x]
lower = "y/y"
"""

GATED = """\
[probe.probe]
log = "{log}"
[y.relay.y]
lower = "probe/gate"
[x.relay.x]
lower = "y/y"
"""


def ask(root: Path, name: str, data: bytes, blocks: int = 8) -> bytes:
    with ldmfs.open_device(name, root=root, blocks=blocks) as device:
        return ldmfs.send_request(device, data)


@MODES
def test_a_line_over_four_containers(stacks: Tree, blocks: int) -> None:
    assert ask(stacks.root, "x/x", b"hello", blocks) == b"HELLO"


@MODES
def test_sixteen_mebibytes_through_a_line(stacks: Tree, blocks: int) -> None:
    data = os.urandom(1 << 16).hex().encode() * (LARGE >> 17)
    assert ask(stacks.root, "x/x", data, blocks) == data.upper()


@MODES
def test_a_tree_over_containers_joins_the_replies(stacks: Tree, blocks: int) -> None:
    assert ask(stacks.root, "x/tree", b"ab" * 50_000, blocks) == b"AB" * 100_000


@MODES
def test_many_large_requests_one_after_the_other_use_the_same_memory(stacks: Tree, blocks: int) -> None:
    with ldmfs.open_device("x/tree", root=stacks.root, blocks=blocks) as device:
        for number in range(20):
            data = b"%04d" % number * 100_000
            assert ldmfs.send_request(device, data) == data * 2


def test_a_line_through_the_file(stacks: Tree) -> None:
    fd = os.open(stacks.root / "x/x", os.O_RDWR)
    try:
        os.write(fd, b"hello")
        assert os.read(fd, 100) == b"HELLO"
    finally:
        os.close(fd)


def test_a_cycle_over_containers_is_refused_at_open(stacks: Tree) -> None:
    with pytest.raises(ldmfs.DeviceLoop, match="x/cycle -> y/cycle -> x/cycle"):
        ldmfs.open_device("x/cycle", root=stacks.root)


def test_a_cycle_is_eloop_for_the_file_too(stacks: Tree) -> None:
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        os.open(stacks.root / "x/cycle", os.O_RDWR)


def test_the_graph_shows_who_consumes_whom(stacks: Tree) -> None:
    with ldmfs.open_device("x/x", root=stacks.root):
        relations = {
            (each["consumer"], each["device"])
            for each in json.loads((stacks.root / "system/graph").read_bytes())["relations"]
        }
        assert {("x/x", "y/y"), ("y/y", "a/a"), ("a/a", "text/upper")} <= relations


def consumers(tree: Tree) -> list[object]:
    """Return what the graph tells of consumers of the stacks' containers."""
    graph = tree.containers()
    return [each for name in LINE for device in graph[name]["devices"] for each in device["consumers"]]


def test_the_graph_tells_of_each_consumer_of_three_stacked_containers(stacks: Tree) -> None:
    wait_until(lambda: not consumers(stacks), what="the close of every file")
    before = time.time()
    with ldmfs.open_device("x/x", root=stacks.root) as device:
        for _ in range(3):
            ldmfs.send_request(device, b"hello")
        with pytest.raises(ldmfs.InvalidRequest):
            ldmfs.send_request(device, b"\xff")  # no text
        graph = stacks.containers()
        chain: list[str] = []
        pid, container = os.getpid(), None
        for name in LINE:
            upper = "upper" if name == "text" else name
            (told,) = (
                each
                for described in graph[name]["devices"]
                if described["name"] == upper
                for each in described["consumers"]
                if each["chain"] == chain
            )
            assert (told["pid"], told["container"], told["uid"], told["path"]) == (
                pid,
                container,
                os.geteuid(),
                "channel",
            )
            assert (told["requests"], told["errors"], told["outstanding"]) == (4, 1, 0)
            assert before - 1 <= told["since"] <= time.time() + 1
            chain.append(f"{name}/{upper}")
            pid, container = graph[name]["pid"], name
    assert not consumers(stacks)


def test_the_graph_tells_where_a_request_is_outstanding_in_a_stack(
    mount: Callable[[str], Tree], tmp_path: Path
) -> None:
    tree = mount(GATED.format(log=tmp_path / "log"))
    tree.order("create gate gate")
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()

    def outstanding() -> list[int]:
        graph = tree.containers()
        return [
            each["outstanding"]
            for container in ("x", "y", "probe")
            for device in graph[container]["devices"]
            for each in device["consumers"]
        ]

    with ldmfs.open_device("x/x", root=tree.root) as device:
        assert outstanding() == [0, 0, 0]
        for data in (b"one", b"two"):
            ldmfs.send_request(device, data, lambda _, outcome: outcomes.put(outcome))
        wait_until(lambda: outstanding() == [2, 2, 2])
        tree.order("release gate")
        assert {outcomes.get(), outcomes.get()} == {b"one", b"two"}
        assert outstanding() == [0, 0, 0]


def test_containers_that_use_each_other_do_not_wait_for_each_other(stacks: Tree) -> None:
    """x/mutual uses y/y while y/mutual uses x/x, from many consumers at one time."""
    wrong: list[object] = []

    def consume(name: str, seed: int) -> None:
        try:
            with ldmfs.open_device(name, root=stacks.root) as device:
                for number in range(60):
                    data = b"m%d.%d" % (seed, number) * (20_000 if number % 20 == 0 else 1)
                    if ldmfs.send_request(device, data) != data.upper():
                        wrong.append((name, data))
        except ldmfs.LdmError as error:
            wrong.append(error)

    threads = [threading.Thread(target=consume, args=(f"{'xy'[each % 2]}/mutual", each)) for each in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(45)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.parametrize("victim", ["x", "y", "a"])
def test_a_kill_in_the_chain_is_an_error_and_no_hang(mount: Callable[[str], Tree], victim: str) -> None:
    """Requests go on all the time while a member is killed: each ends right, or with the promised error, and they
    succeed again."""
    tree = mount(DEATHS)
    outcomes: list[object] = []
    stop = threading.Event()

    def consume() -> None:
        while not stop.is_set():
            try:
                with ldmfs.open_device("x/x", root=tree.root) as device:
                    while not stop.is_set():
                        outcomes.append(ldmfs.send_request(device, b"hello"))
            except ldmfs.LdmError as error:
                outcomes.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        for _ in range(2):
            wait_until(lambda: outcomes and outcomes[-1] == b"HELLO")
            pid = tree.pid(victim)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: tree.pid(victim) not in (None, pid))
            seen = len(outcomes)
            wait_until(lambda seen=seen: b"HELLO" in outcomes[seen:])
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    errors = {type(each) for each in outcomes if each != b"HELLO"}
    assert errors <= {ldmfs.ProviderDied, ldmfs.NotServed}
    assert errors
