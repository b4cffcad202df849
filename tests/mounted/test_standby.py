"""Standbys: processes that wait to take over."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_takeover import Loop, go_on, in_parts, once, running, to_its_end
from .trees import Tree, exchange, opened
from .waiting import kill, wait_until

Mount = Callable[[str], Tree]

KILLS = 15
OPTIONS = 'standby = true\nmax_pause = "0 s"\n'
TEXT = f"[text]\n{OPTIONS}[text.text]\n"
BRITTLE = f"[brittle]\n{OPTIONS}max_crashes = 2\n[brittle.brittle]\n"


def standby_file(tree: Tree, container: str) -> Path:
    return tree.root / ".ldmfs/standby" / container


def importing(tree: Tree, container: str) -> int:
    """Return the process of a standby that has been started."""
    file = standby_file(tree, container)
    return wait_until(lambda: file.exists() and int(file.read_text()), what=f"the standby of {container}")


def end(tree: Tree, container: str) -> None:
    """Kill the instance, and wait until the next one serves."""
    pid = tree.pid(container)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: tree.pid(container) != pid, what=f"the next instance of {container}")
    wait_until(lambda: tree.state(container) == "running", what=f"{container} to run")


def test_the_standby_takes_over_and_another_one_is_started(mount: Mount) -> None:
    tree = mount(TEXT)
    standby = tree.standby("text")
    with opened(tree.root / "text/upper") as fd:
        end(tree, "text")
        assert to_its_end(fd, b"hello") == b"HELLO"
    assert tree.pid("text") == standby
    assert tree.containers()["text"]["restarts"] == 1
    assert tree.standby("text") != standby


def test_the_reports_tell_of_the_standby(mount: Mount) -> None:
    tree = mount(TEXT)
    standby = str(tree.standby("text"))
    assert tree.sh("cat system/containers").stdout.splitlines()[1].split()[:4] == [
        "text", "running", str(tree.pid("text")), standby,
    ]  # fmt: skip
    assert standby in tree.ldmfs("ls").stdout.splitlines()[1].split()


def test_a_standby_starts_no_provider(mount: Mount) -> None:
    tree = mount(f"[probe]\n{OPTIONS}[probe.probe]\nlog = @log\n")
    tree.standby("probe")
    assert tree.events("-") == [("starting", tree.pid("probe"))]


@pytest.mark.timeout(180)
def test_loops_see_nothing_of_kills(mount: Mount) -> None:
    tree = mount(f"[text]\n{OPTIONS}on_crash = 'reissue'\nmax_crashes = 1000\n[text.text]\n")
    loops = Loop(tree, once), Loop(tree, to_its_end), Loop(tree, in_parts), Loop(tree, once, reopen=True)
    with running(*loops):
        for _ in range(KILLS):
            standby = tree.standby("text")
            end(tree, "text")
            assert tree.pid("text") == standby
            go_on(*loops)
    assert [(loop.errors, loop.wrong) for loop in loops] == [([], [])] * len(loops)


def test_a_killed_standby_is_replaced_and_is_no_crash_of_the_container(mount: Mount) -> None:
    tree = mount(BRITTLE)
    serving = tree.pid("brittle")
    for _ in range(4):
        standby = tree.standby("brittle")
        kill(standby)
        wait_until(lambda killed=standby: tree.standby("brittle") != killed, what="another standby")
    brittle = tree.containers()["brittle"]
    assert (brittle["state"], brittle["pid"], brittle["restarts"]) == ("running", serving, 0)


def test_a_standby_that_cannot_be_imported_is_told_of_and_does_no_harm(mount: Mount) -> None:
    tree = mount(BRITTLE)
    standby = tree.standby("brittle")
    (tree.base / "break").touch()
    kill(standby)
    wait_until(lambda: "it is broken" in tree.containers()["brittle"]["reason"], what="its being told")
    brittle = tree.containers()["brittle"]
    assert (brittle["state"], brittle["standby"], brittle["restarts"]) == ("running", None, 0)
    assert brittle["reason"].startswith("standby: tree.toml: brittle.brittle: ") or "brittle" in brittle["reason"]
    assert exchange(tree.root / "brittle/echo", b"hello") == b"hello"
    (tree.base / "break").unlink()
    tree.standby("brittle")
    assert tree.containers()["brittle"]["reason"] == ""


def test_a_standby_that_imports_still_takes_over_when_it_has(mount: Mount) -> None:
    tree = mount(BRITTLE)
    standby = tree.standby("brittle")
    (tree.base / "hold").touch()
    kill(standby)
    wait_until(lambda: importing(tree, "brittle") != standby, what="another standby")
    standby = importing(tree, "brittle")
    assert tree.containers()["brittle"]["standby"] is None
    os.kill(tree.pid("brittle"), signal.SIGKILL)
    wait_until(lambda: tree.pid("brittle") == standby, what="the take-over")
    (tree.base / "hold").unlink()
    assert exchange(tree.root / "brittle/echo", b"hello") == b"hello"


def test_without_a_living_standby_a_process_is_started(mount: Mount) -> None:
    tree = mount(BRITTLE)
    standby, serving = tree.standby("brittle"), tree.pid("brittle")
    supervisor = tree.supervisor()
    os.kill(supervisor, signal.SIGSTOP)  # so that it learns of both at once
    kill(standby)
    kill(serving)
    os.kill(supervisor, signal.SIGCONT)
    assert exchange(tree.root / "brittle/echo", b"hello") == b"hello"
    assert tree.pid("brittle") not in (standby, serving)


def test_an_instance_that_is_killed_as_it_takes_over_is_followed_by_another(mount: Mount) -> None:
    tree = mount(f"[text]\n{OPTIONS}max_crashes = 1000\n[text.text]\n")
    with opened(tree.root / "text/upper") as fd:
        for _ in range(5):
            standby, serving = tree.standby("text"), tree.pid("text")
            os.kill(serving, signal.SIGKILL)
            wait_until(lambda pid=serving: tree.pid("text") != pid, what="the take-over")
            kill(standby)
            wait_until(lambda pid=standby: tree.pid("text") != pid, what="the next instance")
            assert to_its_end(fd, b"hello") == b"HELLO"


def test_a_container_with_a_standby_is_stopped_and_started(mount: Mount) -> None:
    tree = mount(TEXT)
    before = {tree.pid("text"), tree.standby("text")}
    assert tree.control("stop text").stdout == "ok\n"
    assert not before & set(tree.processes())
    assert tree.control("start text").stdout == "ok\n"
    tree.standby("text")


def test_the_crash_loop_of_a_container_with_a_standby_ends(mount: Mount) -> None:
    tree = mount(f"[bad]\n{OPTIONS}max_crashes = 2\n[bad.probe]\nlog = @log\ncrash = @crash\n")
    standby = tree.standby("bad")
    tree.crash.touch()
    os.kill(tree.pid("bad"), signal.SIGKILL)
    wait_until(lambda: tree.state("bad") == "failed", what="its failure")
    bad = tree.containers()["bad"]
    assert bad["reason"].startswith("2 crashes in 60 s; exited with status 7\n")
    assert bad["standby"] is None
    wait_until(lambda: standby not in tree.processes(), what="the end of the standby")
