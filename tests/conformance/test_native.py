"""Providers in C in user space, the bundled ones and the tests', against the suite that every device passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounted.trees import Tree
from native.conftest import built
from native.hosted import Built, configured

import ldmfs.testing
from ldmfs import Container
from ldmfs.container.process import hosting

__all__ = ["built"]

SUM = {"request": b"abc", "reply": b"352441c2\n"}
ECHO = {"request": b"hello", "reply": b"hello"}

SAMPLES: dict[str, dict[str, Any]] = {
    "crc32": SUM,
    "disk": {},
    "delay": ECHO,
    "over": SUM,
    "line": SUM,
    "plain": ECHO,
    "thread": ECHO,
    "slow": {**ECHO, "slow": b"wait"},
    "sync": SUM,
    "pair": {"request": b"abc", "reply": b"352441c2\n" * 2},
}
"""By device: `over` and `line` are relays over `crc32`, `sync` and `pair` consume it in other ways."""

TREE = """\
[c.native.crc32]
[c.native.disk]
source = "ramdisk"
parameters.size = "1000 kB"
[c.native.delay]
parameters.milliseconds = 1
[c.native.over]
source = "relay"
parameters.lower = "c/crc32"
[c.native.line]
source = "relay"
parameters.lower = "y/over"
[y.native.over]
source = "relay"
parameters.lower = "c/over"
[c.native.gate]
source = "{gate}"
[c.native.caller]
source = "{caller}"
parameters.lower = "c/crc32"
"""


@pytest.mark.parametrize("device", [name for name in SAMPLES if name != "line"])
async def test_a_device_conforms_unmounted(tmp_path: Path, built: Built, device: str) -> None:
    container = Container("c", root=tmp_path)
    tables = {
        "crc32": {},
        "disk": {"source": "ramdisk", "parameters": {"size": "1000 kB"}},
        "delay": {"parameters": {"milliseconds": 1}},
        "over": {"source": "relay", "parameters": {"lower": "c/crc32"}},
        "gate": {"source": built("gate")},
        "caller": {"source": built("caller"), "parameters": {"lower": "c/crc32"}},
    }
    async with hosting(container, [configured(container, tables)]):
        await ldmfs.testing.check_device(device, container=container, **SAMPLES[device])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, plug_ins: Any, built: Built) -> Iterator[Tree]:
    """Give a tree whose containers have providers in C only."""
    tree = Tree(tmp_path_factory.mktemp("native"), plug_ins)
    try:
        done = tree.mount(TREE.format(gate=built("gate"), caller=built("caller")))
        assert (done.returncode, done.stderr) == (0, "")
        yield tree
    finally:
        tree.end()


@pytest.mark.parametrize("device", SAMPLES)
async def test_a_device_conforms_by_channel_and_by_file(tree: Tree, device: str) -> None:
    await ldmfs.testing.check_device(f"c/{device}", root=tree.root, **SAMPLES[device])
