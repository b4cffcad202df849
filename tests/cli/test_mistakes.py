"""A user's mistake is told in one line that says what to do, with the exit code 2 and without a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted.fixtures import NOBODY
from mounted.trees import Tree

GOOD = "[text.text]\n"

LONG = "x" * 256


def check_refused(tree: Tree, done: object, *words: str) -> None:
    """Assert that a command failed as a mistake, with these words, and left nothing behind."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ldmfs: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    for word in words:
        assert word in done.stderr
    assert not tree.mounts()
    assert not tree.processes()


@pytest.fixture
def bare(new_tree: Callable[..., Tree]) -> Tree:
    """Give a tree that is not mounted."""
    return new_tree()


@pytest.fixture(params=["foreground", "background"])
def mounting(request: pytest.FixtureRequest, bare: Tree) -> Callable[..., object]:
    """Give what tries to mount, in the foreground and in the background."""
    options = ["--background"] if request.param == "background" else []
    return lambda text, *more: bare.ldmfs("mount", *options, "--config", bare.configure(text), *more)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[system]\ncolour = 1\n", ("tree.toml: system.colour: there is no such key", "known are: root")),
        ("[text]\ncolour = 1\n[text.text]\n", ("tree.toml: text.colour: there is no such key", "restart")),
        ("[system]\nstop_timeout = 'soon'\n", ("tree.toml: system.stop_timeout", "50 ms", "soon")),
        ("[text]\nrestart = 'no'\n[text.text]\n", ("tree.toml: text.restart: expected bool, got str",)),
        ("[text.txet]\n", ("tree.toml: text.txet: there is no plug-in", "did you mean 'text'?")),
        ("[text]\n", ("tree.toml: text: the container hosts nothing",)),
        ("text = 1\n", ("tree.toml: text: expected a table",)),
        ("[text.text\n", ("tree.toml:", "line 1")),
        ("[system.text]\n", ("tree.toml: system.text",)),
        ("[kernel.text]\n", ("tree.toml: kernel: this name is reserved",)),
        ("['.hidden'.text]\n", ("tree.toml: .hidden: this name is reserved",)),
        ("['a/b'.text]\n", ("tree.toml: a/b:", "slash")),
        ("[''.text]\n", ("tree.toml:", "empty")),
        (f"['{LONG}'.text]\n", ("tree.toml:", "256 bytes", "255")),
    ],
    ids=[
        "system key", "container key", "duration", "type", "plug-in", "empty container", "no table", "syntax",
        "system as a container", "kernel as a container", "dot", "slash", "empty name", "long name",
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(
    bare: Tree, mounting: Callable[..., object], text: str, words: tuple[str, ...]
) -> None:
    check_refused(bare, mounting(text), *words)
    assert not bare.root.exists()


def test_a_configuration_that_is_not_there_is_refused(bare: Tree) -> None:
    check_refused(bare, bare.ldmfs("mount", "--config", bare.base / "none.toml"), "none.toml: No such file")


def test_a_configuration_that_is_no_text_is_refused(bare: Tree) -> None:
    (bare.base / "binary.toml").write_bytes(b"\xff\xfe")
    check_refused(bare, bare.ldmfs("mount", "--config", bare.base / "binary.toml"), "no UTF-8 text")


def test_a_root_that_is_not_empty_is_refused(bare: Tree, mounting: Callable[..., object]) -> None:
    other = bare.base / "other"
    other.mkdir()
    (other / "precious").touch()
    check_refused(bare, mounting(GOOD, "--root", str(other)), "is not empty", "--root")
    assert os.listdir(other) == ["precious"]


def test_a_root_that_is_no_directory_is_refused(bare: Tree, mounting: Callable[..., object]) -> None:
    (bare.base / "file").write_text("precious")
    for root in ("file", "file/below"):
        check_refused(bare, mounting(GOOD, "--root", str(bare.base / root)), "--root")
    assert (bare.base / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("below", ["", "below"])
def test_a_root_that_is_not_writable_is_refused(nobodys: Path, new_tree: Callable[..., Tree], below: str) -> None:
    tree = new_tree(nobodys, NOBODY)
    closed = nobodys / "closed"
    closed.mkdir(mode=0o755)
    done = tree.ldmfs("mount", "--background", "--config", tree.configure(GOOD), "--root", closed / below)
    check_refused(tree, done, str(closed), "--root")
    assert os.listdir(closed) == []


@pytest.mark.parametrize(
    "arguments",
    [("ls",), ("ls", "text"), ("umount",), ("restart", "text"), ("start", "text"), ("stop", "text")],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_command_without_a_tree_says_so(bare: Tree, arguments: tuple[str, ...]) -> None:
    check_refused(bare, bare.ldmfs(*arguments), str(bare.root))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "nobody"), ("there is no container 'nobody'", "there are: probe, system, text")),
        (("restart", "nobody"), ("nobody", "there is no such container")),
        (("stop", "system"), ("system", "there is no such container")),
    ],
)
def test_an_unknown_container_is_named(tree: Tree, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = tree.ldmfs(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ldmfs: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "no_such_file.py"), ("no_such_file.py", "there is no such Python file")),
        (("run", "no_such_module"), ("no_such_module cannot be imported",)),
        (("run", "text", "--name", "a/b"), ("a/b", "slash")),
        (("run", "text", "--name", LONG), ("256 bytes",)),
        (("run", "text", "--set", "colour"), ("--set colour: expected KEY=VALUE",)),
        (("run", "text", "--set", "colour=1"), ("--set.colour: there is no such key",)),
        (("run", "mounted.waiting"), ("one subclass of ldmfs.Provider is expected, it has: none",)),
    ],
    ids=["file", "module", "slash", "long name", "no value", "key", "no provider"],
)
def test_what_cannot_be_run_is_refused(bare: Tree, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    check_refused(bare, bare.ldmfs(*arguments), *words)
    assert not bare.root.exists()


def test_a_provider_that_does_not_run_is_told_in_one_line(bare: Tree) -> None:
    (bare.base / "broken.py").write_text("import ldmfs\n1 / 0\n")
    check_refused(bare, bare.ldmfs("run", bare.base / "broken.py"), "broken.py cannot be imported: ZeroDivisionError")
