"""Upgrades: an instance with new code takes over, and consumers notice nothing; kills at each stage of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ldmfs

from .fixtures import Start
from .test_by_hand import run as run_by_hand
from .test_takeover import KEEPER, Loop, go_on, in_parts, once, running, started, to_its_end
from .trees import LDMFS, Tree, errno_of, exchange, opened
from .waiting import SECONDS, kill, wait_until

Mount = Callable[[str], Tree]
Begin = Callable[[Tree, str], "subprocess.Popen[str]"]

UPGRADES = 6
BRITTLE = "[brittle.brittle]\n"
STANDBY = f"[brittle]\nstandby = true\nmax_pause = '0 s'\n{BRITTLE}"


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Give what begins `ldmfs upgrade`."""
    begun: list[subprocess.Popen[str]] = []

    def begin(tree: Tree, container: str) -> subprocess.Popen[str]:
        command = [LDMFS, "upgrade", container]
        begun.append(subprocess.Popen(command, env=tree.environment, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def keeper(policy: str, released: Path, drain_timeout: str) -> str:
    """Return the configuration of a device whose requests wait for a file."""
    options = f'[probe]\ndrain_timeout = "{drain_timeout}"\n'
    return KEEPER.format(policy=policy, released=released).replace("[probe]\n", options)


def upgrade(tree: Tree, container: str) -> None:
    done = tree.ldmfs("upgrade", container)
    assert (done.returncode, done.stderr) == (0, "")


def version(tree: Tree, code: str) -> None:
    """Change the plug-in's code."""
    (tree.base / "version").write_text(code)


def served(tree: Tree) -> bytes:
    """Return the version of the code that serves."""
    return exchange(tree.root / "brittle/version", b"?")


def successor(tree: Tree, container: str) -> int:
    """Return the process that is being prepared to take over."""
    file = tree.root / ".ldmfs/upgrade" / container
    return wait_until(lambda: file.exists() and int(file.read_text()), what="the process that is prepared")


class ChannelLoop(Loop):
    """The same over the direct channel."""

    def run(self) -> None:
        with ldmfs.open_device("text/upper", root=self.path.parent.parent) as device:
            while not self.stopped:
                message = b"message %d" % self.done
                try:
                    reply = ldmfs.send_request(device, message)
                    if reply != message.upper():
                        self.wrong.append((message, reply))
                except ldmfs.LdmError as error:
                    self.errors.append(error.errno)
                self.done += 1


# -- what is upgraded


def test_new_code_serves_and_open_files_go_on(mount: Mount) -> None:
    tree = mount(BRITTLE)
    pid = tree.pid("brittle")
    with opened(tree.root / "brittle/version") as fd:
        version(tree, "second")
        assert to_its_end(fd, b"?") == b"first"
        upgrade(tree, "brittle")
        assert to_its_end(fd, b"?") == b"second"
    brittle = tree.containers()["brittle"]
    assert (brittle["state"], brittle["restarts"], brittle["reason"]) == ("running", 0, "")
    assert brittle["pid"] == tree.pid("brittle") != pid
    assert pid not in tree.processes()
    assert not list((tree.root / ".ldmfs/upgrade").iterdir())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("policy", ["fail", "reissue"])
def test_loads_on_files_and_channels_see_nothing_of_upgrades(mount: Mount, policy: str) -> None:
    tree = mount(f"[text]\non_crash = '{policy}'\n[text.text]\n")
    loops = Loop(tree, to_its_end), Loop(tree, in_parts), Loop(tree, once, reopen=True), ChannelLoop(tree, once)
    with running(*loops):
        for _ in range(UPGRADES):
            upgrade(tree, "text")
            go_on(*loops)
    assert [(loop.errors, loop.wrong) for loop in loops] == [([], [])] * len(loops)
    assert tree.containers()["text"]["restarts"] == 0


@pytest.mark.parametrize("policy", ["fail", "reissue"])
def test_a_request_that_runs_comes_to_its_end(mount: Mount, tmp_path: Path, begin: Begin, policy: str) -> None:
    released = tmp_path / "released"
    tree = mount(
        KEEPER.format(policy=policy, released=released).replace("max_pause", 'drain_timeout = "1 h"\nmax_pause')
    )
    with opened(tree.root / "probe/keeper") as fd:
        os.write(fd, b"this")
        wait_until(lambda: started(tree), what="its handler")
        process = begin(tree, "probe")
        wait_until(lambda: errno_of(os.stat, tree.root / ".ldmfs/upgrade/probe") is None, what="the preparation")
        released.touch()
        assert os.read(fd, 100) == b"kept this"
        assert process.wait(SECONDS) == 0
        assert once(fd, b"that") == b"kept that"
    assert started(tree) == 2


def test_a_request_that_does_not_end_is_given_up_at_the_deadline(mount: Mount, tmp_path: Path) -> None:
    tree = mount(
        KEEPER.format(policy="fail", released=tmp_path / "released").replace(
            "max_pause", 'drain_timeout = "0 s"\nmax_pause'
        )
    )
    with opened(tree.root / "probe/keeper") as fd:
        os.write(fd, b"this")
        wait_until(lambda: started(tree), what="its handler")
        upgrade(tree, "probe")
        assert errno_of(os.read, fd, 100) == errno.ECONNABORTED
        (tmp_path / "released").touch()
        assert once(fd, b"that") == b"kept that"


def test_the_standby_is_replaced_by_one_with_the_new_code(mount: Mount) -> None:
    tree = mount(STANDBY)
    old = tree.standby("brittle")
    version(tree, "second")
    upgrade(tree, "brittle")
    assert served(tree) == b"second"
    wait_until(lambda: tree.standby("brittle") != old, what="another standby")
    assert old not in tree.processes()
    kill(tree.pid("brittle"))
    assert served(tree) == b"second"


def test_an_adopted_container_with_another_configuration_is_upgraded(mount: Mount) -> None:
    tree = mount("[text.text]\n")
    kill(tree.supervisor())
    assert tree.mount("[text.text]\n[text.hash]\n").returncode == 0
    assert "upgrade text" in tree.containers()["text"]["reason"]
    with opened(tree.root / "text/upper") as fd:
        upgrade(tree, "text")
        assert to_its_end(fd, b"hello") == b"HELLO"
    assert (tree.root / "text/sha256").exists()
    assert tree.containers()["text"]["reason"] == ""


# -- what is not


def test_code_that_cannot_be_imported_leaves_the_old_instance_in_its_place(mount: Mount) -> None:
    tree = mount(BRITTLE)
    pid = tree.pid("brittle")
    (tree.base / "break").touch()
    done = tree.ldmfs("upgrade", "brittle")
    assert done.returncode == 1
    assert "'ldmfs ls' tells the reason" in done.stderr
    brittle = tree.containers()["brittle"]
    assert (brittle["state"], brittle["pid"]) == ("running", pid)
    assert "it is broken" in brittle["reason"]
    assert served(tree) == b"first"
    (tree.base / "break").unlink()
    upgrade(tree, "brittle")
    assert tree.containers()["brittle"]["reason"] == ""


def test_code_that_does_not_start_is_followed_by_the_standby_of_before(mount: Mount) -> None:
    tree = mount(STANDBY)
    standby = tree.standby("brittle")
    version(tree, "bad")
    with opened(tree.root / "brittle/version") as fd:
        assert tree.ldmfs("upgrade", "brittle").returncode == 1
        assert to_its_end(fd, b"?") == b"first"
    assert tree.pid("brittle") == standby
    assert "this version is bad" in tree.containers()["brittle"]["reason"]


def test_code_that_does_not_start_is_a_crash_without_a_standby(mount: Mount) -> None:
    tree = mount(f"[brittle]\nmax_crashes = 2\n{BRITTLE}")
    version(tree, "bad")
    assert tree.ldmfs("upgrade", "brittle").returncode == 1
    wait_until(lambda: tree.state("brittle") == "failed", what="its failure")
    assert "this version is bad" in tree.containers()["brittle"]["reason"]
    version(tree, "good")
    assert tree.control("restart brittle").stdout == "ok\n"
    assert served(tree) == b"good"


def test_what_cannot_be_upgraded_is_told(mount: Mount, start: Start) -> None:
    tree = mount("[text.text]\n")
    run_by_hand(start, tree)
    assert "not supported" in tree.control("upgrade by_hand").stderr
    assert "No such file or directory" in tree.control("upgrade nobody").stderr
    assert tree.control("stop text").stdout == "ok\n"
    assert "Input/output error" in tree.control("upgrade text").stderr
    assert tree.control("stop by_hand").stdout == "ok\n"


def test_one_upgrade_at_a_time(mount: Mount, begin: Begin) -> None:
    tree = mount(BRITTLE)
    (tree.base / "hold").touch()
    first = begin(tree, "brittle")
    successor(tree, "brittle")
    assert "Device or resource busy" in tree.ldmfs("upgrade", "brittle").stderr
    (tree.base / "hold").unlink()
    assert first.wait(SECONDS) == 0


# -- kills at each stage


def test_the_process_that_is_prepared_is_killed(mount: Mount, begin: Begin) -> None:
    tree = mount(BRITTLE)
    pid = tree.pid("brittle")
    (tree.base / "hold").touch()
    process = begin(tree, "brittle")
    kill(successor(tree, "brittle"))
    assert process.wait(SECONDS) == 1
    assert (tree.pid("brittle"), served(tree)) == (pid, b"first")
    assert "killed by SIGKILL" in tree.containers()["brittle"]["reason"]


def test_the_instance_that_serves_is_killed_meanwhile(mount: Mount, begin: Begin) -> None:
    tree = mount(BRITTLE)
    (tree.base / "hold").touch()
    version(tree, "second")
    with opened(tree.root / "brittle/version") as fd:
        process = begin(tree, "brittle")
        next_one = successor(tree, "brittle")
        serving = tree.pid("brittle")
        kill(serving)
        wait_until(lambda: tree.pid("brittle") != serving, what="the start of another one, which waits as well")
        (tree.base / "hold").unlink()
        assert process.wait(SECONDS) == 0
        assert to_its_end(fd, b"?") == b"second"
    assert tree.pid("brittle") == next_one


def test_the_instance_that_drains_is_killed(mount: Mount, tmp_path: Path, begin: Begin) -> None:
    tree = mount(
        KEEPER.format(policy="reissue", released=tmp_path / "released").replace(
            "max_pause", "drain_timeout = '1 h'\nmax_pause"
        )
    )
    with opened(tree.root / "probe/keeper") as fd, opened(tree.root / "probe/loser") as drained:
        os.write(fd, b"this")
        wait_until(lambda: started(tree), what="its handler")
        serving = tree.pid("probe")
        process = begin(tree, "probe")
        waits = threading.Thread(target=errno_of, args=(os.write, drained, b"hello"))
        wait_until(lambda: not (tree.root / ".ldmfs/standby/probe").exists() and successor(tree, "probe"), what="it")
        waits.start()
        kill(serving)
        (tmp_path / "released").touch()
        process.wait(SECONDS)
        assert os.read(fd, 100) == b"kept this"
        waits.join(SECONDS)
    assert tree.pid("probe") != serving


def test_a_stop_ends_an_upgrade(mount: Mount, begin: Begin) -> None:
    tree = mount(BRITTLE)
    (tree.base / "hold").touch()
    process = begin(tree, "brittle")
    next_one = successor(tree, "brittle")
    assert tree.control("stop brittle").stdout == "ok\n"
    assert process.wait(SECONDS) == 1
    assert next_one not in tree.processes()


@pytest.mark.parametrize("then", ["mount", "umount"])
def test_the_supervisor_is_killed_while_a_process_is_prepared(mount: Mount, begin: Begin, then: str) -> None:
    tree = mount(BRITTLE)
    serving = tree.pid("brittle")
    (tree.base / "hold").touch()
    process = begin(tree, "brittle")
    next_one = successor(tree, "brittle")
    kill(tree.supervisor())
    assert process.wait(SECONDS) != 0
    if then == "umount":
        assert tree.umount().returncode == 0
        assert not tree.processes()
        return
    assert tree.mount(BRITTLE).returncode == 0
    assert next_one not in tree.processes()
    assert tree.pid("brittle") == serving
    (tree.base / "hold").unlink()
    version(tree, "second")
    upgrade(tree, "brittle")
    assert served(tree) == b"second"


def test_a_supervisor_that_is_killed_in_the_middle_leaves_what_can_be_mounted(mount: Mount, begin: Begin) -> None:
    tree = mount("[text.text]\n")
    for _ in range(4):
        process = begin(tree, "text")
        file = tree.root / ".ldmfs/upgrade/text"
        wait_until(lambda file=file, process=process: file.exists() or process.poll() is not None, what="its beginning")
        kill(tree.supervisor())
        done = tree.mount("[text.text]\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"


def test_an_instance_that_does_not_drain_is_killed(mount: Mount) -> None:
    tree = mount("[system]\nstop_timeout = '0 s'\n[text]\ndrain_timeout = '0 s'\n[text.text]\n")
    serving = tree.pid("text")
    os.kill(serving, signal.SIGSTOP)
    done = tree.ldmfs("upgrade", "text")
    assert done.returncode == 1
    assert "without handing over" in tree.containers()["text"]["reason"]
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"
