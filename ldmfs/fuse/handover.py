"""Handing an instance's open files to the next one, in order, so that their users see a pause and nothing else.

The instance that goes has stopped reading requests.  It waits for the handlers that run, until a deadline; then it
leaves in the state area, for all files in one commit, the replies that were not read to their end, and those that are
kept for the next reader of a session.  Killed before that, it is as after any crash.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Protocol

import trio

from ..core.errors import LdmError, NoSpace, ProviderDied, from_errno
from ..core.kept import KEPT_SECONDS, KeptReplies, KeptReply, Key
from ..core.store import Store, Transaction
from . import records
from .files import File
from .lean import unanswered
from .message_file import MessageFile

log = logging.getLogger("ldmfs.fuse")

GIVE_UP_SECONDS = 1.0
"""How long handlers that are cancelled at the deadline may take to end."""

KEPT = "kept-"
"""How the keys of kept replies begin; those of open files are numbers."""


class Holder(Protocol):
    """What has the open files."""

    files: Store | None
    reissue: bool
    ending: LdmError | None
    kept: KeptReplies

    def open_files(self) -> Iterable[File]: ...
    def give_up_opens(self) -> None: ...


async def drain(holder: Holder, deadline: float) -> None:
    """Return when no request is being answered and no handler runs, or at `deadline`, in the time of trio's clock.

    What still runs then is given up and fails with `ProviderDied`; where requests are reissued it is left unanswered.
    """
    with trio.move_on_at(deadline):
        await _all_done(holder)
        return
    if holder.reissue:
        return
    holder.ending = ProviderDied("the container's process ended before the request was answered")
    holder.give_up_opens()
    for file in holder.open_files():
        file.give_up()
    with trio.move_on_after(GIVE_UP_SECONDS):
        await _all_done(holder)


async def _all_done(holder: Holder) -> None:
    await unanswered.wait_none()
    for file in holder.open_files():
        if isinstance(file, MessageFile) and (done := file.done) is not None:
            await done.wait()
    await unanswered.wait_none()  # who waited for one of these


def leave(holder: Holder) -> None:
    """Write what the next instance needs of each open file and of the kept replies; nothing may run any more."""
    store = holder.files
    if store is None:
        return
    left = {
        str(file.consumer.id): record
        for file in holder.open_files()
        if isinstance(file, MessageFile) and (record := file.record()) is not None
    }
    try:
        store.update(lambda transaction: _put_all(transaction, left, holder.kept))
    except NoSpace as error:
        log.error("what open files hold is lost: %s", error)


def _put_all(transaction: Transaction, left: dict[str, records.Record], kept: KeptReplies) -> None:
    for key, record in left.items():
        transaction.put(key, records.encode(record))
    for each in kept.left():
        transaction.put(_key(each[1].writer), _kept_record(kept, *each))


def _key(writer: int) -> str:
    return f"{KEPT}{writer}"


def _kept_record(kept: KeptReplies, key: Key, reply: KeptReply) -> bytes:
    error = reply.error
    data = bytes(reply.data) if error is None else str(error).encode()
    errno = 0 if error is None else error.errno
    return records.encode(records.Kept(*key, reply.writer, reply.expires + time.time() - kept.clock(), errno, data))


def go_on(store: Store, kept: KeptReplies, consumers: Iterable[int], *, reissue: bool) -> None:
    """Keep the replies that the instance before has kept; drop what it left of files that are not open any more.

    Where requests are reissued the replies stay in the store, for the instance after this one.
    """
    there = {str(id) for id in consumers}
    ahead = time.time() - kept.clock()

    def take(transaction: Transaction) -> None:
        for key in tuple(transaction):
            if key.startswith(KEPT):
                record = records.decode(transaction.get(key) or b"")
                assert isinstance(record, records.Kept)
                expires = min(record.expires - ahead, kept.clock() + KEPT_SECONDS)
                error = from_errno(record.errno, record.data.decode()) if record.errno else None
                reply = KeptReply(record.writer, b"" if error else record.data, error, expires)
                kept.go_on_with((record.device, record.uid, record.session), reply)
                if reissue:
                    continue
            if key not in there:
                transaction.delete(key)

    store.update(take)
    if reissue:
        kept.added = lambda key, reply: _store_kept(store, kept, key, reply)
        kept.dropped = lambda reply: store.delete(_key(reply.writer))


def _store_kept(store: Store, kept: KeptReplies, key: Key, reply: KeptReply) -> None:
    with contextlib.suppress(NoSpace):  # it is lost with the process then
        store.put(_key(reply.writer), _kept_record(kept, key, reply))
