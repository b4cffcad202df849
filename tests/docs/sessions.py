"""Shell sessions of a document, run in one bash as a reader would type them."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

SECONDS = 30.0
"""After which a command is taken to hang."""

_ROOT = re.compile(r"(?<![\w./])/ldm(?!\w)")
_MARK = "--- the command has ended ---"


class Step(NamedTuple):
    """One command of a session and what it is to print."""

    command: str
    expected: str


def steps(text: str) -> Iterator[Step]:
    """Yield the commands of a `console` block: lines after `$ `, continued after `> `, the rest is output."""
    command, output = "", ""
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield Step(command, output)
            command, output = line[2:], ""
        elif line.startswith("> ") and not output:
            command += "\n" + line[2:]
        else:
            assert command, f"output before the first command: {line}"
            output += line + "\n"
    yield Step(command, output)


def at(root: Path, text: str) -> str:
    """Return a text of the document with the root of the tree in the place of `/ldm`."""
    return _ROOT.sub(str(root), text)


def matches(expected: str, output: str) -> bool:
    """Tell whether `output` is what is expected: `…` and `...` are anything, also whole lines; blanks count as one."""
    pattern = []
    for line in _squeezed(expected):
        if line in ("…", "..."):
            pattern.append(r"(?:.*\n)*?")
        else:
            pattern.append(".*?".join(re.escape(part) for part in re.split(r"…|\.\.\.", line)) + r"\n")
    return re.fullmatch("".join(pattern), "".join(f"{line}\n" for line in _squeezed(output))) is not None


def _squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.rstrip().splitlines()]


class Shell:
    """A bash in a login session of its own, which lives from one step to the next."""

    def __init__(self, root: Path, directory: Path, environment: dict[str, str]) -> None:
        self._root = root
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=directory, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, bufsize=0,
        )  # fmt: skip
        self._output = ""

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.close()
        if kind is not None:
            os.killpg(self._bash.pid, signal.SIGTERM)  # bash, and what it has in the background
        try:
            self._bash.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
            raise
        finally:
            self._bash.stdout.close()

    def run(self, step: Step) -> None:
        """Run a command and compare what it prints; one in the background is waited for until it has printed that."""
        self._output = ""
        assert self._bash.stdin
        script = f"{{ {at(self._root, step.command)}\n}} </dev/null\necho '{_MARK}'\n"
        self._bash.stdin.write(script.encode())
        deadline = time.monotonic() + SECONDS
        while _MARK not in self._output:
            self._read(step, deadline)
        if step.command.endswith("&"):
            while not (self._is_as_expected(step) and self._seen().endswith(("\n", step.expected))):
                self._read(step, deadline)
        assert self._is_as_expected(step), self._report(step)

    def _is_as_expected(self, step: Step) -> bool:
        return matches(step.expected, self._seen())

    def _seen(self) -> str:
        return self._output.replace(f"{_MARK}\n", "").replace(str(self._root), "/ldm")

    def _read(self, step: Step, deadline: float) -> None:
        assert self._bash.stdout
        ready, _, _ = select.select([self._bash.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{self._report(step)}\nand goes on after {SECONDS:g} s"
        part = os.read(self._bash.stdout.fileno(), 65536)
        assert part, f"{self._report(step)}\nand bash has ended"
        self._output += part.decode(errors="replace")

    def _report(self, step: Step) -> str:
        return f"$ {step.command}\nprints\n{self._seen()}\nand not\n{step.expected}"
