"""The directory of one container as pyfuse3 asks for it: names, attributes and open files.

Whatever is raised in here becomes an errno: pyfuse3 ends its loop at any exception but its own.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import Any, NoReturn, cast

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
from .attributes import XATTR_PREFIX, attributes_of, totals_of, xattrs_of
from .block_file import BlockFile
from .files import File, adopted_file, open_file
from .invalidation import Invalidations
from .lean import after_answer
from .listings import Listings
from .message_file import MessageFile
from .polls import Polls
from .running import Running
from .safe import errno_of, operation
from .waiting import Watch


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
        self._listings = Listings(registry)
        self.invalidations = Invalidations(registry, self.kept, nursery)
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
        return await self._open(device, flags, ctx), attributes_of(self.registry, device)

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
            await self.invalidations.settle()  # the number is read from the session's descriptor
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
        return attributes_of(self.registry, self._find(parent_inode, name))

    @operation
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes of the directory or of a device."""
        return attributes_of(self.registry, self._device(inode))

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
        return attributes_of(self.registry, device)

    @operation
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Take a listing of the devices as they are now."""
        return FileHandleT(self._listings.open())

    @operation
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Return the part of the listing behind `start_id` that has room."""
        for device in self._listings.behind(fh, start_id):
            name, attributes = pyfuse3.FileNameT(device.name.encode()), attributes_of(self.registry, device)
            if not pyfuse3.readdir_reply(token, name, attributes, device.id):
                return

    @operation
    async def releasedir(self, fh: FileHandleT) -> None:
        """Forget a listing."""
        self._listings.close(fh)

    @operation
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """`rm` is destroy_device."""
        self.registry.destroy_device(self._find(parent_inode, name).name)

    @operation
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Return the sum of the block devices' sizes, and the number of devices."""
        return totals_of(self.registry)

    @operation
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """Return one of `user.ldm.*`."""
        if name.startswith(XATTR_PREFIX):  # the kernel asks for others often
            value = xattrs_of(self.registry, self._device(inode)).get(name)
            if value is not None:
                return value.encode()
        raise FUSEError(pyfuse3.ENOATTR)

    @operation
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[bytes]:
        """Return the names of `user.ldm.*`."""
        return list(xattrs_of(self.registry, self._device(inode)))

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
