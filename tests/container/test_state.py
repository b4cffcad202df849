"""The state area as shared memory: who may map it, what the next process finds, and that no kill can break it."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PEER

from ldmfs.container.state import SharedState, create
from ldmfs.core.device import Consumer, Device, LogicalDevice
from ldmfs.core.errors import StateDamaged
from ldmfs.core.state import Left, Sizes

DEVICE = LogicalDevice("d", 77, Device(), "", (0, 0))

KILLS = int(os.environ.get("LDMFS_KILLS", "2000"))
"""How many processes are killed; `LDMFS_SEED` repeats a run that failed, as far as the moments of kills repeat."""


@pytest.fixture
def fd() -> Iterator[int]:
    """Give an empty state area."""
    fd = create()
    yield fd
    os.close(fd)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_new_area_is_empty(fd: int) -> None:
    with SharedState(fd) as shared:
        assert shared.area.recover() == Left((), 0, "")


def test_the_next_mapping_finds_what_was_there(fd: int) -> None:
    with SharedState(fd) as shared:
        shared.area.consumers.add(Consumer(5, DEVICE, PEER))
        shared.area.store("text").put("a", b"one")
    with SharedState(fd) as shared:
        assert [left.id for left in shared.area.recover().consumers] == [5]
        assert shared.area.store("text").get("a") == b"one"


def test_another_process_finds_it_by_the_descriptor(fd: int) -> None:
    program = (
        "import sys\n"
        "from ldmfs.container.state import SharedState\n"
        "with SharedState(int(sys.argv[1])) as shared:\n"
        "    keep = shared.area.store('text')\n"
        "    keep.put('b', keep.get('a') * 2)\n"
    )
    with SharedState(fd) as shared:
        shared.area.store("text").put("a", b"one")
    subprocess.run([sys.executable, "-c", program, str(fd)], pass_fds=[fd], check=True)
    with SharedState(fd) as shared:
        assert shared.area.store("text").get("b") == b"oneone"


def test_memory_is_taken_only_for_what_is_used(fd: int) -> None:
    with SharedState(fd) as shared:
        shared.area.consumers.add(Consumer(1, DEVICE, PEER))
        shared.area.store("text").put("a", b"one")
    status = os.fstat(fd)
    assert status.st_size > 64 << 20
    assert status.st_blocks * 512 < 128 << 10


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_an_area_cannot_be_resized(fd: int, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fd, size)


def test_an_area_can_be_sealed_no_further(fd: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_an_area_is_not_inherited(fd: int) -> None:
    assert not os.get_inheritable(fd)


def test_the_area_is_closed_with_its_mapping(fd: int) -> None:
    before = descriptors()
    shared = SharedState(fd)
    store = shared.area.store("text")
    store.put("a", b"one")
    shared.close()
    with pytest.raises(ValueError, match="released"):
        store.put("a", b"two")
    with pytest.raises(ValueError, match="released"):
        shared.area.consumers.add(Consumer(1, DEVICE, PEER))
    assert descriptors() == before


def file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


def pipe(_: Path) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def unsealed(_: Path) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    return fd


def empty(_: Path) -> int:
    fd = unsealed(_)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def closed(_: Path) -> int:
    fd = unsealed(_)
    os.close(fd)
    return fd


@pytest.mark.parametrize("make", [file, pipe, unsealed, empty, closed])
def test_what_is_no_state_area_is_refused_and_nothing_is_left_open(make: object, tmp_path: Path) -> None:
    fd = make(tmp_path)  # type: ignore[operator]
    before = descriptors()
    with pytest.raises(StateDamaged):
        SharedState(fd)
    assert descriptors() == before
    if make is not closed:
        os.close(fd)


def test_an_area_that_cannot_be_made_leaves_nothing_open() -> None:
    before = descriptors()
    with pytest.raises(ValueError, match="at most"):
        create(Sizes(capacity=1 << 40))
    assert descriptors() == before


@pytest.mark.timeout(60 + KILLS // 20)
def test_no_kill_breaks_it() -> None:
    seed = os.environ.get("LDMFS_SEED") or str(random.SystemRandom().randrange(1 << 32))
    command = [sys.executable, str(Path(__file__).with_name("killer.py")), seed, str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
