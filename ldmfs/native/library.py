"""Shared objects of providers in C: loading them, and the parameters that they declare."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..container.settings import Size
from .layout import VERSION, HostTable, ParameterRecord, ParameterType, RuntimeTable

_MAX_UINT = (1 << 32) - 1
_MAX_SIZE = (1 << 64) - 1

_loaded: set[str] = set()


class LibraryError(Exception):
    """A shared object cannot be used; the message has the reason."""


class Parameter:
    """One parameter of a provider, as its source declares it."""

    def __init__(self, record: ParameterRecord) -> None:
        self.name = record.name.decode()
        self.description = record.description.decode()
        self.type = ParameterType(record.type)
        self._value = record.value
        self._kept: object = None

    def set(self, value: object) -> None:
        """Give the parameter a value, before the provider is started.  Raises `ValueError` for what cannot be one."""
        self._SETTERS[self.type](self, value)

    def _set_bool(self, value: object) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value!r}")
        self._value.bool_value[0] = value

    def _set_uint(self, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_UINT:
            raise ValueError(f"expected a number from 0 to {_MAX_UINT}, got {value!r}")
        self._value.uint_value[0] = value

    def _set_size(self, value: object) -> None:
        size = Size(value)  # type: ignore[arg-type]
        if size > _MAX_SIZE:
            raise ValueError(f"expected a size of at most {_MAX_SIZE} bytes, got {value!r}")
        self._value.size_value[0] = size

    def _set_string(self, value: object) -> None:
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"expected a text, got {value!r}")
        self._kept = value.encode()  # the provider keeps its address
        self._value.string_value[0] = self._kept

    _SETTERS: ClassVar[Mapping[ParameterType, Callable[[Parameter, object], None]]] = {
        ParameterType.BOOL: _set_bool,
        ParameterType.UINT: _set_uint,
        ParameterType.SIZE: _set_size,
        ParameterType.STRING: _set_string,
    }


class Library:
    """A shared object that was loaded, for one provider; each has variables of its own, also those of one file."""

    def __init__(self, path: str) -> None:
        """Load the file.  Raises `LibraryError`."""
        self.path = path
        try:
            self._library = _load(path)
            self.runtime = RuntimeTable.in_dll(self._library, "ldm_runtime")
        except OSError as error:
            raise LibraryError(f"{path} cannot be loaded: {error}") from None
        except ValueError:
            raise LibraryError(f"{path} is no provider: build it with python -m ldmfs.native") from None
        if self.runtime.version != VERSION:
            raise LibraryError(f"{path} is of another version of ldmfs: build it anew")
        about = self.runtime.provider[0]
        self.provider: str = about.name.decode()
        self.description: str = about.description.decode()
        self.parameters = {
            parameter.name: parameter for parameter in sorted(self._declared(), key=lambda each: each.name)
        }
        self._host: HostTable | None = None

    def configure(self, values: Mapping[str, Any]) -> None:
        """Set parameters.  Raises `ValueError`, which names the parameter."""
        for name, value in values.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise ValueError(f"{name}: provider {self.provider} has no such parameter; known are: {known}")
            try:
                self.parameters[name].set(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    def init(self, host: HostTable) -> None:
        """Hand over what the shared object calls; from now on it is used, and never unloaded."""
        self._host = host
        self.runtime.init(ctypes.byref(host))

    def _declared(self) -> list[Parameter]:
        begin, end = self.runtime.params or 0, self.runtime.params_end or 0
        count = (end - begin) // ctypes.sizeof(ParameterRecord)
        return [Parameter(record) for record in (ParameterRecord * count).from_address(begin)] if count else []


def _load(path: str) -> ctypes.CDLL:
    """Load a file; once more as a copy, since the loader would give back what it has."""
    name = os.path.realpath(path)
    if name not in _loaded:
        _loaded.add(name)
        return ctypes.CDLL(name, os.RTLD_NOW | os.RTLD_LOCAL)
    copy = os.memfd_create(os.path.basename(name), os.MFD_CLOEXEC)  # open for ever: no other gets its number as a name
    with open(name, "rb") as source, open(copy, "wb", closefd=False) as target:
        shutil.copyfileobj(source, target)
    return ctypes.CDLL(f"/proc/self/fd/{copy}", os.RTLD_NOW | os.RTLD_LOCAL)
