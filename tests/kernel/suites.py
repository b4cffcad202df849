"""Suites: files of `suites/`, each of which is run in a guest of its own and has many cases.

A suite is a program that runs the case that its argument names: a C file with `CASE(name)`, a script of the shell with
functions `case_name`, a Python file with the same.  Its first comment says in lines `modules:` what is loaded before,
separated by `;`, with parameters.  Beside it may be a file `NAME.toml`, the tree that ldmfs mounts at /ldm before.
Modules that are no part of the repository's are built from `providers/` in this directory.

Each suite has two cases more: `unload`, that the tree can be unmounted and each module removed in the end, and
`report`, that the kernel found nothing wrong between the cases.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kmod.vm import guest, modules
from kmod.vm.kernel import REPOSITORY, Kernel, locked

KERNEL = os.environ.get("LDMFS_TEST_KERNEL", "debian")
"""The name of the kernel that guests boot."""

HERE = Path(__file__).resolve().parent
PROVIDERS = sorted([*(HERE / "providers").glob("*.c"), *(REPOSITORY / "examples").glob("*.c")])

CASE = {
    ".c": re.compile(r"^CASE\((\w+)\)", re.MULTILINE),
    ".sh": re.compile(r"^case_(\w+)\(\)", re.MULTILINE),
    ".py": re.compile(r"^def case_(\w+)\(", re.MULTILINE),
}
MODULES = re.compile(r"\bmodules: *(.+)")

COMPILE = "gcc -D_GNU_SOURCE -std=gnu11 -O1 -g -pthread -Wall -Wextra -Werror"

CASE_SECONDS = {"debian": 300, "debug": 1800}
"""After which a case is taken to hang."""

SUITE_SECONDS = {"debian": 1800, "debug": 5400}
"""After which a suite is."""

FEWER = {"debian": 1, "debug": 10}
"""The debug kernel looks at each step and is slow: what is repeated many times is, there, so many times less often."""

SCRIPT = """\
. {here}/prepare.sh
export FEWER={fewer}
load_all <<'END'
{load}
END
{mount}
[ ! -e $VM/program ] || cp $VM/program /tmp/program
for case in {cases}; do
	echo "vm: case $case" >/dev/kmsg
	setsid -w timeout -k 5 {seconds} {program} $case >$VM/case-$case 2>&1 </dev/null
	echo "$case $?" >>$VM/cases
done
echo "vm: case unload" >/dev/kmsg
unload_all >$VM/case-unload 2>&1
echo "unload $?" >>$VM/cases
"""


@dataclass(frozen=True)
class Suite:
    """A file of `suites/`."""

    path: Path

    @functools.cached_property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def cases(self) -> list[str]:
        """The names of the cases, in the order in which they run, those of every suite last."""
        return [*CASE[self.path.suffix].findall(self.text), "unload", "report"]

    @property
    def modules(self) -> list[list[str]]:
        """What is loaded: a name, then parameters."""
        return [part.split() for found in MODULES.findall(self.text) for part in found.split(";")]

    @property
    def tree(self) -> Path | None:
        """The configuration of the tree that is mounted."""
        tree = self.path.with_suffix(".toml")
        return tree if tree.exists() else None


SUITES = [Suite(path) for path in sorted((HERE / "suites").iterdir()) if path.suffix in CASE]

OTHERS = ""
"""In place of a suite's name: the tests that boot guests of their own."""

LONGEST_FIRST = [
    *(OTHERS, "stacks.sh", "conformance.py", "tree.sh", "loading.c", "limits.c", "shell.sh", "requests.c"),
    *("modules.sh", "blocks.c", "messages.c", "deaths.c", "faults.c"),
]
"""How long they take on Debian's kernel."""


