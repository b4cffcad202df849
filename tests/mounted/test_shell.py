"""A shell at a message device: echo, cat, redirections, and what they say when something is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ldmfs.core.request import MAX_MESSAGE

from .trees import Probed, Tree


@pytest.fixture
def echo(tree: Tree) -> Iterator[Probed]:
    with tree.made("echo") as device:
        yield device


@pytest.fixture
def fail(tree: Tree) -> Iterator[Probed]:
    with tree.made("asyncfail") as device:
        yield device


def test_cat_gets_the_reply_that_echo_left_in_the_same_login_session(tree: Tree) -> None:
    done = tree.sh("echo hello > text/upper && cat text/upper")
    assert (done.stdout, done.stderr, done.returncode) == ("HELLO\n", "", 0)


def test_the_kept_reply_is_given_once(tree: Tree, echo: Probed) -> None:
    done = tree.sh(f"echo hello > {echo}; cat {echo}; cat {echo}")
    assert done.stdout == "hello\nread 1\n"


def test_a_kept_reply_is_not_for_another_login_session(tree: Tree, echo: Probed) -> None:
    assert tree.sh(f"echo secret > {echo}").returncode == 0
    assert tree.sh(f"cat {echo}").stdout == "read 1\n"


def test_the_latest_kept_reply_counts(tree: Tree, echo: Probed) -> None:
    assert tree.sh(f"echo one > {echo}; echo two > {echo}; cat {echo}").stdout == "two\n"


def test_a_reply_of_an_async_handler_is_kept_too(tree: Tree) -> None:
    with tree.made("async") as device:
        assert tree.sh(f"echo hello > {device}; cat {device}").stdout == "hello\n"


def test_echo_shows_the_error_of_a_plain_handler(tree: Tree) -> None:
    with tree.made("fail") as device:
        done = tree.run(["bash", "-c", f"echo ldm 13 > {device}"])
    assert done.returncode == 1
    assert "Permission denied" in done.stderr


def test_the_error_of_an_async_handler_is_kept_for_cat(tree: Tree, fail: Probed) -> None:
    done = tree.sh(f"echo ldm 28 > {fail}; cat {fail}; echo $?; echo fine > {fail}; cat {fail}")
    assert "No space left on device" in done.stderr
    assert done.stdout == "1\nfine\n"


def test_a_kept_error_is_given_once(tree: Tree, fail: Probed) -> None:
    done = tree.sh(f"echo ldm 28 > {fail}; cat {fail}; cat {fail}; echo $?")
    assert done.stderr.count("cat:") == 1
    assert done.stdout == "0\n"


def test_one_open_file_sends_and_reads(tree: Tree, echo: Probed) -> None:
    assert tree.sh(f"exec 3<>{echo}; printf abc >&3; cat <&3").stdout == "abc"


def test_a_second_cat_on_an_open_file_sends_a_read(tree: Tree, echo: Probed) -> None:
    assert tree.sh(f"exec 3<>{echo}; printf abc >&3; cat <&3; cat <&3; cat <&3").stdout == "abcread 1\nread 2\n"


def test_an_open_file_serves_one_exchange_after_the_other(tree: Tree, echo: Probed) -> None:
    assert tree.sh(f"exec 3<>{echo}; for i in 1 2 3; do printf $i- >&3; cat <&3; done").stdout == "1-2-3-"


def test_cat_of_a_device_sends_a_read(tree: Tree, echo: Probed) -> None:
    assert tree.sh(f"cat {echo}").stdout == "read 1\n"


def test_cat_of_a_device_that_takes_no_read_says_so(tree: Tree) -> None:
    done = tree.sh("cat text/upper")
    assert "not supported" in done.stderr
    assert done.returncode == 1


def test_a_write_of_two_mebibytes_is_too_long_and_the_device_works_on(tree: Tree) -> None:
    done = tree.sh("dd if=/dev/zero of=text/upper bs=2M count=1; echo a > text/upper; cat text/upper")
    assert "Message too long" in done.stderr
    assert done.stdout == "A\n"


def test_a_message_of_the_greatest_length_arrives_whole(tree: Tree, echo: Probed) -> None:
    done = tree.sh(f"exec 3<>{echo}; dd if=/dev/zero bs={MAX_MESSAGE} count=1 status=none >&3; cat <&3 | wc -c")
    assert done.stdout.strip() == str(MAX_MESSAGE)


def test_redirection_truncates_nothing_and_creates_nothing(tree: Tree, echo: Probed) -> None:
    before = set(os.listdir(tree.root / "probe"))
    done = tree.sh(f": > {echo}; echo x > probe/no-such-device; echo $?; cat {echo}")
    assert "no-such-device" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("read")
    assert set(os.listdir(tree.root / "probe")) == before


def test_creating_what_is_no_device_is_refused_as_not_there(tree: Tree) -> None:
    done = tree.run(["dd", "if=/dev/null", "of=probe/no-such-device"], cwd=tree.root)
    assert "No such file or directory" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "mkdir text/new", "ln -s /etc text/new", "mv text/upper text/new", "ln text/upper text/new", "mkfifo text/new",
        "mv text/upper text/lower", "mknod text/new c 1 3",
    ],
)  # fmt: skip
def test_the_directory_is_the_providers_alone(tree: Tree, command: str) -> None:
    before = sorted(os.listdir(tree.root / "text"))
    done = tree.sh(command)
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    assert sorted(os.listdir(tree.root / "text")) == before


def test_rm_destroys_the_device(tree: Tree) -> None:
    tree.order("create echo to-be-removed")
    done = tree.sh("rm probe/to-be-removed; ls probe; cat probe/to-be-removed")
    assert "to-be-removed" not in done.stdout
    assert "No such file" in done.stderr


def test_rm_of_a_device_with_a_consumer_is_refused_as_busy(tree: Tree, echo: Probed) -> None:
    done = tree.sh(f"exec 3<>{echo}; rm {echo}; echo $?; printf still >&3; cat <&3")
    assert "resource busy" in done.stderr
    assert done.stdout == "1\nstill"


def test_ls_shows_a_device_as_a_file_with_the_mode_of_the_device(tree: Tree) -> None:
    done = tree.sh("ls -l text/upper")
    assert done.stdout.startswith("-rw-rw-rw- 1 root root 0 ")


def test_find_walks_the_tree(tree: Tree) -> None:
    done = tree.sh("find text -type f | sort")
    assert done.stdout.split() == ["text/lower", "text/reverse", "text/rot13", "text/upper"]
    assert tree.sh("find . -name upper").stdout == "./text/upper\n"


def test_df_shows_the_container_as_a_file_system(tree: Tree) -> None:
    done = tree.sh("df --output=fstype,target text")
    assert done.stdout.splitlines()[1].split() == ["fuse.ldmfs", str(tree.root / "text")]


def test_getfattr_shows_what_the_device_tells(tree: Tree) -> None:
    done = tree.sh("getfattr -d text/upper")
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert values["user.ldm.kind"] == '"message"'
    assert values["user.ldm.container"] == '"text"'
    assert values["user.ldm.provider"] == '"text"'
    assert values["user.ldm.consumers"] == '"0"'
    assert values["user.ldm.description"] == '"the text in capital letters"'


def test_getfattr_counts_the_consumers(tree: Tree, echo: Probed) -> None:
    done = tree.sh(f"exec 3<>{echo} 4<>{echo}; getfattr --only-values -n user.ldm.consumers {echo}")
    assert done.stdout == "2"


def test_attributes_cannot_be_set(tree: Tree) -> None:
    assert "Operation not permitted" in tree.sh("setfattr -n user.ldm.kind -v block text/upper").stderr


def test_touch_of_a_device_is_harmless(tree: Tree) -> None:
    assert tree.sh("touch text/upper").returncode == 0
