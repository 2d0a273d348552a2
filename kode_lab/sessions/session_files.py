r"""The two files of one session: what they mean, how they grow, how they are mended.

    messages.json   [\n{message},\n{message}\n]\n      the conversation, an ordinary JSON array
    turns.jsonl     {"kode_lab":1,"fence":"…","userId":…}   whose it is, and the newest fence
                    {"done":…,"end":bytes,…}                 a line for each turn in the
                    conversation
                    {"open":…} {"reply":…} {"result":…}      the steps of an unfinished turn

Both grow only at their end: ``messages.json`` over its closing bracket, ``turns.jsonl`` with steps
that one ``done`` line replaces. So a turn costs the same whatever the history, and what a crash can
leave is one of few shapes, each mended on the next load. A turn is in the conversation from the
moment its last reply is in ``turns.jsonl``: what follows can be done again from there.

Nothing here knows locks or leases; who calls holds the session.

Source: undo of torn appends as in ARIES' redo-only special case; the doubled directory and the
array's shape are the report's and its SDK's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from kode_lab.errors import NewerFormat, SessionDamaged, WrongOwner
from kode_lab.key import SessionKey
from kode_lab.message import Message, Usage
from kode_lab.sessions.disk import Disk
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Stored

__all__ = ["FORMAT", "SessionFiles", "Tail", "decode", "encode", "owner_of"]

FORMAT = 1
_CLOSING = b"\n]\n"
_FENCE_DIGITS = 20
_FENCE_AT = len(b'{"kode_lab":1,"fence":"')
# The header and the last line of a settled turns.jsonl are found in one read of this size.
_READ_BYTES = 4096


class Tail(NamedTuple):
    """From ``offset`` on, the file is ``data``, and ends with it."""

    name: str
    offset: int
    data: bytes


class SessionFiles:
    """What is known of one session's files; open descriptors come and go with the store's cache.

    Attributes:
        fence: the newest fence that this object has written or seen.
        is_settled: whether the positions below are known to be true.
        messages_bytes: the end of the last acknowledged turn in ``messages.json``.
        count: how many messages are before it.
        done_bytes: the end of the last ``done`` line in ``turns.jsonl``.
        turns_bytes: the end of the last step of the unfinished turn.
    """

    __slots__ = (
        "count",
        "directory",
        "disk",
        "done_bytes",
        "fds",
        "fence",
        "header_bytes",
        "is_settled",
        "key",
        "messages_bytes",
        "turns_bytes",
    )

    def __init__(self, key: SessionKey, directory: str, disk: Disk) -> None:
        self.key = key
        self.directory = directory
        self.disk = disk
        self.fds: dict[str, int] = {}
        self.fence = -1
        self.is_settled = False
        self.header_bytes = self.messages_bytes = self.count = 0
        self.done_bytes = self.turns_bytes = 0

    # ---- descriptors

    def fd(self, name: str) -> int:
        """Give the descriptor of one of the files, opened or made when it is first needed."""
        fd = self.fds.get(name)
        if fd is None:
            path = f"{self.directory}/{name}"
            try:
                fd = self.disk.open(path, create=True)
            except FileNotFoundError:
                self._make_directories()
                fd = self.disk.open(path, create=True)
            self.fds[name] = fd
        return fd

    def _make_directories(self) -> None:
        """Make the session's three directories from the top, where the user's is there already."""
        inner = os.path.dirname(self.directory)  # noqa: PTH120 - pathlib is ten times dearer
        for place in (os.path.dirname(inner), inner, self.directory):  # noqa: PTH120
            self.disk.make_directory(place)

    def close(self) -> None:
        """Close the descriptors; what is known stays known."""
        while self.fds:
            self.disk.close(self.fds.popitem()[1])

    # ---- the fence

    def next_fence(self) -> int:
        """Read the fence, add one, write it: from now on every older holder is refused.

        Raises:
            WrongOwner: the directory is another session's.
            NewerFormat: a newer kode_lab wrote it.
            SessionDamaged: its first line cannot be read.
        """
        fence = self._known_fence()
        if fence is None:
            fence = self._read_header()
        if fence != self.fence:
            self.is_settled = False
        self.fence = fence + 1
        self.disk.write(self.fd("turns.jsonl"), b"%020d" % self.fence, _FENCE_AT)
        return self.fence

    def newest_fence(self) -> int:
        """Give the fence as it stands in the file now; -1 when the file was removed."""
        fence = self._known_fence()
        return -1 if fence is None else fence

    def _known_fence(self) -> int | None:
        """Give the fence if the header was read before and the file is still that file."""
        if self.header_bytes == 0:
            return None
        fd = self.fd("turns.jsonl")
        if self.disk.size(fd) < self.header_bytes:  # removed or replaced under us
            self.close()
            self.is_settled = False
            return None
        return int(self.disk.read(fd, _FENCE_DIGITS, _FENCE_AT))

    def _read_header(self) -> int:
        fd = self.fd("turns.jsonl")
        line, found, _ = self.disk.read(fd, _READ_BYTES, 0).partition(b"\n")
        if not found and len(line) == _READ_BYTES:
            line, found, _ = self.disk.read(fd, self.disk.size(fd), 0).partition(b"\n")
        if not found:  # new, or its maker died in the middle of this very line
            return self._write_header(fd)
        owner = _object(line)
        if not isinstance(owner.get("kode_lab"), int):
            raise SessionDamaged(
                f"{self.key}: the first line of turns.jsonl does not say whose it is; "
                "move the session's directory away to begin anew, or restore it from a backup"
            )
        if owner["kode_lab"] > FORMAT:
            raise NewerFormat(
                f"{self.key}: written in format {owner['kode_lab']}, this kode_lab reads up to "
                f"{FORMAT}: update kode_lab"
            )
        if owner_of(owner) != self.key:
            raise WrongOwner(
                f"{self.key}: its directory belongs to another session; "
                "use another sessionId, or layout='user' where users do not share directories"
            )
        self.header_bytes = len(line) + 1
        return int(owner["fence"])

    def _write_header(self, fd: int) -> int:
        self.disk.truncate(fd, 0)
        line = self.header(0)
        self.disk.write(fd, line, 0)
        self.header_bytes = len(line)
        return 0

    def header(self, fence: int) -> bytes:
        """Give the first line of ``turns.jsonl``."""
        ids = json.dumps(self.key.to_json(), separators=(",", ":"))[1:]
        return f'{{"kode_lab":{FORMAT},"fence":"{fence:0{_FENCE_DIGITS}}",{ids}\n'.encode()

    # ---- reading

    def read(self) -> Stored:
        """Give all that rests of the session, mended where a crash left it half written.

        Raises:
            SessionDamaged: something else than a crash changed a file; it was left as it is.
        """
        finished, turn, end_bytes = self._read_turns()
        messages = self._read_messages(end_bytes, is_open=turn is not None)
        self.count = len(messages)
        self.is_settled = True
        known = {f.turn_id: f for f in finished if f.last < len(messages)}
        return Stored(messages, known, turn)

    def settle(self) -> None:
        """Learn the positions, from the last line alone where that is enough."""
        size = self.disk.size(self.fd("turns.jsonl"))
        start = max(self.header_bytes, size - _READ_BYTES)
        data = self.disk.read(self.fd("turns.jsonl"), size - start, start)
        last = _object(data.rstrip(b"\n").rpartition(b"\n")[2]) if data.endswith(b"\n") else {}
        if last.get("end") == self.disk.size(self.fd("messages.json")):
            self.messages_bytes = last["end"]
            self.count = last["messages"][1] + 1
            self.done_bytes = self.turns_bytes = size
            self.is_settled = True
        else:
            self.read()

    def _read_turns(self) -> tuple[list[Finished], OpenTurn | None, int]:
        """Read ``turns.jsonl`` up to the first thing that is not a whole line of ours."""
        fd = self.fd("turns.jsonl")
        size = self.disk.size(fd)
        lines = self.disk.read(fd, size - self.header_bytes, self.header_bytes).split(b"\n")
        finished: list[Finished] = []
        turn: OpenTurn | None = None
        end_bytes = 0
        at = self.done_bytes = self.header_bytes
        for number, line in enumerate(lines[:-1]):
            entry = _object(line)
            try:
                if "done" in entry:
                    finished.append(_finished(entry))
                    end_bytes, turn = entry["end"], None
                    self.done_bytes = at + len(line) + 1
                elif "open" in entry:
                    turn = OpenTurn.reopened(entry)
                elif turn is None or not turn.replay(entry):
                    self._refuse_lost_lines(lines[number + 1 : -1])
                    break
            except (KeyError, TypeError, IndexError):
                self._refuse_lost_lines(lines[number + 1 : -1])
                break
            at += len(line) + 1
        if turn is not None and turn.steps == 0:
            at, turn = self.done_bytes, None  # opened, but its first step was torn
        if at < size:  # the rest of a step that was never finished
            self.disk.truncate(fd, at)
        self.turns_bytes = at
        return finished, turn, end_bytes

    def _refuse_lost_lines(self, rest: Sequence[bytes]) -> None:
        """A crash leaves rubbish only at the end: a good line after it means something else."""
        if any({"done", "open"} & _object(line).keys() for line in rest):
            raise SessionDamaged(
                f"{self.key}: a line in the middle of turns.jsonl cannot be read, and turns follow "
                "it; nothing was changed: restore the file, or move it away (the messages stay)"
            )

    def _read_messages(self, end_bytes: int, *, is_open: bool) -> list[Message]:
        fd = self.fd("messages.json")
        size = self.disk.size(fd)
        data = self.disk.read(fd, size, 0)
        self.messages_bytes = end_bytes
        whole = _messages(data) if data else []
        if size == end_bytes and whole is not None:
            return whole
        cut = _messages(data[: end_bytes - len(_CLOSING)] + _CLOSING) if end_bytes else []
        if size > end_bytes and cut is not None and (is_open or whole is None):
            # Our own append did not finish. Without an open turn no crash of ours explains it:
            # then the rest is kept aside, for a person to look at.
            if not is_open:
                self._keep_aside(data[end_bytes:])
            self._cut_messages()
            return cut
        if whole is not None:
            self.messages_bytes = size  # somebody edited it, or it came from elsewhere: so be it
            return whole
        raise SessionDamaged(
            f"{self.key}: messages.json is not a JSON array of messages ({size} bytes where "
            f"{end_bytes} were acknowledged); nothing was changed: restore the file, or move the "
            "session's directory away to begin anew"
        )

    def _keep_aside(self, data: bytes) -> None:
        fd = self.disk.open(f"{self.directory}/messages.json.torn", create=True)
        try:
            self.disk.write(fd, data, self.disk.size(fd))
        finally:
            self.disk.close(fd)

    def _cut_messages(self) -> None:
        """Bring ``messages.json`` back to its last acknowledged turn."""
        fd, end = self.fd("messages.json"), self.messages_bytes
        if end:
            self.disk.write(fd, _CLOSING, end - len(_CLOSING))
        self.disk.truncate(fd, end)

    # ---- writing

    def step_tail(self, turn: OpenTurn, entries: Sequence[dict[str, Any]]) -> Tail:
        """Give what journalling these steps writes; the first step brings the turn's opening."""
        if self.turns_bytes == self.done_bytes:
            entries = [turn.opening(self.fence), *entries]
        return Tail("turns.jsonl", self.turns_bytes, b"".join(encode(e) + b"\n" for e in entries))

    def turn_tails(self, turn: OpenTurn) -> tuple[Tail, Tail]:
        """Give what appending the finished turn writes: its messages, and its ``done`` line."""
        body = b",\n".join([encode(message) for message in turn.messages]) + _CLOSING
        if self.messages_bytes:
            messages = Tail("messages.json", self.messages_bytes - len(_CLOSING), b",\n" + body)
        else:
            messages = Tail("messages.json", 0, b"[\n" + body)
        end = messages.offset + len(messages.data)
        done = encode(turn.closing(self.fence, self.count, end)) + b"\n"
        return messages, Tail("turns.jsonl", self.done_bytes, done)

    def discard_tail(self) -> Tail:
        """Give what forgetting the unfinished turn writes."""
        return Tail("turns.jsonl", self.done_bytes, b"")

    def delete_tails(self) -> tuple[Tail, Tail]:
        """Give what forgetting the conversation writes; the header with its fence stays."""
        return Tail("turns.jsonl", self.header_bytes, b""), Tail("messages.json", 0, b"")

    def apply(self, tail: Tail) -> None:
        """Write one tail; the file ends where it ends."""
        fd, end = self.fd(tail.name), tail.offset + len(tail.data)
        if tail.data:
            self.disk.write(fd, tail.data, tail.offset)
        if tail.name == "turns.jsonl":
            if end < self.turns_bytes:
                self.disk.truncate(fd, end)
            self.turns_bytes = end
        elif end < self.messages_bytes:
            self.disk.truncate(fd, end)

    def took_turn(self, turn: OpenTurn, messages: Tail) -> Finished:
        """Move the positions past the turn that was appended."""
        first = self.count
        self.count += len(turn.messages)
        self.messages_bytes = messages.offset + len(messages.data)
        self.done_bytes = self.turns_bytes
        last = self.count - 1
        return Finished(turn.turn_id, first, last, turn.is_sealed, turn.usage, turn.version)

    def undo(self) -> None:
        """After a write that failed: bring both files back to what is known."""
        self.is_settled = False
        self._cut_messages()
        self.disk.truncate(self.fd("turns.jsonl"), self.turns_bytes)

    def forgot(self) -> None:
        """Move the positions to the beginning."""
        self.messages_bytes = self.count = 0
        self.done_bytes = self.turns_bytes


def encode(value: Any) -> bytes:
    """Give the value as one line of JSON.

    What orjson refuses (huge integers, lone surrogates) the standard library writes.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """Give the value that these bytes hold; the inverse of ``encode``.

    Raises:
        ValueError: they are not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def owner_of(header: dict[str, Any]) -> SessionKey | None:
    """Give the session that a first line of ``turns.jsonl`` names, or None."""
    try:
        return SessionKey(header["userId"], header["sessionId"], header["agentId"])
    except KeyError:
        return None


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = decode(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _messages(data: bytes) -> list[Message] | None:
    try:
        value = decode(data)
    except ValueError:
        return None
    if isinstance(value, list) and all(
        isinstance(m, dict) and m.get("role") in ("user", "assistant") and "content" in m
        for m in value
    ):
        return value
    return None


def _finished(entry: dict[str, Any]) -> Finished:
    first, last = entry["messages"]
    usage = Usage(*entry["usage"])
    return Finished(entry["done"], first, last, entry["sealed"], usage, entry["version"])
