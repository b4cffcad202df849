"""What holds for each of the bundled plug-ins."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
import typing
from typing import Any

import pytest

import ldmfs
from ldmfs.container.plug_ins import PlugIn, found
from ldmfs.container.provider import configure, load
from ldmfs.container.settings import keys

NAMES = ["clock", "codec", "faulty", "hash", "null", "sensor", "text"]
"""Those that make devices without a configuration; `native` and `relay` have tests of their own."""


def module_of(name: str) -> Any:
    return importlib.import_module(found()[name].value.partition(":")[0])


def example_of(name: str) -> dict[str, Any]:
    """Return the tables of the configuration in the manual."""
    _, _, text = module_of(name).__doc__.partition("\nConfiguration")
    lines = text.splitlines()[1:]
    return tomllib.loads("\n".join(line.strip() for line in lines))


def test_the_bundled_plug_ins_are_installed() -> None:
    assert {name for name, point in found().items() if point.value.startswith("ldmfs_providers.")} == {
        *NAMES,
        "native",
        "relay",
    }


@pytest.mark.parametrize("name", NAMES)
async def test_every_device_tells_what_it_is_and_takes_and_gives(host: Any, name: str) -> None:
    container = await host(name, **({"provider": "text"} if name == "faulty" else {}))
    assert len(container.registry) > 0
    for device in container.registry:
        assert device.description
        assert device.takes
        assert device.gives


@pytest.mark.parametrize("name", NAMES)
async def test_every_device_is_entered_under_its_plug_in(host: Any, name: str) -> None:
    container = await host(name, **({"provider": "text"} if name == "faulty" else {}))
    assert {device.provider for device in container.registry} == {name}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("faulty", "hash")])
async def test_the_manual_names_every_device(host: Any, name: str) -> None:
    manual = module_of(name).__doc__
    for device in (await host(name)).registry:
        assert device.name in manual


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_in_the_manual_is_one(name: str) -> None:
    ((container, plug_ins),) = example_of(name).items()
    ((plug_in, table),) = plug_ins.items()
    assert plug_in == name
    configure(load(found()[name].value), ldmfs.Container(container), PlugIn(name, "", "manual", table))


@pytest.mark.parametrize("name", NAMES)
def test_the_manual_shows_every_key(name: str) -> None:
    ((_, plug_ins),) = example_of(name).items()
    assert set(plug_ins[name]) == {key for key, _, _, _ in keys(load(found()[name].value).Settings)}


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_meaning(name: str) -> None:
    assert all(doc for _, _, _, doc in keys(load(found()[name].value).Settings))


@pytest.mark.parametrize("name", NAMES)
def test_annotations_resolve(name: str) -> None:
    for value in vars(module_of(name)).values():
        if inspect.isclass(value) or inspect.isfunction(value):
            typing.get_type_hints(value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "faulty"])
def test_only_the_public_package_is_imported(name: str) -> None:
    tree = ast.parse(inspect.getsource(module_of(name)))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {module for module in imported if module.partition(".")[0] == "ldmfs"} == {"ldmfs"}
