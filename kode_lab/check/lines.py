"""Many lines of ``history.jsonl`` at once, as columns of fields: the fast way into a history.

It owns decoding without an object for each operation, and knows no rule. Every field is checked for
its kind, and every name is counted: lines have as many ``":`` as known names, so neither an unknown
name nor one that stands twice in an object passes unseen. Lines in which anything is unusual are
decoded one by one with the checks of ``event_of``, which names the line and the reason. How lines
fit each other is for ``kode_lab.history.reader`` to say.

msgspec is used because it decodes into typed fields at a third of what ``json`` needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple, Union

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from kode_lab.errors import InvalidRecord
from kode_lab.history.event import event_of
from kode_lab.history.reader import LINE_LIMIT_BYTES, is_whole

__all__ = ["CHUNK_BYTES", "Chunk", "chunks_of", "decode"]

# Its objects stay in the second cache of a processor; chunks ten times as large cost 40 % more.
CHUNK_BYTES = 160_000

_Text = str | None | UnsetType
_Texts = list[str] | None | UnsetType
_Flag = bool | None | UnsetType


class _Read(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    position: int | UnsetType | None = UNSET
    digest: _Text = UNSET
    tail: _Texts = UNSET
    foreign: _Texts = UNSET
    half: _Texts = UNSET
    after: _Texts = UNSET
    markers: _Texts = UNSET
    suffix: _Flag = UNSET


class _Model(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    calls: list[tuple[int, int]] | UnsetType | None = UNSET
    stop_reason: _Text = UNSET
    configs: _Texts = UNSET
    tool_results: list[tuple[str, str]] | UnsetType | None = UNSET


_RENAMED = {"user_id": "userId", "session_id": "sessionId", "agent_id": "agentId"}


class _Effect(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename=_RENAMED):
    id: str
    name: _Text = UNSET
    marker: _Text = UNSET
    user_id: _Text = UNSET
    session_id: _Text = UNSET


class _Invoke(
    msgspec.Struct,
    gc=False,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="invoke",
    rename=_RENAMED,
):
    process: str
    time_ns: int
    f: _Text = UNSET
    user_id: _Text = UNSET
    session_id: _Text = UNSET
    agent_id: _Text = UNSET
    marker: _Text = UNSET
    turn_id: _Text = UNSET
    clock: _Text = UNSET


class _Done(msgspec.Struct, gc=False, forbid_unknown_fields=True, tag_field="type", tag="ok"):
    process: str
    time_ns: int
    f: _Text = UNSET
    read: _Read | UnsetType | None = UNSET
    markers: _Texts = UNSET
    error: _Text = UNSET
    answered: _Text = UNSET
    config: _Text = UNSET
    stop_reason: _Text = UNSET
    effects: list[_Effect] | UnsetType | None = UNSET
    tools: _Texts = UNSET
    model: _Model | UnsetType | None = UNSET


def _done_as(tag: str) -> type[msgspec.Struct]:
    """Return a completion of another type: the same fields under another tag."""
    told = [(f.name, f.type) if f.required else (f.name, f.type, f.default)
            for f in msgspec.structs.fields(_Done)]  # fmt: skip
    return msgspec.defstruct(
        f"_{tag.title()}", told, gc=False, forbid_unknown_fields=True, tag_field="type", tag=tag
    )


_Failed, _Unknown = _done_as("fail"), _done_as("info")
_decode = msgspec.json.Decoder(Union[_Invoke, _Done, _Failed, _Unknown]).decode_lines  # noqa: UP007
_fields = msgspec.structs.astuple
_KINDS: dict[Any, int] = {_Invoke: 0, _Done: 1, _Unknown: 2, _Failed: 3}


class Chunk(NamedTuple):
    """Some lines, as columns.

    Attributes:
        kinds: of each event, 0 invoke, 1 ok, 2 info, 3 fail.
        numbers: of each event's line in the chunk, from 0.
        offsets: where each event's line begins in the chunk.
        invokes: for each field of an invoke, its values in the invokes, in order.
        dones: for each field of a completion, its values in the completions, in order.
        reads: for each field of a ``read``, its values in those that are not absent.
        has_read: for each completion, whether it has a ``read``.
        odd_invokes, odd_dones: which of them tell what no column holds; empty if none does.
        names: how many names the events have, their types included.
    """

    kinds: bytes
    numbers: NDArray[np.int64]
    offsets: NDArray[np.int64]
    invokes: dict[str, list[Any]]
    dones: dict[str, list[Any]]
    reads: dict[str, list[Any]]
    has_read: list[bool]
    odd_invokes: list[bool]
    odd_dones: list[bool]
    names: int = 0


def chunks_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Return the whole lines of a file in portions, each with where it begins.

    A last line without its line break was cut when its writer died, unless it is a whole one.
    """
    at, rest = 0, b""
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            end = data.rfind(b"\n") + 1
            if end:
                yield at, rest + data[:end]
                at += len(rest) + end
                rest = data[end:]
            else:
                rest += data
    if rest and is_whole(rest):
        yield at, rest + b"\n"


