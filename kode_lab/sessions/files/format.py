r"""The two files of one session as text: what their lines mean. Pure: no file is touched here.

    messages.json   [\n{message},\n{message}\n]\n      the conversation, an ordinary JSON array
    turns.jsonl     {"kode_lab":1,"fence":"…","userId":…}   whose it is, and the newest fence
                    {"done":…,"end":bytes,…}    a line for each turn in the conversation
                    {"open":…} {"reply":…} {"result":…}      the steps of an unfinished turn
                    {"ending":{"done":…}}       after its last step: the line to replace them all
                    {"deleted":true}            at the end: the conversation is being forgotten

Everything that decides whether bytes on a disk are a conversation must live here.

Source: the doubled directory and the array's shape are those of the report and of its SDK.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from kode_lab.errors import NewerFormat, SessionDamaged, WrongOwner
from kode_lab.key import SessionKey
from kode_lab.message import Message, Usage
from kode_lab.sessions.open_turn import Finished, OpenTurn

__all__ = [
    "CLOSING",
    "DELETED",
    "FENCE_AT",
    "FENCE_DIGITS",
    "FORMAT",
    "TurnsText",
    "decode",
    "encode",
    "ending_of",
    "fence_in",
    "header_of",
    "messages_of",
    "owner_of",
    "read_header",
    "read_turns",
]

FORMAT = 1
CLOSING = b"\n]\n"
DELETED = b'{"deleted":true}\n'
FENCE_AT = len(b'{"kode_lab":1,"fence":"')
FENCE_DIGITS = 20


class TurnsText(NamedTuple):
    """What the lines of ``turns.jsonl`` say.

    Attributes:
        open: the unfinished turn, if at least one step of it is whole.
        end_bytes: where ``messages.json`` ends after the last finished turn.
        done_bytes: where the last ``done`` line ends, counted from the first line after the header.
        good_bytes: where the last whole line that belongs here ends; what follows is rubbish.
        torn_done: the ``done`` line that was being written at ``done_bytes``, or b"".
        is_deleted: what is there was to be forgotten, and is not the conversation any more.
    """

    finished: list[Finished]
    open: OpenTurn | None
    end_bytes: int
    done_bytes: int
    good_bytes: int
    torn_done: bytes = b""
    is_deleted: bool = False


def header_of(key: SessionKey, fence: int) -> bytes:
    """Return the first line of ``turns.jsonl``; the fence stands at ``FENCE_AT``, 20 digits."""
    # A dump of each id alone is a third of the cost of one of the object: it makes no encoder.
    ids = ",".join([f'"{name}":{json.dumps(value)}' for name, value in key.to_json().items()])
    return f'{{"kode_lab":{FORMAT},"fence":"{fence:0{FENCE_DIGITS}}",{ids}}}\n'.encode()


def read_header(key: SessionKey, line: bytes) -> int:
    """Return the fence in the first line of ``turns.jsonl``.

    Raises:
        WrongOwner: it is another session's.
        NewerFormat: a newer kode_lab wrote it.
        SessionDamaged: it does not say whose it is.
    """
    fence = fence_in(line[FENCE_AT : FENCE_AT + FENCE_DIGITS])
    if fence >= 0 and header_of(key, fence) == line + b"\n":
        return fence
    header = _object(line)
    if not isinstance(header.get("kode_lab"), int):
        raise SessionDamaged(
            f"{key}: the first line of turns.jsonl does not say whose it is; "
            "move the session's directory away to begin anew, or restore it from a backup"
        )
    if header["kode_lab"] > FORMAT:
        raise NewerFormat(
            f"{key}: written in format {header['kode_lab']}, this kode_lab reads up to {FORMAT}: "
            "update kode_lab"
        )
    if owner_of(header) != key:
        raise WrongOwner(
            f"{key}: its directory belongs to another session; "
            "use another sessionId, or layout='user' where users do not share directories"
        )
    raise SessionDamaged(
        f"{key}: the first line of turns.jsonl is not as kode_lab writes it; restore it: "
        f"{header_of(key, 0).decode().rstrip()}, with the newest fence in it"
    )


def fence_in(digits: bytes) -> int:
    """Return the fence that these bytes of a header are, or -1."""
    return int(digits) if len(digits) == FENCE_DIGITS and digits.isdigit() else -1


def owner_of(header: Any) -> SessionKey | None:
    """Return the session that a header names, or None."""
    try:
        return SessionKey(header["userId"], header["sessionId"], header["agentId"])
    except (KeyError, TypeError):
        return None


def read_turns(key: SessionKey, data: bytes) -> TurnsText:
    """Read what follows the header, up to the first thing that is not a whole line of ours.

    Raises:
        SessionDamaged: a line cannot be read, and turns follow it: no crash does that.
    """
    if data.endswith(DELETED) and data[: -len(DELETED)][-1:] in (b"", b"\n"):
        return TurnsText([], None, 0, 0, 0, is_deleted=True)
    lines = data.split(b"\n")[:-1]
    finished: list[Finished] = []
    turn: OpenTurn | None = None
    end_bytes = done_bytes = at = 0
    torn_done = b""
    for number, line in enumerate(lines):
        entry = _object(line)
        try:
            if "done" in entry:
                ended, end_bytes = _finished(entry), entry["end"]
                finished.append(ended)
                done_bytes, turn = at + len(line) + 1, None
            elif "open" in entry:
                turn = OpenTurn.reopened(entry)
            elif "ending" in entry and turn is not None and turn.is_answered:
                break  # its messages may be there or not: they are appended again
            else:
                _replay(turn, entry)
        except (KeyError, TypeError, IndexError, ValueError):
            rest = lines[number + 1 :]
            _refuse_lost_lines(key, rest)
            torn = _object(rest[-1]).get("ending") if rest else None
            if torn is not None and (not finished or finished[-1].turn_id != torn["done"]):
                # Its messages were there already when its steps were overwritten.
                torn_done, end_bytes = encode(torn) + b"\n", torn["end"]
                finished.append(_finished(torn))
                at, turn = done_bytes, None
            break
        at += len(line) + 1
    if turn is not None and turn.steps == 0:
        at, turn = done_bytes, None  # opened, but its first step was torn
    return TurnsText(finished, turn, end_bytes, done_bytes, at, torn_done)


def _replay(turn: OpenTurn | None, entry: dict[str, Any]) -> None:
    if turn is None or not turn.replay(entry):
        raise ValueError("not a step")


def ending_of(done: bytes) -> bytes:
    """Return the line that announces this ``done`` line."""
    return b'{"ending":%b}\n' % done[:-1]


def messages_of(data: bytes) -> list[Message] | None:
    """Return the conversation that these bytes are, or None."""
    try:
        value = decode(data)
    except ValueError:
        return None
    if isinstance(value, list) and all(
        isinstance(m, dict)
        and m.get("role") in ("user", "assistant")
        and isinstance(m.get("content"), str | list)
        for m in value
    ):
        return value
    return None


def encode(value: Any) -> bytes:
    """Return the value as one line of JSON.

    What orjson refuses (huge integers, lone surrogates) the standard library writes.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """Return the value that these bytes hold; the inverse of ``encode``.

    Raises:
        ValueError: they are not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def _refuse_lost_lines(key: SessionKey, rest: Sequence[bytes]) -> None:
    """A crash leaves rubbish only at the end: a good line after it means something else."""
    if any({"done", "open"} & _object(line).keys() for line in rest):
        raise SessionDamaged(
            f"{key}: a line in the middle of turns.jsonl cannot be read, and turns follow it; "
            "nothing was changed: restore the file, or move it away (the messages stay)"
        )


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = decode(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _finished(entry: dict[str, Any]) -> Finished:
    first, last = entry["messages"]
    usage = Usage(*entry["usage"])
    facts = (entry["sealed"], usage, entry["version"], entry.get("stop", "unknown"))
    return Finished(entry["done"], first, last, *facts, entry.get("thinking_by", ""))
