"""The configuration: TOML whose tables are nested as the devices' paths are.

    [store]                 # container `store`: plain values are its options
    [store.file]            # hosts the plug-in `file`: plain values are the plug-in's settings
    [store.file.lun0]       # makes the device /ldm/store/lun0, where the plug-in makes devices by configuration
    [system]                # the supervisor's own

What a plug-in's tables may hold is the plug-in's to check, in the container's process.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..consumer.tree import RESERVED
from ..container.control import Start
from ..container.plug_ins import GROUP, PlugIn, found
from ..container.settings import ConfigurationError, Doc, Duration, Settings, Size, convert
from ..core.device import check_name
from ..core.errors import LdmError
from ..core.state import CAPACITY

SYSTEM_FILE = Path("/etc/ldmfs.toml")


class SystemOptions(Settings):
    """The keys of `[system]`."""

    root: Annotated[str | None, Doc("the root of the tree")] = None
    kernel_modules: Annotated[
        tuple[str, ...], Doc("providers of the kernel to load, with parameters: 'ramdisk size=64M'; they stay loaded")
    ] = ()
    start_timeout: Annotated[Duration, Doc("how long a container may take to be ready")] = Duration("60 s")
    stop_timeout: Annotated[Duration, Doc("how long a container may take to stop before it is killed")] = Duration(
        "5 s"
    )


class ContainerOptions(Settings):
    """The plain keys of a container's table."""

    restart: Annotated[bool, Doc("start the container again when its process ends")] = True
    standby: Annotated[bool, Doc("keep a process waiting that takes over at once when the container's ends")] = False
    on_crash: Annotated[
        Literal["fail", "reissue"],
        Doc("requests under way at a crash: fail with ECONNABORTED, or reissue to the next instance"),
    ] = "fail"
    drain_timeout: Annotated[Duration, Doc("how long requests that run may go on when the container is upgraded")] = (
        Duration("5 s")
    )
    state_size: Annotated[Size, Doc("room for what the providers keep in their state")] = Size(CAPACITY)
    max_crashes: Annotated[int, Doc("crashes within crash_window after which the container is failed")] = 5
    crash_window: Annotated[Duration, Doc("see max_crashes")] = Duration("60 s")
    max_pause: Annotated[Duration, Doc("the longest pause before a new start; the first is at once")] = Duration("10 s")


class ContainerConfiguration(msgspec.Struct, frozen=True):
    """One container: its name, its options and the plug-ins that it hosts."""

    name: str
    options: ContainerOptions
    plug_ins: tuple[PlugIn, ...]

    def plain_options(self) -> dict[str, Any]:
        """Return the options as plain data, from which `options_of` makes them again."""
        plain = {bool: bool, int: int, float: float, str: str, Size: int, Duration: float}
        options = ((key, getattr(self.options, key)) for key in self.options.__struct_fields__)
        return {key: plain[type(value)](value) for key, value in options}


def options_of(plain: dict[str, Any]) -> ContainerOptions:
    """Return options from plain data, or the default ones where another version has other options."""
    try:
        return convert(plain, ContainerOptions, "")
    except ConfigurationError:
        return ContainerOptions()


def is_changed(configuration: ContainerConfiguration, start: Start) -> bool:
    """Tell whether a container that was started with `start` is not what a configuration asks for."""
    plug_ins = (
        [(each.name, each.target, each.table) for each in these] for these in (configuration.plug_ins, start.plug_ins)
    )
    now, then = (msgspec.json.encode(each, order="sorted") for each in plug_ins)
    return now != then or configuration.plain_options() != start.options


class Configuration(msgspec.Struct, frozen=True):
    """A whole configuration, and the name of the file that it was read from."""

    file: str
    system: SystemOptions
    containers: tuple[ContainerConfiguration, ...]


def read(path: Path | None) -> Configuration:
    """Read `path`, else `/etc/ldmfs.toml` where it exists, else the default in the package.

    Raises `ConfigurationError`, with the file, the key and what is expected there.
    """
    if path is None and SYSTEM_FILE.exists():
        path = SYSTEM_FILE
    if path is None:
        return parse(resources.files("ldmfs").joinpath("default.toml").read_text(), "default.toml")
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: this is no UTF-8 text") from None


def parse(text: str, file: str) -> Configuration:
    """Return the configuration that `text` holds; `file` is what errors name."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    system = convert(_table(tables.pop("system", {}), f"{file}: system"), SystemOptions, f"{file}: system")
    known = {name: point.value for name, point in found().items()}
    containers = tuple(_container(name, table, file, known) for name, table in tables.items())
    return Configuration(file, system, containers)


def _container(name: str, table: Any, file: str, known: dict[str, str]) -> ContainerConfiguration:
    where = f"{file}: {name}"
    _check_container_name(name, where)
    options = {key: value for key, value in _table(table, where).items() if not isinstance(value, dict)}
    plug_ins = []
    for plug_in, settings in table.items():
        if isinstance(settings, dict):
            if plug_in not in known:
                raise ConfigurationError(f"{where}.{plug_in}: {_no_plug_in(plug_in, known)}")
            plug_ins.append(PlugIn(plug_in, known[plug_in], f"{where}.{plug_in}", settings))
    if not plug_ins:
        raise ConfigurationError(f"{where}: the container hosts nothing; add a table such as [{name}.text]")
    return ContainerConfiguration(name, convert(options, ContainerOptions, where), tuple(plug_ins))


def _check_container_name(name: str, where: str) -> None:
    try:
        check_name(name, "container")
    except LdmError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if name in RESERVED or name.startswith("."):
        raise ConfigurationError(f"{where}: this name is reserved; choose another for the container")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: expected a table, got {value!r}; containers are tables such as [text.text]")
    return value


def _no_plug_in(name: str, known: dict[str, str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"installed are: {', '.join(known)}"
    return f"there is no plug-in of this name in the entry-point group {GROUP}; {hint}"
