"""Care of a store's directory from outside: copy it while it runs, examine it, repair it, adopt.

Everything here works on the files alone, so that it also works where a store refuses to open. What
a session's files mean is asked of the same code that a turn uses, on a copy of the files. It must
not know managers or agents.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from kode_lab.errors import InvalidScenario, SessionDamaged, StoreError
from kode_lab.key import SessionKey
from kode_lab.message import Message, Usage
from kode_lab.sessions.adoption import invalid_place, request_form
from kode_lab.sessions.conversation import decode
from kode_lab.sessions.files.disk import PosixDisk
from kode_lab.sessions.files.file_lock import Occupancy
from kode_lab.sessions.files.format import (
    FENCE_AT,
    FENCE_DIGITS,
    FORMAT,
    LIMIT,
    fence_in,
    header_of,
    owner_of,
)
from kode_lab.sessions.files.memory import MEMORIES
from kode_lab.sessions.files.power_journal import generation_in
from kode_lab.sessions.files.session_files import MESSAGES, TURNS, SessionFiles
from kode_lab.sessions.open_turn import Finished
from kode_lab.sessions.store import Stored

__all__ = [
    "Finding",
    "back_up",
    "examine",
    "foreign_sessions",
    "repair",
    "session_places",
    "write_meta",
]

_LOOKS = 400
_PAUSE_S = 0.005
_ROUNDS = 10
_JOURNAL = "+journal"


class Finding(NamedTuple):
    """Something that was found in one session's directory.

    Attributes:
        place: the directory, below the store's.
        what: one sentence.
        is_damage: turns of the session are refused until it is repaired.
        is_repairable: ``repair`` would change something.
    """

    place: str
    what: str
    is_damage: bool
    is_repairable: bool


def back_up(root: Path, to: Path) -> int:
    """Copy a store's directory, in use or not, and return how many sessions the copy has.

    Each session is copied as it was at one moment, turn ids included; a turn that is acknowledged
    during the copy is in it or not. The copy appears under its name when it is whole.

    Raises:
        InvalidScenario: there is no store, or something else has the copy's name.
        StoreError: a session or the journal changed each time it was read.
    """
    _require_store(root)
    if to.exists():
        raise InvalidScenario(f"{to} exists: name a directory that does not")
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for _ in range(_ROUNDS):
            # What ``power`` has logged and the files do not have yet is in the journal. Frames are
            # applied to files of any later state, as long as all of them are there.
            before = _generation(root)
            count = sum(
                _copied(place, part / place.relative_to(root)) for place in session_places(root)
            )
            for memory in (root / MEMORIES).glob("*.json"):  # each is only replaced as a whole
                (part / MEMORIES).mkdir(exist_ok=True)
                shutil.copyfile(memory, part / MEMORIES / memory.name)
            if before is not None:
                shutil.copyfile(root / _JOURNAL, part / _JOURNAL)
            if _generation(root) == before:
                os.sync()
                part.rename(to)
                return count
            shutil.rmtree(part)
            part.mkdir()
    finally:
        shutil.rmtree(part, ignore_errors=True)
    raise StoreError(
        f"the journal of {root} began anew during each of {_ROUNDS} copies: try again when there "
        "is less to do, or stop the server"
    )


def examine(root: Path) -> list[Finding]:
    """Return what is to be said of the sessions below a directory; nothing is changed.

    Raises:
        InvalidScenario: there is no store.
    """
    _require_store(root)
    return [finding for place in session_places(root) for finding in _findings(root, place)]


def repair(root: Path) -> list[Finding]:
    """Repair the sessions that need it, and return what was found; the original files are kept.

    A damaged conversation keeps each message that can be read. The ids of turns whose messages are
    not whole any more stay known, so that their tools do not run again.

    Raises:
        InvalidScenario: there is no store.
        ForeignHost: a process works in the directory.
    """
    found = [finding for finding in examine(root) if finding.is_repairable]
    if found:
        alone = Occupancy(root, PosixDisk(), alone=True, wait_s=0.5)
        try:
            for place in sorted({finding.place for finding in found}):
                _repair(root, root / place)
        finally:
            alone.leave()
    return found


def foreign_sessions(source: Path) -> Iterator[tuple[str, Path, list[Message], dict[str, Any]]]:
    """Find the Kode SDK's sessions at a path: agent id, directory, messages and ``meta.json``.

    Raises:
        InvalidScenario: there is none.
        SessionDamaged: the messages of one cannot be read.
    """
    found = sorted(path.parent.parent for path in source.rglob(f"runtime/{MESSAGES}"))
    if not found:
        raise InvalidScenario(f"{source} has no runtime/{MESSAGES} below it: name the directory")
    for directory in found:
        path = directory / "runtime" / MESSAGES
        messages, why = _parsed(path.read_bytes())
        if messages is None:
            raise SessionDamaged(f"{path} cannot be read: {why}; nothing was adopted")
        try:
            meta = dict(json.loads((directory / "meta.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            meta = {}
        yield str(meta.get("agentId") or directory.name), directory, messages, meta


def write_meta(
    place: Path, *, model: str = "", tools: Sequence[str] = (), original: Mapping[str, Any] = {}
) -> bool:
    """Write the ``meta.json`` that the Kode SDK needs to resume a session, if there is none.

    Args:
        place: the directory of the session's files.
        model: the name of the model that the SDK is to use.
        tools: the names of the tools.
        original: what the session's own ``meta.json`` said before it was adopted.

    Returns:
        Whether it was written.
    """
    path = place.parent / "meta.json"
    if path.exists():
        return False
    name = place.parent.name
    fields = {
        "templateId": name.rpartition(":")[2],
        "createdAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "configVersion": "v2.7.0",
        "lastBookmark": {"seq": 0, "timestamp": 0},
        **original,
        "agentId": name,
        "messageCount": len(_parsed(_read(place / MESSAGES))[0] or []),
    }
    fields["metadata"] = {
        "templateId": fields["templateId"],
        "tools": [{"source": "registered", "name": tool} for tool in tools],
        "modelConfig": {"provider": "anthropic", "model": model},
        **(original.get("metadata") or {}),
    }
    beside = path.with_name("meta.json.part")
    beside.write_text(json.dumps(fields, indent=2), encoding="utf-8")
    beside.replace(path)
    return True


def session_places(root: Path) -> Iterator[Path]:
    """Return the directories of the sessions below a store's directory, in either layout."""
    for pattern in ("*/*/runtime", "*/*/*/runtime"):
        for place in sorted(root.glob(pattern)):
            if (place / TURNS).exists() or (place / MESSAGES).exists():
                yield place


