"""The supervisor: containers that start, crash and are commanded, and its own end, in order and not."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from .fixtures import Start
from .trees import LDMFS, Tree, errno_of, exchange, opened, read_all
from .waiting import SECONDS, kill, wait_until

PROBE = "[probe.probe]\nlog = @log\n"
TEXT = "[text.text]\n"

Mount = Callable[[str], Tree]
NewTree = Callable[..., Tree]


@pytest.fixture
def foreground(new_tree: NewTree) -> Iterator[Callable[[str], tuple[Tree, subprocess.Popen[str]]]]:
    """Give what runs `ldmfs mount` in the foreground and returns when it says that it is mounted."""
    running: list[subprocess.Popen[str]] = []

    def run(configuration: str) -> tuple[Tree, subprocess.Popen[str]]:
        tree = new_tree()
        command = [LDMFS, "mount", "--config", str(tree.configure(configuration))]
        process = subprocess.Popen(
            command, env=tree.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{tree.root} is mounted. Containers:\n"
        return tree, process

    yield run
    for process in running:
        process.kill()
        process.communicate()


# -- starting


def test_containers_start_at_the_same_time(mount: Mount) -> None:
    """Each waits at its start until the other is starting, too."""
    tree = mount("[one.probe]\nlog = @log\nmeet = 2\n[two.probe]\nlog = @log\nmeet = 2\n")
    assert {name: each["state"] for name, each in tree.containers().items()} == {
        "one": "running", "two": "running", "system": "running",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("[bad.broken]\n", "there_is_no_such_module"),
        ("[bad.probe]\nlog = @log\nmeet = 'two'\n", "tree.toml: bad.probe.meet: expected int, got str"),
        ("[bad.probe]\n", "tree.toml: bad.probe.log: this key is required"),
        ("[bad.text]\ncolour = 'red'\n", "tree.toml: bad.text.colour: there is no such key"),
    ],
    ids=["import", "type", "missing", "unknown"],
)
def test_a_container_whose_configuration_is_wrong_leaves_the_others_running(
    new_tree: NewTree, table: str, reason: str
) -> None:
    tree = new_tree()
    done = tree.mount(TEXT + table)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[0]
    assert all(line.startswith("ldmfs: ") for line in done.stderr.splitlines())
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"
    bad = tree.containers()["bad"]
    assert (bad["state"], bad["pid"]) == ("failed", None)
    assert reason in bad["reason"]
    assert not (tree.root / "bad").exists()


def test_a_container_that_crashes_at_its_first_start_is_failed_at_once(new_tree: NewTree) -> None:
    tree = new_tree()
    tree.crash.touch()
    done = tree.mount(f"{TEXT}[bad.probe]\nlog = @log\ncrash = @crash\n")
    assert done.returncode == 1
    assert "container bad: exited with status 7" in done.stderr
    assert tree.log.read_text().count("starting") == 1


def test_a_container_that_is_not_ready_in_time_is_failed(new_tree: NewTree) -> None:
    tree = new_tree()
    done = tree.mount("[system]\nstart_timeout = '1 s'\n[bad.probe]\nlog = @log\nmeet = 2\n")
    assert done.returncode == 1
    assert "container bad: not ready after 1 s" in done.stderr


# -- crashes


def test_a_killed_container_is_started_again(mount: Mount) -> None:
    tree = mount(PROBE)
    before = tree.pid("probe")
    with opened(tree.root / "probe/factory") as handle:
        os.kill(before, signal.SIGKILL)
        assert exchange(tree.root / "probe/factory", b"create echo new") == b"ok"  # waits for the new instance
        os.write(handle, b"create echo old")
        assert read_all(handle) == b"ok"
    assert exchange(tree.root / "probe/new", b"hello") == b"hello"
    wait_until(lambda: tree.state("probe") == "running", what="its being ready, which is told after it serves")
    probe = tree.containers()["probe"]
    assert (probe["state"], probe["restarts"], probe["pid"]) == ("running", 1, tree.pid("probe"))
    assert tree.pid("probe") != before


def test_a_request_that_is_outstanding_when_its_container_dies_ends_with_an_error(mount: Mount, start: Start) -> None:
    tree = mount(PROBE)
    tree.order("create gate slow")
    cat = start(["cat", str(tree.root / "probe/slow")])
    wait_until(lambda: "start" in dict(tree.events("slow")))
    os.kill(tree.pid("probe"), signal.SIGKILL)
    assert "Software caused connection abort" in cat.communicate(timeout=SECONDS)[1]
    assert cat.returncode == 1


def test_the_other_containers_do_not_notice_a_crash(mount: Mount) -> None:
    tree = mount(PROBE + TEXT)
    with opened(tree.root / "text/upper") as fd:
        os.kill(tree.pid("probe"), signal.SIGKILL)
        os.write(fd, b"hello")
        assert read_all(fd) == b"HELLO"
    wait_until(lambda: tree.containers()["probe"]["restarts"] == 1)


def test_a_container_that_crashes_again_and_again_is_failed_until_it_is_restarted(mount: Mount) -> None:
    tree = mount("[bad]\nmax_crashes = 2\n[bad.probe]\nlog = @log\ncrash = @crash\n")
    tree.crash.touch()
    os.kill(tree.pid("bad"), signal.SIGKILL)
    wait_until(lambda: tree.containers()["bad"]["state"] == "failed")
    bad = tree.containers()["bad"]
    assert bad["reason"].startswith("2 crashes in 60 s; exited with status 7\n")
    assert "these are its last words" in bad["reason"]
    assert "2 crashes in 60 s; exited with status 7" in tree.sh("cat system/containers").stdout
    wait_until(lambda: not (tree.root / "bad").exists())

    lines = tree.ldmfs("ls").stdout.splitlines()
    assert lines[1].endswith("2 crashes in 60 s; exited with status 7")
    assert lines[-2:] == [
        "bad: 2 crashes in 60 s; exited with status 7; its last lines:",
        "    these are its last words",
    ]

    again = tree.control("restart bad")
    assert "Input/output error" in again.stderr
    assert tree.containers()["bad"]["state"] == "failed"
    tree.crash.unlink()
    assert tree.control("restart bad").stdout == "ok\n"
    assert exchange(tree.root / "bad/factory", b"create echo new") == b"ok"
    assert tree.containers()["bad"]["reason"] == ""


def test_a_container_that_is_not_to_be_restarted_is_failed_at_its_first_crash(mount: Mount) -> None:
    tree = mount(f"[probe]\nrestart = false\n{PROBE}")
    os.kill(tree.pid("probe"), signal.SIGKILL)
    wait_until(lambda: tree.containers()["probe"]["state"] == "failed")
    assert tree.containers()["probe"]["reason"].startswith("killed by SIGKILL")
    wait_until(lambda: not (tree.root / "probe").exists())


# -- commands


def test_restart_stop_and_start_do_what_they_say(mount: Mount) -> None:
    tree = mount(PROBE)
    first = tree.pid("probe")
    assert tree.control("restart probe").stdout == "ok\n"
    assert tree.pid("probe") != first
    assert tree.control("stop probe").stdout == "ok\n"
    assert tree.containers()["probe"]["state"] == "stopped"
    assert not (tree.root / "probe").exists()
    assert tree.control("stop probe").stdout == "ok\n"  # it is stopped, as asked
    assert tree.control("start probe").stdout == "ok\n"
    assert tree.containers()["probe"]["state"] == "running"
    assert exchange(tree.root / "probe/factory", b"create echo new") == b"ok"
    assert tree.log.read_text().count("stopping") == 2


def test_stopping_a_container_runs_the_close_handlers_and_ends_its_requests(mount: Mount, start: Start) -> None:
    tree = mount(PROBE)
    tree.order("create gate slow")
    cat = start(["cat", str(tree.root / "probe/slow")])
    wait_until(lambda: "start" in dict(tree.events("slow")))
    assert tree.control("stop probe").stdout == "ok\n"
    assert cat.wait(SECONDS) == 1
    assert [what for what, _ in tree.events("slow")] == ["open", "start", "cancelled", "close"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("restart nobody", "No such file or directory"), ("stop system", "No such file or directory"),
        ("dance", "Invalid argument"), ("restart", "Invalid argument"), ("start text probe", "Invalid argument"),
        ("", "Invalid argument"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_refused(tree: Tree, command: str, error: str) -> None:
    assert error in tree.control(command).stderr


def test_control_lists_its_commands(tree: Tree) -> None:
    assert tree.sh("cat system/control").stdout == "upgrade NAME, restart NAME, start NAME, stop NAME, shutdown\n"


def test_the_command_shutdown_ends_the_tree(mount: Mount) -> None:
    tree = mount(TEXT)
    (tree.root / "system/control").write_text("shutdown\n")
    wait_until(lambda: not tree.processes())
    assert not tree.root.exists()


# -- reports


def test_the_graph_lists_the_consumers_with_their_processes(tree: Tree, start: Start) -> None:
    with tree.made("gate") as device:
        cat = start(["cat", str(device)])
        device.wait("start")
        (consumer,) = tree.device(f"probe/{device.name}")["consumers"]
        assert (consumer["pid"], consumer["uid"], consumer["path"]) == (cat.pid, os.getuid(), "file")
        assert (consumer["requests"], consumer["outstanding"]) == (1, 1)
        device.release()
        cat.wait(SECONDS)


def test_the_graph_tells_what_each_container_hosts(tree: Tree) -> None:
    containers = tree.containers()
    assert list(containers) == ["text", "probe", "system"]
    assert containers["text"]["providers"] == ["text"]
    assert sorted(device["name"] for device in containers["text"]["devices"]) == ["lower", "reverse", "rot13", "upper"]
    assert {device["name"] for device in containers["system"]["devices"]} == {
        "containers", "control", "graph", "graph.dot",
    }  # fmt: skip


def test_the_graph_for_graphviz_has_a_box_for_each_container_and_an_edge_for_each_consumer(tree: Tree) -> None:
    with tree.made("echo") as device, opened(device):
        dot = tree.sh("cat system/graph.dot").stdout
    assert dot.startswith("digraph ldmfs {\n")
    assert dot.count("{") == dot.count("}") == 1 + len(tree.containers())
    assert f'"process {os.getpid()}" -> "probe/{device.name}";' in dot
    assert dot.count('"') % 2 == 0


def test_the_graph_can_be_read_while_a_container_dies(mount: Mount) -> None:
    tree = mount(TEXT)
    for restarts in range(1, 4):
        os.kill(tree.pid("text"), signal.SIGKILL)
        wait_until(lambda restarts=restarts: tree.containers()["text"]["restarts"] == restarts)
        wait_until(lambda: tree.containers()["text"]["state"] == "running")


def test_containers_shows_a_line_for_each(tree: Tree) -> None:
    lines = tree.sh("cat system/containers").stdout.splitlines()
    assert lines[0].split() == ["CONTAINER", "STATE", "PID", "STANDBY", "RESTARTS", "SINCE", "PROVIDERS", "REASON"]
    assert [line.split()[:3] for line in lines[1:]] == [
        [name, "running", str(container["pid"])] for name, container in tree.containers().items()
    ]


# -- its end


def test_containers_go_on_when_the_supervisor_is_killed(mount: Mount) -> None:
    tree = mount(TEXT + PROBE)
    with opened(tree.root / "text/upper") as fd:
        kill(tree.supervisor())
        os.write(fd, b"hello")
        assert read_all(fd) == b"HELLO"
    tree.order("create echo new")
    assert exchange(tree.root / "probe/new", b"still there") == b"still there"
    assert errno_of(os.stat, tree.root / "system/control") == errno.ENOTCONN
    assert tree.umount().returncode == 0
    assert not tree.processes()  # they are gone when the command returns
    assert not tree.root.exists()
    assert "stopping" in tree.log.read_text()  # in order


def test_a_mount_cleans_what_is_left_when_nothing_lives(mount: Mount) -> None:
    tree = mount(TEXT)
    kill(tree.supervisor())
    kill(tree.pid("text"))
    done = tree.mount(TEXT)
    assert (done.returncode, done.stderr) == (0, "")
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"


def test_a_second_tree_at_the_same_root_is_refused(mount: Mount) -> None:
    tree = mount(TEXT)
    done = tree.mount(TEXT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ldmfs: {tree.root} is served already, by process {tree.supervisor()}")
    assert exchange(tree.root / "text/upper", b"hello") == b"HELLO"


def test_two_trees_do_not_know_each_other(mount: Mount) -> None:
    one, two = mount(TEXT), mount(PROBE)
    assert one.umount().returncode == 0
    assert not one.root.exists()
    two.order("create echo new")
    assert exchange(two.root / "probe/new", b"hello") == b"hello"


def test_a_root_that_was_there_is_left_as_it_was(new_tree: NewTree) -> None:
    tree = new_tree()
    tree.root.mkdir(mode=0o711)
    tree.existed = True
    before = tree.root.stat()
    assert tree.mount(TEXT).returncode == 0
    assert tree.umount().returncode == 0
    after = tree.root.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_tree_in_the_foreground(
    foreground: Callable[[str], tuple[Tree, subprocess.Popen[str]]], number: signal.Signals
) -> None:
    tree, process = foreground(TEXT + PROBE)
    with opened(tree.root / "probe/factory"):  # open files do not keep it
        process.send_signal(number)
        assert process.wait(SECONDS) == 0
    assert not tree.processes()
    assert not tree.root.exists()
    assert "stopping" in tree.log.read_text()
    assert process.stderr.read() == ""


def test_ctrl_c_in_the_terminal_stops_the_containers_in_order(
    foreground: Callable[[str], tuple[Tree, subprocess.Popen[str]]],
) -> None:
    """The whole process group gets the signal, as from a terminal."""
    tree, process = foreground(PROBE)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert "stopping" in tree.log.read_text()


def test_a_container_that_does_not_stop_is_killed_at_the_deadline(mount: Mount) -> None:
    tree = mount(f"[system]\nstop_timeout = '100 ms'\n{PROBE}stuck = true\n")
    assert tree.umount().returncode == 0
    assert "stopping" in tree.log.read_text()
    assert not tree.processes()


def test_consumers_that_wait_get_an_error_when_the_tree_is_unmounted(mount: Mount, start: Start) -> None:
    tree = mount(PROBE)
    tree.order("create gate slow")
    cat = start(["cat", str(tree.root / "probe/slow")], env={**tree.environment, "LDMFS_ROOT": "other"})
    wait_until(lambda: "start" in dict(tree.events("slow")))
    assert tree.umount().returncode == 0
    assert cat.wait(SECONDS) == 1
