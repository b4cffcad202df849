"""The plug-in `stages`: devices whose handlers stay where they are until the test releases them.

What happens to a device is written to the file `log`, a line each: its name, what happened, the consumer id.  A handler
goes on when the file `release` is there.
"""

from __future__ import annotations

import time
from pathlib import Path

import trio

from ldmfs import Device, Provider, Request, Settings

LARGE = 32 << 20


class Release:
    """Whether the handlers may go on: one task looks, however many of them wait."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._there = trio.Event()
        self._looking = False

    def __bool__(self) -> bool:
        return self._file.exists()

    async def wait(self) -> None:
        if not self._looking:
            self._looking = True
            trio.lowlevel.spawn_system_task(self._look)
        await self._there.wait()

    async def _look(self) -> None:
        while not self:
            await trio.sleep(0.005)
        self._there.set()
        self._there = trio.Event()
        self._looking = False


class Stage(Device):
    """Logs its consumers, and answers at once."""

    def __init__(self, name: str, log: str, release: Release) -> None:
        self.name = name
        self.log = log
        self.release = release

    def tell(self, what: str, consumer_id: int) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{self.name} {what} {consumer_id}\n")

    async def hold(self, what: str, consumer_id: int) -> None:
        """Stay until released."""
        self.tell(what, consumer_id)
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.tell("cancelled", consumer_id)
            raise

    def block(self, consumer_id: int) -> bytes:
        """Stay until released, in the thread."""
        self.tell("start", consumer_id)
        while not self.release:
            time.sleep(0.005)
        self.tell("done", consumer_id)
        return b"released"

    def open(self, consumer_id: int) -> None:
        self.tell("open", consumer_id)

    def close(self, consumer_id: int) -> None:
        self.tell("close", consumer_id)

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data)


class Opening(Stage):
    async def open(self, consumer_id: int) -> None:  # type: ignore[override]
        await self.hold("opening", consumer_id)
        super().open(consumer_id)


class Closing(Stage):
    async def close(self, consumer_id: int) -> None:  # type: ignore[override]
        await self.hold("closing", consumer_id)
        super().close(consumer_id)


class Async(Stage):
    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        await self.hold("start", consumer_id)
        self.tell("done", consumer_id)
        return b"released"


class Large(Stage):
    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        await self.hold("start", consumer_id)
        self.tell("done", consumer_id)
        return bytes(LARGE)


class Inline(Stage):
    def request(self, consumer_id: int, request: Request) -> bytes:
        return self.block(consumer_id)


class Thread(Inline):
    thread = True


class StagesSettings(Settings):
    """Keys of `[container.stages]`."""

    log: str
    release: str


class Stages(Provider):
    """A device for each stage."""

    Settings = StagesSettings
    settings: StagesSettings

    def start(self) -> None:
        kinds = {"idle": Stage, "opening": Opening, "closing": Closing, "async": Async, "large": Large,
                 "inline": Inline, "thread": Thread}  # fmt: skip
        release = Release(Path(self.settings.release))
        for name, kind in kinds.items():
            self.create_device(name, kind(name, self.settings.log, release))


def install(plug_ins: Path) -> None:
    """Make the plug-in known to whoever knows those of the mounted tests."""
    info = plug_ins / "ldmfs_stages-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ldmfs-stages\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ldmfs.providers]\nstages = channel.stages:Stages\n")
