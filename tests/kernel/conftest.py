"""Fixtures of the tests that run in a guest; `LDMFS_TEST_KERNEL=debug` lets the guests boot the debug kernel.

Under pytest-xdist each suite is one worker's, and so are the tests that boot a guest of their own; the longest begin
first.  So no worker waits for a guest that another one has booted, and all are done at about the same time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for kmod.vm, which is installed nowhere

from kmod.vm.kernel import KERNELS, Kernel, VmError, missing

from .suites import KERNEL, LONGEST_FIRST, OTHERS, SUITES, Suites

TIME_LIMIT = 7200
"""Seconds for a test, which may be the one that builds the kernel and boots the guest of its whole suite."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this directory the time that a guest takes, and the order in which guests begin."""
    here = Path(__file__).parent
    guests = [item for item in items if here in item.path.parents]
    for item in guests:
        item.add_marker(pytest.mark.timeout(TIME_LIMIT))
    guests.sort(key=lambda item: LONGEST_FIRST.index(scope(item.nodeid)))
    items[:] = [item for item in items if here not in item.path.parents] + guests


class Scheduling(LoadScopeScheduling):
    """Gives a worker one suite after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def scope(nodeid: str) -> str:
    """Return the name of the suite that a test is of, or the name for all that are of none."""
    return next((suite.path.name for suite in SUITES if f"[{suite.path.name}-" in nodeid), OTHERS)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Schedule suites, in the order in which the tests were collected."""
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """Give the kernel that guests boot."""
    packages = missing(KERNEL)
    if packages:
        pytest.skip(
            f"a guest with the kernel {KERNEL} needs {', '.join(packages)}: `make kernel-packages` installs them"
        )
    try:
        return KERNELS[KERNEL]()
    except VmError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def suites(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Suites:
    """Give the results of suites; each runs once, whichever of pytest's workers asks first."""
    base = tmp_path_factory.getbasetemp()
    return Suites(kernel, base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