# ---- the parts


def _require_store(root: Path) -> None:
    if not root.is_dir() or not ((root / "+store").exists() or any(session_places(root))):
        raise InvalidScenario(f"{root} is no store: name a directory with sessions")


def _generation(root: Path) -> int | None:
    try:
        with (root / _JOURNAL).open("rb") as file:
            return generation_in(file.read(64))
    except FileNotFoundError:
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _copied(place: Path, to: Path) -> bool:
    """Copy one session as it was at one moment; return whether there was one."""
    for _ in range(_LOOKS):
        # A turn changes turns.jsonl before and after messages.json, and each hold its first line.
        turns = _read(place / TURNS)
        messages = _read(place / MESSAGES)
        if _read(place / TURNS) == turns:
            break
        time.sleep(_PAUSE_S)
    else:
        raise StoreError(f"{place} changed at each of {_LOOKS} looks: try again")
    to.mkdir(parents=True)
    for name, data in ((TURNS, turns), (MESSAGES, messages)):
        if data:
            (to / name).write_bytes(data)
    for other in place.iterdir():
        if other.is_file() and other.name not in (TURNS, MESSAGES):
            shutil.copyfile(other, to / other.name)
    if (place.parent / "meta.json").exists():
        shutil.copyfile(place.parent / "meta.json", to.parent / "meta.json")
    return bool(turns or messages)


def _parsed(data: bytes) -> tuple[list[Message] | None, str]:
    """Return the messages, or None and why they cannot be read."""
    try:
        value = decode(data) if data else []
    except ValueError as error:
        return None, f"it is not JSON ({error})"
    why = invalid_place(value)
    return (None, why) if why is not None else (value, "")


def _key_of(root: Path, place: Path) -> SessionKey | None:
    """Return the session of a directory by its name, or None where the name does not say it."""
    *users, part, again, _ = place.relative_to(root).parts
    if part != again or len(users) != 1 or "%h" in f"{users[0]}{part}":
        return None
    session, _, agent = part.rpartition(":")
    key = SessionKey(unquote(users[0]), unquote(session or agent), unquote(agent))
    return key if (key.user_part, key.instance_part) == (users[0], part) else None


def _owner(root: Path, place: Path) -> SessionKey | None:
    """Return the session that the first line of ``turns.jsonl`` or the directory's name says."""
    try:
        owner = owner_of(decode(_read(place / TURNS).partition(b"\n")[0]))
    except ValueError:
        owner = None
    return owner or _key_of(root, place)