@dataclass
class Result:
    """What a suite's guest has left."""

    why: str = ""
    """Why it did not run to its end."""
    statuses: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    reports: list[tuple[str | None, str]] = field(default_factory=list)
    """What the kernel found wrong, and in which case."""

    def check(self, suite: Suite, case: str) -> None:
        """Raise `AssertionError` unless a case went well."""
        reported = [text for where, text in self.reports if where == case or (case == "report" and where is None)]
        if case == "report":
            assert not self.why, self.why
        elif case not in self.statuses:
            last = next((name for name in suite.cases if name not in self.statuses), None)
            began = "it ended the guest" if case == last else f"it was not run: the guest ended in case {last}"
            raise AssertionError("\n".join([f"{began}: {self.why}", self.outputs.get(case, ""), *reported]))
        else:
            status = self.statuses[case]
            how = "it took too long" if status in (124, 137) else f"exit status {status}"
            assert status == 0, f"{how}\n{self.outputs[case]}"
        assert not reported, "\n".join(reported)


class Suites:
    """Runs suites, each once, and keeps their results below a directory that pytest's workers share."""

    def __init__(self, kernel: Kernel, directory: Path) -> None:
        self._kernel = kernel
        self._directory = directory
        self._results: dict[Suite, Result] = {}

    def result(self, suite: Suite) -> Result:
        """Return a suite's result; run it if nobody has."""
        if suite not in self._results:
            directory = self._directory / f"kernel-{suite.path.name}"
            with locked(directory):
                file = directory / "result.json"
                if not file.exists():
                    file.write_text(json.dumps(asdict(self._run(suite, directory / "share"))))
                self._results[suite] = Result(**json.loads(file.read_text()))
        return self._results[suite]

    def _run(self, suite: Suite, share: Path) -> Result:
        share.mkdir()
        cases = [case for case in suite.cases if case not in ("unload", "report")]
        name = self._kernel.name
        built = modules.build(self._kernel, PROVIDERS)
        (share / "modules").write_text("".join(f"{name} {module}\n" for name, module in built.items()))
        script = SCRIPT.format(
            here=shlex.quote(str(HERE)), seconds=CASE_SECONDS[name], program=_program(suite, share),
            cases=" ".join(cases), fewer=FEWER[name],
            load=load_lines(built, suite.modules),
            mount=f"mount_tree {shlex.quote(str(suite.tree))}" if suite.tree else "",
        )  # fmt: skip
        return _result(guest.run(self._kernel, script, share, limit=SUITE_SECONDS[name]), share)


def load_lines(built: dict[str, Path], wanted: list[list[str]]) -> str:
    """Return the lines that `load_all` of prepare.sh reads: files of modules, with parameters."""
    return "\n".join(" ".join([str(built[name]), *parameters]) for name, *parameters in wanted)


def compile_program(source: Path, share: Path) -> None:
    """Make the program `program` of the share."""
    where = ("-I", HERE, "-I", REPOSITORY / "kmod", "-o", share / "program", source)
    subprocess.run([*COMPILE.split(), *where], check=True)


def _program(suite: Suite, share: Path) -> str:
    """Return what runs a suite's case in the guest."""
    path = shlex.quote(str(suite.path))
    if suite.path.suffix == ".c":
        compile_program(suite.path, share)
        return "/tmp/program"
    if suite.path.suffix == ".sh":
        return f"bash {shlex.quote(str(HERE / 'case.sh'))} {path}"
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", REPOSITORY / "ldmfs", REPOSITORY / "providers"], check=True
    )
    return f"python {shlex.quote(str(HERE / 'case.py'))} {path}"


def _result(outcome: guest.Outcome, share: Path) -> Result:
    cases = share / "cases"
    result = Result(reports=[tuple(report) for report in outcome.reports])
    for line in cases.read_text().splitlines() if cases.exists() else ():
        name, status = line.split()
        result.statuses[name] = int(status)
    for file in share.glob("case-*"):
        result.outputs[file.name.removeprefix("case-")] = file.read_text(errors="replace")
    if outcome.status != 0:
        why = outcome.why or f"exit status {outcome.status}"
        shown = outcome.messages.splitlines()[-guest.TAIL :] if not outcome.reports else ()
        result.why = "\n".join([why, outcome.output, *shown])
    return result
