"""Who may open a device over the channel: decided as for its file, from what the kernel says of the peer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from support import Plain

from .served import Blocking, opened, output, program, served

USER, GROUP, OTHER = 65534, 65533, 65532

BECOME = """
import os, sys, ldmfs
ldmfs.open_device, ldmfs.Request  # imported as root: the interpreter's files may be root's alone
root, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setgid(int(gid))
os.setuid(int(uid))
"""

CONSUMER = f"""{BECOME}
try:
    with ldmfs.open_device("box/d", root=root) as device:
        for request in (b"call", ldmfs.Request(ldmfs.RequestType.READ)):
            try:
                ldmfs.send_request(device, request)
                print("yes")
            except ldmfs.AccessDenied:
                print("no")
except ldmfs.AccessDenied as error:
    print("not opened", error.errno)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


async def tried(
    root: Path, device: Plain, uid: int = USER, gid: int = GROUP, groups: tuple[int, ...] = ()
) -> list[str]:
    """Return how CALL and READ went for a consumer with these identities."""
    async with served(root, d=device):
        process = await program(CONSUMER, root, uid, gid, *groups)
        return (await output(process)).split("\n")[:-1]


BOTH, NONE = ["yes", "yes"], ["not opened 13"]
READ_ONLY, CALL_ONLY = ["no", "yes"], ["yes", "no"]


@pytest.mark.parametrize(("mode", "result"), [(0o606, BOTH), (0o604, READ_ONLY), (0o602, CALL_ONLY), (0o660, NONE)])
async def test_others_have_the_last_digit_of_the_mode(public: Path, mode: int, result: list[str]) -> None:
    assert await tried(public, Plain(mode=mode)) == result


@pytest.mark.parametrize(("mode", "result"), [(0o600, BOTH), (0o400, READ_ONLY), (0o200, CALL_ONLY), (0o066, NONE)])
async def test_the_owner_has_the_first_digit(public: Path, mode: int, result: list[str]) -> None:
    assert await tried(public, Plain(mode=mode, uid=USER)) == result


@pytest.mark.parametrize(("mode", "result"), [(0o060, BOTH), (0o040, READ_ONLY), (0o020, CALL_ONLY), (0o606, NONE)])
async def test_the_group_has_the_second_digit(public: Path, mode: int, result: list[str]) -> None:
    assert await tried(public, Plain(mode=mode, gid=GROUP)) == result


async def test_a_supplementary_group_counts(public: Path) -> None:
    assert await tried(public, Plain(mode=0o060, gid=OTHER), groups=(OTHER,)) == BOTH


async def test_the_last_of_very_many_groups_counts(public: Path) -> None:
    assert await tried(public, Plain(mode=0o060, gid=OTHER), groups=(*range(1000, 2000), OTHER)) == BOTH


async def test_another_group_does_not_count(public: Path) -> None:
    assert await tried(public, Plain(mode=0o060, gid=OTHER), groups=(1000,)) == NONE


async def test_root_may_do_everything(public: Path) -> None:
    assert await tried(public, Plain(mode=0, uid=USER), uid=0, gid=0) == BOTH


async def test_who_is_refused_never_reaches_the_open_handler(public: Path) -> None:
    plain = Plain(mode=0o600)
    await tried(public, plain)
    assert plain.calls == []


async def test_the_device_tells_what_the_consumer_may_send(public: Path) -> None:
    source = BECOME + "with ldmfs.open_device('box/d', root=root) as d: print(*sorted(d.accepts))"
    async with served(public, d=Plain(mode=0o604)):
        process = await program(source, public, USER, GROUP)
        assert await output(process) == "1\n"


async def test_the_provider_is_told_who_it_is(public: Path) -> None:
    source = f"""{BECOME}
with ldmfs.open_device('box/d', root=root) as device:
    print('open', flush=True)
    sys.stdin.read()
"""
    async with served(public, d=Plain()) as box:
        process = await program(source, public, USER, GROUP)
        assert process.stdout is not None
        await process.stdout.receive_some()
        (consumer,) = box.container.registry.consumers.values()
        assert (consumer.peer.pid, consumer.peer.uid, consumer.peer.gid) == (process.pid, USER, GROUP)
        assert process.stdin is not None
        await process.stdin.aclose()
        await output(process)


async def test_a_mode_counts_for_this_process_too(tmp_path: Path) -> None:
    side = Blocking(tmp_path)
    async with served(tmp_path, d=Plain(mode=0)), opened(side) as device:  # it is root
        assert await side.send(device, b"hello") == b"HELLO"
        await trio.lowlevel.checkpoint()
