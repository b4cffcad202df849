"""Fixtures of the tests that run in a guest; `LDMFS_TEST_KERNEL=debug` lets the guests boot the debug kernel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for kmod.vm, which is installed nowhere

from kmod.vm.kernel import KERNELS, Kernel, VmError, missing

from .suites import KERNEL, Suites

TIME_LIMIT = 3600
"""Seconds for a test, which may be the one that builds the kernel and boots the guest of its whole suite."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this directory the time that a guest takes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIME_LIMIT))


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
