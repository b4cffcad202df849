"""The documents, taken apart: fenced blocks with what the comments before them say of them, tables, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *(CHECKOUT / "docs").glob("*.md"),
])  # fmt: skip

_COMMENT = re.compile(r"<!-- (\w+)(?:: (.*?))? -->")
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#+ (.*)")


class Block(NamedTuple):
    """A fenced block: its language, its text, the line of its first fence, and `<!-- key: value -->` before it."""

    language: str
    text: str
    line: int
    about: dict[str, str]


def named(path: Path) -> str:
    """Return how a document is called in a test's name."""
    return str(path.relative_to(CHECKOUT))


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document."""
    return list(_blocks(document.read_text(encoding="utf-8")))


def _blocks(text: str) -> Iterator[Block]:
    about: dict[str, str] = {}
    inside: list[str] | None = None
    language, begin = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if inside is not None:
            if line == "```":
                yield Block(language, "".join(inside), begin, about)
                inside, about = None, {}
            else:
                inside.append(line + "\n")
        elif line.startswith("```"):
            inside, language, begin = [], line[3:], number
        elif comment := _COMMENT.fullmatch(line):
            about[comment[1]] = comment[2] or ""
        elif line:
            about = {}


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(document: Path) -> list[str]:
    """Return the targets of a document's links."""
    return _LINK.findall(prose(document))


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = (match[1] for line in prose(document).splitlines() if (match := _HEADING.fullmatch(line)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(document: Path, first_title: str) -> list[list[str]]:
    """Return the rows of the document's table whose first column has that title."""
    rows: list[list[str]] = []
    inside = False
    for line in prose(document).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
        inside = inside or cells[0] == first_title
    return rows
