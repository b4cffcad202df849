"""native: providers in C, the same sources as in the kernel.

Each table hosts one provider: the shared object that is made of its source.  It runs in the container's process, its
handlers in worker threads, at most 64 at a time for each device.  When it crashes, that is the container's crash and
nobody else's.  The device that has the provider's own name gets the table's; others that it makes keep theirs.

    $ printf abc > /ldm/fast/crc32; cat /ldm/fast/crc32
    352441c2
    $ mkfs.ext4 -qF /ldm/fast/disk

Configuration, in which `fast.native` is the container and the plug-in, and `disk` and `crc32` are devices:

    [fast.native.crc32]
    [fast.native.disk]
    source = "ramdisk"                 # a bundled provider, or the path of a shared object; default: the table's name
    parameters.size = "64 MiB"         # its parameters

Bundled are, each with its manual at the head of its source, providers/*.c:

    provider   parameters      device
    crc32                      CRC-32 of the message
    delay      milliseconds    the message, after a time
    ramdisk    size            a block device in memory
    relay      lower           passes requests on to the device `lower`, which may be of any container, or the kernel's

`python -m ldmfs.native mine.c` makes mine.so of a source that includes ldm.h, whose head is the manual for it.

Data in shared memory is not copied: a provider sees it where its consumer has put it, and so does the next one that it
is passed on to with ldm_forward_request(); a reply that is handed back with ldm_take_output() stays where it is, too.
Smaller data, and what the provider puts into a request itself, is copied once.  A consumer may change what is in shared
memory while it is looked at: a provider copies what it decides on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import ldmfs
from ldmfs.native.build import PACKAGES
from ldmfs.native.instance import Instance
from ldmfs.native.library import Library, LibraryError

HERE = Path(__file__).resolve().parent


class NativeSettings(ldmfs.Settings):
    """The keys of a provider's table."""

    source: Annotated[
        str | None, ldmfs.Doc("a bundled provider, or the path of a shared object; default: the table's name")
    ] = None
    parameters: Annotated[dict[str, bool | int | str], ldmfs.Doc("the provider's parameters")] = {}


class Native(ldmfs.Provider):
    """Hosts providers in C, one for each table."""

    DeviceSettings = NativeSettings

    def __init__(
        self, container: ldmfs.Container, name: str, settings: Any = None, devices: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(container, name, settings, devices)
        self._libraries = {device: _load(device, table) for device, table in self.devices.items()}
        self._started: list[Instance] = []

    async def start(self) -> None:
        """Start the providers, one after the other."""
        for device, library in self._libraries.items():
            instance = Instance(library, self.container, device, self.name)
            await instance.start()
            self._started.append(instance)

    async def stop(self) -> None:
        """Stop them, the last one first."""
        while self._started:
            await self._started.pop().stop()


def bundled() -> dict[str, Path]:
    """Return the shared objects of the bundled providers, by name."""
    return {path.stem.removeprefix("ldm_"): path for path in sorted(HERE.glob("ldm_*.so"))}


def _load(device: str, settings: NativeSettings) -> Library:
    """Load a table's provider and set its parameters.  Raises `ValueError`, which names the key."""
    try:
        library = Library(str(_path(settings.source or device)))
    except (LibraryError, ValueError) as error:
        raise ValueError(f"{device}.source: {error}") from None
    try:
        library.configure(settings.parameters)
    except ValueError as error:
        raise ValueError(f"{device}.parameters.{error}") from None
    return library


def _path(source: str) -> Path:
    if "/" in source:
        if not source.startswith("/"):
            raise ValueError(f"the path of a shared object begins with a slash, {source!r} does not")
        return Path(source)
    there = bundled()
    if not there:
        raise ValueError(f"the bundled providers were not built: {PACKAGES}; then install ldmfs anew")
    if source not in there:
        raise ValueError(f"there is no bundled provider {source!r}; there are: {', '.join(there)}")
    return there[source]
