"""Containers that are run by hand, in a tree and without one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .fixtures import Start
from .trees import LDMFS, Tree, exchange, opened, read_all
from .waiting import SECONDS, kill, wait_until

FILE = str(Path(__file__).with_name("by_hand.py"))


def run(start: Start, tree: Tree, *options: str) -> subprocess.Popen[str]:
    """Start the provider, and return when it says that its device is there."""
    process = start([LDMFS, "run", FILE, *options], env=tree.environment)
    name = options[1] if options else "by_hand"
    assert process.stdout.readline() == f"{tree.root}/{name}/twice\n", process.stderr.read()
    return process


def test_a_provider_by_hand_is_part_of_the_tree_until_it_ends(tree: Tree, start: Start) -> None:
    process = run(start, tree)
    assert exchange(tree.root / "by_hand/twice", b"ab") == b"abab"
    container = tree.containers()["by_hand"]
    assert (container["state"], container["pid"]) == ("running", process.pid)
    assert [device["name"] for device in container["devices"]] == ["twice"]
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert process.stderr.read() == ""
    wait_until(lambda: not (tree.root / "by_hand").exists())
    assert "by_hand" not in tree.containers()


def test_the_death_of_a_provider_by_hand_takes_its_directory_away(tree: Tree, start: Start) -> None:
    process = run(start, tree, "--name", "mortal")
    with opened(tree.root / "mortal/twice"):
        process.kill()
        wait_until(lambda: "mortal" not in os.listdir(tree.root))
    wait_until(lambda: "mortal" not in tree.containers())


def test_a_name_that_is_taken_is_refused_to_a_provider_by_hand(tree: Tree) -> None:
    for name in ("text", "system", "kernel"):
        done = tree.ldmfs("run", FILE, "--name", name)
        assert done.returncode == 2
        assert done.stderr == f"ldmfs: there is a container '{name}' already; choose another name with --name\n"
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"


def test_a_provider_by_hand_can_be_stopped_from_the_tree(tree: Tree, start: Start) -> None:
    process = run(start, tree, "--name", "stopped")
    assert "not supported" in tree.control("restart stopped").stderr
    assert tree.control("stop stopped").stdout == "ok\n"
    assert process.wait(SECONDS) == 0
    assert not (tree.root / "stopped").exists()


def test_a_provider_by_hand_goes_on_when_the_supervisor_is_killed(mount: Callable[[str], Tree], start: Start) -> None:
    tree = mount("[text.text]\n")
    process = run(start, tree)
    with opened(tree.root / "by_hand/twice") as fd:
        kill(tree.supervisor())
        os.write(fd, b"ab")
        assert read_all(fd) == b"abab"
    assert tree.umount().returncode == 0
    wait_until(lambda: process.poll() is not None, what="its end, now that its mount is gone")
    tree.existed = tree.root.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_provider_by_hand_without_a_tree_mounts_itself(
    new_tree: Callable[..., Tree], start: Start, number: signal.Signals
) -> None:
    tree = new_tree()
    process = run(start, tree)
    assert exchange(tree.root / "by_hand/twice", b"ab") == b"abab"
    process.send_signal(number)
    assert process.wait(SECONDS) == 0
    assert not tree.mounts()
    assert not tree.root.exists()


HANGS = """\
import ldmfs, trio

class Hangs(ldmfs.Provider):
    async def start(self):
        print("starting", flush=True)
        await trio.sleep_forever()
"""


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_a_provider_whose_start_does_not_end_can_be_interrupted(
    tree: Tree, start: Start, tmp_path: Path, interrupt: signal.Signals
) -> None:
    file = tmp_path / "hangs.py"
    file.write_text(HANGS)
    process = start([LDMFS, "run", file], env=tree.environment)
    assert process.stdout.readline() == "starting\n"
    process.send_signal(interrupt)
    assert process.communicate(timeout=SECONDS) == ("", "")
    assert process.returncode == 0
    wait_until(lambda: not (tree.root / "hangs").exists())
