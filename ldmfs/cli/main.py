"""The command line: its grammar, and how it fails.

Exit codes: 0 done, 1 something did not work, 2 a mistake in what was asked for.  A mistake is told in one line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__

EXIT_FAILED, EXIT_USAGE = 1, 2


class UsageError(Exception):
    """What was asked for cannot be; the message says what to do."""


def parser() -> argparse.ArgumentParser:
    """Return the grammar of the command line."""
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", type=Path, metavar="DIR", help="root of the tree (default: $LDMFS_ROOT, [system] root, "
                      "else /ldm as root and $XDG_RUNTIME_DIR/ldm as a user)")  # fmt: skip
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--json", action="store_true", help="print JSON")

    top = argparse.ArgumentParser(prog="ldmfs", description="A file system of logical devices: code becomes a device.")
    top.add_argument("--version", action="version", version=f"ldmfs {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    mount = commands.add_parser("mount", parents=[root], help="mount the tree and run its containers")
    mount.add_argument("--config", type=Path, metavar="FILE",
                       help="configuration (default: /etc/ldmfs.toml, else the one in the package)")  # fmt: skip
    mount.add_argument("--background", action="store_true", help="return when every container is ready")
    mount.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)

    commands.add_parser("umount", parents=[root], help="stop the containers and take the tree away")
    ls = commands.add_parser("ls", parents=[root, form], help="list containers, or the devices of some")
    ls.add_argument("container", nargs="*", help="list the devices of these containers")
    for verb, does in (
        ("start", "start a container"),
        ("stop", "stop a container"),
        ("restart", "restart a container"),
        ("upgrade", "let the code as it is now take over, without an error for consumers"),
    ):
        commands.add_parser(verb, parents=[root], help=does).add_argument("container")
    run = commands.add_parser("run", parents=[root], help="run one provider by hand, in this process")
    run.add_argument("provider", metavar="MODULE_OR_FILE", help="a module's name, or the path of a .py file")
    run.add_argument("--name", help="name of the container (default: the module's or the file's)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, its value as in TOML")
    commands.add_parser("providers", parents=[form], help="list the plug-ins that are installed, with their keys")
    commands.add_parser("doctor", parents=[root, form], help="say what this machine can do, and what is missing")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    options = parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush has somewhere to go
        return EXIT_FAILED
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        code = _mistake(cause)
        if code is None:
            raise
        print(f"ldmfs: {cause}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "doctor":  # before what imports the packages that it looks for
        from . import doctor

        return doctor.doctor(options.root, as_json=options.json)

    from . import listing, mounting

    match options.command:
        case "mount":
            return mounting.mount(options.root, options.config, background=options.background, ready=options.ready_fd)
        case "umount":
            return mounting.umount(options.root)
        case "ls":
            return listing.ls(options.root, options.container, as_json=options.json)
        case "providers":
            return listing.providers(as_json=options.json)
        case "run":
            from . import running

            return running.run(options.provider, options.name, options.set, options.root)
    return mounting.command(options.root, options.command, options.container)


def _mistake(error: BaseException) -> int | None:
    """Return the exit code of an error that is the user's or the machine's, None for one that is ours."""
    from ..container.settings import ConfigurationError
    from ..core.errors import LdmError
    from ..fuse.mount import MountError

    if isinstance(error, (UsageError, ConfigurationError, MountError)):
        return EXIT_USAGE
    return EXIT_FAILED if isinstance(error, LdmError) else None


if __name__ == "__main__":
    sys.exit(main())
