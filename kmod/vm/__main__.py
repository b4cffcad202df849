# SPDX-License-Identifier: GPL-2.0-only
"""Runs the kernel's side of ldmfs in a guest, where a module's mistake ends nothing but the guest.

python -m kmod.vm shell [PROVIDER.c…]   a shell with ldmfs mounted, ldm.ko and the providers in C loaded
python -m kmod.vm run 'COMMAND'         a command of the shell, nothing loaded; its status is this program's
python -m kmod.vm build [PROVIDER.c…]   builds the modules and tells where they are
python -m kmod.vm check                 sparse, coccinelle and checkpatch on the sources
python -m kmod.vm packages [check]      tells which Debian packages are needed
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from . import guest, modules
from .kernel import HERE, KERNELS, REPOSITORY, VmError, packages, scripts

PROFILE = """\
export PATH={binaries}:$PATH TERM={terminal}
stty rows {lines} columns {columns}
insmod {ldm}
for module in {providers}; do insmod $module; done
ldmfs mount --background --config {tree}
cat <<'END'

{told}
The host's files can be read, and written without the host seeing it. `exit` or Ctrl-A X ends the guest.
END
exec bash --norc -i
"""
"""What the shell's guest runs."""


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    options = _parser().parse_args()
    try:
        status: int = options.command(options)
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kmod.vm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", choices=list(KERNELS), default="debian", help="which kernel boots")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shell = commands.add_parser("shell", help="a shell in a guest with everything loaded and mounted")
    shell.add_argument("providers", nargs="*", type=Path, metavar="PROVIDER.c", help="more providers to load")
    shell.set_defaults(command=_shell)
    run = commands.add_parser("run", help="a command of the shell in a guest")
    run.add_argument("--limit", type=float, default=guest.LIMIT, metavar="SECONDS", help="how long it may take")
    run.add_argument("script", metavar="COMMAND")
    run.set_defaults(command=_run)
    build = commands.add_parser("build", help="builds the modules and tells where they are")
    build.add_argument("providers", nargs="*", type=Path, metavar="PROVIDER.c", help="more providers to build")
    build.set_defaults(command=_build)
    check = commands.add_parser("check", help="sparse, coccinelle and checkpatch on the sources")
    check.set_defaults(command=_check)
    needed = commands.add_parser("packages", help="tells which Debian packages are needed")
    needed.add_argument("purpose", nargs="?", choices=["check"], help="for what; default: the kernel")
    needed.set_defaults(command=_packages)
    return parser


def _shell(options: argparse.Namespace) -> int:
    kernel = KERNELS[options.kernel]()
    built = modules.build(kernel, options.providers)
    ldm = built.pop("ldm")
    size = shutil.get_terminal_size()
    script = PROFILE.format(
        binaries=shlex.quote(str(REPOSITORY / ".venv/bin")),
        terminal=shlex.quote(os.environ.get("TERM", "linux")),
        lines=size.lines,
        columns=size.columns,
        ldm=shlex.quote(str(ldm)),
        providers=shlex.join(map(str, built.values())),
        tree=shlex.quote(str(HERE / "tree.toml")),
        told=f"Loaded: {' '.join(['ldm', *built])}",
    )
    return guest.shell(kernel, script)


def _run(options: argparse.Namespace) -> int:
    outcome = guest.run(KERNELS[options.kernel](), options.script, limit=options.limit)
    sys.stdout.write(outcome.output)
    for report in outcome.reports:
        print(report.text, file=sys.stderr)
    if outcome.status is None:
        print(f"vm: {outcome.why}\n{outcome.messages}", file=sys.stderr)
        return 125
    return outcome.status or int(bool(outcome.reports))


def _build(options: argparse.Namespace) -> int:
    for name, module in modules.build(KERNELS[options.kernel](), options.providers).items():
        print(f"{name}\t{module}")
    return 0


def _check(options: argparse.Namespace) -> int:
    modules.check(KERNELS[options.kernel](), scripts())
    return 0


def _packages(options: argparse.Namespace) -> int:
    print(*packages(options.purpose or options.kernel))
    return 0


sys.exit(main())
