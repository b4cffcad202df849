"""Typed settings of providers and containers, read from TOML tables.

A plug-in declares a subclass of `Settings`; its annotations are the keys, their types and defaults:

    class TextSettings(Settings):
        limit: Annotated[Size, Doc("the longest text")] = Size("1 MiB")
        pause: Annotated[Duration, Doc("wait before each answer")] = Duration("0 s")

Errors name the file, the key and the type that was expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import msgspec

UNITS = {
    "": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}

T = TypeVar("T")


class ConfigurationError(Exception):
    """A mistake in a configuration; the message names the place and what is expected there."""


class Size(int):
    """A number of bytes, written as an integer or as text with a unit: `"1 GiB"`, `"64 kB"`."""

    def __new__(cls, value: int | str) -> Size:
        if isinstance(value, str):
            value = int(_quantity(value, UNITS, 'a size such as "64 KiB"'))
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f'expected a size such as "64 KiB", got {value!r}')
        return super().__new__(cls, value)


class Duration(float):
    """A number of seconds, written as a number or as text with a unit: `"50 ms"`, `"1.5 s"`, `"2 min"`."""

    def __new__(cls, value: float | str) -> Duration:
        if isinstance(value, str):
            value = float(_quantity(value, SECONDS, 'a duration such as "50 ms"'))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f'expected a duration such as "50 ms", got {value!r}')
        return super().__new__(cls, value)


class Doc(str):
    """What a key means, for `ldmfs providers`; stands in the key's `Annotated`."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class _SettingsMeta(msgspec.StructMeta):
    """Lets required keys follow optional ones in every subclass, which msgspec does not inherit."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> _SettingsMeta:
        return super().__new__(mcls, name, bases, namespace, **{"kw_only": True, "frozen": True, **options})


class Settings(msgspec.Struct, metaclass=_SettingsMeta, forbid_unknown_fields=True):
    """Base of every table's type; a subclass without annotations takes no keys."""


def convert(table: Mapping[str, Any], into: type[T], where: str) -> T:
    """Return `table` as an instance of the `Settings` subclass `into`.

    `where` is the place, as in `ldmfs.toml: text.text`.  Raises `ConfigurationError`.
    """
    try:
        return msgspec.convert(table, into, dec_hook=_custom)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_explain(str(error), into, where)) from None


def keys(settings: type[Settings]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the name, the type, the default and the meaning of each key of a table, for people to read."""
    hints = get_type_hints(settings, include_extras=True)
    for field in msgspec.structs.fields(settings):
        hint, doc = hints[field.name], ""
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            doc = next((str(extra) for extra in extras if isinstance(extra, Doc)), "")
        default = "required" if field.required else repr(field.default)
        if field.default_factory is not msgspec.NODEFAULT:
            default = repr(field.default_factory())
        yield field.encode_name, type_name(hint), default, doc


def type_name(hint: Any) -> str:
    """Return a type as it reads in a manual."""
    return hint.__name__.lower() if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _custom(type: type, value: Any) -> Any:
    if issubclass(type, (Size, Duration)):
        return type(value)
    raise NotImplementedError(f"settings of type {type.__name__} are not supported")


def _quantity(text: str, units: Mapping[str, float], expected: str) -> Fraction:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in units:
        raise ValueError(f"expected {expected}, got {text!r} (units: {', '.join(filter(None, units))})")
    return Fraction(match[1]) * Fraction(str(units[match[2]]))


def _explain(message: str, into: type, where: str) -> str:
    """Turn msgspec's `Expected int, got str - at $.limit` into one line that starts with the place."""
    text, _, path = message.partition(" - at `$")
    path = path.rstrip("`")
    place = where + path.replace("[...]", ".<key>")
    if unknown := re.search(r"unknown field `(.*)`", text):
        known = ", ".join(
            field.encode_name
            for kind in _types_at(into, path)
            if isinstance(kind, msgspec.inspect.StructType)
            for field in kind.fields
        )
        return f"{place}.{unknown[1]}: there is no such key; known are: {known or 'none'}"
    if missing := re.search(r"missing required field `(.*)`", text):
        return f"{place}.{missing[1]}: this key is required"
    if wrong := re.match(r"Invalid enum value `?(.*?)`?$", text, re.DOTALL):
        return f"{place}: expected {_choices(_types_at(into, path))}, got {wrong[1]}"
    return f"{place}: {text[0].lower()}{text[1:].replace('`', '')}"


def _choices(kinds: list[msgspec.inspect.Type]) -> str:
    """Return what a key of some fixed values can be, as `one of 'a', 'b'`."""
    values: list[object] = []
    others = []
    for kind in kinds:
        if isinstance(kind, msgspec.inspect.LiteralType):
            values += kind.values
        elif isinstance(kind, msgspec.inspect.EnumType):
            values += [member.value for member in kind.cls]
        else:
            others.append(type(kind).__name__.removesuffix("Type").lower())
    return " or ".join([f"one of {', '.join(map(repr, values))}", *others])


def _types_at(into: type, path: str) -> list[msgspec.inspect.Type]:
    """Return the types that the value at `path` may have: a path of msgspec, `$.a[0].b[...]`, without the `$`."""
    kinds = _members(msgspec.inspect.type_info(into))
    for step in re.findall(r"\.([^.\[]+)|\[[^]]*\]", path):
        below: list[msgspec.inspect.Type] = []
        for kind in kinds:
            if isinstance(kind, msgspec.inspect.StructType):
                below += [field.type for field in kind.fields if field.encode_name == step]
            elif isinstance(kind, msgspec.inspect.DictType):
                below.append(kind.value_type)
            elif isinstance(kind, msgspec.inspect.CollectionType):
                below.append(kind.item_type)
        kinds = [member for kind in below for member in _members(kind)]
    return kinds


def _members(kind: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    return list(kind.types) if isinstance(kind, msgspec.inspect.UnionType) else [kind]
