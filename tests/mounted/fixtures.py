"""Fixtures of both levels that mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .trees import Tree, install_plug_ins
from .waiting import wait_until

NOBODY = 65534

SHARED = """\
[text.text]
[probe.probe]
log = @log
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def plug_ins() -> Iterator[Path]:
    """Give the directory that makes the test's plug-ins known; any user can read it."""
    with tempfile.TemporaryDirectory(prefix="ldmfs-test-plug-ins-") as name:
        os.chmod(name, 0o755)
        yield install_plug_ins(Path(name))


@pytest.fixture(scope="session", autouse=True)
def _can_mount() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing on this machine, or not for this user")


@pytest.fixture
def new_tree(tmp_path: Path, plug_ins: Path) -> Iterator[Callable[..., Tree]]:
    """Give what makes trees that are not mounted yet; at the end each is gone without a trace."""
    trees: list[Tree] = []

    def make(base: Path | None = None, user: int | None = None) -> Tree:
        base = base or tmp_path / f"tree{len(trees)}"
        base.mkdir(exist_ok=True)
        trees.append(Tree(base, plug_ins, user))
        return trees[-1]

    yield make
    for tree in trees:
        tree.end()


@pytest.fixture
def mount(new_tree: Callable[..., Tree]) -> Callable[[str], Tree]:
    """Give what mounts a configuration: `tree = mount(TOML)`."""

    def mount(configuration: str) -> Tree:
        tree = new_tree()
        done = tree.mount(configuration)
        assert (done.returncode, done.stderr) == (0, "")
        return tree

    return mount


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, plug_ins: Path) -> Iterator[Tree]:
    """Give a tree with the containers `text` and `probe`, for tests that leave it as it was."""
    tree = Tree(tmp_path_factory.mktemp("shared"), plug_ins)
    try:
        done = tree.mount(SHARED)
        assert (done.returncode, done.stderr) == (0, "")
        before = {name: container["pid"] for name, container in tree.containers().items()}
        yield tree
        after = tree.containers()
        assert {name: container["pid"] for name, container in after.items()} == before, _told(tree, after)
    finally:
        tree.end()


def _told(tree: Tree, containers: dict[str, dict[str, Any]]) -> str:
    """Return what is known of a crash."""
    logs = [f"{log.name}: {log.read_text()}" for log in (tree.root / ".ldmfs/log").iterdir()]
    return "\n".join([f"{name}: {container['reason']}" for name, container in containers.items()] + logs)


@pytest.fixture
def start(tree: Tree) -> Iterator[Start]:
    """Give what starts a program in a login session of its own; it is killed at the end if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def run(command: list[str], **more: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {
            "env": tree.environment, "text": True, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE, "start_new_session": True, **more,
        }  # fmt: skip
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        wait_until(lambda process=process: process.poll() is not None, what=f"the end of {process.args}")
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream is not None:
                stream.close()


@pytest.fixture
def nobodys(plug_ins: Path) -> Iterator[Path]:
    """Give a directory of the user `nobody`: pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="ldmfs-test-user-"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)
