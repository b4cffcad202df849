"""What /sys tells of the kernel's devices, and loading modules: against a /sys and a modprobe of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldmfs.kernel import modules, sysfs
from ldmfs.kernel.modules import ModuleError, load

TOLD = {
    "provider": "ldm_ramdisk", "kind": "block", "description": "a disk in memory", "takes": "", "gives": "",
    "container": "kernel", "size": "4096", "consumers": "2",
}  # fmt: skip


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a /sys/class/ldm with one device, whose node is there too."""
    (tmp_path / "class" / "ramdisk").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "ramdisk").touch(0o640)
    for name, value in TOLD.items():
        (tmp_path / "class" / "ramdisk" / name).write_text(f"{value}\n")
    monkeypatch.setattr(sysfs, "CLASS", tmp_path / "class")
    monkeypatch.setattr(sysfs, "DIRECTORY", tmp_path / "dev")
    return tmp_path


def test_a_device_is_told_with_all_that_the_graph_tells(sys: Path) -> None:
    assert sysfs.devices() == [
        {
            "name": "ramdisk", "mode": 0o640, "uid": os.geteuid(), "gid": os.getegid(), "provider": "ldm_ramdisk",
            "kind": "block", "description": "a disk in memory", "takes": "", "gives": "", "size": 4096, "consumers": 2,
        }
    ]  # fmt: skip
    assert sysfs.loaded()
    assert sysfs.since() == (sys / "class").stat().st_ctime


@pytest.mark.parametrize("gone", ["class/ramdisk/kind", "dev/ramdisk"])
def test_a_device_that_goes_away_meanwhile_is_left_out(sys: Path, gone: str) -> None:
    (sys / gone).unlink()
    assert sysfs.devices() == []


def test_without_the_module_there_is_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysfs, "CLASS", tmp_path / "nothing")
    assert sysfs.devices() == []
    assert not sysfs.loaded()
    assert sysfs.since() == 0


# -- modules


class Modprobe:
    """A modprobe that notes its arguments and ends as it is told."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "log"
        self._script = directory / "modprobe"
        self._log.touch()
        self.ends()

    def ends(self, status: int = 0, says: str = "") -> None:
        told = f"echo '{says}' >&2\n" if says else ""
        self._script.write_text(f'#!/bin/sh\necho "$*" >>{self._log}\n{told}exit {status}\n')
        self._script.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines()


@pytest.fixture
def modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modprobe:
    """Give a modprobe, and a kernel without the module."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sysfs, "CLASS", tmp_path / "class")
    monkeypatch.setattr(modules, "ROOT_PARAMETER", tmp_path / "root")
    return Modprobe(tmp_path)


def test_the_module_is_loaded_before_its_providers(modprobe: Modprobe, tmp_path: Path) -> None:
    load(("ramdisk", "ldm_crc32"), Path("/some/where"))
    assert modprobe.calls == ["ldm root=/some/where", "ldm_ramdisk", "ldm_crc32"]


def test_parameters_of_a_module_are_passed_on(modprobe: Modprobe) -> None:
    load(("ramdisk size=64M", "relay 'lower=x=a/b,y=c/d'"), Path("/ldm"))
    assert modprobe.calls[1:] == ["ldm_ramdisk size=64M", "ldm_relay lower=x=a/b,y=c/d"]


def test_a_module_that_is_loaded_already_learns_where_the_tree_is(modprobe: Modprobe, tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    load((), Path("/some/where"))
    assert modprobe.calls == []
    assert (tmp_path / "root").read_text() == "/some/where"


def test_a_module_that_cannot_be_loaded_is_named_with_the_reason_in_one_line(modprobe: Modprobe) -> None:
    modprobe.ends(1, "modprobe: FATAL: Module ldm not found in directory /lib/modules/6.1")
    with pytest.raises(ModuleError) as raised:
        load(("ramdisk",), Path("/ldm"))
    assert str(raised.value) == (
        "kernel module ldm cannot be loaded: modprobe: FATAL: Module ldm not found in directory /lib/modules/6.1"
    )


def test_a_modprobe_that_says_nothing_is_told_by_its_status(modprobe: Modprobe) -> None:
    modprobe.ends(3)
    with pytest.raises(ModuleError, match=r"kernel module ldm cannot be loaded: modprobe ended with status 3$"):
        load((), Path("/ldm"))


def test_where_modprobe_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch, modprobe: Modprobe) -> None:
    monkeypatch.setattr(modules.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ModuleError, match="modprobe is missing; install kmod"):
        load((), Path("/ldm"))


def test_a_root_that_cannot_be_told_is_an_error(
    modprobe: Modprobe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "class").mkdir()
    monkeypatch.setattr(modules, "ROOT_PARAMETER", tmp_path / "no" / "root")
    with pytest.raises(ModuleError, match=r"kernel module ldm: .*No such file or directory"):
        load((), Path("/ldm"))


def test_what_cannot_be_split_is_an_error(modprobe: Modprobe) -> None:
    with pytest.raises(ModuleError, match="No closing quotation"):
        load(("relay 'x",), Path("/ldm"))
