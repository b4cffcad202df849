"""The imports obey the layers of docs/design.md: what stands lower knows nothing of what stands above."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ldmfs

PACKAGE = Path(ldmfs.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"core"},
    {"fuse", "channel", "kernel"},
    {"consumer"},
    {"container"},
    {"supervisor", "native", "testing"},
    {"cli"},
]
"""From the lowest up.  A layer may use those below it; packages of one layer do not know each other."""

RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}

LOOPS = {"trio", "pyfuse3"}
ALLOWED = {
    "pyfuse3": {"fuse"},
    "trio": {"fuse", "channel", "kernel", "consumer", "container", "native", "supervisor", "testing", "cli"},
    "msgspec": set(RANK),
    "rich": {"cli"},
}
"""Where a package that is not of the standard library may be imported."""

IO = {"asyncio", "fcntl", "mmap", "select", "selectors", "socket", "subprocess"}
"""Of the standard library, what the core does without."""


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute names of the modules that a file imports anywhere, also for type checking only."""
    base = ["ldmfs", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


IN_LAYERS = [path for path in MODULES if layer_of(path)]
in_layers = pytest.mark.parametrize("path", IN_LAYERS, ids=named)
in_core = pytest.mark.parametrize("path", [path for path in IN_LAYERS if layer_of(path) == "core"], ids=named)


def test_the_modules_are_found() -> None:
    assert {"core", "fuse", "container"} <= {layer_of(path) for path in IN_LAYERS}


def test_relative_imports_are_understood() -> None:
    assert {"ldmfs.core.device.Peer", "ldmfs.fuse.signals"} <= set(imports(PACKAGE / "fuse" / "operations.py"))


@in_layers
def test_each_package_has_its_layer(path: Path) -> None:
    assert layer_of(path) in RANK


@in_layers
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    assert layer is not None
    used = {name.split(".")[1] for name in imports(path) if name.startswith("ldmfs.")} & set(RANK)
    assert {other for other in used if other != layer and RANK[other] >= RANK[layer]} == set()


@in_layers
def test_the_package_itself_is_not_imported_for_what_it_reexports(path: Path) -> None:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("ldmfs.")}
    assert names - set(RANK) - {"__version__", "__main__"} == set()


@in_layers
def test_foreign_packages_are_imported_only_where_they_belong(path: Path) -> None:
    foreign = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"ldmfs"}
    assert {name for name in foreign if layer_of(path) not in ALLOWED.get(name, set())} == set()


@in_core
def test_the_core_does_no_io(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path)} & (IO | LOOPS) == set()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_module_imports_everything_of_another(path: Path) -> None:
    assert not [name for name in imports(path) if name.endswith(".*")]


def test_the_core_works_where_no_loop_is_installed() -> None:
    modules = [f"ldmfs.core.{path.stem}" for path in IN_LAYERS if layer_of(path) == "core" and path.stem != "__init__"]
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(LOOPS))
    program = f"import sys\n{blocked}import {', '.join(modules)}\nfrom ldmfs import Device, Request, LdmError\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_offers_what_it_lists() -> None:
    assert {name: getattr(ldmfs, name, None) for name in ldmfs.__all__ if not getattr(ldmfs, name, None)} == {}
