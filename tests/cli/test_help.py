"""What the command line says of itself, and how it refuses what it does not know."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version

import pytest
from mounted.trees import LDMFS, Tree

COMMANDS = ["mount", "umount", "ls", "start", "stop", "restart", "upgrade", "run", "providers", "doctor"]


@pytest.fixture
def bare(new_tree: Callable[..., Tree]) -> Tree:
    """Give a tree that is not mounted."""
    return new_tree()


def test_help_names_every_command(bare: Tree) -> None:
    done = bare.ldmfs("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line[4] != " "]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(bare: Tree, command: str) -> None:
    done = bare.ldmfs(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: ldmfs {command} ")


def test_version_is_that_of_the_package(bare: Tree) -> None:
    assert bare.ldmfs("--version").stdout == f"ldmfs {version('ldmfs')}\n"


def test_the_module_is_the_same_command(bare: Tree) -> None:
    done = bare.run([sys.executable, "-m", "ldmfs.cli.main", "--version"])
    assert done.stdout == bare.ldmfs("--version").stdout


@pytest.mark.parametrize("arguments", [(), ("dance",), ("mount", "--colour"), ("run",), ("restart",)])
def test_what_is_no_command_is_refused(bare: Tree, arguments: tuple[str, ...]) -> None:
    done = bare.ldmfs(*arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_providers_lists_every_plug_in_with_its_keys(bare: Tree) -> None:
    done = bare.ldmfs("providers", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    records = json.loads(done.stdout)
    listed = {record["plug-in"] for record in records}
    assert listed >= {point.name for point in entry_points(group="ldmfs.providers")} | {"probe"}
    keys = {(record["plug-in"], record["key"]): record for record in records}
    assert keys["codec", "limit"]["type"] == "size"
    assert keys["faulty", "provider"]["default"] == "required"
    assert keys["sensor", "paths"]["meaning"] == "one path in each file system that the device disk tells of"


def test_providers_shows_a_plug_in_that_cannot_be_imported_with_the_reason(bare: Tree) -> None:
    done = bare.ldmfs("providers")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("broken ")]
    assert "there_is_no_such_module" in line


def test_providers_is_a_table_of_plain_text_in_a_pipe(bare: Tree) -> None:
    lines = bare.ldmfs("providers").stdout.splitlines()
    assert lines[0].split() == ["PLUG-IN", "KEY", "TYPE", "DEFAULT", "MEANING", "FROM"]
    assert not [line for line in lines if "\x1b" in line]


@pytest.mark.parametrize("command", ["providers", "ls"])
def test_a_reader_that_leaves_early_is_no_error_of_ours(tree: Tree, command: str) -> None:
    done = tree.run(["bash", "-c", f"{LDMFS} {command} | head -c0; exit ${{PIPESTATUS[0]}}"])
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_output_to_a_pipe_without_reader_is_no_traceback(tree: Tree) -> None:
    """Surely so, where `head` may have read in time."""
    process = subprocess.Popen(
        [LDMFS, "ls"], env=tree.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 1
