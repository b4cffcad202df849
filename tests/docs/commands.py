"""The help of every command, and what writes it into docs/commands.md: `python -m tests.docs.commands`."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from ldmfs.cli.main import parser

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "commands.md"
COLUMNS = 100

_BLOCK = re.compile(r"(<!-- help: ([\w-]+) -->\n```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def helps() -> dict[str, str]:
    """Return what `--help` prints, of `ldmfs` itself and of each command."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        top = parser()
        (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
        return {"ldmfs": top.format_help(), **{name: each.format_help() for name, each in commands.choices.items()}}
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def written() -> dict[str, str]:
    """Return the blocks of the document."""
    return {match[2]: match[3] for match in _BLOCK.finditer(DOCUMENT.read_text(encoding="utf-8"))}


def rewrite() -> None:
    """Bring the document's blocks up to date, and add a section for each command that has none."""
    text = DOCUMENT.read_text(encoding="utf-8")
    current = helps()
    for name in current.keys() - written().keys():
        text += f"\n## ldmfs {name}\n\n<!-- help: {name} -->\n```text\n```\n"
    for name in written().keys() - current.keys():
        print(f"{DOCUMENT.name}: there is no command {name!r} any more; take its section out")
    DOCUMENT.write_text(
        _BLOCK.sub(lambda match: match[1] + current.get(match[2], match[3]) + match[4], text), encoding="utf-8"
    )


if __name__ == "__main__":
    rewrite()
