"""A tree of an ordinary user, mounted through fusermount3."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ldmfs.fuse.mount import mounts

from .fixtures import NOBODY, SHARED, Start
from .trees import LDMFS, Tree
from .waiting import SECONDS, kill, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture
def users(nobodys: Path, new_tree: Callable[..., Tree]) -> Tree:
    """Give the mounted tree of an ordinary user."""
    tree = new_tree(nobodys, NOBODY)
    os.chown(tree.log, NOBODY, NOBODY)
    done = tree.mount(SHARED)
    assert (done.returncode, done.stderr) == (0, "")
    return tree


def test_an_ordinary_user_mounts_uses_and_unmounts_a_tree(users: Tree) -> None:
    assert {mount.type for mount in mounts(users.root)} == {"fuse.ldmfs"}
    assert users.root.stat().st_uid == NOBODY
    done = users.sh("echo hello > text/upper && cat text/upper; ls -l text; cat system/containers; rm text/rot13")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "HELLO"
    assert "nobody nogroup" in lines[2]
    assert [line.split()[1] for line in lines if line.startswith(("text ", "probe ", "system "))] == ["running"] * 3
    assert users.sh("ls text").stdout.split() == ["lower", "reverse", "upper"]
    assert users.control("restart text").stdout == "ok\n"
    assert users.umount().returncode == 0
    assert not users.root.exists()


def test_a_container_of_an_ordinary_user_is_started_again(users: Tree) -> None:
    before = users.pid("text")
    os.kill(before, signal.SIGKILL)
    assert users.sh("echo hello > text/upper && cat text/upper").stdout == "HELLO\n"
    assert users.pid("text") != before


def test_what_a_killed_supervisor_of_an_ordinary_user_left_is_adopted_or_cleaned(users: Tree) -> None:
    kill(users.supervisor())
    kill(users.pid("text"))
    probe = users.pid("probe")
    done = users.mount(SHARED)
    assert (done.returncode, done.stderr) == (0, "")
    assert users.sh("echo hello > text/upper && cat text/upper").stdout == "HELLO\n"
    assert users.pid("probe") == probe
    assert users.control("restart probe").stdout == "ok\n"
    assert users.umount().returncode == 0
    assert not users.root.exists()


def test_a_consumer_of_an_ordinary_user_can_be_interrupted(users: Tree, start: Start) -> None:
    assert users.sh("echo create gate slow > probe/factory").returncode == 0
    script = "cat ldm/probe/slow & echo $!; wait $!"
    shell = start([*users.become, *["sh", "-c", script]], cwd=users.base, env=users.environment)
    pid = int(shell.stdout.readline())
    wait_until(lambda: "start" in dict(users.events("slow")))
    os.kill(pid, signal.SIGKILL)
    assert shell.wait(SECONDS) == 128 + signal.SIGKILL
    wait_until(lambda: [what for what, _ in users.events("slow")] == ["open", "start", "cancelled", "close"])


def test_a_provider_by_hand_of_an_ordinary_user(users: Tree, start: Start) -> None:
    process = start([*users.become, LDMFS, "run", "null"], cwd=users.base, env=users.environment)
    assert process.stdout.readline() == f"{users.root}/null/null\n"
    assert users.sh("echo hello > null/echo && cat null/echo").stdout == "hello\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    wait_until(lambda: "null" not in users.sh("ls").stdout.split())
