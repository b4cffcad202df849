"""The directory of one container as pyfuse3 asks for it: names, attributes and open files.

Whatever is raised in here becomes an errno: pyfuse3 ends its loop at any exception but its own.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, RequestContext, SetattrFields

from ..core.device import MAX_NAME, Consumer, Execution, Kind, LogicalDevice, Peer
from ..core.dispatch import Dispatch
from ..core.errors import (
    InvalidRequest,
    LdmError,
    NameTooLong,
    NoSuchDevice,
    NotPermitted,
    RequestCancelled,
    StaleHandle,
)
from ..core.kept import KeptReplies
from ..core.registry import ROOT_ID, Registry
from ..core.store import Store
from ..core.wire import Buffer
from . import handover, signals
from .block_file import BlockFile
from .files import File, adopted_file, open_file
from .lean import after_answer, inline, unanswered
from .message_file import MessageFile
from .polls import Polls
from .running import Running
from .waiting import Watch

log = logging.getLogger("ldmfs.fuse")

CACHE_SECONDS = 300.0
"""How long the kernel may keep names and attributes; what changes is invalidated at once."""

XATTR_PREFIX = b"user.ldm."

P = ParamSpec("P")
T = TypeVar("T")


def errno_of(error: BaseException) -> int:
    """Return the errno of anything that an operation raised; log it where it is not the model's."""
    if isinstance(error, LdmError):
        return error.errno
    log.error("an operation of the file edge raised", exc_info=error)
    return errno.EIO


