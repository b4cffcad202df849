"""What commands print: coloured tables on a terminal, aligned text in a pipe, JSON when asked for."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def rows(titles: Sequence[str], records: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print records, the columns of which are called by their keys in the order of `titles`, in lower case."""
    if as_json:
        print(json.dumps(list(records), indent=2, ensure_ascii=False))
        return
    cells = [[_text(record.get(title.lower(), "")) for title in titles] for record in records]
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        _coloured(titles, cells)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for line in [list(titles), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _coloured(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, *column in zip(titles, *cells, strict=True):
        # A text may take several lines, a name is needed whole.
        no_wrap = not any(" " in cell for cell in column)
        table.add_column(title, no_wrap=no_wrap, min_width=len(title), overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in line))
    Console().print(table)


_COLOURS = {
    "running": "green", "failed": "red", "waiting": "yellow", "starting": "yellow", "stopped": "dim",
    "ok": "green", "missing": "red", "limited": "yellow",
}  # fmt: skip


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "" if value is None else " ".join(str(value).split())
