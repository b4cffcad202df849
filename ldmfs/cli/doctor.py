"""`ldmfs doctor`: what this machine can do, how its tree is, and what to do about what is missing."""

from __future__ import annotations

import errno
import json
import os
import queue
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..consumer import tree
from ..fuse.abilities import Abilities
from . import machine
from .machine import LIMITED, MISSING, OK, Check
from .main import EXIT_FAILED
from .output import rows

ANSWER_SECONDS = 3.0
"""How long the supervisor may take to tell of its containers."""


def doctor(root: Path | None, *, as_json: bool) -> int:
    """Print what there is and what is missing; the exit code tells whether everything needed is there."""
    checks = list(examine(root.absolute() if root else tree.default_root()))
    rows(("CHECK", "STATE", "NEEDED", "FOUND", "DO"), [check._asdict() for check in checks], as_json=as_json)
    return EXIT_FAILED if any(check.in_need for check in checks) else 0


def examine(root: Path) -> Iterator[Check]:
    """Yield every check, those of the tree at `root` last."""
    packages = [*machine.installation()]
    yield from packages
    yield from (machine.fuse_device(), machine.fusermount())
    able, checks = machine.trial_mount()
    yield from checks
    yield from (machine.sealed_memory(), machine.process_descriptors(), machine.kernel_module())
    if not any(check.in_need for check in packages):
        yield machine.peer_groups()
        yield from served_tree(root, able)


def served_tree(root: Path, able: Abilities | None) -> Iterator[Check]:
    """Look at the tree at `root`: who serves it, and how its containers are."""
    from ..supervisor.tree import supervisor_of

    supervisor = supervisor_of(root)
    if supervisor is not None:
        yield Check("tree", OK, f"{root}, served by process {supervisor}")
        try:
            containers = _containers(root)
        except OSError as error:
            found = f"{root}/system/graph: {error.strerror}"
            yield Check("supervisor", MISSING, found, f"kill -KILL {supervisor}; ldmfs umount --root {root}")
            return
        yield from (container(each, root, able) for each in containers if each["name"] != "system")
    elif os.path.exists(tree.lock_file(root)):
        yield Check("tree", LIMITED, f"{root}: its supervisor was killed", f"ldmfs mount --root {root}")
        for file in sorted((tree.private(root) / "run").iterdir()):
            yield _left(file, root)
    else:
        yield _place(root)


def container(status: dict[str, Any], root: Path, able: Abilities | None) -> Check:
    """Return the check of a container of which the supervisor tells `status`."""
    name, state, policy = f"container {status['name']}", status["state"], status.get("on_crash")
    found = ", ".join([state, *([f"process {status['pid']}"] if status["pid"] else [])])
    found += f', on_crash = "{policy}"' if policy else ""
    found += f": {status['reason']}" if status["reason"] else ""
    command = f"{status['name']} --root {root}"
    match state:
        case "running" if policy == "reissue" and able is not None and not able.resend:
            return Check(name, LIMITED, f'{found}, which acts as "fail" here', "Linux 6.9 or later")
        case "running":
            return Check(name, OK, found)
        case "failed":
            return Check(name, MISSING, found, f"ldmfs restart {command}")
        case "stopped":
            return Check(name, LIMITED, found, f"ldmfs start {command}", needed=False)
    return Check(name, LIMITED, found)


def _left(file: Path, root: Path) -> Check:
    """Return the check of a container whose supervisor is gone, by the file that has its process's number."""
    name, pid = f"container {file.name}", int(file.read_text())
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        ended = True
    else:
        ended = bool(select.select([fd], (), (), 0)[0])  # it may have ended, and nobody has waited for it
        os.close(fd)
    if ended:
        return Check(name, MISSING, f"process {pid} is gone", f"ldmfs mount --root {root}")
    return Check(name, OK, f"process {pid}, without a supervisor")


def _place(root: Path) -> Check:
    """Return the check of a root that has no tree: whether there can be one."""
    another = "ldmfs mount --root DIR, or export LDMFS_ROOT=DIR"
    existing = next(path for path in (root, *root.parents) if os.path.exists(path))
    if not existing.is_dir() or not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        return Check("tree", MISSING, f"none at {root}, and {existing} is not writable for you", another)
    if existing == root and os.listdir(root):
        return Check("tree", MISSING, f"none at {root}, which is not empty", another)
    return Check("tree", OK, f"none at {root}", f"ldmfs mount --root {root}")


def _containers(root: Path) -> list[dict[str, Any]]:
    """Return what the supervisor tells of its containers.

    Raises `TimeoutError` where it does not answer: the file is read in a thread, since a read cannot be given up.
    """
    answers: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()

    def read() -> None:
        try:
            answers.put((root / "system" / "graph").read_bytes())
        except OSError as error:
            answers.put(error)

    threading.Thread(target=read, name="ldmfs-graph", daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {ANSWER_SECONDS:g} s") from None
    if isinstance(answer, OSError):
        raise answer
    containers: list[dict[str, Any]] = json.loads(answer)["containers"]
    return containers
