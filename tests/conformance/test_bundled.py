"""Each device of each bundled provider, by plain calls, by channel and by file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from mounted.trees import Tree

import ldmfs.testing
from ldmfs import Container, Request, RequestType
from ldmfs.container.plug_ins import PlugIn, found
from ldmfs.container.provider import configure, load

from .devices import install
from .samples import DEVICES, SAMPLES, STACKS

TREE = """\
[text.text]
[hash.hash]
[codec.codec]
[clock.clock]
[sensor.sensor]
[null.null]
[probe.probe]
log = @log
[x.relay.line]
lower = "y/line"
[y.relay.line]
lower = "text/upper"
[y.relay.tree]
lower = ["text/upper", "text/reverse"]
[slow.conformance]
[faulty.faulty]
provider = "text"
delay = "1 ms"
"""


async def hosted(provider: str, /, **table: Any) -> Container:
    container, target = Container("box"), found()[provider].value
    starting = configure(load(target), container, PlugIn(provider, target, "test", table)).start()
    if inspect.isawaitable(starting):
        await starting
    return container


@pytest.mark.parametrize("provider", SAMPLES)
async def test_there_is_a_sample_for_each_device(provider: str) -> None:
    assert {device.name for device in (await hosted(provider)).registry} == set(SAMPLES[provider])


@pytest.mark.parametrize(("provider", "device"), DEVICES)
async def test_a_device_conforms_unmounted(provider: str, device: str) -> None:
    await ldmfs.testing.check_device(device, container=await hosted(provider), **SAMPLES[provider][device])


async def test_a_device_with_a_delay_conforms_unmounted() -> None:
    container = await hosted("faulty", provider="text", delay="1 ms")
    await ldmfs.testing.check_device("upper", container=container, **SAMPLES["text"]["upper"])


# -- in a tree


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory, plug_ins: Any) -> Iterator[Tree]:
    """Give a tree with all bundled providers, and the tests' own."""
    install(plug_ins)
    tree = Tree(tmp_path_factory.mktemp("bundled"), plug_ins)
    try:
        done = tree.mount(TREE)
        assert (done.returncode, done.stderr) == (0, "")
        yield tree
    finally:
        tree.end()


MOUNTED = [
    ("text", "upper"), ("hash", "sha256"), ("codec", "gzip-encode"), ("clock", "utc"), ("sensor", "disk"),
    ("null", "echo"),
]  # fmt: skip
"""One device of each provider: the others differ in what `request` computes."""


@pytest.mark.parametrize(("provider", "device"), MOUNTED)
async def test_a_device_conforms_by_channel_and_by_file(bundled: Tree, provider: str, device: str) -> None:
    await ldmfs.testing.check_device(f"{provider}/{device}", root=bundled.root, **SAMPLES[provider][device])


@pytest.mark.parametrize(("name", "sample"), [("x/line", "line"), ("y/tree", "tree")])
async def test_a_stack_conforms_by_channel_and_by_file(bundled: Tree, name: str, sample: str) -> None:
    await ldmfs.testing.check_device(name, root=bundled.root, **STACKS[sample])


async def test_a_device_with_a_delay_conforms_by_channel_and_by_file(bundled: Tree) -> None:
    await ldmfs.testing.check_device("faulty/upper", root=bundled.root, **SAMPLES["text"]["upper"])


async def test_a_slow_device_conforms_by_channel_and_by_file(bundled: Tree) -> None:
    await ldmfs.testing.check_device("slow/slow", root=bundled.root, request=b"hello", reply=b"HELLO", slow=b"wait")


async def test_a_block_device_conforms_by_channel_and_by_file(bundled: Tree) -> None:
    with bundled.made("block") as block:
        await ldmfs.testing.check_device(f"probe/{block.name}", root=bundled.root)


async def test_a_block_device_conforms_with_a_sample(bundled: Tree) -> None:
    with bundled.made("block") as block:
        await ldmfs.testing.check_device(
            f"probe/{block.name}", root=bundled.root, request=Request(RequestType.READ, length=4), reply=bytes(4)
        )
