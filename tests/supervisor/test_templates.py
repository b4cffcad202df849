"""The template of the containers' processes, and the supervisor's side of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from ldmfs.supervisor.instance import Instance
from ldmfs.supervisor.process import Process, TemplateDied
from ldmfs.supervisor.templates import Template, Templates

SECONDS = 60.0
"""Far more than anything takes on a machine that is busy with the other tests."""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Forked:
    """A process of a template, and our end of its control link."""

    def __init__(self, process: Process, link: socket.socket) -> None:
        self.process = process
        self.link = link

    async def outcome(self) -> str:
        with contextlib.closing(self.process), self.link:
            await self.process.wait()
            return self.process.outcome()


async def fork(templates: Templates | Template, log: Path) -> Forked:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            return Forked(await templates.fork(theirs, log), ours)
        except BaseException:
            ours.close()
            raise


@contextlib.asynccontextmanager
async def kept(log: Path) -> AsyncIterator[Templates]:
    """Give templates that are kept, and see that nothing is left of them."""
    before = descriptors()
    notes = log.with_name("notes")
    notes.mkdir()
    templates = Templates(log, notes)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(templates.run)
            await there(templates)
            yield templates
            nursery.cancel_scope.cancel()
    assert descriptors() == before
    assert not list(notes.iterdir())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def there(templates: Templates) -> int:
    """Return the process of the template that forks, once there is one."""
    while (pid := templates.pid) is None:
        await trio.lowlevel.checkpoint()
    return pid


async def gone(pid: int) -> None:
    """Wait until a process is no more, and was reaped."""
    while os.path.exists(f"/proc/{pid}"):
        await trio.sleep(0.005)


async def test_a_process_begins_and_ends_when_nobody_tells_it_what_to_be(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        forked = await fork(templates, tmp_path / "log")
        output = Path(f"/proc/{forked.process.pid}/fd/2")
        while output.readlink() != tmp_path / "log":  # it has begun, and goes on to become what it is to be
            await trio.sleep(0.005)
        assert os.getsid(forked.process.pid) == forked.process.pid
        assert forked.process.is_container
        forked.link.close()
        assert await forked.outcome() == "exited with status 1"


async def test_how_a_process_was_killed_is_known(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        first, second = [await fork(templates, tmp_path / "log") for _ in range(2)]
        second.process.kill()
        assert await second.outcome() == "killed by SIGKILL"
        os.kill(first.process.pid, signal.SIGSEGV)
        assert await first.outcome() == "killed by SIGSEGV"


@pytest.mark.logs
async def test_a_killed_template_is_replaced_and_its_processes_live_on(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        before, template = await fork(templates, tmp_path / "log"), await there(templates)
        os.kill(template, signal.SIGKILL)
        await gone(template)
        after = await fork(templates, tmp_path / "log")
        assert await there(templates) != template
        assert not before.process.ends()
        before.process.kill()
        assert await before.outcome() == "ended"  # nobody was told how
        after.process.kill()
        assert await after.outcome() == "killed by SIGKILL"


@pytest.mark.logs
async def test_another_template_is_asked_when_one_dies_before_it_answers(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        template = await there(templates)
        os.kill(template, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def spawn() -> None:
                instance = await Instance.spawn(templates, tmp_path / "log")
                nursery.start_soon(instance.run)
                await instance.end(SECONDS)
                instance.close()

            nursery.start_soon(spawn)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(template, signal.SIGKILL)
        assert await there(templates) != template


async def test_a_template_that_is_gone_says_so(tmp_path: Path) -> None:
    template = Template(tmp_path / "template")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(template.run)
        os.kill(template.pid, signal.SIGKILL)
        await template.ended.wait()
        with pytest.raises(TemplateDied):
            await fork(template, tmp_path / "log")


async def test_an_older_template_begins_no_more_and_lives_as_long_as_its_processes(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        older = await there(templates)
        first = await fork(templates, tmp_path / "log")
        templates.renew()
        second = await fork(templates, tmp_path / "log")
        assert await there(templates) != older
        first.process.kill()
        assert await first.outcome() == "killed by SIGKILL"
        await gone(older)
        second.process.kill()
        assert await second.outcome() == "killed by SIGKILL"


async def test_who_gives_up_a_fork_leaves_no_process(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        template = await there(templates)
        os.kill(template, signal.SIGSTOP)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fork, templates, tmp_path / "log")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        os.kill(template, signal.SIGCONT)
        forked = await fork(templates, tmp_path / "log")  # answers come in order
        forked.process.kill()
        assert await forked.outcome() == "killed by SIGKILL"


async def test_that_there_is_no_room_for_a_process_is_told(tmp_path: Path) -> None:
    async with kept(tmp_path / "template") as templates:
        with pytest.raises(OSError, match="No such file") as caught:
            await fork(templates, tmp_path / "missing/log")
        assert caught.value.errno == errno.ENOENT
