"""`ldmfs doctor` on this machine, and on one that lacks something."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mounted.fixtures import NOBODY
from mounted.trees import LDMFS, Tree
from mounted.waiting import kill

from ldmfs.cli import doctor, machine
from ldmfs.fuse.abilities import Abilities

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user and to change /dev")

Checks = dict[str, dict[str, Any]]


def checks_of(done: subprocess.CompletedProcess[str]) -> Checks:
    """Return the checks by their names."""
    assert done.stderr == ""
    return {check["check"]: check for check in json.loads(done.stdout)}


def diagnose(tree: Tree, status: int = 0, *before: str) -> Checks:
    """Run the doctor, under a command where one is given, for its checks."""
    done = tree.run([*before, LDMFS, "doctor", "--json"])
    assert done.returncode == status, done.stdout
    return checks_of(done)


@pytest.fixture
def bare(new_tree: Callable[..., Tree]) -> Tree:
    """Give a tree that is not mounted."""
    return new_tree()


@pytest.fixture
def nobodys_tree(nobodys: Path, new_tree: Callable[..., Tree]) -> Tree:
    """Give an ordinary user's tree that is not mounted."""
    return new_tree(nobodys, NOBODY)


# -- a machine that has everything


def test_a_machine_that_runs_the_tests_has_what_is_needed(bare: Tree) -> None:
    checks = diagnose(bare)
    assert {"Python", "pyfuse3", "/dev/fuse", "mount", "FUSE_DEV_IOC_CLONE", "memfd seals", "pidfd", "tree"} <= {
        name for name, check in checks.items() if check["needed"] and check["state"] == "ok"
    }


@as_root
def test_an_ordinary_user_has_what_is_needed_too(nobodys_tree: Tree) -> None:
    checks = diagnose(nobodys_tree)
    assert checks["fusermount3"]["needed"]
    assert checks["mount"]["found"].startswith("through fusermount3")
    assert checks["FUSE_DEV_IOC_CLONE"]["state"] == "ok"


@pytest.mark.parametrize("user", ["root", pytest.param("nobody", marks=as_root)])
def test_the_trial_leaves_no_mount_and_no_directory(request: pytest.FixtureRequest, user: str) -> None:
    tree: Tree = request.getfixturevalue("bare" if user == "root" else "nobodys_tree")
    scratch = tree.base / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)
    done = tree.run([LDMFS, "doctor"], env={**tree.environment, "TMPDIR": str(scratch)})
    assert done.returncode == 0
    assert not list(scratch.iterdir())
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()


def test_each_check_is_one_line_of_the_table(bare: Tree) -> None:
    lines = bare.ldmfs("doctor").stdout.splitlines()
    assert lines[0].split() == ["CHECK", "STATE", "NEEDED", "FOUND", "DO"]
    assert [line.partition("  ")[0] for line in lines[1:]] == list(diagnose(bare))


# -- a machine that lacks something

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from ldmfs.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""


@pytest.mark.parametrize("package", ["pyfuse3", "trio", "msgspec", "rich"])
def test_it_runs_without_a_package_that_is_needed_and_says_so(bare: Tree, package: str) -> None:
    done = bare.run([sys.executable, "-c", WITHOUT, package])
    assert done.returncode == 1
    check = checks_of(done)[package]
    assert (check["state"], check["needed"]) == ("missing", True)
    assert check["do"].startswith(f"{sys.executable} -m pip install '{package}")


@pytest.mark.parametrize(
    ("package", "plug_in", "extra"), [("psutil", "sensor", "sensor"), ("zstandard", "codec", "zstd")]
)
def test_a_plug_in_s_package_is_missing_without_harm(bare: Tree, package: str, plug_in: str, extra: str) -> None:
    done = bare.run([sys.executable, "-c", WITHOUT, package])
    assert done.returncode == 0
    check = checks_of(done)[package]
    assert (check["state"], check["needed"]) == ("missing", False)
    assert plug_in in check["found"]
    assert check["do"] == f"{sys.executable} -m pip install 'ldmfs[{extra}]'"


def test_a_package_that_is_too_old_is_missing() -> None:
    check = machine._at_least("trio", "0.9.1", ">=0.27", "do")
    assert (check.state, check.found) == ("missing", "0.9.1, wanted is >=0.27")
    assert machine._at_least("trio", "0.27.0", ">=0.27", "do").state == "ok"


@as_root
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_without_fusermount_only_root_can_mount(request: pytest.FixtureRequest, user: str) -> None:
    tree: Tree = request.getfixturevalue("bare" if user == "root" else "nobodys_tree")
    tree.environment["PATH"] = "/nonexistent"
    tree.become[:1] = [shutil.which(command) or command for command in tree.become[:1]]
    checks = diagnose(tree, status=int(user != "root"))
    assert (checks["fusermount3"]["state"], checks["fusermount3"]["do"]) == ("missing", "apt install fuse3")
    assert checks["mount"]["state"] == ("ok" if user == "root" else "missing")


