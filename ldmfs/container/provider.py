"""Providers: the plug-ins that create devices.

A provider is a class; its entry point in the group `ldmfs.providers` gives it the name that a configuration calls it
by. Its life:

    load        its module is imported, in the container's process
    configure   `__init__` gets the settings, checked against `Settings` and `DeviceSettings`
    start       creates its devices; may be async
    stop        called once, after the last consumer was closed; may be async
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from ..core.device import LogicalDevice
from ..core.store import Store
from . import settings as _settings
from .host import Container
from .plug_ins import PlugIn
from .settings import ConfigurationError, convert


class MissingExtra(ConfigurationError, ImportError):
    """An optional package is not installed; the message has the command that installs it."""


class Provider:
    """Base of every provider: subclass it and write `start`."""

    Settings: ClassVar[type[_settings.Settings]] = _settings.Settings
    """Type of the provider's own keys: those of `[container.plugin]`."""
    DeviceSettings: ClassVar[type[_settings.Settings] | None] = None
    """Type of a device's keys, for a provider that makes its devices by configuration: `[container.plugin.device]`."""

    def __init__(
        self, container: Container, name: str, settings: Any = None, devices: Mapping[str, Any] | None = None
    ) -> None:
        self.container = container
        self.name = name
        self.settings = self.Settings() if settings is None else settings
        self.devices = dict(devices or {})

    def start(self) -> Awaitable[None] | None:
        """Create the devices.  What it raises keeps the container from starting, with the reason told."""

    def stop(self) -> Awaitable[None] | None:
        """Let go of what `start` took."""

    @functools.cached_property
    def state(self) -> Store:
        """What this provider keeps for the next instance of its container, under its own name."""
        return self.container.area.store(self.name)

    def create_device(self, name: str, *args: Any, **attributes: Any) -> LogicalDevice:
        """`Container.create_device`, entered under this provider's name."""
        return self.container.create_device(name, *args, provider=self.name, **attributes)

    def destroy_device(self, name: str) -> None:
        """`Container.destroy_device`."""
        self.container.destroy_device(name)

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run `await function(*args)` beside the container's requests, until the container stops.

        An exception from it ends the container, as an unhandled one ends a program.
        """
        assert self.container.nursery is not None, "start_soon is for a container that runs"
        self.container.nursery.start_soon(function, *args)


def load(target: str, where: str = "") -> type[Provider]:
    """Import `module:class` and return the class.

    Raises `ConfigurationError` with the reason when that fails, and with the place `where` that names it.
    """
    place = f"{where}: " if where else ""
    module_name, _, attribute = target.partition(":")
    try:
        provider = getattr(importlib.import_module(module_name), attribute)
    except MissingExtra as error:
        raise ConfigurationError(f"{place}{error}") from None
    except Exception as error:
        raise ConfigurationError(f"{place}{target} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(provider, type) and issubclass(provider, Provider)):
        raise ConfigurationError(f"{place}{target} is no subclass of ldmfs.Provider")
    return provider


def load_file(module_or_file: str) -> tuple[str, type[Provider]]:
    """Import a module by name or a .py file by path; return its name and the one provider that it defines.

    Raises `ConfigurationError` with the reason when that fails.
    """
    path = Path(module_or_file)
    try:
        if path.suffix == ".py" or "/" in module_or_file:
            module = _import_file(path)
            name = path.stem
        else:
            module = importlib.import_module(module_or_file)
            name = module_or_file.rpartition(".")[2]
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{module_or_file} cannot be imported: {type(error).__name__}: {error}") from error
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    providers = [value for value in own if inspect.isclass(value) and issubclass(value, Provider)]
    if len(providers) != 1:
        names = ", ".join(provider.__name__ for provider in providers) or "none"
        raise ConfigurationError(f"{module_or_file}: one subclass of ldmfs.Provider is expected, it has: {names}")
    return name, providers[0]


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name of its own: that of the file may be a module's that it imports."""
    name = f"ldmfs_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigurationError(f"{path}: there is no such Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def check(provider: type[Provider], plug_in: PlugIn) -> tuple[Any, dict[str, Any]]:
    """Return the settings of a plug-in and those of its devices; raise `ConfigurationError` that names file and key."""
    settings, devices = dict(plug_in.table), {}
    if provider.DeviceSettings is not None:
        tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
        devices = {
            name: convert(table, provider.DeviceSettings, f"{plug_in.where}.{name}") for name, table in tables.items()
        }
        settings = {key: value for key, value in settings.items() if key not in tables}
    return convert(settings, provider.Settings, plug_in.where), devices


def configure(provider: type[Provider], container: Container, plug_in: PlugIn) -> Provider:
    """Return the provider with its settings, checked; raise `ConfigurationError` that names file, key and type."""
    settings, devices = check(provider, plug_in)
    try:
        return provider(container, plug_in.name, settings, devices)
    except ValueError as error:
        raise ConfigurationError(f"{plug_in.where}: {error}") from None


def require(module: str, extra: str) -> Any:
    """Import an optional package; raise `MissingExtra` with the pip command where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(f"the package {module} is not installed; run: pip install 'ldmfs[{extra}]'") from None
