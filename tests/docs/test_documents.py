"""Level one: what the documents say agrees with the code, the Makefile and each other."""

from __future__ import annotations

import ast
import errno
import importlib
import itertools
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import ldmfs
from ldmfs import Container, LdmError
from ldmfs.container.plug_ins import GROUP, found
from ldmfs.container.provider import configure, load
from ldmfs.core import errors
from ldmfs.supervisor.configuration import ContainerOptions, SystemOptions, parse

from .commands import DOCUMENT as COMMANDS
from .commands import helps, written
from .documents import CHECKOUT, DOCUMENTS, Block, anchors, blocks, links, named, prose, table

DESIGN = CHECKOUT / "docs" / "design.md"
README = CHECKOUT / "README.md"
SOURCE = CHECKOUT / "ldmfs"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=named)


def of(language: str) -> pytest.MarkDecorator:
    """Parametrize with every block in a language."""
    found = [(path, block) for path in DOCUMENTS for block in blocks(path) if block.language == language]
    ids = [f"{named(path)}:{block.line}" for path, block in found]
    return pytest.mark.parametrize("block", [block for _, block in found], ids=ids)


# -- blocks


@each_document
def test_every_block_says_its_language(document: Path) -> None:
    assert {block.language for block in blocks(document)} <= {"c", "console", "python", "sh", "text", "toml"}


@of("python")
def test_every_python_block_compiles(block: Block) -> None:
    compile(block.text, block.about.get("file", "block"), "exec", dont_inherit=True)


@of("sh")
def test_every_shell_block_is_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@of("c")
def test_every_c_block_compiles_without_a_warning(block: Block) -> None:
    compiler = shutil.which("cc") or pytest.skip("cc is missing on this machine")
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Werror"]
    command = [compiler, "-fsyntax-only", *flags, f"-I{CHECKOUT / 'kmod'}", "-x", "c", "-"]
    done = subprocess.run(command, input=block.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@of("c")
def test_a_c_block_that_is_an_example_is_that_file(block: Block) -> None:
    if name := block.about.get("example"):
        assert block.text == (CHECKOUT / "examples" / name).read_text(encoding="utf-8")


@of("toml")
def test_every_toml_block_is_toml(block: Block) -> None:
    tables = tomllib.loads(block.text)
    assert set(tables.get("project", {}).get("entry-points", {GROUP: {}})) == {GROUP}


@of("toml")
def test_every_configuration_is_one(block: Block) -> None:
    if "configuration" not in block.about:
        return
    for container in parse(block.text, "block.toml").containers:
        for plug_in in container.plug_ins:
            configure(load(plug_in.target), Container(container.name), plug_in)


@of("sh")
def test_every_make_target_that_is_named_exists(block: Block) -> None:
    assert set(re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE)) <= targets()


@each_document
def test_every_make_target_in_the_prose_exists(document: Path) -> None:
    assert set(re.findall(r"`make ([\w-]+)", prose(document))) <= targets()


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


# -- links and names


@each_document
def test_every_relative_link_resolves(document: Path) -> None:
    broken = []
    for link in links(document):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


