"""The one table from error to errno."""

from __future__ import annotations

import errno
import os
from collections import defaultdict

import pytest

from ldmfs.core import errors
from ldmfs.core.errors import BY_ERRNO, LdmError, ProviderFailed, QueueFull, StateConflict, WouldBlock, from_errno

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LdmError)]
SPECIFIC = [cls for cls in CLASSES if cls not in (LdmError, QueueFull, StateConflict)]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_has_a_number_that_the_system_knows(cls: type[LdmError]) -> None:
    assert cls.errno in errno.errorcode


@pytest.mark.parametrize("cls", SPECIFIC)
def test_a_class_comes_back_from_its_number(cls: type[LdmError]) -> None:
    assert type(from_errno(cls().errno)) is cls


def test_no_two_classes_share_a_number_but_those_that_say_to_try_again() -> None:
    classes = defaultdict(set)
    for cls in CLASSES:
        if cls is not LdmError:
            classes[cls.errno].add(cls)
    assert [shared for shared in classes.values() if len(shared) > 1] == [{WouldBlock, QueueFull, StateConflict}]


def test_the_table_has_every_class_but_subclasses() -> None:
    assert set(BY_ERRNO.values()) == set(SPECIFIC)


@pytest.mark.parametrize("cls", [QueueFull, StateConflict])
def test_what_says_to_try_again_comes_back_as_would_block(cls: type[LdmError]) -> None:
    assert type(from_errno(cls().errno)) is WouldBlock


def test_the_number_of_an_unspecific_error_is_that_of_a_failed_provider() -> None:
    assert type(from_errno(LdmError().errno)) is ProviderFailed


def test_a_number_without_a_class_is_kept() -> None:
    error = from_errno(errno.EXDEV, "other disk")
    assert (type(error), error.errno, str(error)) == (LdmError, errno.EXDEV, "other disk")


def test_a_number_without_a_class_or_message_has_the_message_of_the_system() -> None:
    assert str(from_errno(errno.EXDEV)) == os.strerror(errno.EXDEV)


def test_the_message_comes_back() -> None:
    assert str(from_errno(errno.ENOENT, "no upper")) == "no upper"


def test_an_error_without_a_message_has_that_of_the_system() -> None:
    assert str(errors.NoSuchDevice()) == os.strerror(errno.ENOENT)


def test_a_handler_may_give_a_number_of_its_own() -> None:
    assert LdmError("quota", errno=errno.EDQUOT).errno == errno.EDQUOT


def test_a_number_of_its_own_does_not_change_the_class() -> None:
    LdmError(errno=errno.EDQUOT)
    assert LdmError.errno == errno.EIO
