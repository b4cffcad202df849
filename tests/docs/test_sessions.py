"""Level four: what the documents tell a reader to type gives what they say that it gives."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted.trees import Tree

from .documents import CHECKOUT, DOCUMENTS, blocks, named
from .sessions import Shell, Step, at, matches, steps

WITH_SESSIONS = [path for path in DOCUMENTS if any(block.language == "console" for block in blocks(path))]
EXAMPLES = sorted((CHECKOUT / "examples").glob("*.py"))


def manual(example: Path) -> str:
    """Return the session in an example's docstring."""
    lines = example.read_text(encoding="utf-8").split('"""')[1].splitlines()
    return "".join(f"{line[4:]}\n" for line in lines[next(i for i, x in enumerate(lines) if x.startswith("    $ ")) :])


@pytest.mark.fuse
@pytest.mark.parametrize("document", WITH_SESSIONS, ids=named)
def test_each_session_gives_what_the_document_says(
    document: Path, tree: Tree, work: Path, shell: Callable[[], Shell]
) -> None:
    with shell() as bash:
        for block in blocks(document):
            if "file" in block.about:
                (work / block.about["file"]).write_text(at(tree.root, block.text), encoding="utf-8")
            if block.language == "console":
                for step in steps(block.text):
                    bash.run(step)


@pytest.mark.fuse
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "in a tree"])
def test_each_example_does_what_its_manual_says(
    example: Path, mounted: bool, tree: Tree, shell: Callable[[], Shell]
) -> None:
    if mounted:
        assert tree.mount("[null.null]\n").returncode == 0
    with shell() as bash:
        for step in steps(manual(example)):
            bash.run(step)
        bash.run(Step("kill %1; wait", ""))


@pytest.mark.fuse
def test_the_provider_of_the_readme_is_a_program_too(tree: Tree, work: Path, shell: Callable[[], Shell]) -> None:
    (work / "upper.py").write_text(provider_of_the_readme(), encoding="utf-8")
    with shell() as bash:
        bash.run(Step(f"{sys.executable} upper.py &", "/ldm/upper/text\n"))
        bash.run(Step("echo hello > /ldm/upper/text; cat /ldm/upper/text", "HELLO\n"))
        bash.run(Step("kill %1; wait", ""))


def test_the_provider_of_the_readme_has_ten_lines() -> None:
    assert len(provider_of_the_readme().splitlines()) == 10


def provider_of_the_readme() -> str:
    (text,) = (block.text for block in blocks(CHECKOUT / "README.md") if block.about.get("file") == "upper.py")
    return text


def test_every_example_is_in_the_readme() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"(examples/{path.name})" not in readme] == []
    assert EXAMPLES


def test_a_session_is_taken_apart_into_commands_and_their_output() -> None:
    text = "$ one\n$ two \\\n> more\nout\n\nput\n"
    assert list(steps(text)) == [Step("one", ""), Step("two \\\nmore", "out\n\nput\n")]


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a", True),
        ("a  b\n", "a b\n", True),
        ("a\n", "b\n", False),
        ("", "a\n", False),
        ("a\n", "", False),
        ("a…c\n", "abc\n", True),
        ("a...c\n", "abcd\n", False),
        ("a\n…\nz\n", "a\nb\nc\nz\n", True),
        ("a\n…\nz\n", "a\nz\n", True),
        ("a.c\n", "abc\n", False),
    ],
)
def test_an_ellipsis_is_anything_and_the_rest_is_itself(expected: str, output: str, same: bool) -> None:
    assert matches(expected, output) is same


def test_the_root_is_put_in_where_a_reader_reads_ldm(tmp_path: Path) -> None:
    text = "/ldm /ldm/a '/ldm/b' $X/ldm /tmp/ldm /ldmfs /etc/ldmfs.toml root=/ldm"
    wanted = "R R/a 'R/b' $X/ldm /tmp/ldm /ldmfs /etc/ldmfs.toml root=R"
    assert at(tmp_path, text) == re.sub(r"\bR\b", str(tmp_path), wanted)