@each_document
def test_every_module_that_is_named_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:ldmfs|providers|tests|tools|examples|docs)/[\w./-]+)`", text))
    assert {path for path in paths if not (CHECKOUT / path).exists()} == set()


@each_document
def test_every_name_of_the_package_that_is_used_exists(document: Path) -> None:
    code = "\n".join(block.text for block in blocks(document) if block.language == "python")
    names = set(re.findall(r"\bldmfs\.([A-Za-z_]\w*)", code))
    assert {name for name in names if not hasattr(ldmfs, name)} == set()


@each_document
def test_lines_are_at_most_120_characters_long(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


# -- the picture


def picture(document: Path) -> str:
    (text,) = (block.text for block in blocks(document) if block.about.get("picture") == "layers")
    return text


def test_the_readme_and_the_design_draw_the_same_picture() -> None:
    assert picture(README) == picture(DESIGN)


def test_the_picture_has_the_packages_that_there_are() -> None:
    drawn = {line.split()[0]: line for line in picture(DESIGN).splitlines()}
    shipped = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {layer for layer in drawn if (SOURCE / layer / "__init__.py").exists()}
    assert {layer for layer, line in drawn.items() if "planned" not in line} <= there
    assert {name.removeprefix("ldmfs.") for name in shipped if name.startswith("ldmfs.")} <= set(drawn)


# -- the commands


def test_each_command_has_its_help_in_the_reference_and_nothing_else_has() -> None:
    assert set(written()) == set(helps()), "run: python -m tests.docs.commands"


@pytest.mark.parametrize("command", sorted(helps()))
def test_the_reference_has_the_help_as_it_is(command: str) -> None:
    # Only the words: how argparse breaks lines differs between versions of Python.
    assert written().get(command, "").split() == helps()[command].split(), "run: python -m tests.docs.commands"


def test_each_command_has_its_section() -> None:
    sections = re.findall(r"^## ldmfs ?([\w-]*)$", prose(COMMANDS), re.MULTILINE)
    assert {name or "ldmfs" for name in sections} == set(helps())


# -- the tables of the design


LIMITS = table(DESIGN, "limit")


@pytest.mark.parametrize("row", LIMITS, ids=lambda row: row[0].strip("`"))
def test_each_limit_is_the_code_s(row: list[str]) -> None:
    module, _, name = row[0].strip("`").rpartition(".")
    assert getattr(importlib.import_module(f"ldmfs.{module}"), name) == number(row[1])


def number(cell: str) -> float:
    """Return the number at the beginning of a cell."""
    match = re.match(r"[\d,]+(?:\.\d+)?", cell)
    assert match, f"{cell!r} does not begin with a number"
    return float(match[0].replace(",", ""))


def test_the_limits_of_the_processes_and_of_the_file_edge_are_all_there() -> None:
    told = {row[0].strip("`") for row in LIMITS}
    assert {"core.request.MAX_MESSAGE", "core.dispatch.MAX_OUTSTANDING", "core.registry.MAX_CONSUMERS"} <= told
    assert limits_of("fuse") | limits_of("supervisor") | limits_of("container") <= told


def limits_of(package: str) -> set[str]:
    """Return the constants `MAX_…` and `…_SECONDS` that the modules of a package define."""
    found = set()
    for path in (SOURCE / package).glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name.startswith("MAX_") or name.endswith("_SECONDS"):
                    found.add(f"{package}.{path.stem}.{name}")
    return found


ERRORS = table(DESIGN, "error")


def test_the_errors_of_the_design_are_those_of_the_code() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, LdmError)}
    assert {row[0].strip("`") for row in ERRORS} == classes


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row[0].strip("`"))
def test_each_error_has_the_number_that_the_design_gives(row: list[str]) -> None:
    name = row[1].strip("`")
    assert getattr(errors, row[0].strip("`")).errno == getattr(errno, name)


@pytest.mark.parametrize(("title", "options"), [("`[system]`", SystemOptions), ("container", ContainerOptions)])
def test_the_options_of_the_manual_are_those_of_the_code(title: str, options: type) -> None:
    assert {row[0].strip("`") for row in table(CHECKOUT / "docs" / "providers.md", title)} == set(
        options.__struct_fields__  # type: ignore[attr-defined]
    )


def test_the_bundled_plug_ins_of_the_readme_are_those_that_there_are() -> None:
    assert {row[0].strip("`") for row in table(README, "plug-in")} == {
        name for name, point in found().items() if point.value.startswith("ldmfs_providers.")
    }


# -- dependencies, licences


def test_each_dependency_is_justified_in_the_design() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.split(r"[^\w-]", each)[0] for each in wanted} - {"ldmfs"}
    assert {row[0].strip("`") for row in table(DESIGN, "package")} == names


@pytest.mark.parametrize(
    ("path", "title"),
    [("LICENSE", "Apache License"), ("kmod/LICENSE", "GNU GENERAL PUBLIC LICENSE")],
)
def test_the_licences_are_there(path: str, title: str) -> None:
    assert title in (CHECKOUT / path).read_text(encoding="utf-8")[:200]
