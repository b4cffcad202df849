"""A block device: bytes at offsets, a size, and an end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from .providers import BLOCK_BYTES
from .trees import Probed, Tree, errno_of, opened


@pytest.fixture
def block(tree: Tree) -> Iterator[Probed]:
    with tree.made("block") as device:
        yield device


def test_the_size_is_that_of_the_file(tree: Tree, block: Probed) -> None:
    assert block.path.stat().st_size == BLOCK_BYTES
    assert tree.sh(f"getfattr --only-values -n user.ldm.kind {block}").stdout == "block"
    with opened(block) as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == BLOCK_BYTES


def test_dd_writes_and_reads_the_device(tree: Tree, block: Probed) -> None:
    (tree.base / "image").write_bytes(os.urandom(BLOCK_BYTES))
    copy = tree.base / "copy"
    done = tree.sh(f"dd if=../image of={block} bs=4k status=none && dd if={block} of={copy} bs=7k status=none")
    assert (done.returncode, done.stderr) == (0, "")
    assert copy.read_bytes() == (tree.base / "image").read_bytes()


def test_each_offset_can_be_written_and_read(block: Probed) -> None:
    with opened(block) as fd:
        for offset in (0, 1, 511, 4095, BLOCK_BYTES - 3):
            assert os.pwrite(fd, b"abc", offset) == 3
            assert os.pread(fd, 3, offset) == b"abc"
        assert os.pread(fd, 5, 510) == b"\0abc\0"


def test_what_one_consumer_wrote_another_reads(block: Probed) -> None:
    with opened(block) as one, opened(block, os.O_RDONLY) as two:
        os.pwrite(one, b"hello", 1000)
        assert os.pread(two, 5, 1000) == b"hello"


def test_a_read_ends_at_the_end(block: Probed) -> None:
    with opened(block) as fd:
        assert len(os.pread(fd, 100, BLOCK_BYTES - 10)) == 10
        assert os.pread(fd, 100, BLOCK_BYTES) == b""
        assert os.pread(fd, 100, BLOCK_BYTES + 4096) == b""


def test_a_write_ends_at_the_end(block: Probed) -> None:
    with opened(block) as fd:
        assert os.pwrite(fd, bytes(100), BLOCK_BYTES - 10) == 10
        assert errno_of(os.pwrite, fd, b"x", BLOCK_BYTES) == errno.ENOSPC


def test_dd_beyond_the_end_says_that_there_is_no_space(tree: Tree, block: Probed) -> None:
    done = tree.sh(f"dd if=/dev/zero of={block} bs=4k")
    assert "No space left on device" in done.stderr
    assert f"{BLOCK_BYTES} bytes" in done.stderr


def test_fsync_is_a_flush_request(block: Probed) -> None:
    with opened(block) as fd:
        os.pwrite(fd, b"x", 0)
        assert block.count("flush") == 0
        os.fsync(fd)
        assert block.count("flush") == 1
        os.fdatasync(fd)
        assert block.count("flush") == 2


def test_truncating_leaves_the_contents(block: Probed) -> None:
    with opened(block) as fd:
        os.pwrite(fd, b"hello", 0)
    with opened(block, os.O_RDWR | os.O_TRUNC) as fd:
        assert os.pread(fd, 5, 0) == b"hello"
    assert errno_of(os.truncate, block, 5) == errno.EINVAL


def test_df_shows_the_bytes_of_the_container(tree: Tree, block: Probed) -> None:
    status = os.statvfs(tree.root / "probe")
    assert status.f_blocks * status.f_frsize == BLOCK_BYTES
