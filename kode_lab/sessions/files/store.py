"""The directory store: sessions as JSON files, safe for many tasks and many processes.

It puts the parts together: the in-process lock for order, the file lock between processes, the
session's files with their fence, and, for durability ``power``, the journal. It owns which lease is
out and which files are open. It must not know what a turn says or why it is written.

    <root>/<userId>/<sessionId>:<agentId>/<sessionId>:<agentId>/runtime/{messages.json,turns.jsonl}
    <root>/+store      who works here; processes share it, ``power`` owns it alone
    <root>/+locks/     1,024 files whose bytes are the locks
    <root>/+memory/    what the sessions of a user share
    <root>/+journal    what ``power`` has logged (no id can be encoded to a name with "+")

With ``layout="report"`` the user level is missing, as in the report: there two users with the same
session id name one directory, so the second one is refused by the owner that is recorded in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from kode_lab.errors import (
    InvalidScenario,
    SessionDamaged,
    StaleLease,
    StoreUnwritable,
    WaitingRoomFull,
)
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.files.disk import SCARCE, Disk, PosixDisk, explained
from kode_lab.sessions.files.file_lock import FileLocks, Occupancy, ProcessLock
from kode_lab.sessions.files.memory import MEMORIES, read_memory, write_memory
from kode_lab.sessions.files.power_journal import JOURNAL_BYTES, PowerJournal, recover
from kode_lab.sessions.files.reading import peek, sessions_in
from kode_lab.sessions.files.session_files import SessionFiles, Tail
from kode_lab.sessions.lock import KeyedLock, LockStatistics
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Stored, UserMemory

__all__ = ["Durability", "JsonStore", "Layout"]

Durability: TypeAlias = Literal["process", "power"]
Layout: TypeAlias = Literal["user", "report"]
T = TypeVar("T")

# A recovery of a full journal takes some two seconds.
_MOVE_IN_S = 10.0
_CHOICES = {"layout": get_args(Layout), "durability": get_args(Durability)}
# Sessions that have both files open, where no limit is given: the least and the most.
_SESSIONS = (2, 2_500)
# Of the files that the store may open, one part in so many is for lock files.
_LOCKS_SHARE = 8


class _Held(NamedTuple):
    """One lease that is out: its files and the lock between processes."""

    lease: Lease
    files: SessionFiles
    lock: ProcessLock | None


class JsonStore:
    """Sessions as JSON files below one directory.

    Args:
        root: created if it is missing; a relative one is found from the current directory.
        layout: ``user`` keeps users apart by directory; ``report`` uses the report's exact paths.
        durability: ``process`` survives kill -9 of this process; ``power`` a power cut too.
        open_sessions_limit: the store opens twice as many files at most, lock files included; it is
            no limit on sessions. By default an eighth of what the process may open.
        journal_bytes: size of the journal that ``power`` writes; a larger step makes it grow.
        move_in_s: how long to wait for another process that is just opening or leaving it.
        disk: the file system; tests pass a failing one.

    Raises:
        InvalidScenario: an option is none of its choices, or the root is empty.
        StoreUnwritable: the directory cannot be created or written.
        ForeignHost: another host or version works in it, or another process owns it for ``power``.
        StoreMoved: its lock files were removed while another process works in it.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        layout: Layout = "user",
        durability: Durability = "process",
        open_sessions_limit: int | None = None,
        journal_bytes: int = JOURNAL_BYTES,
        move_in_s: float = _MOVE_IN_S,
        disk: Disk | None = None,
    ) -> None:
        for name, value in (("layout", layout), ("durability", durability)):
            if value not in (choices := _CHOICES[name]):
                raise InvalidScenario(
                    f"{name} {value!r:.40} is not valid: choose {' or '.join(choices)}"
                )
        if not isinstance(root, str | os.PathLike):
            raise InvalidScenario(
                f"the store's root is a {type(root).__name__}: pass the path of a directory"
            )
        if not str(root):
            raise InvalidScenario("the store's root is empty: name a directory ('.' for this one)")
        # Where the process goes later, and how the path is spelled, must make no difference.
        self.root = Path(root).absolute()
        self._root = str(self.root)
        self._layout = layout
        self._is_closed = False
        self._disk: Disk = disk or PosixDisk()
        self._lock: KeyedLock[tuple[str, ...]] = KeyedLock()
        self._held: dict[SessionKey, _Held] = {}
        files = 2 * max(_default_limit() if open_sessions_limit is None else open_sessions_limit, 1)
        is_alone = durability == "power"
        lock_files = 0 if is_alone else max(1, files // _LOCKS_SHARE)
        # The sessions whose files are open, the longest unused first.
        self._open: OrderedDict[SessionKey, SessionFiles] = OrderedDict()
        self._open_limit = max((files - lock_files) // 2, 1)
        self._power: PowerJournal | None = None
        self._locks = FileLocks(
            self.root / "+locks",
            self._disk,
            open_limit=lock_files,
            guard=lambda: self._occupancy.check(),  # noqa: PLW0108 - it is made later
        )
        try:
            self._disk.make_directory(self.root)
            self._occupancy = Occupancy(self.root, self._disk, alone=is_alone, wait_s=move_in_s)
            try:
                self._use_journal(journal_bytes if is_alone else None)
                self._occupancy.settle()
            except BaseException:
                self._occupancy.leave()
                raise
        except OSError as error:
            raise explained(f"the store at {self.root.name!r}", error) from error

    async def hold(self, key: SessionKey, *, queue_limit: int) -> Lease:
        """Return the lease of the session, after all callers in this process that asked before.

        Between processes none starves; a dead process is noticed within 10 ms, and one that only
        keeps the session since its last turn gives it up within some milliseconds.

        Raises:
            WaitingRoomFull: ``queue_limit`` wait already, or it is 0 and the session is held.
            StoreError: the session's directory cannot be used.
        """
        slot = key[:2]
        if not self._lock.try_hold(slot):
            try:
                await self._lock.hold(slot, queue_limit=queue_limit)
            except WaitingRoomFull as error:
                raise WaitingRoomFull(f"{key}: {error}") from None
        lock: ProcessLock | None = None
        try:
            files = self._open.get(key)
            if files is None or files.lock is None or not self._locks.take_back(files.lock):
                files = None
                lock = await self._process_lock(key, is_patient=queue_limit > 0)
                files = self._counted_files(key)
                self._retried(files.turns)
                fence = self._retried(partial(files.next_fence, lock))
            else:
                lock = files.lock
                fence = files.next_fence(lock)
        except BaseException as error:
            if files is not None:
                self._open.pop(key, None)
                files.forget()
            if lock is not None:
                self._locks.release(lock)
            self._lock.release(slot)
            if isinstance(error, OSError):
                raise explained(str(key), error) from error
            raise
        lease = Lease(key, fence)
        self._held[key] = _Held(lease, files, lock)
        return lease

    async def _process_lock(self, key: SessionKey, *, is_patient: bool) -> ProcessLock | None:
        """Return the session's lock between processes; one that is here alone needs none."""
        if self._is_closed:
            raise StoreUnwritable(f"{key}: the store is closed: open it again")
        if self._power is not None:
            self._occupancy.check()
            return None
        if self._locks.was_forked():
            self._open.clear()  # what the other process has learned since is not known here
        place = self._locks.place_of(key.lock_name)
        lock = self._retried(partial(self._locks.try_hold, place))
        if lock is None and is_patient:
            return await self._locks.hold(place)
        if lock is None and (lock := await self._locks.hold_if_idle(place)) is None:
            raise WaitingRoomFull(f"{key}: another process holds it: send it again later")
        return lock

    def _counted_files(self, key: SessionKey) -> SessionFiles:
        """Return the session's files, open and counted as such."""
        files = self._open.get(key)
        if files is None:
            files = SessionFiles(
                key,
                f"{self._root}/{self._directory(key)}",
                self._disk,
                is_alone=self._power is not None,
                is_owner_known=self._layout == "user",
            )
            self._keep_open(files)
        return files

    def _keep_open(self, files: SessionFiles) -> None:
        """Count its files as open, and close those that were unused longest beyond the limit."""
        self._open[files.key] = files
        self._open.move_to_end(files.key)
        while len(self._open) > self._open_limit:
            _, oldest = self._open.popitem(last=False)
            try:
                self._close_files(oldest)
            except OSError:  # what it delayed is logged, and the journal will say what is wrong
                self._open[oldest.key] = oldest
                return

    def _close_files(self, files: SessionFiles) -> None:
        """Close them, and give up the lock if no turn uses it."""
        if files.lock is None or not self._locks.take_back(files.lock):
            files.close()
            return
        try:
            with contextlib.suppress(OSError):
                files.write_fence()
            files.close()
        finally:
            self._locks.release(files.lock)

    def release(self, lease: Lease) -> None:
        """End the lease; ending it twice does nothing.

        The lock between processes stays here until another process asks for it.
        """
        held = self._held.get(lease.key)
        if held is None or held.lease is not lease:
            return
        del self._held[lease.key]
        self._keep_open(held.files)  # it may have been closed while it was held
        if held.lock is not None:
            self._locks.keep(held.lock)
        self._lock.release(lease.key[:2])

    async def load(self, lease: Lease) -> Stored:
        """Return what is stored of the session, repaired where a crash left it half written.

        Raises:
            SessionDamaged: something else than a crash changed a file.
            StaleLease: another lease of the session was issued since.
        """
        files = self._files(lease)
        try:
            return self._retried(files.read)
        except SessionDamaged:
            files.forget()
            raise
        except OSError as error:
            raise explained(str(lease.key), error) from error

    async def journal(self, lease: Lease, turn: OpenTurn, entry: dict[str, Any]) -> None:
        """Save one step of the turn; when it returns, the step survives.

        Raises:
            StaleLease: another lease of the session was issued since.
            StoreUnwritable: the disk refused; the step is not saved, what was saved is still there.
        """
        files = self._settled_files(lease)
        await self._write(files, [files.step_tail(turn, [entry])])

    async def append(
        self, lease: Lease, turn: OpenTurn, entries: Sequence[dict[str, Any]]
    ) -> Finished:
        """Append the turn's messages, all or nothing; from then on it is in the conversation.

        Raises:
            StaleLease: another lease of the session was issued since.
            StoreUnwritable: the disk refused; the conversation is as it was, and the turn may still
                appear, whole, when the session is loaded again.
        """
        files = self._settled_files(lease)
        messages, done = files.turn_tails(turn)
        try:
            if self._power is not None:
                await self._power.log(files, [messages, done])
            elif self._is_untouched(files) and files.turns_bytes == files.done_bytes:
                self._apply(files, (done, messages))
            else:
                # The steps must not be lost: with the last of them a half-written append is
                # repeated. Then the line that replaces them may be written over them.
                await self._write(files, [files.step_tail(turn, entries, done), messages])
                await self._write(files, [done], can_undo=False)
        except asyncio.CancelledError:  # came too late: it is written
            files.took_turn(turn, messages)
            raise
        return files.took_turn(turn, messages)

    async def discard(self, lease: Lease) -> None:
        """Forget the unfinished turn."""
        files = self._settled_files(lease)
        await self._write(files, [files.discard_tail()])

    async def delete(self, lease: Lease) -> None:
        """Forget the conversation; the fence goes on growing, so no old holder comes back."""
        files = self._settled_files(lease)
        saying, *rest = files.delete_tails()
        if self._power is None:  # whose journal is all or nothing by itself
            await self._write(files, [saying])
        await self._write(files, rest, can_undo=False)
        files.forgot()

    async def rewind(
        self, lease: Lease, count: int, rewind_id: str, turn_ids: Sequence[str]
    ) -> None:
        """Keep the first ``count`` messages; the removed turns' ids stay known."""
        files = self._settled_files(lease)
        self._use_format(files)
        line, messages = files.rewind_tails(count, rewind_id, turn_ids)
        if self._power is not None:
            await self._power.log(files, [line, messages])
        else:
            await self._write(files, [line])
            await self._write(files, [messages], can_undo=False)
        files.rewound(count, messages)

    async def fill(
        self, lease: Lease, messages: Sequence[Message], turns: Sequence[Finished]
    ) -> None:
        """Save a whole conversation in a session that has none, all or nothing."""
        files = self._settled_files(lease)
        self._use_format(files)
        filling, whole, filled = files.fill_tails(messages, turns)
        if self._power is not None:
            await self._power.log(files, [filled, whole])
        else:
            await self._write(files, [filling])
            await self._write(files, [whole], can_undo=False)
            try:
                files.mark_filled()
            except OSError as error:
                raise explained(str(lease.key), error) from error
        files.filled(whole, len(messages))

    async def amend(self, lease: Lease, at: int, message: Message) -> None:
        """Replace message ``at`` of the conversation, all or nothing."""
        files = self._settled_files(lease)
        self._use_format(files)
        is_open = files.done_bytes < files.turns_bytes
        line, messages = files.amend_tails(at, message)
        if self._power is not None:
            await self._power.log(files, [line, messages])
        else:
            self._is_untouched(files)
            await self._write(files, [line])
            await self._write(files, [messages], can_undo=False)
        files.amended(messages, is_open=is_open)

    async def read_memory(self, user_id: str) -> UserMemory:
        """Return what the sessions of a user share."""
        try:
            return await asyncio.to_thread(read_memory, self._memory_of(user_id))
        except OSError as error:
            raise explained(f"the memory of {user_id!r:.60}", error) from error

    async def write_memory(self, user_id: str, entries: Mapping[str, Any], *, version: int) -> bool:
        """Replace a user's memory if ``version`` is still the newest; return whether it was."""
        path, is_synced = self._memory_of(user_id), self._power is not None
        try:
            return await asyncio.to_thread(
                write_memory, path, entries, version, is_synced=is_synced
            )
        except OSError as error:
            raise explained(f"the memory of {user_id!r:.60}", error) from error

    def _memory_of(self, user_id: str) -> Path:
        self._occupancy.check()
        return self.root / MEMORIES / f"{SessionKey(user_id, '-', '-').user_part}.json"

    async def peek(self, key: SessionKey) -> list[Message]:
        """Return the conversation for reading only, without waiting for its holder.

        Raises:
            WrongOwner: the directory is another session's.
            SessionDamaged: what is stored is not a conversation.
        """
        self._occupancy.check()
        if (files := self._open.get(key)) is not None:
            try:
                files.flush()
            except OSError as error:
                raise explained(str(key), error) from error
        try:
            return await peek(
                key, self.root / self._directory(key), is_owner_known=self._layout == "user"
            )
        except SessionDamaged:
            return await self._repaired(key)

    async def _repaired(self, key: SessionKey) -> list[Message]:
        """Return the conversation that a crash left half written, repaired under its lock.

        Raises:
            SessionDamaged: it is held at this moment, or it was no crash.
        """
        try:
            lease = await self.hold(key, queue_limit=0)
        except WaitingRoomFull as error:
            raise SessionDamaged(f"{key}: messages.json cannot be read, and {error}") from error
        try:
            return (await self.load(lease)).messages
        finally:
            self.release(lease)

    def sessions(self, user_id: str | None = None) -> Iterator[SessionKey]:
        """Return the stored sessions, of one user or of all, in no promised order."""
        self._occupancy.check()
        pattern = "*/*/runtime/turns.jsonl"
        if self._layout == "user":
            user = "*" if user_id is None else SessionKey(user_id, "-", "-").user_part
            pattern = f"{user}/{pattern}"
        found = sessions_in(self.root, pattern)
        return (key for key in found if user_id in (None, key.user_id))

    async def has(self, key: SessionKey) -> bool:
        """Whether the session has a directory: it was held once."""
        self._occupancy.check()
        with contextlib.suppress(OSError):  # then a hold says what is wrong
            return (self.root / self._directory(key)).is_dir()
        return True

    def directory_of(self, key: SessionKey) -> Path:
        """Return the directory of a session's files, whether it exists or not."""
        return self.root / self._directory(key)

    def statistics(self) -> LockStatistics:
        """Return what the in-process lock is doing."""
        return self._lock.statistics()

    async def aclose(self) -> None:
        """Release everything; leases that are still out are void, and there are no new ones."""
        self._is_closed = True
        for held in list(self._held.values()):
            self.release(held.lease)
        try:
            try:
                if self._power is not None:
                    await self._power.aclose()
                while self._open:
                    self._close_files(self._open.popitem()[1])
            finally:
                self._power = None
                self._locks.close()
                self._occupancy.leave()
        except OSError as error:
            raise explained(f"the store at {self.root.name!r}", error) from error

    # ---- inside

    def _directory(self, key: SessionKey) -> str:
        """Return the session's directory below the root."""
        part = key.instance_part
        below = "" if self._layout == "report" else f"{key.user_part}/"
        return f"{below}{part}/{part}/runtime"

    def _files(self, lease: Lease) -> SessionFiles:
        """Return the files of a lease that is still good: the only way to them."""
        held = self._held.get(lease.key)
        if held is None or held.lease is not lease:
            raise StaleLease(f"{lease.key}: the lease was released; hold the session again")
        files = held.files
        try:
            if held.lock is None:
                self._occupancy.check()
            else:
                self._locks.check(held.lock.file)
            newest = files.fence_in_file
            if not files.is_fenced() or not files.has_name():
                newest = self._retried(files.newest_fence)
        except OSError as error:
            raise explained(str(lease.key), error) from error
        if newest != files.fence_in_file or files.fence != lease.fence:
            raise StaleLease(
                f"{lease.key}: fence {lease.fence} was overtaken by {newest}; nothing was written: "
                "send the turn again with the same turnId"
            )
        return files

    def _retried(self, action: Callable[[], T]) -> T:
        """Do it, again with fewer files open while the process may open no more."""
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno not in SCARCE or not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Close files that are not needed now; return whether there were any."""
        if self._locks.shrink():
            return True
        there = len(self._open)
        self._open_limit = max(there // 2, 1)
        if there > 1:
            self._keep_open(next(reversed(self._open.values())))
        return len(self._open) < there

    def _settled_files(self, lease: Lease) -> SessionFiles:
        """Return the files of a good lease, ready to be written."""
        files = self._files(lease)
        if not files.is_settled:
            try:
                self._retried(files.settle)
            except OSError as error:
                raise explained(str(lease.key), error) from error
        return files

    def _use_format(self, files: SessionFiles) -> None:
        try:
            files.use_format()
        except OSError as error:
            raise explained(str(files.key), error) from error

    def _is_untouched(self, files: SessionFiles) -> bool:
        """Refuse an append to what was changed from outside."""
        try:
            is_touched = self._retried(files.messages_size) != files.messages_bytes
            if not is_touched:
                self._retried(files.messages)  # a write cannot make room for its descriptor
        except OSError as error:
            raise explained(str(files.key), error) from error
        if is_touched:
            files.forget()
            raise SessionDamaged(
                f"{files.key}: messages.json was changed from outside during the turn; nothing was "
                "written: send the turn again with the same turnId to continue from what is there"
            )
        return True

    async def _write(
        self, files: SessionFiles, tails: Sequence[Tail], *, can_undo: bool = True
    ) -> None:
        if self._power is not None:
            await self._power.log(files, tails)
        else:
            self._apply(files, tails, can_undo=can_undo)

    def _apply(self, files: SessionFiles, tails: Sequence[Tail], *, can_undo: bool = True) -> None:
        turns_bytes = files.turns_bytes
        try:
            for tail in tails:
                files.apply(tail)
        except OSError as error:
            files.is_settled, files.is_crashed = False, True
            if can_undo:
                files.turns_bytes = turns_bytes
                with contextlib.suppress(OSError):  # then the next load repairs it
                    files.undo()
            raise explained(str(files.key), error) from error

    def _use_journal(self, size_bytes: int | None) -> None:
        """Open the journal of ``power``, or apply and remove the one that a dead process left."""
        path = self.root / "+journal"
        if size_bytes is not None:
            self._power = PowerJournal(
                path, self.root, self._disk, size_bytes=size_bytes, make_room=self._make_room
            )
        elif self._occupancy.is_first and path.exists():
            fd = self._disk.open(path, create=False)
            try:
                recover(fd, self.root, self._disk)
            finally:
                self._disk.close(fd)
            self._disk.remove(path)


def _default_limit() -> int:
    """Return how many sessions may have both files open in a quarter of this process's limit."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    least, most = _SESSIONS
    return most if files == resource.RLIM_INFINITY else max(least, min(most, files // 8))