def decode(data: bytes, first: int) -> Chunk:
    """Return lines as columns.

    Args:
        first: the number of the first line in its file, for messages.

    Raises:
        InvalidRecord: a line is not an event; names it.
    """
    try:
        events = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _carefully(data, first)
    text = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(text == ord("\n")) + 1
    if len(starts) != len(events):
        return _carefully(data, first)
    chunk = _columns(events)
    nested: list[Any] = [model for model in chunk.dones["model"] if model]
    nested += chain.from_iterable(e for e in chunk.dones["effects"] if e)
    names = chunk.names + sum(len(f) - f.count(UNSET) for f in map(_fields, nested))
    # Fewer names than colons: one of them is unknown, or stands twice, or a text has such colons.
    colons = np.count_nonzero((text[:-1] == ord('"')) & (text[1:] == ord(":")))
    if names != colons or None in chunk.dones["read"]:
        return _carefully(data, first)
    offsets = np.concatenate(([0], starts[:-1]))
    return chunk._replace(numbers=np.arange(len(events)), offsets=offsets)


_INVOKES, _DONES = bytes([1, 0, 0, 0]).ljust(256), bytes([0, 1, 1, 1]).ljust(256)


def _columns(events: Sequence[Any]) -> Chunk:
    kinds = bytes(map(_KINDS.__getitem__, map(type, events)))
    invokes, invoke_names = _by_field(_Invoke, compress(events, kinds.translate(_INVOKES)))
    dones, done_names = _by_field(_Done, compress(events, kinds.translate(_DONES)))
    seen = [read for read in dones["read"] if read is not UNSET and read is not None]
    reads, read_names = _by_field(_Read, seen)
    nothing = np.zeros(0, np.int64)
    is_all = len(seen) == len(dones["read"])
    return Chunk(
        kinds,
        nothing,
        nothing,
        invokes,
        dones,
        reads,
        [True] * len(seen)
        if is_all
        else [one is not UNSET and one is not None for one in dones["read"]],
        [],
        [],
        len(events) + invoke_names + done_names + read_names,
    )


def _by_field(
    struct: type[msgspec.Struct], values: Iterable[Any]
) -> tuple[dict[str, list[Any]], int]:
    """Return the values of each field, and how many are not absent."""
    names = struct.__struct_fields__
    flat = list(chain.from_iterable(map(_fields, values)))
    columns = {name: flat[at :: len(names)] for at, name in enumerate(names)}
    return columns, len(flat) - flat.count(UNSET)


def _carefully(data: bytes, first: int) -> Chunk:
    """Decode lines one by one, with the checks of ``event_of``."""
    events: list[Any] = []
    numbers: list[int] = []
    offsets: list[int] = []
    odd_invokes: list[bool] = []
    odd_dones: list[bool] = []
    at = 0
    for number, line in enumerate(data.split(b"\n")[:-1]):
        if len(line) > LINE_LIMIT_BYTES:
            raise InvalidRecord(
                f"longer than LINE_LIMIT_BYTES={LINE_LIMIT_BYTES}", line=first + number
            )
        if line.strip():
            event = event_of(_text(line, first + number), first + number)
            struct: Any = {"invoke": _Invoke, "ok": _Done, "fail": _Failed}.get(
                event["type"], _Unknown
            )
            known = {n: v for n, v in event.items() if n in struct.__struct_encode_fields__}
            is_odd = any(
                value is not None and name not in known and name != "type" and name[:2] != "x_"
                for name, value in event.items()
            )
            known["read"] = _without_own(known.get("read"))
            if struct is _Invoke:
                del known["read"]
            (odd_invokes if struct is _Invoke else odd_dones).append(is_odd)
            if known.get("model"):
                known["model"] = _without_own(known["model"])
            if known.get("effects"):
                known["effects"] = list(map(_without_own, known["effects"]))
            events.append(msgspec.convert(known | {"type": event["type"]}, type=struct))
            numbers.append(number)
            offsets.append(at)
        at += len(line) + 1
    return _columns(events)._replace(
        numbers=np.array(numbers, np.int64),
        offsets=np.array(offsets, np.int64),
        odd_invokes=odd_invokes,
        odd_dones=odd_dones,
    )


def _without_own(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    return fields and {n: v for n, v in fields.items() if n[:2] != "x_"}


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InvalidRecord(f"not UTF-8: {error.reason}", line=number) from None
