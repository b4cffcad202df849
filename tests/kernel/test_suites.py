"""Every case of every suite, each as a test: see `suites.py`."""

from __future__ import annotations

import pytest

from .suites import SUITES, Suite, Suites

CASES = [pytest.param(suite, case, id=f"{suite.path.name}-{case}") for suite in SUITES for case in suite.cases]


@pytest.mark.parametrize(("suite", "case"), CASES)
def test_in_a_guest(suites: Suites, suite: Suite, case: str) -> None:
    suites.result(suite).check(suite, case)
