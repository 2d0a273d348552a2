"""Why it is a breach: an anomaly's witness as sentences.

The data comes first (``Anomaly``: operations and facts), the prose is made from it: *Let* names the
operations, *Then* says what must follow from them, *However* says what was seen instead. The
argument is always the client's: two overlapping intervals alone prove nothing.

Idea: Elle's explanations, which can be checked by a reader who trusts neither party.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from kode_lab.check.verdict import Anomaly
from kode_lab.history.operation import DECLARATIONS, NEMESIS, Operation
from kode_lab.history.span import Span
from kode_lab.key import shown

__all__ = ["ENDED", "explain", "sentences"]

_LETTERS = {"turn": "T", "read": "R", "effects": "R"}
_LETTERS |= dict.fromkeys(DECLARATIONS, "D")
ENDED = {"ok": "acknowledged", "fail": "refused", "info": "never answered"}
# Facts that are moments; other nanoseconds are durations.
_MOMENTS = ("crash_ns",)
_Telling = Callable[[Sequence[str], str, Mapping[str, object]], tuple[str, str]]


def explain(anomaly: Anomaly) -> str:
    """Return the argument as text, a sentence a line."""
    return "\n".join(sentences(anomaly))


def sentences(anomaly: Anomaly) -> tuple[str, ...]:
    """Return the argument: a *Let* for each operation, then *Then* and *However*.

    Behind these may stand the declaration that would explain the anomaly, and what follows from it.
    """
    origin_ns = anomaly.origin_ns
    if origin_ns is None:
        origin_ns = min(_began(one) for one in anomaly.witness)
    numbers = {"T": 0, "R": 0, "S": 0, "D": 0, "F": 0}
    names: list[str] = []
    lets: list[str] = []
    for one in anomaly.witness:
        letter = "S" if isinstance(one, Span) else _LETTERS.get(one.f, "F")
        numbers[letter] += 1
        names.append(f"{letter}{numbers[letter]}")
        lets.append(f"Let {names[-1]} = {_described(one, origin_ns)}.")
    # Some are told by one operation where others need two.
    padded = [*names, *names[-1:] * 2]
    facts = _facts(anomaly, origin_ns)
    then, however = _TELLINGS[anomaly.name](padded, shown(anomaly.element), facts)
    told = [*lets, f"Then {then}.", f"However, {however}: a contradiction."]
    follow = anomaly.facts.get("follow")
    if follow:
        counts = ", ".join(f"{count} {name}" for name, count in follow.items())
        told.append(f"From this follow, in the same session: {counts}.")
    if "hint" in anomaly.facts:
        told.append(f"The service may mean it: then declare it ({anomaly.facts['hint']}).")
    return tuple(told)


def _began(one: Operation | Span) -> int:
    return one.start_ns if isinstance(one, Span) else one.invoke_ns


def _ms(time_ns: float, origin_ns: int) -> float:
    return (time_ns - origin_ns) / 1e6


def _described(one: Operation | Span, origin_ns: int) -> str:
    if isinstance(one, Span):
        ended = _ms(one.end_ns, origin_ns)
        what = f"{one.step} of {shown(one.turn_id)} in {one.key}"
        return f"{what}, at work {_ms(one.start_ns, origin_ns):.3f}-{ended:.3f} ms"
    if one.process == NEMESIS:
        return f"the fault {one.f} at {_ms(one.invoke_ns, origin_ns):.3f} ms{_line(one)}"
    nouns = {
        "turn": f"turn {shown(one.marker)}",
        "read": "the read",
        "effects": "the list of effects",
    } | {name: f"the declared {name}" for name in DECLARATIONS}
    times = f"sent at {_ms(one.invoke_ns, origin_ns):.3f} ms, {ENDED[one.type]}"
    if one.complete_ns != math.inf and one.type != "info":
        times += f" at {_ms(one.complete_ns, origin_ns):.3f} ms"
    seen = ""
    if one.markers is not None:
        seen = f", showing {_list(one.markers)}"
    elif one.f == "turn" and one.read is not None:
        seen = f", shown {_list(one.read.tail, one.read.position)}"
    name = nouns.get(one.f, one.f)
    return f"{name} of {one.key} ({shown(one.process)}{_line(one)}), {times}{seen}"


def _line(one: Operation) -> str:
    return f", line {one.line}" if one.line else ""


def _list(markers: Sequence[str], length: int | None = None) -> str:
    length = len(markers) if length is None else length
    if not length:
        return "nothing"
    last = [shown(str(marker)) for marker in markers[-8:]]
    return f"[{'... ' if length > len(last) else ''}{' '.join(last)}]"


def _facts(anomaly: Anomaly, origin_ns: int) -> dict[str, object]:
    facts: dict[str, object] = {"session": str(anomaly.key)}
    for name, value in anomaly.facts.items():
        if name.endswith("_ns") and isinstance(value, int | float):
            since_ns = origin_ns if name in _MOMENTS else 0
            facts[name] = f"{_ms(value, since_ns):.3f} ms"
        else:
            facts[name] = _list(value) if isinstance(value, list) else value
    last = anomaly.witness[-1]
    facts["owner"] = anomaly.facts.get("owner", str(last.key))
    return facts


def _lost_update(t: Sequence[str], element: str, f: Mapping[str, object]) -> tuple[str, str]:
    lost = f" ({element} is gone)" if f["lost"] != "nothing" else ""
    follows = f"one of {t[0]} and {t[1]} is first, and the other is shown it"
    seen = f"both stand at position {f['position']}{lost}, so neither was shown the other"
    return follows, f"{seen}, and no order of the two explains that"


def _future_read(t: Sequence[str], element: str, f: Mapping[str, object]) -> tuple[str, str]:
    if t[0] == t[1]:
        follows = f"{t[0]} is shown what stands before it, which it stands at {f['place']} of"
        return follows, f"it was shown {f['position']} turns, itself among them"
    follows = f"{t[0]} can show only what was sent before it returned"
    return follows, f"it shows {element} ({t[1]}), which was sent only later"


def _overtaking(t: Sequence[str], _element: str, f: Mapping[str, object]) -> tuple[str, str]:
    follows = f"no more than {f['limit']} of the turns sent after {t[0]} stand before it"
    return follows, f"{f['overtook']} do, {t[1]} among them"


_TELLINGS: Mapping[str, _Telling] = {
    "cross-session leak": lambda t, e, f: (
        f"{e} belongs to {f['owner']} alone, which sent it as {t[1]}",
        f"{t[0]} of {f['session']} shows it",
    ),
    "garbage read": lambda t, e, _: (
        "all that a session shows was sent in it",
        f"{t[0]} shows {e}, which was never sent in this history",
    ),
    "foreign reply": lambda t, e, _: (f"the reply to {t[0]} answers it", f"it answers {e}"),
    "lost write": lambda t, e, _: (
        f"{t[0]} was acknowledged before {t[1]} was sent, so {t[1]} must show {e}",
        f"{t[1]} does not",
    ),
    "lost after acknowledgement": lambda t, e, f: (
        f"{t[0]} was acknowledged before the crash at {f['crash_ns']}, so {t[1]} must show {e}",
        f"{t[1]} does not: it did not survive",
    ),
    "duplicate": lambda t, e, f: (
        f"{e} is one turn, and happens once",
        f"{t[1]} shows that it happened {f['times']} times",
    ),
    "aborted read": lambda t, e, _: (f"{t[0]} never happened", f"{t[1]} shows {e}"),
    "rolled-back turn": lambda t, e, _: (f"{t[0]} was rolled back", f"{t[1]} shows {e}"),
    "resurrected": lambda t, e, f: (
        f"{e} was removed by {t[1]} before {t[2]} was sent",
        f"{t[2]} shows {f['count']} of the removed turns, {e} among them",
    ),
    "broken fork": lambda t, e, f: (
        f"{f['session']} takes over {e} by {t[0]}",
        f"{t[1]} does not show it so",
    ),
    "cut reply": lambda t, _, f: (
        f"the reply to {t[0]} is whole, as its client was told {f['told']}",
        f"the model ended it with {f['model']}",
    ),
    "interleaved turn": lambda t, e, _: (
        f"{t[0]} is the last prompt that its model is shown",
        f"it was shown {e} after it, whose answer is then not its own",
    ),
    "lost effect": lambda t, e, f: (
        f"the client of {t[0]} was told of {f['tool']}, so {t[1]} lists its effect",
        f"{f['calls']} of the tool calls of {e} have none there",
    ),
    "crossed tool answers": lambda t, e, f: (
        f"the model of {t[0]} is given the answer to {e} as the answer to {e}",
        f"it was given that of {f['answers']}",
    ),
    "mixed configuration": lambda t, _, f: (
        f"{t[0]} runs with one configuration",
        f"it ran with {f['configs']}",
    ),
    "intermediate read": lambda t, e, _: (
        f"{t[0]} is shown {e} whole or not at all",
        f"{t[0]} was shown its prompt without a final reply",
    ),
    "torn turn": lambda t, e, _: (
        f"{e} rests in the session whole or not at all",
        f"{t[0]} shows its prompt without a final reply",
    ),
    "lost update": _lost_update,
    "fork": lambda t, _, f: (
        f"what {t[0]} shows are the first turns of the one order of {f['session']}",
        f"it shows {f.get('saw', 'a list')} where the session has {f.get('stands', 'another')}",
    ),
    "future read": _future_read,
    "stale read": lambda t, e, _: (
        f"{e} was in the session when {t[1]} returned, and {t[0]} was sent after that",
        f"{t[0]} was shown the session without it",
    ),
    "real-time reorder": lambda t, _, f: (
        f"{t[0]} was acknowledged before {t[1]} was sent, so it stands before {t[1]}",
        f"{f['session']} has {t[1]} before {t[0]}",
    ),
    "overtaking": _overtaking,
    "duplicate id": lambda _, e, f: (
        f"id {e} names one effect, {f['one']}",
        f"it also names {f['other']}",
    ),
    "effect twice": lambda _, e, f: (
        f"one tool call of {e} acts once, as {f['one']}",
        f"it acted again, as {f['other']}",
    ),
    "tool misattributed": lambda t, e, f: (
        f"a tool that {e} asked for acts for {f['owner']}",
        f"{t[0]} shows that it acted for {f['ran_for']}",
    ),
    "overlap": lambda t, _, f: (
        f"{f['lock']} is held by one turn at a time",
        f"{t[0]} and {t[1]} were at work in it together for {f['overlap_ns']}",
    ),
    "needless serialisation": lambda t, _, f: (
        f"{t[0]} need not wait for {t[1]}, a turn of another session",
        f"it waited {f['waited_ns']}, as {f['group']} did {f['waits']} times, never at once",
    ),
    "stuck session": lambda t, _, f: (
        f"all faults were over when {t[0]} was sent, so {f['session']} answers",
        f"of {f['asked']} turns asked since, none was answered",
    ),
    "configuration drift": lambda t, _, f: (
        f"{t[0]} and {t[1]} ran with the same configuration, which did not change between them",
        f"one ran with {f['one']}, the other with {f['other']}",
    ),
}
