"""Supervisors that are killed, and those that take their place: nothing of the containers is restarted."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ldmfs

from .fixtures import Start
from .test_by_hand import run as run_by_hand
from .test_takeover import Loop, go_on, in_parts, once, running, to_its_end
from .trees import LDMFS, Tree, errno_of, exchange, opened, read_all
from .waiting import SECONDS, kill, wait_until

Mount = Callable[[str], Tree]
MountMore = Callable[[Tree], "subprocess.Popen[str]"]

PROBE = "[probe.probe]\nlog = @log\n"
TEXT = "[text.text]\n"


def mount_again(tree: Tree, configuration: str) -> None:
    done = tree.mount(configuration)
    assert (done.returncode, done.stderr) == (0, "")


def replace_supervisor(tree: Tree, configuration: str) -> None:
    """Kill the supervisor and mount again; each container's process stays."""
    before = {name: each["pid"] for name, each in tree.containers().items() if name != "system"}
    kill(tree.supervisor())
    mount_again(tree, configuration)
    assert {name: tree.containers()[name]["pid"] for name in before} == before


@pytest.fixture
def mount_in_front() -> Iterator[MountMore]:
    """Give what starts `ldmfs mount` in the foreground and waits until it has the lock."""
    started: list[subprocess.Popen[str]] = []

    def start(tree: Tree) -> subprocess.Popen[str]:
        command = [LDMFS, "mount", "--config", str(tree.base / "tree.toml")]
        process = subprocess.Popen(
            command, env=tree.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        lock = tree.root / ".ldmfs/lock"
        wait_until(lambda: lock.exists() and lock.read_text() == f"{process.pid}\n", what="its lock")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# -- what goes on


def test_containers_and_open_files_go_on(mount: Mount) -> None:
    tree = mount(TEXT + PROBE)
    before = tree.containers()
    with opened(tree.root / "text/upper") as fd:
        os.write(fd, b"hello")
        replace_supervisor(tree, TEXT + PROBE)
        assert read_all(fd) == b"HELLO"
        assert to_its_end(fd, b"again") == b"AGAIN"
    after = tree.containers()
    for name in ("text", "probe"):
        for key in ("state", "pid", "since", "restarts", "providers"):
            assert after[name][key] == before[name][key]
    assert after["system"]["pid"] == tree.supervisor() != before["system"]["pid"]
    assert list(after) == list(before)


def test_a_request_that_is_outstanding_goes_on(mount: Mount, start: Start) -> None:
    tree = mount(PROBE)
    tree.order("create gate slow")
    cat = start(["cat", str(tree.root / "probe/slow")])
    wait_until(lambda: "start" in dict(tree.events("slow")), what="its handler")
    replace_supervisor(tree, PROBE)
    tree.order("release slow")
    assert cat.communicate(timeout=SECONDS) == ("read\n", "")
    assert [what for what, _ in tree.events("slow")][:3] == ["open", "start", "done"]


def test_a_channel_goes_on_and_new_ones_are_made(mount: Mount) -> None:
    tree = mount(TEXT)
    with ldmfs.open_device("text/upper", root=tree.root) as device:
        replace_supervisor(tree, TEXT)
        assert ldmfs.send_request(device, b"hello") == b"HELLO"
    with ldmfs.open_device("text/upper", root=tree.root) as device:
        assert ldmfs.send_request(device, b"hello") == b"HELLO"


def test_loops_see_nothing_of_killed_supervisors(mount: Mount) -> None:
    tree = mount(TEXT)
    loops = Loop(tree, once), Loop(tree, in_parts), Loop(tree, once, reopen=True)
    with running(*loops):
        for _ in range(5):
            kill(tree.supervisor())
            go_on(*loops)
            mount_again(tree, TEXT)
            go_on(*loops)
    assert [(loop.errors, loop.wrong) for loop in loops] == [([], [])] * len(loops)


def test_nothing_is_used_up_by_adoptions(mount: Mount) -> None:
    tree = mount(TEXT)
    replace_supervisor(tree, TEXT)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{tree.pid('text')}/fd"))

    before = descriptors()
    for _ in range(3):
        replace_supervisor(tree, TEXT)
    wait_until(lambda: descriptors() == before, what=f"as many descriptors as before, {before}")


def test_names_that_are_too_long_for_a_socket_are_adopted(mount: Mount) -> None:
    configuration = f"[{'x' * 200}.text]\n[{'y' * 200}.text]\n"
    tree = mount(configuration)
    replace_supervisor(tree, configuration)
    kill(tree.supervisor())
    mount_again(tree, TEXT)
    assert set(tree.containers()) == {"text", "x" * 200, "y" * 200, "system"}


def test_the_commands_say_what_to_do_about_a_killed_supervisor(mount: Mount) -> None:
    tree = mount(TEXT)
    kill(tree.supervisor())
    for command in (("ls",), ("restart", "text")):
        done = tree.ldmfs(*command)
        assert done.returncode == 2
        assert f"'ldmfs mount --root {tree.root}' takes them over" in done.stderr
    assert tree.ldmfs("ls", "text").returncode == 0


# -- what works afterwards


def test_an_adopted_container_is_restarted_stopped_and_started(mount: Mount) -> None:
    tree = mount(PROBE)
    replace_supervisor(tree, PROBE)
    first = tree.pid("probe")
    assert tree.control("restart probe").stdout == "ok\n"
    assert tree.pid("probe") != first
    replace_supervisor(tree, PROBE)
    assert tree.control("stop probe").stdout == "ok\n"
    assert not (tree.root / "probe").exists()
    assert tree.control("start probe").stdout == "ok\n"
    tree.order("create echo new")
    assert tree.log.read_text().count("stopping") == 2


def test_the_crash_of_an_adopted_container_is_survived(mount: Mount) -> None:
    tree = mount(TEXT)
    with opened(tree.root / "text/upper") as fd:
        for kills in range(1, 4):
            replace_supervisor(tree, TEXT)
            pid = tree.pid("text")
            kill(pid)
            wait_until(lambda pid=pid: tree.pid("text") != pid, what="the next instance")
            assert to_its_end(fd, b"hello") == b"HELLO"
            assert tree.containers()["text"]["restarts"] == kills


def test_how_an_adopted_container_has_ended_is_not_known(mount: Mount) -> None:
    configuration = f"[text]\nrestart = false\n{TEXT}"
    tree = mount(configuration)
    replace_supervisor(tree, configuration)
    kill(tree.pid("text"))
    wait_until(lambda: tree.state("text") == "failed", what="its failure")
    assert tree.containers()["text"]["reason"].startswith("ended\n")


def test_requests_of_an_adopted_container_are_reissued(mount: Mount, tmp_path: Path) -> None:
    configuration = f'[probe]\non_crash = "reissue"\n{PROBE}keeps = "{tmp_path / "released"}"\n'
    tree = mount(configuration)
    with opened(tree.root / "probe/keeper") as fd:
        os.write(fd, b"this")
        replace_supervisor(tree, configuration)
        kill(tree.pid("probe"))
        (tmp_path / "released").touch()
        assert os.read(fd, 100) == b"kept this"


def test_an_adopted_container_gets_a_new_standby(mount: Mount) -> None:
    configuration = f"[text]\nstandby = true\n{TEXT}"
    tree = mount(configuration)
    old = tree.standby("text")
    replace_supervisor(tree, configuration)
    standby = tree.standby("text")
    assert standby != old
    assert old not in tree.processes()
    kill(tree.pid("text"))
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"
    assert tree.pid("text") == standby


def test_the_root_is_left_as_the_first_supervisor_found_it(mount: Mount) -> None:
    tree = mount(TEXT)
    replace_supervisor(tree, TEXT)
    assert tree.umount().returncode == 0
    assert not tree.root.exists()


# -- another configuration


def test_what_does_not_run_any_more_is_started(mount: Mount) -> None:
    tree = mount(TEXT + PROBE)
    probe = tree.pid("probe")
    with opened(tree.root / "probe/factory") as fd:
        kill(tree.supervisor())
        kill(probe)
        assert errno_of(os.write, fd, b"hello") in (errno.ENOTCONN, errno.ECONNABORTED)
        text = tree.pid("text")
        mount_again(tree, TEXT + PROBE)
    assert (tree.pid("text"), tree.state("probe")) == (text, "running")
    tree.order("create echo new")


def test_what_is_new_in_the_configuration_is_started(mount: Mount) -> None:
    tree = mount(TEXT)
    kill(tree.supervisor())
    mount_again(tree, TEXT + PROBE)
    assert tree.log.read_text() == f"- starting {tree.pid('probe')}\n"


def test_what_is_not_in_the_configuration_goes_on_until_it_is_stopped(mount: Mount) -> None:
    tree = mount(TEXT + PROBE)
    kill(tree.supervisor())
    probe = tree.pid("probe")
    mount_again(tree, TEXT)
    status = tree.containers()["probe"]
    assert (status["state"], status["pid"], status["reason"]) == ("running", probe, "not in the configuration")
    assert status["providers"] == ["probe"]
    kill(probe)
    tree.order("create echo new")  # as it was configured
    assert tree.control("stop probe").stdout == "ok\n"
    assert not (tree.root / "probe").exists()


def test_a_changed_configuration_takes_effect_at_the_restart(mount: Mount) -> None:
    tree = mount(f"[text]\nmax_crashes = 3\n{TEXT}")
    replace_supervisor(tree, f"[text]\nmax_crashes = 3\n{TEXT}")
    assert tree.containers()["text"]["reason"] == ""
    replace_supervisor(tree, "[text]\nmax_crashes = 4\n[text.hash]\n")
    assert "restart text" in tree.containers()["text"]["reason"]
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"
    assert tree.control("restart text").stdout == "ok\n"
    assert (tree.root / "text/sha256").exists()
    assert tree.containers()["text"]["reason"] == ""


# -- by hand


def test_a_provider_by_hand_is_adopted(mount: Mount, start: Start) -> None:
    tree = mount(TEXT)
    process = run_by_hand(start, tree)
    with opened(tree.root / "by_hand/twice") as fd:
        for _ in range(2):
            replace_supervisor(tree, TEXT)
            os.write(fd, b"ab")
            assert read_all(fd) == b"abab"
    container = tree.containers()["by_hand"]
    assert (container["state"], container["pid"]) == ("running", process.pid)
    assert [device["name"] for device in container["devices"]] == ["twice"]
    assert tree.control("stop by_hand").stdout == "ok\n"
    assert process.wait(SECONDS) == 0
    assert not (tree.root / "by_hand").exists()


def test_the_death_of_an_adopted_provider_by_hand_takes_its_directory_away(mount: Mount, start: Start) -> None:
    tree = mount(TEXT)
    process = run_by_hand(start, tree)
    replace_supervisor(tree, TEXT)
    process.kill()
    wait_until(lambda: "by_hand" not in os.listdir(tree.root), what="the end of its mount")
    wait_until(lambda: "by_hand" not in tree.containers(), what="its being forgotten")


def test_a_provider_by_hand_keeps_its_name_from_one_of_the_configuration(mount: Mount, start: Start) -> None:
    tree = mount(TEXT)
    process = run_by_hand(start, tree, "--name", "probe")
    kill(tree.supervisor())
    done = tree.mount(TEXT + PROBE)
    assert done.returncode == 1
    assert f"container probe: process {process.pid}, which is run by hand, has this name" in done.stderr
    assert tree.containers()["probe"]["pid"] == process.pid
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    wait_until(lambda: tree.containers().get("probe", {}).get("providers") == ["probe"], what="the configured one")
    wait_until(lambda: tree.state("probe") == "running", what="its start")


# -- kills at each stage


def test_a_container_that_was_starting_is_adopted_and_becomes_ready(mount: Mount, mount_in_front: MountMore) -> None:
    tree = mount(TEXT)
    kill(tree.supervisor())
    tree.configure(f"{TEXT}{PROBE}meet = 3\n")
    supervisor = mount_in_front(tree)
    wait_until(lambda: tree.events("-"), what="the start of probe")
    kill(supervisor.pid)
    waits = subprocess.Popen(["cat", str(tree.root / "probe/factory")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        mount_in_front(tree)
        with open(tree.log, "a", encoding="utf-8") as log:
            log.write("- starting 0\n- starting 0\n")
        assert waits.wait(SECONDS) == 1  # it takes no READ; the mount has come to life
    finally:
        waits.kill()
        waits.communicate()
    wait_until(lambda: tree.state("probe") == "running", what="its being ready")
    assert len({pid for what, pid in tree.events("-") if pid}) == 1


def test_a_supervisor_that_is_killed_while_it_adopts_leaves_the_rest_to_the_next(
    mount: Mount, mount_in_front: MountMore
) -> None:
    tree = mount(TEXT + PROBE)
    text, probe = tree.pid("text"), tree.pid("probe")
    kill(tree.supervisor())
    os.kill(text, signal.SIGSTOP)  # it has no time to be adopted
    try:
        for _ in range(3):
            supervisor = mount_in_front(tree)
            wait_until(lambda: errno_of(os.stat, tree.root / "system/graph") is None, what="the container `system`")
            wait_until(lambda: tree.state("probe") == "running", what="the adoption of the other one")
            kill(supervisor.pid)
    finally:
        os.kill(text, signal.SIGCONT)
    mount_again(tree, TEXT + PROBE)
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"
    assert (tree.pid("text"), tree.pid("probe")) == (text, probe)


def test_supervisors_that_are_killed_at_once_harm_nothing(mount: Mount, mount_in_front: MountMore) -> None:
    tree = mount(TEXT + PROBE)
    text = tree.pid("text")
    loop = Loop(tree, once)
    with running(loop):
        kill(tree.supervisor())
        for _ in range(5):
            kill(mount_in_front(tree).pid)
            go_on(loop)
        mount_again(tree, TEXT + PROBE)
        go_on(loop)
    assert (loop.errors, loop.wrong) == ([], [])
    assert tree.pid("text") == text


def test_a_supervisor_that_is_killed_during_a_take_over_leaves_what_can_be_mounted(mount: Mount) -> None:
    configuration = f"[text]\nstandby = true\n{TEXT}"
    tree = mount(configuration)
    for _ in range(3):
        standby = tree.standby("text")
        supervisor, serving = tree.supervisor(), tree.pid("text")
        kill(serving)
        kill(supervisor)  # with its standby told to take over, or not yet
        mount_again(tree, configuration)
        assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"
        assert serving not in tree.processes()
        assert tree.pid("text") == standby or standby not in tree.processes()


def test_a_container_that_does_not_answer_in_time_is_ended_and_started_anew(mount: Mount) -> None:
    configuration = f"[system]\nstart_timeout = '2 s'\n{TEXT}"
    tree = mount(configuration)
    kill(tree.supervisor())
    text = tree.pid("text")
    os.kill(text, signal.SIGSTOP)
    mount_again(tree, configuration)
    assert text not in tree.processes()
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"


# -- the end without a supervisor


def test_umount_without_a_supervisor_ends_containers_in_order(mount: Mount, start: Start) -> None:
    tree = mount(TEXT + PROBE)
    process = run_by_hand(start, tree)
    tree.order("create echo new")
    with opened(tree.root / "by_hand/twice"), opened(tree.root / "probe/new"):  # open files do not keep them
        kill(tree.supervisor())
        assert tree.umount().returncode == 0
        assert process.wait(SECONDS) == 0
    assert not tree.processes()
    assert not tree.root.exists()
    assert [what for what, _ in tree.events("new")] == ["open", "close"]
    assert [what for what, _ in tree.events("-")] == ["starting", "stopping"]


def test_umount_without_a_supervisor_kills_what_does_not_end(mount: Mount) -> None:
    tree = mount(f"{TEXT}{PROBE}stuck = true\n")
    kill(tree.supervisor())
    os.kill(tree.pid("text"), signal.SIGSTOP)
    assert tree.umount().returncode == 0
    assert not tree.processes()


def test_umount_without_a_supervisor_finds_a_standby_that_imports_still(mount: Mount) -> None:
    tree = mount("[brittle]\nstandby = true\n[brittle.brittle]\n")
    standby = tree.standby("brittle")
    (tree.base / "hold").touch()
    kill(standby)
    file = tree.root / ".ldmfs/standby/brittle"
    wait_until(lambda: file.exists() and int(file.read_text()) != standby, what="another standby")
    kill(tree.supervisor())
    assert tree.umount().returncode == 0
    assert not tree.processes()


def test_a_mount_ends_a_standby_that_imports_still(mount: Mount) -> None:
    configuration = "[brittle]\nstandby = true\n[brittle.brittle]\n"
    tree = mount(configuration)
    standby = tree.standby("brittle")
    (tree.base / "hold").touch()
    kill(standby)
    file = tree.root / ".ldmfs/standby/brittle"
    wait_until(lambda: file.exists() and int(file.read_text()) != standby, what="another standby")
    old = int(file.read_text())
    kill(tree.supervisor())
    mount_again(tree, configuration)
    assert old not in tree.processes()
    (tree.base / "hold").unlink()
    tree.standby("brittle")
