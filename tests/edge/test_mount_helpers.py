"""What the mount's module does without mounting anything."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldmfs.fuse import mount
from ldmfs.fuse.mount import Connection, MountError, MountPoint, mounts, unmount

MOUNTINFO = r"""21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 21 0:26 / /ldm rw,nosuid shared:9 - tmpfs ldmfs rw,size=16384k
31 30 0:40 / /ldm/text rw,nosuid shared:10 master:3 - fuse.ldmfs ldmfs rw,user_id=0
32 30 0:41 / /ldm/with\040space\011tab\134back rw - fuse.ldmfs ldmfs rw
33 21 0:42 / /ldm2 rw - tmpfs none rw
34 31 0:43 / /ldm/text/inner rw - tmpfs none rw
35 21 0:44 / /a\134040b rw - tmpfs none rw
"""


@pytest.fixture
def _mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "open", lambda *_args, **_kw: io.StringIO(MOUNTINFO), raising=False)


@pytest.mark.usefixtures("_mountinfo")
def test_the_latest_mount_comes_first() -> None:
    assert [str(found.path) for found in mounts()] == [
        r"/a\040b",
        "/ldm/text/inner",
        "/ldm2",
        "/ldm/with space\ttab\\back",
        "/ldm/text",
        "/ldm",
        "/",
    ]


@pytest.mark.usefixtures("_mountinfo")
@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("/ldm", ["/ldm/text/inner", "/ldm/with space\ttab\\back", "/ldm/text", "/ldm"]),
        ("/ldm/text", ["/ldm/text/inner", "/ldm/text"]),
        ("/ldm2", ["/ldm2"]),
        ("/ld", []),
        ("/nowhere", []),
    ],
)
def test_mounts_at_and_below_a_path(below: str, expected: list[str]) -> None:
    assert [str(found.path) for found in mounts(Path(below))] == expected


@pytest.mark.usefixtures("_mountinfo")
def test_type_and_source_are_told_after_optional_fields() -> None:
    assert mounts(Path("/ldm/text"))[-1] == MountPoint(Path("/ldm/text"), "fuse.ldmfs", "ldmfs")


def test_the_real_table_has_a_root() -> None:
    assert "/" in [str(found.path) for found in mounts()]


def test_a_path_that_is_not_there_cannot_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="mounting tmpfs"):
        mount.mount_root(tmp_path / "none")


def test_unmounting_what_is_no_mount_does_nothing(tmp_path: Path) -> None:
    unmount(tmp_path)
    assert tmp_path.is_dir()


def test_unmounting_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    unmount(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_user_without_fusermount3_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="install the package fuse3"):
        Connection.mount(tmp_path)


def test_what_fusermount3_says_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: Callable[[str], Path]
) -> None:
    path = program("echo 'no such luck' >&2; exit 1")
    monkeypatch.setattr(shutil, "which", lambda _name: str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="no such luck"):
        Connection.mount(tmp_path)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Write a shell script."""

    def write(body: str) -> Path:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def test_the_first_answer_to_init_goes_to_the_kernel(ends: tuple[int, int]) -> None:
    Connection(Path("/x"), ends[1], b"INIT").answer(b"first")
    assert os.read(ends[0], 100) == b"first"


def test_the_kernel_knows_an_init_that_was_answered_no_more(tmp_path: Path) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing on this machine, or not for this user")
    connection = Connection.mount(tmp_path)
    try:
        unique = struct.unpack_from("<Q", connection.init, 8)
        answer = struct.pack("<IiQ", 16 + 64, 0, *unique) + struct.pack("<II", 7, 31).ljust(64, b"\0")
        assert os.write(connection.fd, answer) == len(answer)
        with pytest.raises(FileNotFoundError):
            os.write(connection.fd, answer)
        connection.answer(answer)
    finally:
        connection.unmount()


def test_a_connection_is_closed_once(ends: tuple[int, int]) -> None:
    connection = Connection(Path("/x"), os.dup(ends[1]), b"INIT")
    connection.close()
    reused = os.dup(ends[1])
    connection.close()
    os.fstat(reused)
    os.close(reused)
    assert connection.fd == -1
