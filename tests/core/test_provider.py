"""The life of a provider up to its start: load and configure, and what a mistake in either says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmfs.container.host import Container
from ldmfs.container.plug_ins import PlugIn
from ldmfs.container.provider import Provider, configure, load, load_file, require
from ldmfs.container.settings import ConfigurationError, Settings, Size

GOOD = """
from ldmfs.container.provider import Provider

class Mine(Provider):
    def start(self):
        self.create_device("d", request_handler=lambda name, consumer_id, request: b"")
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write a module that can be imported, and forget it afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


class DiskSettings(Settings):
    path: str
    size: Size = Size("1 MiB")


class Disk(Provider):
    DeviceSettings = DiskSettings


class TextSettings(Settings):
    limit: int = 3


class Text(Provider):
    Settings = TextSettings


class Picky(Provider):
    def __init__(self, *args: Any) -> None:
        raise ValueError("the moon is not full")


def configured(provider: type[Provider], table: dict[str, Any]) -> Provider:
    return configure(provider, Container("store"), PlugIn("disk", "", "ldmfs.toml: store.disk", table))


# -- load


def test_a_provider_is_loaded_by_module_and_class(write: Any) -> None:
    write("ldmfs_test_good", GOOD)
    assert load("ldmfs_test_good:Mine").__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "ldmfs_test_none:Mine", "ldmfs_test_none:Mine cannot be imported: ModuleNotFoundError"),
        (GOOD, "ldmfs_test_bad:Yours", "ldmfs_test_bad:Yours cannot be imported: AttributeError"),
        (GOOD, "ldmfs_test_bad", "ldmfs_test_bad cannot be imported: AttributeError"),
        ("syntax error", "ldmfs_test_bad:Mine", "ldmfs_test_bad:Mine cannot be imported: SyntaxError"),
        ("1 / 0", "ldmfs_test_bad:Mine", "ldmfs_test_bad:Mine cannot be imported: ZeroDivisionError: division by zero"),
        ("Mine = 3", "ldmfs_test_bad:Mine", "ldmfs_test_bad:Mine is no subclass of ldmfs.Provider"),
        ("class Mine: ...", "ldmfs_test_bad:Mine", "ldmfs_test_bad:Mine is no subclass of ldmfs.Provider"),
    ],
)
def test_what_cannot_be_loaded_says_why(write: Any, text: str, target: str, message: str) -> None:
    write("ldmfs_test_bad", text)
    with pytest.raises(ConfigurationError) as caught:
        load(target)
    assert str(caught.value).startswith(message)


def test_a_missing_extra_says_how_to_install_it(write: Any) -> None:
    write("ldmfs_test_bad", "from ldmfs.container.provider import require\nrequire('no_such_package', 'sensor')")
    with pytest.raises(ConfigurationError) as caught:
        load("ldmfs_test_bad:Mine")
    assert str(caught.value) == "the package no_such_package is not installed; run: pip install 'ldmfs[sensor]'"


def test_an_extra_that_is_installed_is_imported() -> None:
    assert require("json", "sensor") is sys.modules["json"]


# -- load by hand


def test_a_file_gives_its_name_and_its_provider(write: Any) -> None:
    name, provider = load_file(str(write("ldmfs_test_file", GOOD)))
    assert (name, provider.__name__) == ("ldmfs_test_file", "Mine")


def test_a_module_gives_its_name_and_its_provider(write: Any) -> None:
    write("ldmfs_test_module", GOOD)
    name, provider = load_file("ldmfs_test_module")
    assert (name, provider.__name__) == ("ldmfs_test_module", "Mine")


def test_a_provider_that_a_file_only_imports_is_not_its_own(write: Any) -> None:
    write("ldmfs_test_other", GOOD)
    path = write("ldmfs_test_file", GOOD.replace("Mine", "Ours") + "\nfrom ldmfs_test_other import Mine\n")
    assert load_file(str(path))[1].__name__ == "Ours"


@pytest.mark.parametrize("missing", ["/no/such/file.py", "no_such_file.py", "./no_such_file"])
def test_a_file_that_is_not_there_is_told(missing: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no such Python file"):
        load_file(missing)


def test_a_module_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigurationError, match="cannot be imported: ModuleNotFoundError"):
        load_file("no_such_module_of_ldmfs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 3", "one subclass of ldmfs.Provider is expected, it has: none"),
        (GOOD + GOOD.replace("Mine", "Yours"), "one subclass of ldmfs.Provider is expected, it has: Mine, Yours"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("syntax error", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_does_not_do_says_why(write: Any, text: str, message: str) -> None:
    path = write("ldmfs_test_file", text)
    with pytest.raises(ConfigurationError) as caught:
        load_file(str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


# -- configure


def test_a_provider_gets_its_settings() -> None:
    assert configured(Text, {"limit": 7}).settings == TextSettings(limit=7)


def test_a_provider_without_settings_gets_the_defaults() -> None:
    assert configured(Text, {}).settings == TextSettings()


def test_a_provider_gets_the_settings_of_its_devices() -> None:
    devices = configured(Disk, {"lun0": {"path": "/a"}, "lun1": {"path": "/b", "size": "1 GiB"}}).devices
    assert devices == {"lun0": DiskSettings(path="/a"), "lun1": DiskSettings(path="/b", size=Size("1 GiB"))}


@pytest.mark.parametrize(
    ("provider", "table", "message"),
    [
        (Text, {"limit": "x"}, "ldmfs.toml: store.disk.limit: expected int, got str"),
        (Text, {"lmit": 3}, "ldmfs.toml: store.disk.lmit: there is no such key; known are: limit"),
        (Text, {"lun0": {}}, "ldmfs.toml: store.disk.lun0: there is no such key; known are: limit"),
        (Disk, {"lun0": {}}, "ldmfs.toml: store.disk.lun0.path: this key is required"),
        (
            Disk,
            {"lun0": {"path": "/a", "sze": 1}},
            "ldmfs.toml: store.disk.lun0.sze: there is no such key; known are: path, size",
        ),
        (Disk, {"path": "/a"}, "ldmfs.toml: store.disk.path: there is no such key; known are: none"),
        (Picky, {}, "ldmfs.toml: store.disk: the moon is not full"),
    ],
)
def test_a_mistake_names_file_and_key(provider: type[Provider], table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(provider, table)
    assert str(caught.value) == message


def test_configuring_leaves_the_table_alone() -> None:
    table = {"lun0": {"path": "/a"}}
    configured(Disk, table)
    assert table == {"lun0": {"path": "/a"}}


def test_a_device_carries_the_name_of_its_provider() -> None:
    provider = configured(Text, {})
    device = provider.create_device("d", request_handler=lambda name, consumer_id, request: b"")
    assert device.provider == "disk"


def test_a_provider_destroys_its_device() -> None:
    provider = configured(Text, {})
    provider.create_device("d", request_handler=lambda name, consumer_id, request: b"")
    provider.destroy_device("d")
    assert len(provider.container.registry) == 0
