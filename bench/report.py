"""What a measurement found: tables and targets, written as Markdown that also reads well on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows of cells under a heading; `caption` says what the numbers are."""

    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        rule = tuple("-" * widths[0] if place == 0 else "-" * (width - 1) + ":" for place, width in enumerate(widths))
        lines = [self.caption, ""]
        for row in (self.header, rule, *self.rows):
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass
class Target:
    """A ratio and what it has to be: at most `limit`, or with `at_least` no less."""

    what: str
    ratio: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the ratio is as it has to be."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def __str__(self) -> str:
        wanted = f"{'at least' if self.at_least else 'at most'} {self.limit:g}"
        return f"- **{'met' if self.met else 'MISSED'}**: {self.what}: {self.ratio:.2f}, target {wanted}"


@dataclass
class Section:
    """One measurement: what was done, what came out."""

    title: str
    about: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def __str__(self) -> str:
        missing = [f"- **not measured**: {what}" for what in self.missing]
        notes = "\n".join([*map(str, self.targets), *missing])
        return "\n\n".join(filter(None, [f"## {self.title}", self.about, *map(str, self.tables), notes]))


def microseconds(nanoseconds: float) -> str:
    """Return a time in µs, to three digits or so."""
    value = nanoseconds / 1000
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def times(ratio: float) -> str:
    """Return a ratio as a cell."""
    return f"{ratio:.2f}"


def lines(items: Iterable[tuple[str, str]]) -> str:
    """Return names and values as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in items)
