"""Fixtures of the tests of providers in C: those of the mounted tests, and the tests' own providers, built."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted.fixtures import mount, new_tree, plug_ins

from ldmfs.native.build import PACKAGES, build

from .hosted import SOURCES

__all__ = ["mount", "new_tree", "plug_ins"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give what builds a provider of the tests, once, and returns the path of its shared object."""
    if shutil.which("cc") is None:
        pytest.skip(PACKAGES)
    directory = tmp_path_factory.mktemp("built")

    def path(name: str) -> str:
        output: Path = directory / f"{name}.so"
        if not output.exists():
            build(SOURCES[name], output)
        return str(output)

    return path
