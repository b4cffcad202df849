"""The tables of the plug-in `native`: sources, parameters, names of devices, mistakes; building shared objects."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import ldmfs_providers.native as plug_in
import pytest

from ldmfs import Container
from ldmfs.container.settings import ConfigurationError
from ldmfs.native import build as building
from ldmfs.native.build import COMPILE, HERE, LINK, PACKAGES, WARNINGS, BuildError, build, compiler, includes
from ldmfs.native.library import Library

from .hosted import SOURCES, Built, configured

CHECKOUT = Path(__file__).resolve().parents[2]
BUNDLED = sorted(path.stem for path in (CHECKOUT / "providers").glob("*.c"))


def mistake(tables: dict[str, Any]) -> str:
    """Return what is said of a configuration."""
    with pytest.raises(ConfigurationError) as raised:
        configured(Container("box"), tables)
    return str(raised.value)


async def devices(tables: dict[str, Any]) -> set[str]:
    """Return the names of the devices that a configuration makes."""
    container = Container("box")
    provider = configured(container, tables)
    await provider.start()
    names = {device.name for device in container.registry}
    await provider.stop()
    return names


# -- sources and names


def test_each_provider_in_c_is_bundled() -> None:
    assert list(plug_in.bundled()) == BUNDLED


async def test_a_table_s_name_is_the_source_where_none_is_given() -> None:
    assert await devices({"crc32": {}}) == {"crc32"}


async def test_the_device_with_the_provider_s_name_gets_the_table_s() -> None:
    assert await devices({"sum": {"source": "crc32"}}) == {"sum"}


async def test_other_devices_keep_their_names() -> None:
    table = {"source": "relay", "parameters": {"lower": "a=text/upper,b=text/lower"}}
    assert await devices({"r": table}) == {"a", "b"}


async def test_a_path_is_a_source(built: Built) -> None:
    assert "keeper" in await devices({"x": {"source": built("gate")}})


async def test_a_copy_is_loaded_where_the_file_is_loaded_already(built: Built) -> None:
    assert await devices({name: {"source": "crc32"} for name in "abc"}) == {"a", "b", "c"}


def test_a_bundled_provider_that_is_not_there_is_named_with_those_that_are() -> None:
    assert mistake({"x": {}}) == (
        "test.toml: box.native: x.source: there is no bundled provider 'x'; there are: " + ", ".join(BUNDLED)
    )


def test_without_a_compiler_at_the_installation_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plug_in, "HERE", tmp_path)
    assert mistake({"crc32": {}}) == (
        "test.toml: box.native: crc32.source: the bundled providers were not built: "
        "a C compiler is missing; on Debian: apt install gcc libc6-dev; then install ldmfs anew"
    )


def test_a_relative_path_is_refused() -> None:
    assert "'./x.so' does not" in mistake({"x": {"source": "./x.so"}})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = mistake({"x": {"source": f"{tmp_path}/x.so"}})
    assert text.startswith(f"test.toml: box.native: x.source: {tmp_path}/x.so cannot be loaded: ")


def test_a_file_that_is_no_shared_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_text("text")
    assert "cannot be loaded" in mistake({"x": {"source": f"{tmp_path}/x.so"}})


def compiled(tmp_path: Path, text: str, *options: str) -> str:
    """Compile a shared object that is none of ldmfs."""
    source, output = tmp_path / "x.c", tmp_path / "x.so"
    source.write_text(text)
    command = [compiler(), *COMPILE, *LINK, f"-I{includes()}", f"-I{HERE}", *options, "-o", output, source]
    subprocess.run(command, check=True)
    return str(output)


def test_a_shared_object_that_is_no_provider_is_refused(tmp_path: Path) -> None:
    assert "is no provider" in mistake({"x": {"source": compiled(tmp_path, "int nothing;")}})


def test_a_provider_of_another_version_is_refused(tmp_path: Path) -> None:
    text = (
        '#include "runtime.h"\n'
        '__attribute__((visibility("default"))) const struct ldm_runtime ldm_runtime = { .version = 99 };'
    )
    assert "another version of ldmfs: build it anew" in mistake({"x": {"source": compiled(tmp_path, text)}})


# -- parameters


def test_the_parameters_are_those_that_the_source_declares(built: Built) -> None:
    parameters = Library(built("caller")).parameters
    assert {name: parameter.type.name for name, parameter in parameters.items()} == {
        "lower": "STRING", "ticks": "UINT", "refuse": "BOOL", "room": "SIZE",
    }  # fmt: skip
    assert parameters["ticks"].description == "how often the timer rings"


def test_a_provider_may_have_no_parameters(built: Built) -> None:
    assert Library(built("gate")).parameters == {}


def test_a_parameter_gets_its_value(built: Built) -> None:
    library = Library(built("caller"))
    library.configure({"lower": "a/ü", "ticks": 7, "refuse": True, "room": "3 GiB"})
    value = {name: parameter._value for name, parameter in library.parameters.items()}
    assert value["lower"].string_value[0].decode() == "a/ü"
    assert value["ticks"].uint_value[0] == 7
    assert value["refuse"].bool_value[0] is True
    assert value["room"].size_value[0] == 3 << 30


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("speed", 1, "provider caller has no such parameter; known are: lower, refuse, room, ticks"),
        ("refuse", 1, "expected true or false, got 1"),
        ("ticks", -1, "expected a number from 0 to 4294967295, got -1"),
        ("ticks", 1 << 32, "expected a number from 0 to 4294967295, got 4294967296"),
        ("ticks", "7", "expected a number from 0 to 4294967295, got '7'"),
        ("ticks", True, "expected a number from 0 to 4294967295, got True"),
        ("room", "much", "expected a size such as \"64 KiB\", got 'much'"),
        ("room", 1 << 64, "expected a size of at most 18446744073709551615 bytes, got 18446744073709551616"),
        ("lower", 7, "expected a text, got 7"),
        ("lower", "a\0b", "expected a text, got 'a\\x00b'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_place(built: Built, name: str, value: object, says: str) -> None:
    text = mistake({"x": {"source": built("caller"), "parameters": {name: value}}})
    assert text.startswith(f"test.toml: box.native: x.parameters.{name}: {says}")


# -- building


@pytest.mark.parametrize("name", [*BUNDLED, *SOURCES])
def test_a_provider_compiles_without_a_warning(tmp_path: Path, name: str) -> None:
    source = SOURCES.get(name) or CHECKOUT / "providers" / f"{name}.c"
    command = [compiler(), *COMPILE, *WARNINGS, "-Werror", f"-I{includes()}", "-c", "-o", tmp_path / "x.o", source]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("name", building.SOURCES)
def test_the_run_time_compiles_without_a_warning(tmp_path: Path, name: str) -> None:
    options = [*COMPILE, *WARNINGS, "-Werror", f"-I{includes()}", f"-I{HERE}"]
    subprocess.run([compiler(), *options, "-c", "-o", tmp_path / "x.o", HERE / name], check=True)


def test_a_shared_object_has_one_symbol_for_others(built: Built) -> None:
    library = ctypes.CDLL(built("gate"))
    assert hasattr(library, "ldm_runtime")
    assert not [name for name in ("ldm_provider", "ldm_send_request", "ldm_end", "ldm_host") if hasattr(library, name)]


def test_a_source_with_a_mistake_is_told_as_the_compiler_does(tmp_path: Path) -> None:
    source = tmp_path / "x.c"
    source.write_text("mistake")
    with pytest.raises(BuildError, match=r"x\.c cannot be compiled:\n.*error"):
        build(source, tmp_path / "x.so")


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "there-is-no-such-compiler")
    with pytest.raises(BuildError, match=PACKAGES):
        build(SOURCES["gate"], tmp_path / "x.so")


def build_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ldmfs.native", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def test_the_command_builds_a_provider_beside_its_source(tmp_path: Path) -> None:
    source = tmp_path / "mine.c"
    source.write_text((CHECKOUT / "providers" / "crc32.c").read_text())
    done = build_command(source)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert await devices({"sum": {"source": str(tmp_path / "mine.so")}}) == {"sum"}


def test_the_command_tells_a_mistake_with_status_2(tmp_path: Path) -> None:
    done = build_command(tmp_path / "nothing.c")
    assert done.returncode == 2
    assert done.stderr.startswith(f"ldmfs: {tmp_path}/nothing.c cannot be compiled:\n")


def test_the_manual_names_every_bundled_provider_and_parameter() -> None:
    manual = plug_in.__doc__ or ""
    for name, path in plug_in.bundled().items():
        (line,) = [line for line in manual.splitlines() if line.strip().startswith(f"{name} ")]
        assert line.split()[1 : 1 + len(Library(str(path)).parameters)] == list(Library(str(path)).parameters)
