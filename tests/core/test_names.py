"""What can be the name of a device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldmfs.core.device import MAX_NAME, check_name
from ldmfs.core.errors import InvalidRequest, LdmError, NameTooLong

ANY = st.text(st.characters(), max_size=300)
SURROGATES = st.characters(categories=["Cs"])


def can_be_a_file(name: str) -> bool:
    """Tell, from what POSIX and UTF-8 say, whether `name` can be that of a file."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= 255 and not {"/", "\0"} & set(name) and name not in (".", "..")


def accepted(name: Any) -> bool:
    try:
        check_name(name)
    except LdmError:
        return False
    return True


@given(ANY)
@example("")
@example(".")
@example("..")
@example("...")
@example("/")
@example("a\0")
@example("é" * 127)
@example("é" * 128)
def test_a_name_is_accepted_if_and_only_if_it_can_be_a_file(name: str) -> None:
    assert accepted(name) == can_be_a_file(name)


@given(ANY, ANY, st.sampled_from("/\0"))
def test_a_slash_or_nul_anywhere_is_refused(before: str, after: str, bad: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(before + bad + after)


@given(ANY, ANY, SURROGATES)
def test_a_surrogate_anywhere_is_refused(before: str, after: str, surrogate: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(before + surrogate + after)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_mean_a_directory_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be the name of a device"):
        check_name(name)


@pytest.mark.parametrize("unit", ["a", "é", "€", "😀", " ", "\n"])
def test_255_bytes_of_utf8_are_accepted(unit: str) -> None:
    size = len(unit.encode())
    check_name(unit * (MAX_NAME // size) + "a" * (MAX_NAME % size))


@pytest.mark.parametrize("unit", ["a", "é", "€", "😀"])
def test_256_bytes_of_utf8_are_too_long(unit: str) -> None:
    size = len(unit.encode())
    with pytest.raises(NameTooLong, match="256 bytes"):
        check_name(unit * (256 // size) + "a" * (256 % size))


def test_the_message_about_a_long_name_is_short() -> None:
    with pytest.raises(NameTooLong) as caught:
        check_name("a" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", [b"bytes", 3, None])
def test_what_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="is a str"):
        check_name(name)


def test_the_limit_is_that_of_the_kernel(tmp_path: Path) -> None:
    assert os.pathconf(tmp_path, "PC_NAME_MAX") == MAX_NAME