def _findings(root: Path, place: Path) -> Iterator[Finding]:
    name = str(place.relative_to(root))
    key = _owner(root, place)
    if key is None:
        what = f"neither {TURNS} nor the directory's name says whose session it is"
        yield Finding(name, what, is_damage=True, is_repairable=False)
        return
    try:
        stored, after = _loaded(key, place)
    except StoreError as error:
        what = str(error).partition("; nothing was")[0]
        yield Finding(name, what, is_damage=True, is_repairable=True)
        return
    lines = after.count(b"\n")
    remarks = (
        (
            not _read(place / TURNS),
            f"there is no {TURNS}: another tool wrote it, and the next turn takes it over",
        ),
        (
            after != _read(place / MESSAGES),
            f"{MESSAGES} does not end where its last turn does; the next turn corrects it",
        ),
        (stored.open is not None, "a turn is unfinished: sent again, it continues"),
        (
            request_form(stored.messages) is not None,
            "some messages are not as the Messages API takes them; requests show them so",
        ),
        (
            (place / f"{MESSAGES}.torn").exists(),
            f"{MESSAGES}.torn has what did not belong into the conversation",
        ),
    )
    for is_so, what in remarks:
        if is_so:
            yield Finding(name, what, is_damage=False, is_repairable=False)
    if stored.messages and lines != len(stored.messages) + 2:
        what = f"{MESSAGES} is not one message a line, so it cannot be rewound"
        yield Finding(name, what, is_damage=False, is_repairable=True)


def _loaded(key: SessionKey, place: Path) -> tuple[Stored, bytes]:
    """Return what a turn would load, and ``messages.json`` after that, from a copy of the files."""
    with tempfile.TemporaryDirectory() as beside:
        for each in (TURNS, MESSAGES):
            if data := _read(place / each):
                (Path(beside) / each).write_bytes(data)
        files = SessionFiles(key, beside, PosixDisk(), is_alone=False)
        try:
            files.next_fence()
            stored = files.read()
        finally:
            files.close()
        return stored, _read(Path(beside) / MESSAGES)


def _repair(root: Path, place: Path) -> None:
    key = _owner(root, place)
    assert key is not None, "examine calls it repairable"
    turns, data = _read(place / TURNS), _read(place / MESSAGES)
    messages, first_gap = _salvaged(data)
    finished = _finished_in(turns)
    kept = [f for f in finished if not f.is_rewound and f.last < first_gap]
    gone = [f.turn_id for f in finished if f not in kept]
    fence = max(fence_in(turns[FENCE_AT : FENCE_AT + FENCE_DIGITS]), 0) % LIMIT
    with tempfile.TemporaryDirectory(dir=place.parent) as beside:
        files = SessionFiles(key, beside, PosixDisk(), is_alone=False)
        try:
            (Path(beside) / TURNS).write_bytes(header_of(key, fence, FORMAT))
            files.next_fence()
            files.read()
            filling, whole, _ = files.fill_tails(messages, kept)
            for tail in (filling, whole) if messages else ():
                files.apply(tail)
            if messages:
                files.mark_filled()
            if gone:
                files.read()
                line, _ = files.rewind_tails(len(messages), f"repair-{fence}", gone)
                files.apply(line)
        finally:
            files.close()
        number = next(n for n in range(1, 10_000) if not (place / f"{TURNS}.before-{n}").exists())
        for name, there in ((TURNS, turns), (MESSAGES, data)):
            if there:
                shutil.copyfile(place / name, place / f"{name}.before-{number}")
        for name in (MESSAGES, TURNS):
            if (Path(beside) / name).exists():
                (Path(beside) / name).replace(place / name)
            else:
                (place / name).unlink(missing_ok=True)


def _salvaged(data: bytes) -> tuple[list[Message], int]:
    """Return the messages that can be read, and how many of them are before the first gap."""
    try:
        value = decode(data) if data else []
    except ValueError:
        value = list(_objects_in(data.decode(errors="replace")))
    value = value if isinstance(value, list) else []
    messages: list[Message] = []
    first_gap = -1
    for message in value:
        if invalid_place([message]) is None:
            messages.append(message)
            continue
        first_gap = len(messages) if first_gap < 0 else first_gap
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            each = [{**message, "content": [block]} for block in content]
            blocks = [one["content"][0] for one in each if invalid_place([one]) is None]
            if blocks:
                messages.append({**message, "content": blocks})
    return messages, len(messages) if first_gap < 0 else first_gap


def _objects_in(text: str) -> Iterator[Any]:
    """Return the objects at the beginning of an array that is not whole."""
    decoder = json.JSONDecoder()
    at = text.find("[") + 1
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield value


def _finished_in(turns: bytes) -> list[Finished]:
    """Return the turns whose lines can be read, wherever they are."""
    found: list[Finished] = []
    for line in turns.split(b"\n"):
        try:
            entry = decode(line)
            if "done" in entry:
                (first, last), usage = entry["messages"], Usage(*entry["usage"])
                found.append(
                    Finished(
                        entry["done"],
                        first,
                        last,
                        entry["sealed"],
                        usage,
                        entry["version"],
                        facts=entry.get("facts", {}),
                    )
                )
            elif "rewound" in entry:
                ids = set(entry["rewound"])
                found = [f._replace(is_rewound=f.is_rewound or f.turn_id in ids) for f in found]
            elif "open" in entry:
                found.append(Finished(entry["open"], 0, -1, False, Usage(), "", is_rewound=True))
        except (ValueError, TypeError, KeyError):
            continue
    return found
