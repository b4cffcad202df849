"""Names and attributes: devices that come and go, whose they are, and what the kernel may remember of them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator

import pytest

from .fixtures import NOBODY
from .trees import Probed, Tree, errno_of, exchange
from .waiting import wait_until

DEVICES = 300


@pytest.fixture
def echo(tree: Tree) -> Iterator[Probed]:
    with tree.made("echo") as device:
        yield device


def as_nobody(tree: Tree, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the shell as another user; the tree's parents are closed to it, so from within."""
    return tree.sh(script, user=NOBODY, group=NOBODY, extra_groups=[])


def test_a_created_device_is_there_at_once(tree: Tree) -> None:
    for round in range(20):
        name = f"new-{round}"
        path = tree.root / "probe" / name
        assert errno_of(os.stat, path) == errno.ENOENT
        assert name not in os.listdir(path.parent)
        tree.order(f"create echo {name}")
        assert path.stat().st_mode
        assert name in os.listdir(path.parent)
        tree.order(f"destroy {name}")


@pytest.mark.parametrize("look", ["stat", "open", "listdir", "getxattr"])
def test_a_destroyed_device_is_gone_at_once(tree: Tree, look: str) -> None:
    for round in range(20):
        name = f"gone-{look}-{round}"
        path = tree.root / "probe" / name
        tree.order(f"create echo {name}")
        assert path.stat().st_mode
        assert exchange(path, b"x") == b"x"
        _wait_unused(tree, path)
        tree.order(f"destroy {name}")
        if look == "stat":
            assert errno_of(os.stat, path) == errno.ENOENT
        elif look == "open":
            assert errno_of(os.open, path, os.O_RDWR) == errno.ENOENT
        elif look == "getxattr":
            assert errno_of(os.getxattr, path, "user.ldm.kind") == errno.ENOENT
        else:
            assert name not in os.listdir(path.parent)


def test_a_removed_device_is_gone_at_once(tree: Tree) -> None:
    for round in range(20):
        path = tree.root / "probe" / f"removed-{round}"
        tree.order(f"create echo {path.name}")
        assert path.stat().st_mode
        path.unlink()
        assert errno_of(os.stat, path) == errno.ENOENT
        assert errno_of(os.unlink, path) == errno.ENOENT


def test_a_device_of_a_name_that_was_destroyed_is_a_new_one(tree: Tree) -> None:
    for kind, reply in (("echo", b"12"), ("zeros", bytes(range(12))), ("echo", b"12")):
        tree.order(f"create {kind} again")
        path = tree.root / "probe/again"
        assert exchange(path, b"12") == reply
        _wait_unused(tree, path)
        tree.order("destroy again")


def _wait_unused(tree: Tree, path: os.PathLike[str]) -> None:
    wait_until(lambda: tree.xattr(path, "consumers") == "0")


def test_many_devices_are_listed_once_each(tree: Tree) -> None:
    before = sorted(os.listdir(tree.root / "probe"))
    names = [f"many-{number:03}" for number in range(DEVICES)]
    for name in names:
        tree.order(f"create echo {name}")
    assert sorted(os.listdir(tree.root / "probe")) == sorted(before + names)
    assert len(tree.sh("ls -l probe").stdout.splitlines()) == 1 + len(before) + DEVICES
    assert len({entry.inode() for entry in os.scandir(tree.root / "probe")}) == len(before) + DEVICES
    for name in names:
        os.unlink(tree.root / "probe" / name)
    assert sorted(os.listdir(tree.root / "probe")) == before


def test_a_listing_goes_on_while_devices_are_destroyed(tree: Tree) -> None:
    names = [f"vanishing-{number:03}" for number in range(DEVICES)]
    for name in names:
        tree.order(f"create echo {name}")
    seen = []
    with os.scandir(tree.root / "probe") as entries:
        for entry in entries:
            if entry.name in names:
                seen.append(entry.name)
                os.unlink(entry.path)
    assert sorted(seen) == names


def test_stat_tells_the_mode_the_owner_and_a_size_of_nothing(echo: Probed) -> None:
    status = echo.path.stat()
    assert stat.S_ISREG(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o666, os.getuid(), os.getgid())
    assert (status.st_size, status.st_nlink) == (0, 1)


def test_chmod_is_taken_over(tree: Tree, echo: Probed) -> None:
    echo.path.chmod(0o640)
    assert stat.S_IMODE(echo.path.stat().st_mode) == 0o640
    assert tree.device(f"probe/{echo.name}")["mode"] == 0o640


def test_another_user_may_use_a_device_that_its_mode_opens(tree: Tree, echo: Probed) -> None:
    done = as_nobody(tree, f"exec 3<>probe/{echo.name}; printf hello >&3; cat <&3")
    assert (done.stdout, done.stderr) == ("hello", "")


def test_another_user_may_not_use_a_device_that_its_mode_closes(tree: Tree, echo: Probed) -> None:
    echo.path.chmod(0o600)
    assert "Permission denied" in as_nobody(tree, f"cat probe/{echo.name}").stderr
    assert echo.count("open") == 0


def test_chown_gives_a_device_to_another_user(tree: Tree, echo: Probed) -> None:
    echo.path.chmod(0o600)
    os.chown(echo, NOBODY, NOBODY)
    assert (echo.path.stat().st_uid, echo.path.stat().st_gid) == (NOBODY, NOBODY)
    assert as_nobody(tree, f"cat probe/{echo.name}").stdout == "read 1\n"


def test_another_user_may_change_neither_mode_nor_owner(tree: Tree, echo: Probed) -> None:
    for command in ("chmod 777", "chown nobody"):
        assert "Operation not permitted" in as_nobody(tree, f"{command} probe/{echo.name}").stderr


def test_another_user_may_not_destroy_a_device(tree: Tree, echo: Probed) -> None:
    assert "Permission denied" in as_nobody(tree, f"rm -f probe/{echo.name}").stderr
    assert echo.path.exists()


def test_a_kept_reply_is_not_for_another_user(tree: Tree, echo: Probed) -> None:
    done = tree.sh(
        f"echo secret > probe/{echo.name}; setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "
        f"cat probe/{echo.name}"
    )
    assert done.stdout == "read 1\n"


def test_the_directory_of_a_container_cannot_be_given_away(tree: Tree) -> None:
    assert errno_of(os.chmod, tree.root / "text", 0o777) == errno.EPERM


def test_another_user_may_not_command_the_supervisor(tree: Tree) -> None:
    assert "Permission denied" in as_nobody(tree, "echo stop text > system/control").stderr
    assert tree.containers()["text"]["state"] == "running"


def test_statvfs_counts_the_devices(tree: Tree) -> None:
    status = os.statvfs(tree.root / "text")
    assert (status.f_files, status.f_namemax, status.f_blocks) == (4, 255, 0)


def test_the_attributes_tell_of_the_directory_too(tree: Tree) -> None:
    assert tree.xattr(tree.root / "text", "container") == "text"
    assert tree.xattr(tree.root / "text", "devices") == "4"


def test_there_is_no_other_attribute(tree: Tree) -> None:
    assert errno_of(os.getxattr, tree.root / "text/upper", "user.ldm.none") == errno.ENODATA
    assert errno_of(os.getxattr, tree.root / "text/upper", "user.other") == errno.ENODATA


def test_a_name_that_is_too_long_or_no_utf_8_is_refused(tree: Tree) -> None:
    assert errno_of(os.stat, tree.root / "text" / ("x" * 256)) == errno.ENAMETOOLONG
    assert errno_of(os.stat, os.fsencode(tree.root / "text") + b"/\xff") == errno.ENOENT