def operation(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make an operation safe for pyfuse3: its errors are FUSEErrors, and others are served while it is suspended."""

    @functools.wraps(function)
    async def safe(*args: P.args, **kwargs: P.kwargs) -> T:
        unanswered.count += 1
        try:
            return await inline(function(*args, **kwargs))
        except (FUSEError, trio.Cancelled):
            raise
        except Exception as error:
            raise FUSEError(errno_of(error)) from None
        finally:
            unanswered.done()

    return safe


class Operations(pyfuse3.Operations):
    """The FUSE operations of one container."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        registry: Registry,
        dispatch: Dispatch,
        nursery: trio.Nursery,
        files: Store | None = None,
        *,
        reissue: bool = False,
    ) -> None:
        super().__init__()
        self.files = files
        self.reissue = reissue
        self.ending: LdmError | None = None
        self.stop_reading: Callable[[], None] = lambda: None
        """Lets no further request be read from the session's descriptor."""
        self.registry = registry
        self.dispatch = dispatch
        self.nursery = nursery
        self.kept = KeptReplies(trio.current_time)
        self.watch = Watch(nursery)
        self.polls: Polls | None = None
        """There is one once the session has its descriptor."""
        self._waited_for: set[int] = set()
        self._files: dict[int, File] = {}
        self._opening: set[trio.CancelScope] = set()
        self._listings: dict[int, list[LogicalDevice]] = {}
        self._last_listing = 0
        self._token = trio.lowlevel.current_trio_token()
        self._attached = True
        self._invalidations: set[trio.Event] = set()
        registry.observers.append(self._changed)
        for consumer in tuple(registry.consumers.values()):  # adopted from the instance before this one
            if consumer.peer.path in ("file", "kernel") and not consumer.closing:
                self._files[consumer.id] = adopted_file(self, consumer)
        if files is not None:
            messages = [id for id, file in self._files.items() if isinstance(file, MessageFile)]
            handover.go_on(files, self.kept, messages, reissue=reissue)

    def wake_waiters(self, polls: Polls) -> None:
        """Wake those who wait in poll(2) for an earlier instance of the container; they ask this one then."""
        self.polls = polls
        if self.dispatch.area is None:
            return
        for left in self.dispatch.area.recover().consumers:
            if left.waker and left.id in self._files:
                self._waited_for.add(left.id)
                polls.wake(left.waker)

    async def hand_over(self, deadline: float) -> None:
        """Answer no further request, and return when none is being answered; see `handover.drain`."""
        self.stop_reading()
        await handover.drain(self, deadline)

    def open_files(self) -> tuple[File, ...]:
        """Return the files that are open now."""
        return tuple(self._files.values())

    def give_up_opens(self) -> None:
        """End the open handlers that are running."""
        for scope in tuple(self._opening):
            scope.cancel()

    def detach(self) -> None:
        """Stop following the registry: the session is about to end."""
        if self._attached:
            self._attached = False
            self.registry.observers.remove(self._changed)

    # -- open files: the fast path first

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Send a request (message), or write at an offset (block)."""
        try:
            file = self._files[fh]
            if type(file) is MessageFile:
                return file.write(buf, off)
        except KeyError:
            raise FUSEError(errno.ESTALE) from None
        except Exception as error:
            raise FUSEError(errno_of(error)) from None
        return await self._write_block(file, off, buf)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Return the next part of the reply (message), or the bytes at an offset (block)."""
        try:
            file = self._files[fh]
            if type(file) is MessageFile:
                data = file.read_now(size, off)
                if data is not None:
                    return cast(bytes, data)
        except KeyError:
            raise FUSEError(errno.ESTALE) from None
        except Exception as error:
            raise FUSEError(errno_of(error)) from None
        return cast(bytes, await self._read_slowly(file, off, size))

    @operation
    async def _write_block(self, file: File, offset: int, data: bytes) -> int:
        assert isinstance(file, BlockFile)
        return await file.write(offset, data)

    @operation
    async def _read_slowly(self, file: File, offset: int, size: int) -> Buffer:
        return await file.read(offset, size)

    @operation
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a device: a new consumer.

        ESTALE makes the kernel look up anew a name that it still knew of a device that is gone.
        """
        try:
            device = self.registry.find_id(inode)
        except NoSuchDevice:
            raise FUSEError(errno.ESTALE) from None
        return await self._open(device, flags, ctx)

    async def _open(self, device: LogicalDevice, flags: int, ctx: RequestContext) -> FileInfo:
        peer = signals.peer_of(ctx.pid, ctx.uid, ctx.gid)
        if device.open_execution is Execution.INLINE:
            consumer = await self.dispatch.open(device, peer, flags)
        else:
            consumer = await self._open_slowly(device, peer, flags, ctx.pid)
        self._files[consumer.id] = open_file(self, consumer, flags)
        if self.dispatch.area is not None:
            after_answer(functools.partial(self.dispatch.area.consumers.answered, consumer.id))
        message = device.kind is Kind.MESSAGE
        return FileInfo(fh=FileHandleT(consumer.id), direct_io=True, keep_cache=False, nonseekable=message)

    async def _open_slowly(self, device: LogicalDevice, peer: Peer, flags: int, tid: int) -> Consumer:
        """Run an open handler that may wait, as long as thread `tid` wants to wait for it."""
        outcome: list[Consumer | LdmError | None] = []
        running, interrupted = Running(), None
        self._opening.add(running.scope)
        self.nursery.start_soon(running.run, outcome.append, self.dispatch.open, device, peer, flags)
        try:
            await self.watch.wait(running.done, functools.partial(signals.pending, tid))
        except LdmError as error:
            interrupted = error
            running.scope.cancel()
            with trio.CancelScope(shield=True):
                await running.done.wait()
        finally:
            self._opening.remove(running.scope)
        if isinstance(result := next(iter(outcome), None), Consumer):
            return result
        cancelled = RequestCancelled(f"the open of {device.name!r} was cancelled")
        raise result or interrupted or self.ending or cancelled

    @operation
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """`open` with O_CREAT: opens a device that exists; devices are created by providers, not through files."""
        device = self._find(parent_inode, name)
        return await self._open(device, flags, ctx), self._attributes(device)

    @operation
    async def flush(self, fh: FileHandleT) -> None:
        """A descriptor was closed."""
        file = self._files.get(fh)
        if file is not None:
            await file.flush()

    @operation
    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor was closed, or its owner is gone."""
        self._waited_for.discard(fh)
        file = self._files.pop(fh, None)
        if file is not None:
            await file.release()

    @operation
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a block device's data durable; a message device has nothing to do."""
        file = self._file(fh)
        if isinstance(file, BlockFile):
            await file.sync()

    @operation
    async def poll(
        self, inode: InodeT, fh: FileHandleT, poll_handle: pyfuse3.PollHandle | None, ctx: RequestContext
    ) -> int:
        """Tell which of reading and writing is possible at once."""
        file = self._file(fh)
        if poll_handle is not None and self.polls is not None and fh not in self._waited_for:
            while self._invalidations:  # each is a thread that may write to the session's descriptor
                await self.settle()
            self._note_waker(file.consumer, self.polls.number_of(poll_handle))
        return file.poll(poll_handle)

    def _note_waker(self, consumer: Consumer, number: int) -> None:
        area = self.dispatch.area
        if area is not None and self._files.get(FileHandleT(consumer.id)) is not None:
            area.consumers.waited_for(consumer.id, number)
            self._waited_for.add(consumer.id)

    # -- names and attributes

    @operation
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a device by name."""
        return self._attributes(self._find(parent_inode, name))

    @operation
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes of the directory or of a device."""
        return self._attributes(self._device(inode))

    @operation
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Take over chmod and chown; truncating to nothing (`>`) and setting times are harmless and do nothing."""
        device = self._device(inode)
        if device is None:
            raise NotPermitted("the attributes of a container's directory are fixed")
        if fields.update_size and attr.st_size not in (0, device.size):
            raise InvalidRequest("a device has no size that could be set")
        if fields.update_mode:
            device.mode = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            device.uid = attr.st_uid
        if fields.update_gid:
            device.gid = attr.st_gid
        return self._attributes(device)

    @operation
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Take a listing of the devices as they are now."""
        self._last_listing += 1
        self._listing(FileHandleT(self._last_listing))
        return FileHandleT(self._last_listing)

    def _listing(self, fh: FileHandleT) -> list[LogicalDevice]:
        """Return a listing; for a directory that was opened under an earlier instance, one that is taken now."""
        if fh not in self._listings:
            self._listings[fh] = sorted(self.registry, key=_id_of)
        return self._listings[fh]

    @operation
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Return the part of the listing behind `start_id` that has room.

        Devices are in the order of their ids, which are the same in every instance, and the place behind one is its id:
        so a listing goes on with another instance of the container.
        """
        listing = self._listing(fh)
        for index in range(bisect.bisect_right(listing, start_id, key=_id_of), len(listing)):
            device = listing[index]
            if self.registry.by_id.get(device.id) is device and not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(device.name.encode()), self._attributes(device), device.id
            ):
                return

    @operation
    async def releasedir(self, fh: FileHandleT) -> None:
        """Forget a listing."""
        self._listings.pop(fh, None)

    @operation
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """`rm` is destroy_device."""
        self.registry.destroy_device(self._find(parent_inode, name).name)

    @operation
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Return the sum of the block devices' sizes, and the number of devices."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = sum(device.size for device in self.registry) // 4096
        data.f_files = len(self.registry)
        data.f_namemax = 255
        return data

    @operation
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """Return one of `user.ldm.*`."""
        if name.startswith(XATTR_PREFIX):
            value = self._xattrs(self._device(inode)).get(name.removeprefix(XATTR_PREFIX).decode(errors="replace"))
            if value is not None:
                return value.encode()
        raise FUSEError(pyfuse3.ENOATTR)

    @operation
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[bytes]:
        """Return the names of `user.ldm.*`."""
        return [XATTR_PREFIX + name.encode() for name in self._xattrs(self._device(inode))]

    # -- what is refused, clearly

    async def _refuse(self, *args: object) -> NoReturn:
        raise FUSEError(errno.EPERM)

    mknod = mkdir = rmdir = symlink = rename = link = setxattr = removexattr = cast(Any, _refuse)

    # -- the rest

    def _file(self, fh: int) -> File:
        try:
            return self._files[fh]
        except KeyError:
            raise StaleHandle("the file was opened under an instance of the container that is gone") from None

    def _find(self, parent: int, name: bytes) -> LogicalDevice:
        if parent != ROOT_ID:
            raise NoSuchDevice("only the container's directory has devices")
        if len(name) > MAX_NAME:
            raise NameTooLong(f"a name has at most {MAX_NAME} bytes")
        return self.registry.find(os.fsdecode(name))

    def _device(self, inode: int) -> LogicalDevice | None:
        """Return the device of a node id, None for the directory."""
        return None if inode == ROOT_ID else self.registry.find_id(inode)

    def _attributes(self, device: LogicalDevice | None) -> EntryAttributes:
        entry = EntryAttributes()
        entry.attr_timeout = entry.entry_timeout = CACHE_SECONDS
        created = self.registry.created if device is None else device.created
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = int(created * 1e9)
        if device is None:
            entry.st_ino = InodeT(ROOT_ID)
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
            entry.st_nlink = 2
            entry.st_uid, entry.st_gid = self.registry.owner
            return entry
        entry.st_ino = InodeT(device.id)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | device.mode)
        entry.st_uid, entry.st_gid = device.uid, device.gid
        entry.st_size = device.size
        entry.st_blocks = device.size // 512
        return entry

    def _xattrs(self, device: LogicalDevice | None) -> dict[str, str]:
        if device is None:
            return {"container": self.registry.container, "devices": str(len(self.registry))}
        return {
            "container": self.registry.container,
            "provider": device.provider,
            "kind": device.kind.value,
            "description": device.description,
            "takes": device.takes,
            "gives": device.gives,
            "consumers": str(len(device.consumers)),
        }

    def _changed(self, device: LogicalDevice, created: bool) -> None:
        """Make the kernel forget a name that is gone; called in the thread that destroyed the device."""
        if not created:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._forget, device)

    def _forget(self, device: LogicalDevice) -> None:
        self.kept.forget_device(device.id)
        if self._attached:
            self.nursery.start_soon(self._invalidate, device.name.encode(), device.id)

    async def _invalidate(self, name: bytes, id: int) -> None:
        # In a thread: the kernel takes the directory's lock for it, which may be held for a request to this loop.
        done = trio.Event()
        self._invalidations.add(done)
        try:
            await trio.to_thread.run_sync(invalidate, name, id, abandon_on_cancel=True)
        finally:
            self._invalidations.remove(done)
            done.set()

    async def settle(self) -> None:
        """Wait until the kernel knows of all devices that are gone: the descriptor must not be closed before."""
        for done in tuple(self._invalidations):
            await done.wait()


def _id_of(device: LogicalDevice) -> int:
    return device.id


def invalidate(name: bytes, id: int) -> None:
    """Tell the kernel that a device is gone, as a deletion, which inotify sees; it may not know of it at all."""
    try:
        pyfuse3.invalidate_entry(InodeT(ROOT_ID), pyfuse3.FileNameT(name), InodeT(id))
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("the kernel could not be told that device %s is gone: %s", name.decode(), error)
