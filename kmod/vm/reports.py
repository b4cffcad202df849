# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel finds wrong, taken out of its messages."""

from __future__ import annotations

import re
from typing import NamedTuple

BEGIN = re.compile(
    r"""
    \bBUG\b | \bWARNING:             # KASAN, lockdep, atomic sleep, slab, soft lockup; WARN_ON
    | \bUBSAN: | \bODEBUG: | \bOops\b | \bkernel\ BUG\b | \bKernel\ panic\b
    | general\ protection\ fault | unable\ to\ handle
    | INFO:\ (?:task|trying|possible|suspicious|rcu|Slab|Object) | rcu:\ INFO
    | refcount_t: | list_(?:add|del)\ corruption | cannot\ create\ duplicate | kobject_add_internal\ failed
    | leaked\ | \[\ BUG | unreferenced\ object
    """,
    re.VERBOSE,
)

END = re.compile(r"---\[ end (?:trace|Kernel panic)|vm: (?:case|end)")

CASE = re.compile(r"vm: case (\S+)")

LEAK = re.compile(r"unreferenced object.*\n(?:[ \t].*\n)*")

LINES = 60
"""Of a report, at most."""


class Report(NamedTuple):
    """One mistake."""

    case: str | None
    """What ran last when the kernel found it: the name that was written as `vm: case NAME` to /dev/kmsg."""
    text: str


def reports(messages: str, leaks: str = "") -> list[Report]:
    """Return what is reported in the kernel's messages and in what /sys/kernel/debug/kmemleak said, once or more."""
    found: list[Report] = []
    case: str | None = None
    text: list[str] = []
    for line in messages.splitlines():
        if not text and not BEGIN.search(line):
            began = CASE.search(line)
            case = began.group(1) if began else case
            continue
        text.append(line)
        if END.search(line) or len(text) == LINES:
            found.append(Report(case, "\n".join(text)))
            text = []
            began = CASE.search(line)
            case = began.group(1) if began else case
    if text:
        found.append(Report(case, "\n".join(text)))
    by_object: dict[str, str] = {}
    for leak in LEAK.findall(leaks):
        by_object.setdefault(leak.partition("\n")[0], leak)
    return found + [Report(None, leak) for leak in by_object.values()]
