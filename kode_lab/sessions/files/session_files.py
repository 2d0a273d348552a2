"""The two files of one session on the disk: how they grow, and how they are repaired.

Both grow only at their end: ``messages.json`` over its closing bracket, ``turns.jsonl`` with steps
that one ``done`` line replaces. So a turn costs the same whatever the history, and a crash can
leave only a few shapes, each repaired by the next load.

A turn without steps, the usual one, writes its ``done`` line, which says where ``messages.json``
will end, and then its messages: it is in the conversation when they are whole, else it never was.
A turn with steps must not lose them: its last reply goes to ``turns.jsonl`` first, with an
announcement of the ``done`` line, because writing that line destroys the steps it replaces. Where
this process is alone and logs elsewhere first (``power``), the fence needs no file and the tails of
several turns are written as one.

The fence in the first line is the highest that may have been issued: a holder writes it once for
``_FENCES`` of its leases, so no number is issued twice, also after a crash.

This module must not know how a session is held; its caller holds it.
Source: redo of torn appends as in ARIES, for files that only grow at their end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from kode_lab.errors import SessionDamaged
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.sessions.files.disk import SCARCE, Disk
from kode_lab.sessions.files.file_lock import ProcessLock
from kode_lab.sessions.files.format import (
    CLOSING,
    DELETED,
    FENCE_AT,
    FENCE_DIGITS,
    FILLED,
    FILLING,
    FORMAT,
    FORMAT_AT,
    LIMIT,
    TurnsText,
    amended_line,
    encode,
    ending_of,
    fence_in,
    header_of,
    messages_of,
    read_header,
    read_turns,
    rewound_line,
    tail_of,
)
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Stored

__all__ = ["MESSAGES", "TURNS", "SessionFiles", "Tail"]

MESSAGES = "messages.json"
TURNS = "turns.jsonl"

# The header, or the last line of a settled turns.jsonl, is usually found in one read of this size.
_READ_BYTES = 4096
_FENCES = 256


class Tail(NamedTuple):
    """From ``offset`` on, the file is ``data``, and ends with it."""

    name: str
    offset: int
    data: bytes


class SessionFiles:
    """What is known of one session's files; open descriptors come and go with the store's cache.

    ``turns.jsonl`` and ``messages.json`` are opened late. Looking creates nothing: a file is
    created by the first write.

    Attributes:
        path: the session's directory.
        lock: under which what is known was learned: while it was not given up, it stays true.
        header: the first line of ``turns.jsonl`` as it was read or written, b"" before.
        fence: of the newest lease.
        fence_in_file: the number there: ``LIMIT`` more than a fence up to which none is written.
        is_crashed: the holder before may have died in the middle of an append.
        is_settled: whether the positions below are known to be true.
        messages_bytes: the end of the last acknowledged turn in ``messages.json``.
        count: how many messages are before it.
        done_bytes: the end of the last ``done`` line in ``turns.jsonl``.
        turns_bytes: the end of the last step of the unfinished turn.
    """

    __slots__ = (
        "_delayed",
        "_is_alone",
        "_is_new",
        "_is_owner_known",
        "_messages_fd",
        "_turns_fd",
        "count",
        "disk",
        "done_bytes",
        "fence",
        "fence_in_file",
        "header",
        "is_crashed",
        "is_settled",
        "key",
        "lock",
        "messages_bytes",
        "path",
        "turns_bytes",
    )

    def __init__(
        self,
        key: SessionKey,
        directory: str,
        disk: Disk,
        *,
        is_alone: bool,
        is_owner_known: bool = True,
    ) -> None:
        self.key = key
        self.path = directory
        self.disk = disk
        self.lock: ProcessLock | None = None
        self.header = b""
        self.fence = self.fence_in_file = -1
        self.is_settled = self.is_crashed = False
        self.messages_bytes = self.count = self.done_bytes = self.turns_bytes = 0
        self._is_alone = is_alone
        # Whether the directory's name alone says whose it is.
        self._is_owner_known = is_owner_known
        # What is not yet in the files: for each, where it begins.
        self._delayed: dict[str, tuple[int, bytearray]] = {}
        self._turns_fd = self._messages_fd = -1
        # Its directory was made by this object, so there is no ``messages.json`` to look for.
        self._is_new = False

    # ---- descriptors

    def turns(self) -> int:
        """Return the descriptor of ``turns.jsonl``, opened or made when it is first needed."""
        if self._turns_fd < 0:
            self._turns_fd = self._opened(TURNS)
        return self._turns_fd

    def messages(self) -> int:
        """Return the descriptor of ``messages.json``, opened or made when it is first needed."""
        if self._messages_fd < 0:
            self._messages_fd, self._is_new = self._opened(MESSAGES), False
        return self._messages_fd

    def messages_size(self) -> int:
        """Return the size of ``messages.json``, 0 where there is none: looking makes no file."""
        if self._messages_fd < 0:
            if self._is_new:
                return 0
            try:
                self._messages_fd = self.disk.open(f"{self.path}/{MESSAGES}", create=False)
            except FileNotFoundError:
                return 0
        size = self.disk.size(self._messages_fd)
        if size < 0:  # removed or replaced since it was opened
            self._close_messages()
            return self.messages_size()
        return size

    def close(self) -> None:
        """Write what was delayed and close both files; what is known stays known."""
        self.flush()
        self._close_both()

    def forget(self) -> None:
        """Close the files, which others may repair meanwhile, and read them anew next time."""
        with contextlib.suppress(OSError):
            if not self.is_crashed and self.newest_fence() == self.fence_in_file:
                self.write_fence()
            self.close()
        self.lock, self.header, self.is_settled, self._is_new = None, b"", False, False

    def _close_both(self) -> None:
        try:
            self._close_messages()
        finally:
            if self._turns_fd >= 0:
                fd, self._turns_fd = self._turns_fd, -1
                self.disk.close(fd)

    def _close_messages(self) -> None:
        if self._messages_fd >= 0:
            fd, self._messages_fd = self._messages_fd, -1
            self.disk.close(fd)

    def _remove_messages(self) -> None:
        """An empty file is no JSON array: a session without messages has no ``messages.json``."""
        self.disk.remove(f"{self.path}/{MESSAGES}")
        self._close_messages()

    def _opened(self, name: str) -> int:
        path = f"{self.path}/{name}"
        try:
            return self.disk.open(path, create=True)
        except FileNotFoundError:
            # From the top, where the user's directory is there already.
            inner = os.path.dirname(self.path)  # noqa: PTH120 - pathlib is ten times dearer
            for place in (os.path.dirname(inner), inner, self.path):  # noqa: PTH120
                self.disk.make_directory(place)
            self._is_new = name == TURNS
            return self.disk.open(path, create=True)

    # ---- the fence

    def next_fence(self, lock: ProcessLock | None = None) -> int:
        """Return the fence of a new lease: from now on every older holder is refused.

        Args:
            lock: what excludes other processes. While it is the same, the file is only looked at to
                see whether a person put back an older one.

        Raises:
            WrongOwner: the directory is another session's.
            NewerFormat: a newer kode_lab wrote it.
            SessionDamaged: its first line cannot be read.
        """
        if lock is None or lock is not self.lock or not self.is_fenced():
            newest = self.newest_fence()
            if newest < 0:
                newest = self._read_header()
            if newest != self.fence_in_file:
                self.fence_in_file, self.fence = newest, newest % LIMIT
                self.is_settled, self.is_crashed = False, newest >= LIMIT
                self._is_new = False  # another process may have written since
            self.lock = lock
        self.fence += 1
        if self._is_alone:
            self.fence_in_file = self.fence
        elif LIMIT + self.fence > self.fence_in_file:
            self._write_fence(LIMIT + self.fence + _FENCES - 1)
        return self.fence

    def write_fence(self) -> None:
        """Write the fence as it is: the next hold continues with it, and knows of no crash."""
        if not (self._is_alone or self.is_crashed) and self.header:
            self._write_fence(self.fence)

    def _write_fence(self, number: int) -> None:
        self.disk.write(self.turns(), b"%020d" % number, FENCE_AT)
        self.fence_in_file = number

    def is_fenced(self) -> bool:
        """Whether the file is open and has the fence that was written or seen last."""
        if self._is_alone or self._turns_fd < 0:
            return False
        digits = self.disk.read(self._turns_fd, FENCE_DIGITS, FENCE_AT)
        return digits == b"%020d" % self.fence_in_file

    def has_name(self) -> bool:
        """Whether ``turns.jsonl`` is open and was not removed."""
        return self._turns_fd >= 0 and self.disk.size(self._turns_fd) >= len(self.header)

    def newest_fence(self) -> int:
        """Return the fence in the file now; -1 if it is unknown or the file is gone."""
        if not self.header:
            return -1
        if self._is_alone:
            return self.fence
        fd = self.turns()
        fence = -1
        if self.disk.size(fd) >= len(self.header):
            fence = fence_in(self.disk.read(fd, FENCE_DIGITS, FENCE_AT))
        if fence < 0:  # removed, replaced or damaged under us
            self.close()
            self.header, self.is_settled = b"", False
        return fence

    def _read_header(self) -> int:
        self.fence_in_file = -1
        fd = self.turns()
        start = b"" if self._is_new else self.disk.read(fd, _READ_BYTES, 0)
        line, found, _ = start.partition(b"\n")
        if not found and len(line) == _READ_BYTES:
            line, found, _ = self.disk.read(fd, self.disk.size(fd), 0).partition(b"\n")
        if found:
            fence = read_header(self.key, line)
            self.header = line + b"\n"
            return fence
        size = self.messages_size()
        if size and self._is_owner_known and not line:  # of another tool: adopted
            if messages_of(self.key, self.disk.read(self.messages(), size, 0)) is None:
                raise SessionDamaged(
                    f"{self.key}: messages.json is not JSON, and there is no turns.jsonl; nothing "
                    "was changed: restore it, or move the session's directory away to begin anew"
                )
        elif size:
            raise SessionDamaged(
                f"{self.key}: turns.jsonl does not say whose messages.json is; nothing was "
                "changed: restore it, or move the session's directory away to begin anew"
            )
        # It is new, or its maker died in the middle of this very line.
        if line:
            self.disk.truncate(fd, 0)
        limit = 0 if self._is_alone else LIMIT + _FENCES
        self.header = header_of(self.key, limit)
        self.disk.write(fd, self.header, 0)
        self.done_bytes = self.turns_bytes = len(self.header)
        self.messages_bytes = self.count = self.fence = 0
        self.fence_in_file, self.is_settled, self.is_crashed = limit, not size, False
        return limit

    def use_format(self) -> None:
        """Say in the first line that what follows needs this version's reader."""
        number = b"%d" % FORMAT
        if self.header[FORMAT_AT : FORMAT_AT + 1] != number:
            if not self._is_alone:
                self.disk.write(self.turns(), number, FORMAT_AT)
            self.header = self.header[:FORMAT_AT] + number + self.header[FORMAT_AT + 1 :]

    def fenced_header(self) -> bytes:
        """Return the first line of ``turns.jsonl`` with the newest fence."""
        header = self.header
        return b"%b%020d%b" % (header[:FENCE_AT], self.fence, header[FENCE_AT + FENCE_DIGITS :])

    # ---- reading

    def read(self) -> Stored:
        """Return all that is stored of the session, repaired where a crash left it half written.

        Raises:
            SessionDamaged: something else than a crash changed a file; it was left as it is.
        """
        self.flush()
        start = len(self.header)
        if self.is_settled and self.turns_bytes == start and not self.messages_bytes:
            return Stored([], {}, None)  # it is new
        fd = self.turns()
        size = self.disk.size(fd)
        text = read_turns(self.key, self.disk.read(fd, size - start, start))
        if text.is_deleted:  # by a process that died during it
            self._remove_messages()
        if text.amended is not None:
            self._amend_again(*text.amended)
        messages, text = self._read_messages(text)
        self.done_bytes = start + text.done_bytes
        self.turns_bytes = start + text.good_bytes
        if text.torn_done:
            self.disk.write(fd, text.torn_done, self.turns_bytes)
            self.turns_bytes += len(text.torn_done)
            self.done_bytes = self.turns_bytes
        if self.turns_bytes < size:  # the rest of a step that was never finished
            self.disk.truncate(fd, self.turns_bytes)
        self.count = len(messages)
        self.is_settled, self.is_crashed = True, False
        known = {f.turn_id: f for f in text.finished if f.is_rewound or f.last < len(messages)}
        return Stored(messages, known, text.open)

    def _amend_again(self, at: int, start: int, tail: list[Message], was_bytes: int) -> None:
        """Replace a message whose replacement a crash may have torn, unless others edited it."""
        size, data = self.messages_size(), tail_of(at, tail)
        if size != was_bytes and messages_of(self.key, self._all_messages(size)) is not None:
            return
        self.disk.write(self.messages(), data, start)
        if size > start + len(data):
            self.disk.truncate(self.messages(), start + len(data))

    def _all_messages(self, size: int) -> bytes:
        return self.disk.read(self.messages(), size, 0) if size else b""

    def settle(self) -> None:
        """Learn the positions, from the last line alone where that is enough."""
        self.flush()
        size = self.disk.size(self.turns())
        start = max(len(self.header), size - _READ_BYTES)
        data = self.disk.read(self.turns(), size - start, start)
        last = data[data.rfind(b"\n", 0, -1) + 1 :]
        text = read_turns(self.key, last)
        messages_bytes = self.messages_size()
        is_whole = text.good_bytes == len(last) and text.end_bytes == messages_bytes
        if is_whole and len(text.finished) == 1:
            self.messages_bytes = messages_bytes
            self.count = text.finished[0].last + 1
            self.done_bytes = self.turns_bytes = size
            self.is_settled, self.is_crashed = True, False
        else:
            self.read()

    def _read_messages(self, text: TurnsText) -> tuple[list[Message], TurnsText]:
        """Return the messages, and the turns without one that was not appended to them."""
        size, end = self.messages_size(), text.end_bytes
        data = self._all_messages(size)
        self.messages_bytes = end
        whole = messages_of(self.key, data) if data else []
        if size == end and whole is not None and (not size or data.endswith(CLOSING)):
            return whole, text
        if (before := text.before) is not None and size < end and self.is_crashed:
            # Its ``done`` line was written, and its messages were not, or not all of them.
            cut = self._messages_before(data, before.end_bytes)
            if cut is not None and (whole is None or size == before.end_bytes):
                self.messages_bytes = before.end_bytes
                self._cut_messages()
                return cut, before
        # A new turn begins over the closing bracket, so even that may be torn.
        cut = self._messages_before(data, end)
        is_ours = text.open is not None or text.cut_from_bytes == size
        if cut is not None and (is_ours or whole is None):
            # Our own append did not finish. Without an open turn no crash of ours explains it:
            # then the rest is kept aside, for a person to look at.
            if not is_ours:
                self._keep_aside(data[max(end - len(CLOSING), 0) :])
            self._cut_messages()
            return cut, text
        if whole is not None and data.rstrip().endswith(b"]"):
            # It was edited, or came from elsewhere: accepted, but it must end as ours do.
            self.messages_bytes = len(data.rstrip()[:-1].rstrip()) + len(CLOSING) if whole else 0
            if self.messages_bytes != size or not data.endswith(CLOSING):
                self._cut_messages()
            return whole, text
        raise SessionDamaged(
            f"{self.key}: messages.json is not a JSON array of messages ({size} bytes where "
            f"{end} were acknowledged); nothing was changed: restore the file, or move the "
            "session's directory away to begin anew"
        )

    def _messages_before(self, data: bytes, end_bytes: int) -> list[Message] | None:
        """Return the conversation that ended there, None if these bytes do not begin with it."""
        body_bytes = max(end_bytes - len(CLOSING), 0)
        if len(data) < body_bytes:
            return None
        return messages_of(self.key, data[:body_bytes] + CLOSING) if end_bytes else []

    def _keep_aside(self, data: bytes) -> None:
        """Save what does not belong into ``messages.json`` beside it, for a person to look at."""
        fd = self.disk.open(f"{self.path}/{MESSAGES}.torn", create=True)
        try:
            self.disk.write(fd, data, self.disk.size(fd))
        finally:
            self.disk.close(fd)

    def _cut_messages(self) -> None:
        """Bring ``messages.json`` back to its last acknowledged turn."""
        end = self.messages_bytes
        if end:
            self.disk.write(self.messages(), CLOSING, end - len(CLOSING))
            self.disk.truncate(self.messages(), end)
        else:
            self._remove_messages()

    # ---- what a change writes

    def step_tail(
        self, turn: OpenTurn, entries: Sequence[dict[str, Any]], done: Tail | None = None
    ) -> Tail:
        """Return what journalling these steps writes; the first step brings the turn's opening.

        With the last ones goes the announcement of the ``done`` line.
        """
        if entries and self.turns_bytes == self.done_bytes:
            entries = [turn.opening(self.fence), *entries]
        lines = [encode(e) + b"\n" for e in entries]
        if done is not None:
            lines.append(ending_of(done.data))
        return Tail(TURNS, self.turns_bytes, b"".join(lines))

    def turn_tails(self, turn: OpenTurn) -> tuple[Tail, Tail]:
        """Return what appending the finished turn writes: its messages, and its ``done`` line."""
        messages = self.messages_tail(turn)
        end = messages.offset + len(messages.data)
        done = encode(turn.closing(self.fence, self.count, end)) + b"\n"
        return messages, Tail(TURNS, self.done_bytes, done)

    def messages_tail(self, turn: OpenTurn) -> Tail:
        """Return the turn's messages as they are written at the end of ``messages.json``."""
        body = b",\n".join(turn.encoded)
        if self.messages_bytes:
            return Tail(MESSAGES, self.messages_bytes - len(CLOSING), b",\n%b%b" % (body, CLOSING))
        return Tail(MESSAGES, 0, b"[\n%b%b" % (body, CLOSING))

    def discard_tail(self) -> Tail:
        """Return what forgetting the unfinished turn writes."""
        return Tail(TURNS, self.done_bytes, b"")

    def delete_tails(self) -> tuple[Tail, Tail, Tail]:
        """Return what forgetting the conversation writes; the header with its fence stays.

        The first one says what is coming, so that the turns' ids never go without the turns.
        """
        saying = Tail(TURNS, self.turns_bytes, DELETED)
        return saying, Tail(MESSAGES, 0, b""), Tail(TURNS, len(self.header), b"")

    def rewind_tails(
        self, count: int, rewind_id: str, turn_ids: Sequence[str]
    ) -> tuple[Tail, Tail]:
        """Return what keeping the first ``count`` messages writes: the line, then the cut.

        Raises:
            SessionDamaged: ``messages.json`` is not one message a line.
        """
        end = self._end_of(count)
        line = rewound_line(rewind_id, count, turn_ids, end, self.messages_bytes)
        return Tail(TURNS, self.done_bytes, line), self._messages_end(end)

    def amend_tails(self, at: int, message: Message) -> tuple[Tail, Tail]:
        """Return what replacing one message writes: a line with all from it on, then these.

        What a crash tears is written again from the line.
        """
        start = max(self._end_of(at), len(b"[\n") + len(CLOSING)) - len(CLOSING)
        self.flush()
        data = self.disk.read(self.messages(), self.messages_bytes, 0)
        tail = [message, *(messages_of(self.key, data) or [])[at + 1 :]]
        line = amended_line(at, start, tail, self.messages_bytes)
        return Tail(TURNS, self.turns_bytes, line), Tail(MESSAGES, start, tail_of(at, tail))

    def amended(self, messages: Tail, *, is_open: bool) -> None:
        """Move the positions after a message was replaced; the steps of an open turn stay."""
        self.messages_bytes = messages.offset + len(messages.data)
        if not is_open:
            self.done_bytes = self.turns_bytes

    def _end_of(self, count: int) -> int:
        """Return where ``messages.json`` ends with its first ``count`` messages."""
        if not count:
            return 0
        if count == self.count:
            return self.messages_bytes
        self.flush()
        data = self.disk.read(self.messages(), self.messages_bytes, 0)
        lines = data.split(b"\n")
        kept = b"\n".join(lines[: count + 1])[:-1] + CLOSING
        if len(lines) != self.count + 3 or messages_of(self.key, kept) is None:
            raise SessionDamaged(
                f"{self.key}: messages.json is not one message a line, so it cannot be cut; "
                "nothing was changed: run kode-lab doctor with --repair"
            )
        return len(kept)

    def _messages_end(self, end_bytes: int) -> Tail:
        start = max(end_bytes - len(CLOSING), 0)
        return Tail(MESSAGES, start, CLOSING if end_bytes else b"")

    def rewound(self, count: int, messages: Tail) -> None:
        """Move the positions after a rewind."""
        self.count = count
        self.messages_bytes = messages.offset + len(messages.data)
        self.done_bytes = self.turns_bytes

    def fill_tails(
        self, messages: Sequence[Message], turns: Sequence[Finished]
    ) -> tuple[Tail, Tail, Tail]:
        """Return what saving a whole conversation writes: turns, messages, and that it is whole."""
        start, end, lines = len(self.header), len(b"[\n"), [FILLING]
        ends: list[int] = []
        encoded = list(map(encode, messages))
        for each in encoded:
            end += len(each)
            ends.append(end + len(CLOSING))
            end += len(b",\n")
        for turn in turns:
            entry = {
                "done": turn.turn_id,
                "fence": self.fence,
                "messages": [turn.first, turn.last],
                "end": ends[turn.last],
                "sealed": turn.is_sealed,
                "usage": [*turn.usage],
                "version": turn.version,
            }
            lines.append(encode({**entry, "facts": turn.facts} if turn.facts else entry) + b"\n")
        whole = b"[\n%b%b" % (b",\n".join(encoded), CLOSING)
        data = b"".join(lines)
        return (
            Tail(TURNS, start, data),
            Tail(MESSAGES, 0, whole),
            Tail(TURNS, start, FILLED + data[len(FILLING) :]),
        )

    def mark_filled(self) -> None:
        """Write that a copied conversation is whole."""
        self.disk.write(self.turns(), FILLED, len(self.header))

    # ---- writing it

    def apply(self, tail: Tail) -> None:
        """Write one tail; the file ends where it ends."""
        name, offset, data = tail
        end = offset + len(data)
        if not end:
            self._remove_messages()
            return
        if name == TURNS:
            fd, was, self.turns_bytes = self.turns(), self.turns_bytes, end
        else:
            fd, was = self.messages(), self.messages_bytes
        if data:
            self.disk.write(fd, data, offset)
        if end < was:
            self.disk.truncate(fd, end)

    def expect(self, tails: Sequence[Tail]) -> None:
        """Move past tails that are on their way: the next step of the turn comes after them."""
        for tail in tails:
            if tail.name == TURNS:
                self.turns_bytes = tail.offset + len(tail.data)

    def delay(self, tail: Tail) -> int:
        """Take one tail that is logged elsewhere; return the bytes that wait for ``flush``."""
        delayed = self._delayed.get(tail.name)
        if delayed is None or tail.offset < delayed[0]:
            delayed = self._delayed[tail.name] = (tail.offset, bytearray(tail.data))
        else:
            start, data = delayed
            data[tail.offset - start :] = tail.data
        return len(delayed[1])

    def flush(self) -> None:
        """Write what was delayed."""
        for name, (start, data) in self._delayed.items():
            if not start and not data:
                self._remove_messages()
                continue
            open_it = self.turns if name == TURNS else self.messages
            try:
                fd = open_it()
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                self._close_both()
                fd = open_it()
            if data:
                self.disk.write(fd, bytes(data), start)
            if self.disk.size(fd) > start + len(data):
                self.disk.truncate(fd, start + len(data))
            if name == TURNS:
                start_of_header = self.fenced_header()[: FENCE_AT + FENCE_DIGITS]
                self.disk.write(fd, start_of_header, 0)
        self._delayed.clear()

    def took_turn(self, turn: OpenTurn, messages: Tail) -> Finished:
        """Move the positions past the turn that was appended."""
        finished = turn.finished(self.count)
        self.count += len(turn.messages)
        self.messages_bytes = messages.offset + len(messages.data)
        self.done_bytes = self.turns_bytes
        return finished

    def filled(self, messages: Tail, count: int) -> None:
        """Move the positions after a whole conversation."""
        self.count, self.messages_bytes = count, len(messages.data)
        self.done_bytes = self.turns_bytes

    def forgot(self) -> None:
        """Move the positions to the beginning."""
        self.messages_bytes = self.count = 0
        self.done_bytes = self.turns_bytes

    def undo(self) -> None:
        """After a write that failed: bring both files back to what is known."""
        self._cut_messages()
        self.disk.truncate(self.turns(), self.turns_bytes)