@as_root
def test_fusermount_that_is_not_setuid_is_told_with_the_command_that_makes_it_so(nobodys_tree: Tree) -> None:
    copied = nobodys_tree.base / "fusermount3"
    shutil.copy(shutil.which("fusermount3") or "", copied)
    copied.chmod(0o755)
    nobodys_tree.environment["PATH"] = f"{nobodys_tree.base}:{os.environ['PATH']}"
    checks = diagnose(nobodys_tree, 1)
    assert checks["fusermount3"]["do"] == f"chown root {copied} && chmod u+s {copied}"
    assert checks["mount"]["state"] == "missing"


def in_another_dev(tree: Tree, script: str) -> Checks:
    """Run the doctor where /dev is empty but for what the script makes; it must fail."""
    become = " ".join(tree.become)
    inside = f"mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && {script} exec {become} {LDMFS} doctor --json"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside], env=tree.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    return checks_of(done)


@as_root
def test_without_dev_fuse_it_names_the_command_that_loads_the_module(bare: Tree) -> None:
    checks = in_another_dev(bare, "")
    assert (checks["/dev/fuse"]["state"], checks["/dev/fuse"]["do"]) == ("missing", "modprobe fuse")
    assert checks["mount"]["state"] == "missing"
    assert "FUSE_DEV_IOC_CLONE" not in checks


@as_root
def test_dev_fuse_of_root_alone_is_missing_to_others(nobodys_tree: Tree) -> None:
    check = in_another_dev(nobodys_tree, "mknod -m 600 /dev/fuse c 10 229;")["/dev/fuse"]
    assert (check["state"], check["do"]) == ("missing", "as root: chmod 666 /dev/fuse")


@as_root
def test_dev_fuse_that_cannot_mount_is_told(bare: Tree) -> None:
    checks = in_another_dev(bare, "mknod -m 666 /dev/fuse c 1 3;")
    assert (checks["/dev/fuse"]["state"], checks["mount"]["state"]) == ("ok", "missing")


@pytest.mark.parametrize("made", ["a file", "a directory that is not empty"])
def test_a_root_that_cannot_be_is_told(bare: Tree, made: str) -> None:
    other = bare.base / "other"
    other.mkdir()
    (other / "file").touch()
    done = bare.ldmfs("doctor", "--json", "--root", other / "file" if made == "a file" else other)
    assert done.returncode == 1
    assert checks_of(done)["tree"]["state"] == "missing"


@as_root
def test_a_root_that_the_user_cannot_look_at_is_told(nobodys_tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    done = nobodys_tree.ldmfs("doctor", "--json", "--root", tmp_path / "private" / "ldm")
    assert done.returncode == 1
    assert "not writable" in checks_of(done)["tree"]["found"]


# -- trees


def test_it_tells_who_serves_the_tree_and_how_its_containers_are(tree: Tree) -> None:
    checks = diagnose(tree)
    assert checks["tree"]["found"] == f"{tree.root}, served by process {tree.supervisor()}"
    assert checks["container text"]["state"] == "ok"
    assert f"running, process {tree.pid('text')}" in checks["container text"]["found"]


def test_a_container_that_failed_is_missing_with_its_reason(new_tree: Callable[..., Tree]) -> None:
    tree = new_tree()
    assert tree.mount("[text.text]\n[broken.broken]\n").returncode != 0
    checks = diagnose(tree, 1)
    assert checks["container text"]["state"] == "ok"
    assert checks["container broken"]["state"] == "missing"
    assert "there_is_no_such_module" in checks["container broken"]["found"]
    assert checks["container broken"]["do"] == f"ldmfs restart broken --root {tree.root}"


def test_a_container_that_was_stopped_is_no_fault(mount: Callable[[str], Tree]) -> None:
    tree = mount("[text.text]\n")
    assert tree.ldmfs("stop", "text").returncode == 0
    check = diagnose(tree)["container text"]
    assert (check["state"], check["do"]) == ("limited", f"ldmfs start text --root {tree.root}")


def test_a_tree_without_its_supervisor_is_limited_and_its_containers_are_told(mount: Callable[[str], Tree]) -> None:
    tree = mount("[text.text]\n[clock.clock]\n")
    pids = {name: tree.pid(name) for name in ("text", "clock")}
    kill(tree.supervisor())
    checks = diagnose(tree)
    assert (checks["tree"]["state"], checks["tree"]["do"]) == ("limited", f"ldmfs mount --root {tree.root}")
    assert checks["container text"]["state"] == "ok"
    kill(pids["clock"])
    assert diagnose(tree, 1)["container clock"]["state"] == "missing"


def test_a_supervisor_that_does_not_answer_is_told_and_not_waited_for(mount: Callable[[str], Tree]) -> None:
    tree = mount("[text.text]\n")
    supervisor = tree.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        check = diagnose(tree, 1)["supervisor"]
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert check["state"] == "missing"
    assert "no answer" in check["found"]
    assert str(supervisor) in check["do"]


STATUS = {"name": "disk", "state": "running", "pid": 7, "reason": "", "on_crash": "reissue"}


@pytest.mark.parametrize(("resend", "state"), [(True, "ok"), (False, "limited")])
def test_a_policy_that_the_kernel_has_not_the_means_for_is_limited(resend: bool, state: str) -> None:
    check = doctor.container(STATUS, Path("/ldm"), Abilities((7, 36), resend))
    assert check.state == state
    assert 'on_crash = "reissue"' in check.found
