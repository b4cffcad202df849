"""`ldmfs upgrade`: new code, and not one failed request."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import ldmfs

from .test_handover import Load
from .trees import Tree, exchange, read_all
from .waiting import kill, wait_until

Mount = Callable[[str], Tree]

UPGRADES = 4
BRITTLE = "[brittle]\n{options}[brittle.brittle]\n"


def echo(fd: int, number: int) -> None:
    message = b"message %d" % number
    os.write(fd, message)
    assert read_all(fd) == message


class ChannelLoad(Load):
    """The same over the channel."""

    def run(self) -> None:
        with ldmfs.open_device("brittle/echo", root=self.path.parent.parent) as device:
            while not self.stopped:
                message = b"message %d" % self.done
                try:
                    assert ldmfs.send_request(device, message) == message
                except (ldmfs.LdmError, AssertionError) as error:
                    self.wrong.append(f"{self.done}: {error!r}")
                self.done += 1


def loads(tree: Tree) -> list[Load]:
    path = tree.root / "brittle/echo"
    return [Load(path, echo), Load(path, echo, reopen=True), ChannelLoad(path, echo)]


def go_on(consumers: list[Load], since: list[int]) -> None:
    wait_until(lambda: all(c.done > done for c, done in zip(consumers, since, strict=True)), what="the loads")


def version(tree: Tree) -> str:
    return exchange(tree.root / "brittle/version", b"?").decode()


def upgrade(tree: Tree, to: str) -> None:
    (tree.base / "version").write_text(to)
    done = tree.ldmfs("upgrade", "brittle")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("standby", ["false", "true"])
@pytest.mark.parametrize("policy", ["fail", "reissue"])
def test_an_upgrade_has_the_new_code_and_no_request_fails(mount: Mount, policy: str, standby: str) -> None:
    tree = mount(BRITTLE.format(options=f'on_crash = "{policy}"\nstandby = {standby}\n'))
    assert version(tree) == "0"
    consumers = loads(tree)
    for consumer in consumers:
        consumer.start()
    for number in range(1, UPGRADES + 1):
        before = tree.pid("brittle")
        upgrade(tree, str(number))
        assert version(tree) == str(number)
        assert tree.pid("brittle") != before
        go_on(consumers, [consumer.done for consumer in consumers])
    for consumer in consumers:
        consumer.stopped = True
        consumer.join()
    assert [consumer.wrong for consumer in consumers] == [[], [], []]
    assert tree.containers()["brittle"]["restarts"] == 0


def test_what_cannot_be_imported_changes_nothing(mount: Mount) -> None:
    tree = mount(BRITTLE.format(options=""))
    serving = tree.pid("brittle")
    (tree.base / "break").touch()
    done = tree.ldmfs("upgrade", "brittle")
    assert (done.returncode, "'ldmfs ls' tells the reason" in done.stderr) == (1, True)
    reason = tree.containers()["brittle"]["reason"]
    assert reason.startswith("not upgraded: ")
    assert "it is broken" in reason
    assert tree.pid("brittle") == serving
    assert exchange(tree.root / "brittle/echo", b"hello") == b"hello"
    (tree.base / "break").unlink()
    upgrade(tree, "1")
    assert version(tree) == "1"
    assert tree.containers()["brittle"]["reason"] == ""


def test_a_standby_has_the_new_code_too(mount: Mount) -> None:
    tree = mount(BRITTLE.format(options='standby = true\nmax_pause = "0 s"\n'))
    before = tree.standby("brittle")
    upgrade(tree, "1")
    standby = tree.standby("brittle")
    assert standby not in (before, tree.pid("brittle"))
    (tree.base / "version").write_text("2")
    kill(tree.pid("brittle"))
    wait_until(lambda: tree.pid("brittle") == standby, what="the take-over")
    assert version(tree) == "1"


def test_a_container_that_is_stopped_is_not_upgraded(mount: Mount) -> None:
    tree = mount(BRITTLE.format(options=""))
    tree.ldmfs("stop", "brittle")
    done = tree.ldmfs("upgrade", "brittle")
    assert done.returncode == 1


def test_an_instance_that_is_killed_while_its_successor_imports_is_followed_by_that(mount: Mount) -> None:
    tree = mount(BRITTLE.format(options='max_pause = "0 s"\n'))
    serving = tree.pid("brittle")
    (tree.base / "version").write_text("1")
    (tree.base / "hold").touch()
    errors: list[str] = []
    upgrading = threading.Thread(target=lambda: errors.append(tree.ldmfs("upgrade", "brittle").stderr))
    upgrading.start()
    kill(serving)
    wait_until(lambda: tree.containers()["brittle"]["state"] != "running", what="the crash")
    (tree.base / "hold").unlink()
    upgrading.join()
    wait_until(lambda: tree.containers()["brittle"]["state"] == "running", what="the next instance")
    assert version(tree) == "1"
