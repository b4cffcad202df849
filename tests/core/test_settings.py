"""Settings: what is accepted, and messages that name the place, the key and what is expected there."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldmfs.container.settings import UNITS, ConfigurationError, Doc, Duration, Settings, Size, convert, keys

WHERE = "ldmfs.toml: text.text"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(Settings):
    depth: int = 0


class Example(Settings):
    limit: Annotated[Size, Doc("the longest text")] = Size("1 MiB")
    pause: Annotated[Duration, Doc("wait before each answer")] = Duration("0 s")
    mode: Literal["fast", "safe"] = "fast"
    level: Literal[1, 2] = 1
    colour: Colour = Colour.RED
    words: list[str] = []
    modes: list[Literal["fast", "safe"]] = []
    modes_of: dict[str, Literal["fast", "safe"]] = {}
    choice: Literal["auto"] | int = "auto"
    inner: Inner = Inner()
    name: str | None = None


class Needy(Settings):
    path: str
    size: Size


def message(table: dict[str, Any], into: type[Settings] = Example) -> str:
    with pytest.raises(ConfigurationError) as caught:
        convert(table, into, WHERE)
    return str(caught.value)


# -- values


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), (5, 5), ("5", 5), ("5 B", 5), ("64 KiB", 65536), ("64KiB", 65536), ("1.5 kB", 1500), ("1 GiB", 1 << 30)],
)
def test_a_size_is_a_number_of_bytes(value: int | str, size: int) -> None:
    assert convert({"limit": value}, Example, WHERE).limit == size


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (2, 2), (0.5, 0.5), ("50 ms", 0.05), ("1.5 s", 1.5), ("2 min", 120), ("1h", 3600)],
)
def test_a_duration_is_a_number_of_seconds(value: float | str, seconds: float) -> None:
    assert convert({"pause": value}, Example, WHERE).pause == pytest.approx(seconds)


@given(st.integers(0, 1 << 40), st.sampled_from(sorted(UNITS)))
def test_a_size_with_any_unit_is_a_product(number: int, unit: str) -> None:
    assert Size(f"{number} {unit}") == number * UNITS[unit]


@pytest.mark.parametrize("value", ["1 GB/s", "1 kb", "-1 KiB", "", "KiB", "1 2", "0x10", "1e3", "nan"])
def test_what_is_no_size_says_what_is(value: str) -> None:
    assert message({"limit": value}).startswith(f"{WHERE}.limit: expected a size such as \"64 KiB\", got '{value}'")


@pytest.mark.parametrize("value", [-1, 1.5, True, None, []], ids=repr)
def test_a_size_of_another_type_says_what_is_expected(value: Any) -> None:
    assert message({"limit": value}) == f'{WHERE}.limit: expected a size such as "64 KiB", got {value!r}'


def test_a_wrong_unit_lists_the_units() -> None:
    assert "(units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)" in message({"limit": "1 KB"})


@pytest.mark.parametrize("value", ["soon", "1 day", "-1 s", "inf"])
def test_what_is_no_duration_says_what_is(value: str) -> None:
    assert message({"pause": value}).startswith(f"{WHERE}.pause: expected a duration such as \"50 ms\", got '{value}'")


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), False, []], ids=repr)
def test_a_duration_of_another_type_says_what_is_expected(value: Any) -> None:
    assert message({"pause": value}) == f'{WHERE}.pause: expected a duration such as "50 ms", got {value!r}'


# -- types


def test_a_wrong_type_names_place_key_and_both_types() -> None:
    assert message({"name": 3}) == f"{WHERE}.name: expected str | null, got int"


def test_a_wrong_type_in_a_list_names_the_item() -> None:
    assert message({"words": ["a", 3]}) == f"{WHERE}.words[1]: expected str, got int"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"mode": "slow"}, "mode: expected one of 'fast', 'safe', got 'slow'"),
        ({"mode": "sl`ow"}, "mode: expected one of 'fast', 'safe', got 'sl`ow'"),
        ({"level": 3}, "level: expected one of 1, 2, got 3"),
        ({"colour": "green"}, "colour: expected one of 'red', 'blue', got 'green'"),
        ({"modes": ["fast", "slow"]}, "modes[1]: expected one of 'fast', 'safe', got 'slow'"),
        ({"modes_of": {"x": "slow"}}, "modes_of.<key>: expected one of 'fast', 'safe', got 'slow'"),
        ({"choice": "never"}, "choice: expected one of 'auto' or int, got 'never'"),
    ],
)
def test_a_value_that_is_none_of_some_lists_them(table: dict[str, Any], expected: str) -> None:
    assert message(table) == f"{WHERE}.{expected}"


# -- keys


def test_an_unknown_key_lists_the_known_ones() -> None:
    known = "limit, pause, mode, level, colour, words, modes, modes_of, choice, inner, name"
    assert message({"limt": 3}) == f"{WHERE}.limt: there is no such key; known are: {known}"


def test_an_unknown_key_of_an_inner_table_lists_the_keys_of_that() -> None:
    assert message({"inner": {"dpth": 3}}) == f"{WHERE}.inner.dpth: there is no such key; known are: depth"


def test_a_table_without_keys_says_so() -> None:
    assert message({"limit": 3}, Settings) == f"{WHERE}.limit: there is no such key; known are: none"


def test_a_missing_key_is_named() -> None:
    assert message({"path": "x"}, Needy) == f"{WHERE}.size: this key is required"


def test_required_keys_may_follow_optional_ones() -> None:
    class Later(Example):
        path: str

    assert convert({"path": "x"}, Later, WHERE).path == "x"


def test_an_empty_table_gives_the_defaults() -> None:
    assert convert({}, Example, WHERE) == Example()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Example().mode = "safe"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("limit", ("limit", "size", "1048576", "the longest text")),
        ("mode", ("mode", "Literal['fast', 'safe']", "'fast'", "")),
        ("words", ("words", "list[str]", "[]", "")),
    ],
)
def test_the_keys_can_be_told_to_people(name: str, expected: tuple[str, ...]) -> None:
    assert {key[0]: key for key in keys(Example)}[name] == expected


def test_a_required_key_is_told_to_be() -> None:
    assert [key[2] for key in keys(Needy)] == ["required", "required"]
