r"""The two files of one session as text: what their lines mean. No file is touched here.

    messages.json   [\n{message},\n{message}\n]\n      the conversation, an ordinary JSON array
    turns.jsonl     {"kode_lab":1,"fence":"...","userId":...}  the owner, and the newest fence
                    {"filling":true}           the lines below are of a copy that is not whole yet
                    {"done":...,"end":bytes,...}  a line for each turn in the conversation
                    {"rewound":[ids],"keep":n,...}  the turns after the first n messages are removed
                    {"amended":n,"tail":[...],...}  messages.json has this from message n on
                    {"open":...} {"reply":...} {"result":...}      the steps of an unfinished turn
                    {"ending":{"done":...}}    after its last step: the line to replace them all
                    {"deleted":true}           at the end: the conversation is being deleted

Everything that decides whether the bytes of a file are a conversation must be in here.

Source: the doubled directory and the array's shape are those of the report and of its SDK.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from kode_lab.errors import NewerFormat, SessionDamaged, WrongOwner
from kode_lab.key import SessionKey
from kode_lab.message import Message, Usage
from kode_lab.sessions.adoption import invalid_place
from kode_lab.sessions.conversation import decode, encode
from kode_lab.sessions.open_turn import Finished, OpenTurn

__all__ = [
    "CLOSING",
    "DELETED",
    "FENCE_AT",
    "FENCE_DIGITS",
    "FILLED",
    "FILLING",
    "FORMAT",
    "FORMAT_AT",
    "LIMIT",
    "TurnsText",
    "amended_line",
    "decode",
    "encode",
    "ending_of",
    "fence_in",
    "header_of",
    "messages_of",
    "owner_of",
    "read_header",
    "read_turns",
    "rewound_line",
    "tail_of",
]

FORMAT = 2
# Where the number of the format is in the first line. A session gets 2 with its first rewind or
# fork: an older kode_lab would take their lines for the rubbish of a crash and cut them off.
FORMAT_AT = len(b'{"kode_lab":')
CLOSING = b"\n]\n"
DELETED = b'{"deleted":true}\n'
# The second has the length of the first, so that one small write replaces it.
FILLING = b'{"filling":true}\n'
FILLED = b'{"filling":null}\n'
FENCE_AT = len(b'{"kode_lab":1,"fence":"')
FENCE_DIGITS = 20
# Added to a fence in the file that is a limit: its holder may have issued all up to it. An orderly
# end writes the fence as it is, so it tells a crash from a file that was cut by others.
LIMIT = 10**19


class TurnsText(NamedTuple):
    """What the lines of ``turns.jsonl`` say.

    Attributes:
        finished: the turns, those that a rewind removed included, and the rewinds.
        open: the unfinished turn, if at least one step of it is whole.
        end_bytes: where ``messages.json`` ends after the last finished turn.
        done_bytes: where the last ``done`` line ends, counted from the first line after the header.
        good_bytes: where the last whole line that belongs here ends; what follows is rubbish.
        torn_done: the ``done`` line that was being written at ``done_bytes``, or b"".
        is_deleted: a deletion or a copy was not completed: there is no conversation.
        amended: the number of a replaced message, where it begins in ``messages.json``, all from it
            on, and the file's size before; None if a turn ended since.
        cut_from_bytes: the size of ``messages.json`` before the rewind that is the last line; a
            file of that size has not been cut yet.
        before: the same without the last line, if that is a ``done`` line.
    """

    finished: list[Finished]
    open: OpenTurn | None
    end_bytes: int
    done_bytes: int
    good_bytes: int
    torn_done: bytes = b""
    is_deleted: bool = False
    cut_from_bytes: int = -1
    amended: tuple[int, int, list[Message], int] | None = None
    before: TurnsText | None = None


def header_of(key: SessionKey, fence: int, number: int = 1) -> bytes:
    """Return the first line of ``turns.jsonl``; the fence is at ``FENCE_AT``, 20 digits."""
    # A dump of each id alone is a third of the cost of one of the object: it makes no encoder.
    ids = ",".join([f'"{name}":{json.dumps(value)}' for name, value in key.to_json().items()])
    return f'{{"kode_lab":{number},"fence":"{fence:0{FENCE_DIGITS}}",{ids}}}\n'.encode()


def read_header(key: SessionKey, line: bytes) -> int:
    """Return the fence in the first line of ``turns.jsonl``.

    Raises:
        WrongOwner: it is another session's.
        NewerFormat: a newer kode_lab wrote it.
        SessionDamaged: it does not say whose it is.
    """
    fence = fence_in(line[FENCE_AT : FENCE_AT + FENCE_DIGITS])
    number = 2 if line[FORMAT_AT : FORMAT_AT + 1] == b"2" else 1
    if fence >= 0 and header_of(key, fence, number) == line + b"\n":
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
    """Return the fence or the limit that these bytes of a header are, or -1."""
    return int(digits) if len(digits) == FENCE_DIGITS and digits.isdigit() else -1


def owner_of(header: Any) -> SessionKey | None:
    """Return the session that a header names, or None."""
    try:
        return SessionKey(header["userId"], header["sessionId"], header["agentId"])
    except (KeyError, TypeError):
        return None


def read_turns(key: SessionKey, data: bytes) -> TurnsText:  # noqa: C901, PLR0912 - a branch a kind
    """Read what follows the header, up to the first thing that is not a whole line of ours.

    Raises:
        SessionDamaged: a line cannot be read, and turns follow it: no crash does that.
    """
    is_cut_off = data.endswith(DELETED) and data[: -len(DELETED)][-1:] in (b"", b"\n")
    if is_cut_off or data.startswith(FILLING):
        return TurnsText([], None, 0, 0, 0, is_deleted=True)
    lines = data.split(b"\n")[:-1]
    finished: list[Finished] = []
    turn: OpenTurn | None = None
    end_bytes = done_bytes = at = 0
    cut_from_bytes, torn_done = -1, b""
    amended = before = None
    for number, line in enumerate(lines):
        entry = _object(line)
        try:
            if "done" in entry:
                ended = _finished(entry)
                if number == len(lines) - 1 and turn is None:
                    before = TurnsText([*finished], None, end_bytes, done_bytes, at,
                                       cut_from_bytes=cut_from_bytes)  # fmt: skip
                finished.append(ended)
                end_bytes, done_bytes, turn = entry["end"], at + len(line) + 1, None
                cut_from_bytes, amended = -1, None
            elif "rewound" in entry:
                finished = _rewound(finished, entry)
                end_bytes, cut_from_bytes, amended = entry["end"], entry["was"], None
                done_bytes, turn = at + len(line) + 1, None
            elif "amended" in entry:
                amended = (entry["amended"], entry["from"], entry["tail"], entry["was"])
                end_bytes = entry["from"] + len(tail_of(*amended[::2]))
                cut_from_bytes = -1
                if turn is None:
                    done_bytes = at + len(line) + 1
            elif "filling" in entry and not at:
                done_bytes = len(line) + 1
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
                torn_done, end_bytes, amended = encode(torn) + b"\n", torn["end"], None
                finished.append(_finished(torn))
                at, turn = done_bytes, None
            break
        at += len(line) + 1
    if turn is not None and turn.steps == 0:
        at, turn = done_bytes, None  # opened, but its first step was torn
    if turn is not None or torn_done:
        cut_from_bytes = -1
    return TurnsText(
        finished,
        turn,
        end_bytes,
        done_bytes,
        at,
        torn_done,
        cut_from_bytes=cut_from_bytes,
        amended=amended,
        before=before,
    )


def _replay(turn: OpenTurn | None, entry: dict[str, Any]) -> None:
    if turn is None or not turn.replay(entry):
        raise ValueError("not a step")


def _rewound(finished: Sequence[Finished], entry: dict[str, Any]) -> list[Finished]:
    """Return the turns after a rewind: the removed ones stay known, and so does the rewind."""
    count, ids = entry["keep"], entry["rewound"]
    gone = set(ids)
    kept = [f._replace(is_rewound=True) if f.turn_id in gone else f for f in finished]
    known = {f.turn_id for f in finished}
    nothing = Finished("", count, count - 1, False, Usage(), "", is_rewound=True)
    kept += [nothing._replace(turn_id=name) for name in ids if name not in known]
    return [*kept, nothing._replace(turn_id=entry["id"], facts={"rewound": ids})]


def rewound_line(
    rewind_id: str, count: int, turn_ids: Sequence[str], end_bytes: int, was_bytes: int
) -> bytes:
    """Return the line of a rewind to the first ``count`` messages."""
    entry = {"rewound": [*turn_ids], "keep": count, "end": end_bytes, "was": was_bytes}
    return encode({**entry, "id": rewind_id}) + b"\n"


def amended_line(at: int, start: int, tail: Sequence[Message], was_bytes: int) -> bytes:
    """Return the line of a replaced message: all messages from it on, and where they begin."""
    return encode({"amended": at, "from": start, "tail": [*tail], "was": was_bytes}) + b"\n"


def tail_of(at: int, tail: Sequence[Message]) -> bytes:
    """Return how ``messages.json`` ends with these messages, the first of which has a number."""
    return (b",\n" if at else b"[\n") + b",\n".join(map(encode, tail)) + CLOSING


def ending_of(done: bytes) -> bytes:
    """Return the line that announces this ``done`` line."""
    return b'{"ending":%b}\n' % done[:-1]


def messages_of(key: SessionKey, data: bytes) -> list[Message] | None:
    """Return the conversation that these bytes are, or None if they are not JSON.

    Raises:
        SessionDamaged: they are JSON and not a conversation; the error names the place.
    """
    try:
        value: list[Message] = decode(data)
    except ValueError:
        return None
    if (why := invalid_place(value)) is not None:
        raise SessionDamaged(
            f"{key}: messages.json cannot be read: {why}; nothing was changed: correct it, or let "
            "kode-lab doctor leave it out"
        )
    return value


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
    facts = entry.get("facts", {})
    return Finished(
        entry["done"], first, last, entry["sealed"], usage, entry["version"], facts=facts
    )
