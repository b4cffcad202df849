"""The container `system`, which is the supervisor itself: `containers`, `graph`, `graph.dot`, `control`.

    cat /ldm/system/containers                      the containers and how they are, a line each
    cat /ldm/system/graph                           containers, devices, consumers and who consumes whom, as JSON
    cat /ldm/system/graph.dot                       the same for Graphviz
    echo 'restart text' > /ldm/system/control       also: upgrade NAME, start NAME, stop NAME, shutdown

A command's error is the error of the write or of the close; `cat` tells it in words.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import msgspec

from ..container.host import Container
from ..core.device import Device
from ..core.errors import InvalidRequest, LdmError, NoSuchDevice, NotSupported
from ..core.request import Request, RequestType
from ..kernel import sysfs
from .child import Child
from .guest import Guest

READ_ONLY = frozenset({RequestType.READ})


class Supervision(Protocol):
    """What the devices need of the supervisor."""

    children: dict[str, Child | Guest]
    system: Container

    async def start(self, child: Child) -> None: ...
    def shut_down(self) -> None: ...


class Report(Device):
    """A device that tells something, computed at each READ."""

    accepts = READ_ONLY
    mode = 0o444

    def __init__(self, description: str, gives: str, report: Callable[[], Awaitable[str]]) -> None:
        self.description = description
        self.gives = gives
        self._report = report

    async def request(self, consumer_id: int, request: Request) -> bytes:
        """Answer with the report as it is now."""
        return (await self._report()).encode()


class Control(Device):
    """Takes commands for the supervisor."""

    mode = 0o600
    description = "commands for the supervisor"
    takes = "upgrade NAME, restart NAME, start NAME, stop NAME, shutdown"
    gives = "ok, when the command has been carried out"

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision

    async def request(self, consumer_id: int, request: Request) -> bytes:
        """Carry out a command; a READ lists them."""
        if request.type is RequestType.READ:
            return f"{self.takes}\n".encode()
        verb, *names = bytes(request.data).decode(errors="replace").split() or [""]
        if verb == "shutdown" and not names:
            self._supervision.shut_down()
            return b"ok\n"
        if verb not in ("upgrade", "restart", "start", "stop") or len(names) != 1:
            raise InvalidRequest(f"a command is one of: {self.takes}")
        await self._carry_out(verb, names[0])
        return b"ok\n"

    async def _carry_out(self, verb: str, name: str) -> None:
        child = self._supervision.children.get(name)
        if child is None:
            raise NoSuchDevice(f"there is no container {name!r}")
        if isinstance(child, Guest) and verb != "stop":
            raise NotSupported(f"container {name!r} is run by hand; start it again as it was started")
        if isinstance(child, Child) and verb == "upgrade":
            await child.upgrade()
        if verb in ("restart", "stop") and child.active:
            await child.stop()
        if isinstance(child, Child) and verb in ("restart", "start") and not child.active:
            await self._supervision.start(child)
            if child.state != "running":
                raise LdmError(f"container {name!r} {child.state}: {child.reason}")


def create_devices(supervision: Supervision) -> None:
    """Create the devices of the container `system`."""

    async def containers() -> str:
        return table(supervision)

    async def graph() -> str:
        return msgspec.json.format(msgspec.json.encode(await describe(supervision)), indent=2).decode() + "\n"

    async def graph_dot() -> str:
        return dot(await describe(supervision))

    create = supervision.system.create_device
    create("containers", Report("the containers and how they are", "a table in plain text", containers))
    create("graph", Report("containers, devices and consumers", "JSON", graph))
    create("graph.dot", Report("the graph for Graphviz", "DOT", graph_dot))
    create("control", Control(supervision))


def table(supervision: Supervision) -> str:
    """Return the containers as lines of text under a heading."""
    rows = [("CONTAINER", "STATE", "PID", "STANDBY", "RESTARTS", "SINCE", "PROVIDERS", "REASON")]
    kernel = [sysfs.describe()] if sysfs.loaded() else []
    for status in [*(child.status() for child in supervision.children.values()), *kernel, _own_status(supervision)]:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status["since"]))
        rows.append((
            status["name"], status["state"], str(status["pid"] or "-"), str(status.get("standby") or "-"),
            str(status["restarts"]), since, ",".join(status["providers"]) or "-", status["reason"].partition("\n")[0],
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


async def describe(supervision: Supervision) -> dict[str, Any]:
    """Return the whole graph as plain data: each container's status, devices and consumers."""
    described = []
    for child in tuple(supervision.children.values()):  # guests come and go meanwhile
        registry = await child.describe()
        described.append({**child.status(), "devices": registry["devices"] if registry else []})
    if sysfs.loaded():
        described.append(sysfs.describe())
    system = supervision.system.registry.describe()
    described.append({**_own_status(supervision), **system})
    by_pid = {entry["pid"]: entry["name"] for entry in described if entry.get("pid")}
    for entry in described:
        for device in entry["devices"]:
            for consumer in device["consumers"]:
                of_kernel = "kernel" if consumer["path"] == "kernel" else None  # also after it was adopted
                consumer["container"] = consumer["container"] or of_kernel or by_pid.get(consumer["pid"])
    return {"containers": described, "relations": list(_relations(described))}


def _relations(containers: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield which device consumes which: the last of the chain on whose behalf it was opened."""
    seen = set()
    for container in containers:
        for device in container["devices"]:
            name = f"{container['name']}/{device['name']}"
            for consumer in device["consumers"]:
                if consumer["chain"] and (consumer["chain"][-1], name) not in seen:
                    seen.add((consumer["chain"][-1], name))
                    yield {"consumer": consumer["chain"][-1], "device": name}


def _own_status(supervision: Supervision) -> dict[str, Any]:
    return {
        "name": "system",
        "state": "running",
        "pid": os.getpid(),
        "standby": None,
        "since": supervision.system.registry.created,
        "restarts": 0,
        "reason": "",
        "providers": [],
    }


def dot(graph: dict[str, Any]) -> str:
    """Return the graph in Graphviz's language: a box for each container, an edge for each consumer."""
    lines = ["digraph ldmfs {", "  rankdir=LR;"]
    for container in graph["containers"]:
        lines.append(f"  subgraph {_quote('cluster_' + container['name'])} {{")
        lines.append(f"    label={_quote(container['name'])};")
        for device in container["devices"]:
            lines.append(f"    {_quote(container['name'] + '/' + device['name'])} [label={_quote(device['name'])}];")
        lines.append("  }")
    for container in graph["containers"]:
        for device in container["devices"]:
            for consumer in device["consumers"]:
                chain = consumer["chain"]
                source = chain[-1] if chain else consumer["container"] or f"process {consumer['pid']}"
                lines.append(f"  {_quote(source)} -> {_quote(container['name'] + '/' + device['name'])};")
    return "\n".join([*lines, "}\n"])


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
