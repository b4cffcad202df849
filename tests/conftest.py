"""Fixtures and hooks of all levels.  An `async def` test runs under trio.

`LDMFS_TEST_SKIPS=no` makes a test that is skipped, since something is missing on the machine, one that fails.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Generator, Iterator

import pytest
import trio
from hypothesis import HealthCheck, settings

settings.register_profile("ldmfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ldmfs")  # how fast a machine is, that runs other tests too, is no fact about the code


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    trio.run(functools.partial(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where none is allowed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("LDMFS_TEST_SKIPS") == "no":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"LDMFS_TEST_SKIPS=no allows no skip: {reason}"
    return report


@pytest.fixture(autouse=True)
def _no_unexpected_log(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which ldmfs logged an error or a warning that it did not take from `caplog`."""
    yield
    if "caplog" in request.fixturenames and request.node.get_closest_marker("logs"):
        return
    bad = [record.getMessage() for when in ("setup", "call") for record in caplog.get_records(when)
           if record.name.startswith("ldmfs") and record.levelno >= 30]  # fmt: skip
    assert not bad, f"unexpected in the log: {bad}; mark the test with 'logs' if it is meant"
