"""Commands that are used as they are meant to be."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable

from mounted.fixtures import SHARED, Start
from mounted.trees import LDMFS, Tree, opened
from mounted.waiting import SECONDS

FIRST_SESSION = """\
[text.text]
[hash.hash]
[clock.clock]
"""


def on_a_terminal(tree: Tree, *arguments: str, columns: int = 200) -> str:
    """Run the command line on a pseudo-terminal and return what it shows."""
    master, slave = pty.openpty()
    environment = {**tree.environment, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen([LDMFS, *arguments], env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown, deadline = b"", time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    part = os.read(master, 1 << 16)
                except OSError:  # the other side is closed
                    break
                shown += part
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return shown.decode()


def test_ls_lists_the_containers(tree: Tree) -> None:
    done = tree.ldmfs("ls")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["CONTAINER", "STATE", "PID", "STANDBY", "DEVICES", "RESTARTS", "PROVIDERS", "REASON"]
    assert [line[:2] for line in lines[1:]] == [["text", "running"], ["probe", "running"], ["system", "running"]]
    assert lines[1][2:] == [str(tree.pid("text")), "4", "0", "text"]


def test_ls_of_a_container_lists_its_devices(tree: Tree) -> None:
    with opened(tree.root / "text/lower"):
        done = tree.ldmfs("ls", "text")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["DEVICE", "KIND", "MODE", "CONSUMERS", "TAKES", "GIVES", "DESCRIPTION"]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["text/lower", "message", "-rw-rw-rw-", "1"], ["text/reverse", "message", "-rw-rw-rw-", "0"],
    ]  # fmt: skip
    assert len(lines) == 5


def test_no_name_is_cut_on_a_narrow_terminal(tree: Tree) -> None:
    shown = on_a_terminal(tree, "ls", "system", "text", columns=80)
    for word in ("text/reverse", "system/containers", "message", "-rw-rw-rw-"):
        assert word in shown


def test_ls_of_containers_lists_the_devices_of_each(tree: Tree) -> None:
    done = tree.ldmfs("ls", "system", "text", "--json")
    assert [device["device"] for device in json.loads(done.stdout)] == [
        "system/containers", "system/control", "system/graph", "system/graph.dot",
        "text/lower", "text/reverse", "text/rot13", "text/upper",
    ]  # fmt: skip


def test_ls_as_json_is_what_the_graph_tells(tree: Tree) -> None:
    containers = json.loads(tree.ldmfs("ls", "--json").stdout)
    assert {each["name"]: each["pid"] for each in containers} == {
        name: each["pid"] for name, each in tree.containers().items()
    }


def test_ls_has_colours_on_a_terminal_and_none_in_a_pipe(tree: Tree) -> None:
    shown = on_a_terminal(tree, "ls")
    assert "\x1b[32mrunning" in shown
    assert "probe" in shown
    assert "\x1b" not in tree.ldmfs("ls").stdout
    assert "\x1b" not in on_a_terminal(tree, "ls", "--json")


def test_ls_of_a_container_needs_no_supervisor(mount: Callable[[str], Tree]) -> None:
    tree = mount("[text.text]\n")
    supervisor = tree.supervisor()
    os.kill(supervisor, 9)
    assert tree.ldmfs("ls", "text").stdout.count("text/") == 4
    refused = tree.ldmfs("ls")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert tree.umount().returncode == 0
    tree.existed = tree.root.exists()


def test_stop_start_and_restart_are_commands(mount: Callable[[str], Tree]) -> None:
    tree = mount("[text.text]\n")
    first = tree.pid("text")
    for command, state in (("stop", "stopped"), ("start", "running"), ("restart", "running")):
        done = tree.ldmfs(command, "text")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert tree.containers()["text"]["state"] == state
    assert tree.pid("text") != first


def test_the_root_of_the_command_line_wins_over_that_of_the_environment(new_tree: Callable[..., Tree]) -> None:
    tree = new_tree()
    mine = tree.base / "mine"
    done = tree.mount(f"[system]\nroot = '{tree.base}/configured'\n[text.text]\n", "--root", str(mine))
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(os.listdir(mine)) == [".ldmfs", "kernel", "system", "text"]
        assert not tree.root.exists()
        assert "text" in tree.ldmfs("ls", "--root", mine).stdout
    finally:
        assert tree.ldmfs("umount", "--root", mine).returncode == 0
    assert not mine.exists()


def test_the_root_of_the_configuration_counts_without_another(new_tree: Callable[..., Tree]) -> None:
    tree = new_tree()
    configuration = f"[system]\nroot = '{tree.root}'\n[text.text]\n"
    environment = {key: value for key, value in tree.environment.items() if key != "LDMFS_ROOT"}
    done = tree.ldmfs("mount", "--background", "--config", tree.configure(configuration), env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tree.root / "text/upper").exists()


def test_mount_in_the_foreground_tells_what_is_there_and_what_to_try(new_tree: Callable[..., Tree]) -> None:
    tree = new_tree()
    process = subprocess.Popen(
        [LDMFS, "mount", "--config", str(tree.configure(SHARED))], env=tree.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        lines = list(iter(process.stdout.readline, "Ctrl-C unmounts.\n"))
        assert lines[0] == f"{tree.root} is mounted. Containers:\n"
        assert "  text/      lower  reverse  rot13  upper\n" in lines
        tried = next(line for line in lines if "echo hello" in line)
        assert tree.sh(tried).stdout == "HELLO\n"
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


def test_run_hosts_a_plug_in_with_settings(tree: Tree, start: Start) -> None:
    process = start([LDMFS, "run", "codec", "--name", "mine", "--set", 'formats=["gzip"]'])
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines == [f"{tree.root}/mine/gzip-encode\n", f"{tree.root}/mine/gzip-decode\n"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=SECONDS) == ("", "")


def test_the_first_session(mount: Callable[[str], Tree]) -> None:
    tree = mount(FIRST_SESSION)
    root = tree.root
    done = tree.run(["bash", "-c", f"""
        echo hello > {root}/text/upper && cat {root}/text/upper
        exec 3<>{root}/hash/sha256; printf abc >&3; cat <&3; echo
        cat {root}/clock/utc
        ls -l {root} {root}/text
        getfattr --absolute-names -d {root}/text/upper
        rm {root}/hash/sha256; echo "rm $?"
        dd if=/dev/zero of={root}/text/upper bs=2M count=1; echo "dd $?"
        echo still > {root}/text/upper && cat {root}/text/upper
        cat {root}/system/containers
    """])  # fmt: skip
    out, err = done.stdout, done.stderr
    assert out.startswith("HELLO\nba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n")
    assert 'user.ldm.kind="message"' in out
    assert "rm 1\ndd 1\nSTILL\nCONTAINER " in out
    assert [line.split(": ")[-1] for line in err.splitlines() if line.startswith(("rm", "dd"))] == [
        "Device or resource busy", "Message too long",
    ]  # fmt: skip
    assert out.count(" running ") == 4
