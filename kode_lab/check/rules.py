"""The rules for one session: each takes its case and returns the anomalies it finds, and no more.

With the order L of the case:

    apart     every element of L, and all that was shown, was sent in this session
    kept      every acknowledged turn stands in L, once
    whole     no refused turn stands in L or was shown, and no half of one
    ordered   each turn stands where it says it stands, after exactly what it says it was shown;
              and some moment within each operation's interval agrees with L, so that if X ended
              before Y began, X is before Y

These are sound and complete: an order of moments exists if and only if no pair of operations
contradicts L, because choosing for each operation the latest invoke before it in L either works
or exhibits the pair. Intervals are closed; what never completed ends at infinity.

A session in which the service declares that it removed, compacted, edited or forked something has
no single order L. There ``declared`` asks the search whether any order of the turns and the
declarations explains what was shown. Only if none does, the same rules name what is wrong.

Source: Herlihy and Wing's linearizability, decided as Gibbons and Korach do for known write orders.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from kode_lab.check.evidence import CUT_SHORT, Case, case_of
from kode_lab.check.search import session_outcome
from kode_lab.check.verdict import Anomaly
from kode_lab.history.operation import Operation

__all__ = ["RULES", "Rule", "Undecided", "declared", "followers", "is_declared", "unexplained"]

Rule = Callable[[Case, Sequence[float]], Iterator[Anomaly]]
# How many steps the search may take for one session with declarations: about a second.
SEARCH_LIMIT_STEPS = 200_000
# Of a list, a witness holds at most so many turns.
WITNESS_TURNS = 8


def is_declared(case: Case) -> bool:
    """Whether the service declares that it did more to the session than append turns."""
    return bool(
        case.declared
        or any(turn.details.replaces for turn in case.turns.values())
        or any(read.is_suffix for read in case.reads)
    )


def apart(case: Case, _crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return markers of others that the session was shown or holds, and replies to other prompts.

    Whose marker it is needs all sessions: until that is settled it is called a garbage read.
    """
    told: set[str] = set()
    for operation, marker in _strangers(case):
        if marker not in told:
            told.add(marker)
            yield Anomaly("garbage read", case.key, (operation,), marker)
    for turn in case.tellers:
        answered = turn.answered
        allowed = ("", turn.marker, turn.details.into, *turn.details.merged)
        if answered not in allowed and answered not in told:
            told.add(answered)
            yield Anomaly("foreign reply", case.key, (turn,), answered)


def _strangers(case: Case) -> Iterator[tuple[Operation, str]]:
    turns = case.turns
    for operation in case.tellers:
        if operation.read is not None and operation.read.foreign:
            # What a fork took over has the markers of its source.
            yield from ((operation, m) for m in operation.read.foreign if m not in turns)
        streamed = operation.details.streamed
        if streamed:
            yield from ((operation, marker) for marker in streamed if marker not in turns)
    for read in case.reads:
        if not turns.keys() >= set(read.markers or ()):
            yield from ((read, m) for m in read.markers or () if m not in turns)
    unsent = set(case.order) - turns.keys()
    for turn in turns.values() if unsent else ():
        # The order was continued over a marker that only another turn's tail names.
        tail = turn.read.tail if turn.read is not None else ()
        yield from ((turn, marker) for marker in tail if marker in unsent)


def kept(case: Case, crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return acknowledged turns that are gone, and turns that are there twice."""
    for marker in case.turns.keys() - case.place.keys():
        turn = case.turns[marker]
        if turn.type != "ok" or not case.is_before_final(turn) or _rival(case, turn) is not None:
            continue  # it may yet come, or is a lost update, which ``ordered`` tells
        assert case.final is not None
        at = bisect_left(crashes, turn.complete_ns)
        if at < len(crashes) and crashes[at] <= case.final.complete_ns:
            facts = {"crash_ns": crashes[at]}
            yield Anomaly("lost after acknowledgement", case.key, (turn, case.final), marker, facts)
        else:
            facts = _removal_hint(case, case.final.markers or ())
            # A list shows which of two turns was lost; of its end, the last turn must be known.
            lists = case.reads[-1:] if case.final.f == "turn" else ()
            last = (case.final.markers or ())[-1:] if case.final.is_suffix else ()
            witness = _with_turns(case, (turn, case.final, *lists), last)
            yield Anomaly("lost write", case.key, witness, marker, facts)
    yield from _duplicates(case)


def _duplicates(case: Case) -> Iterator[Anomaly]:
    told: set[str] = set()
    shown_to = [t for t in case.turns.values() if t.type == "ok" and t.read is not None]
    for read in (*reversed(case.reads), *shown_to):
        markers = read.markers or (read.read.tail if read.read is not None else ())
        if len(set(markers)) == len(markers):
            continue
        for marker, times in Counter(markers).items():
            if times > 1 and marker in case.turns and marker not in told:
                told.add(marker)
                witness = (case.turns[marker], read)
                yield Anomaly("duplicate", case.key, witness, marker, {"times": times})
    for one, other in case.replays:
        yield Anomaly("duplicate", case.key, (one, other), one.marker, {"times": 2})


def whole(case: Case, _crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return refused turns that took effect all the same, and turns that show by halves."""
    refused = {marker for marker, turn in case.turns.items() if turn.type == "fail"}
    if refused:
        listed = len(case.own(case.reads[-1].markers or ())) if case.reads else -1
        # Reads first, and the last of them first: they are the strongest evidence.
        for reader in (*reversed(case.reads), *case.tellers):
            shown = reader.markers or (reader.read.tail if reader.read is not None else ())
            if case.place.get(reader.marker, math.inf) <= listed and _is_confirmed(case, reader):
                continue  # what it was shown stands in the last read
            for marker in refused.intersection(shown):
                refused.discard(marker)
                turn = case.turns[marker]
                is_undone = turn.details.is_rolled_back
                name = "rolled-back turn" if is_undone else "aborted read"
                yield Anomaly(name, case.key, (turn, reader), marker)
    seen_half: dict[str, Operation] = {}
    last = case.reads[-1] if case.reads else None
    halving = [one for one in case.tellers if one.read is not None and one.read.half]
    together = _together(case) if halving else set()
    for operation in sorted(halving, key=lambda operation: operation is not last):
        half = operation.read.half if operation.read is not None else ()
        for marker in half if not together else (m for m in half if m not in together):
            seen_half.setdefault(marker, operation)
    for marker, operation in seen_half.items():
        name = "torn turn" if operation is last else "intermediate read"
        yield Anomaly(name, case.key, (operation,), marker)
    yield from _cut_replies(case)


def _together(case: Case) -> set[str]:
    """Return the markers of prompts that another one follows before the reply to both."""
    turns = case.turns.values()
    steered = {turn.details.into for turn in turns if turn.details.into}
    return steered.union(*(turn.details.merged for turn in turns))


def _cut_replies(case: Case) -> Iterator[Anomaly]:
    for turn in case.tellers:
        model, told = turn.details.model, turn.details.stop_reason
        is_cut = model is not None and model.stop_reason in CUT_SHORT
        if turn.type == "ok" and model is not None and is_cut and told not in CUT_SHORT:
            facts = {"model": model.stop_reason, "told": told or "nothing"}
            yield Anomaly("cut reply", case.key, (turn,), turn.marker, facts)


def _is_confirmed(case: Case, turn: Operation) -> bool:
    read = case.turns[turn.marker].read
    return read is not None and turn.type == "ok" and case.fits(read, case.place[turn.marker])


def ordered(case: Case, _crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return turns that were not shown exactly what stands before them, and orders against time."""
    yield from _crossed_prompts(case)
    for marker, turn in case.turns.items():
        read = turn.read
        if read is None:
            continue
        at = case.place.get(marker)
        if at is not None and case.fits(read, at):
            continue
        if turn.type == "fail" or (at is None and turn.type == "info"):
            continue  # it never happened, or may never have
        yield from _misplaced(case, turn, at)
    yield from _against_time(case)
    yield from _wrong_reads(case)


def _crossed_prompts(case: Case) -> Iterator[Anomaly]:
    """Return turns that were shown a prompt after their own, or answer one sent after their end."""
    for teller in case.tellers:
        if teller.type == "ok" and teller.read is not None and teller.read.after:
            yield Anomaly("interleaved turn", case.key, (teller,), teller.read.after[0])
    for turn in case.turns.values():
        for marker in turn.details.merged:
            other = case.turns.get(marker)
            if turn.type == "ok" and other is not None and other.invoke_ns > turn.complete_ns:
                yield Anomaly("future read", case.key, (turn, other), marker)
        running = case.turns.get(turn.details.into)
        if running is not None and running.type == "ok" and turn.invoke_ns > running.complete_ns:
            yield Anomaly("future read", case.key, (running, turn), turn.marker)
        if running is not None and turn.type == "ok" and running.invoke_ns > turn.complete_ns:
            yield Anomaly("future read", case.key, (turn, running), running.marker)


RULES: Mapping[str, Rule] = {"apart": apart, "kept": kept, "whole": whole, "ordered": ordered}


def _is_prefix(case: Case, turn: Operation) -> bool:
    """Whether what a turn says it was shown is a prefix of the order."""
    assert turn.read is not None
    return case.fits(turn.read, turn.read.position)


def _rival(case: Case, turn: Operation) -> Operation | None:
    """Return the turn that stands where this one says it stands, if neither ended before the other.

    If something that stands there or later was acknowledged before this turn began, its view was
    simply old; if that other turn began after this one was acknowledged, this one was simply lost.
    """
    if turn.read is None or not _is_prefix(case, turn) or turn.read.position >= len(case.order):
        return None
    position = turn.read.position
    if case.earliest_complete[position] < turn.invoke_ns or case.order[position] == turn.marker:
        return None
    rival = case.turns.get(case.order[position])
    if rival is None or turn.complete_ns < rival.invoke_ns:
        return None
    # A rival that was shown this turn did not overlook it: it was lost later.
    return None if rival.read is not None and turn.marker in rival.read.tail else rival


def _misplaced(case: Case, turn: Operation, at: int | None) -> Iterator[Anomaly]:
    """Name what is wrong with a turn whose own account of its place does not hold.

    If it is only gone, ``kept`` names it; if only its place contradicts the time,
    ``_against_time``; if what stands in its place was never sent, ``apart``.
    """
    assert turn.read is not None
    position = turn.read.position
    facts: dict[str, Any] = {"position": position, "place": at, "saw": list(turn.read.tail)}
    if not _is_prefix(case, turn):
        facts["stands"] = list(case.order[max(0, position - len(turn.read.tail)) : position])
        if at is not None and _is_window(case, turn, at):
            facts["hint"] = 'read: {"suffix": true}, if the service shows its model a window'
        if turn.read.is_suffix and at is None:
            pass  # it was shown what was sent only later
        elif at is not None or position <= len(case.order) or case.is_before_final(turn):
            yield Anomaly("fork", case.key, _parting(case, turn), turn.marker, facts)
        else:
            yield from _unconnected(case, turn)
        yield from _impossibly_shown(case, turn, turn.read.tail)
        return
    if at is not None and at < position:
        yield Anomaly("future read", case.key, (turn,), turn.marker, facts)
        return
    if position == len(case.order):
        return
    rival = _rival(case, turn)
    if rival is not None:
        facts["lost"] = [turn.marker] if at is None else []
        yield Anomaly("lost update", case.key, (turn, rival), turn.marker, facts)
    elif case.earliest_complete[position] < turn.invoke_ns:
        missed = _acknowledged_before(case, turn.invoke_ns)
        yield Anomaly("stale read", case.key, (turn, missed), missed.marker, facts)
    elif at is None and not case.is_before_final(turn):
        yield Anomaly("fork", case.key, (turn,), turn.marker, facts)


def _is_window(case: Case, turn: Operation, at: int) -> bool:
    """Whether a turn was shown the last turns before it, but not all of them."""
    assert turn.read is not None
    shown = turn.read.tail
    return 0 < len(shown) < at and tuple(case.order[at - len(shown) : at]) == shown


def _parting(case: Case, turn: Operation) -> tuple[Operation, ...]:
    """Return a turn that was shown no prefix, and the turn that shows where they differ."""
    assert turn.read is not None
    tail = turn.read.tail
    first = turn.read.position - len(tail)
    last = case.reads[-1] if case.reads else None
    listed = 0 if last is None else len(case.own(last.markers or ()))
    for at, marker in enumerate(tail, first):
        if at >= len(case.order) or case.order[at] != marker:
            other = case.turns.get(case.order[at]) if listed <= at < len(case.order) else None
            if other is not None:
                return turn, other
            break
    return (turn,) if last is None else (turn, last)


def _impossibly_shown(case: Case, turn: Operation, markers: Sequence[str]) -> Iterator[Anomaly]:
    for marker in markers:
        shown = case.turns.get(marker)
        if shown is None and marker not in case.place:
            yield Anomaly("garbage read", case.key, (turn,), marker)
        elif shown is not None and shown.invoke_ns > turn.complete_ns:
            yield Anomaly("future read", case.key, (turn, shown), marker)


def _acknowledged_before(case: Case, invoke_ns: float) -> Operation:
    """Return the turn that stands furthest of those acknowledged before ``invoke_ns``."""
    return case.turns[case.order[bisect_left(case.earliest_complete, invoke_ns) - 1]]


def _latest_before(case: Case, length: int) -> Operation:
    """Return the turn that was sent last among the first ``length`` of the order."""
    latest = case.latest_invoke
    return case.turns[case.order[bisect_left(latest, latest[length - 1])]]


def _against_time(case: Case) -> Iterator[Anomaly]:
    """Return each turn that ended before one began that stands before it."""
    latest_ns = -math.inf
    for at, complete_ns in enumerate(case.completes):
        marker = case.order[at]
        if complete_ns < latest_ns and case.place[marker] == at:
            turn, later = case.turns[marker], _latest_before(case, at)
            # Without their own words, only a list shows which of the two is first.
            list_of = next((r for r in case.reads if marker in (r.markers or ())), None)
            is_told = turn.read is not None and later.read is not None
            witness = (turn, later) if is_told or list_of is None else (turn, later, list_of)
            yield Anomaly("real-time reorder", case.key, witness, marker)
            is_told = turn.read is not None and turn.read.digest is not None
            if is_told and turn.read is not None and case.fits(turn.read, at):
                yield Anomaly("future read", case.key, (turn, later), later.marker)
        latest_ns = case.latest_invoke[at]


def _wrong_reads(case: Case) -> Iterator[Anomaly]:
    """Return authoritative reads that are no prefix of the order, or not of their time."""
    prefixes: list[tuple[int, Operation]] = []
    for read in case.reads:
        shown = case.own(read.markers or ())
        if case.order[: len(shown)] == shown:
            prefixes.append((len(shown), read))
        else:
            yield from _diverging(case, read, shown)
    # The newest list that any read returned so far with, going from long lists to short ones.
    ended_ns, newest = math.inf, None
    prefixes.sort(key=lambda pair: -pair[0])
    for length, group in groupby(prefixes, key=lambda pair: pair[0]):
        reads = [read for _, read in group]
        for read in reads:
            if length and case.latest_invoke[length - 1] > read.complete_ns:
                later = _latest_before(case, length)
                yield Anomaly("future read", case.key, (read, later), later.marker)
            if length < len(case.order) and case.earliest_complete[length] < read.invoke_ns:
                missed = _acknowledged_before(case, read.invoke_ns)
                # That it was there, and not lost, the last list shows.
                witness = tuple(dict.fromkeys((read, missed, case.reads[-1])))
                yield Anomaly("stale read", case.key, witness, missed.marker)
            elif newest is not None and ended_ns < read.invoke_ns:
                missed = case.order[length]
                witness = _with_turns(case, (read, newest), [missed])
                yield Anomaly("stale read", case.key, witness, missed)
        first = min(reads, key=lambda read: read.complete_ns)
        if first.complete_ns < ended_ns:
            ended_ns, newest = first.complete_ns, first


def _diverging(case: Case, read: Operation, shown: list[str]) -> Iterator[Anomaly]:
    final = case.reads[-1]
    gone = shown[len(case.order) :]
    if shown[: len(case.order)] != case.order:
        facts = {"saw": shown[-8:], "stands": list(case.order[: len(shown)][-8:])}
        facts |= _removal_hint(case, shown)
        both = zip(shown, case.order, strict=False)
        apart = next((pair for pair in both if pair[0] != pair[1]), ())
        yield Anomaly("fork", case.key, _with_turns(case, (read, final), apart), "", facts)
        return
    # The final list only lacks the end of this one. What was acknowledged, ``kept`` tells.
    for marker in gone:
        turn = case.turns.get(marker)
        if turn is None or turn.type != "ok" or not case.is_before_final(turn):
            witness = _with_turns(case, (final, read), [marker])
            yield Anomaly("stale read", case.key, witness, marker)
            return


def _with_turns(
    case: Case, witness: tuple[Operation, ...], markers: Iterable[str]
) -> tuple[Operation, ...]:
    """Return a witness with the turns of which its lists tell: alone it must prove the same."""
    turns = (case.turns[marker] for marker in markers if marker in case.turns)
    return tuple(dict.fromkeys((*witness, *turns)))


def _removal_hint(case: Case, shown: Sequence[str]) -> dict[str, Any]:
    """Return the declaration that would explain a list from which turns are gone, if one would."""
    acknowledged = sum(turn.type == "ok" for turn in case.turns.values())
    if not shown and acknowledged > 1:
        return {"hint": '"f": "reset" or "delete", if the service emptied the session'}
    final = list(case.reads[-1].markers or ()) if case.reads else []
    is_end = bool(final) and 0 < len(final) < len(shown) and list(shown[-len(final) :]) == final
    sent = sorted(case.turns.values(), key=lambda turn: turn.invoke_ns)
    newest = {turn.marker for turn in sent[len(sent) - len(shown) :]}
    if is_end or (acknowledged > len(shown) > 0 and newest == set(shown)):
        return {"hint": '"f": "compact" with "upto", if the service shortened the session'}
    return {}


def _unconnected(case: Case, turn: Operation) -> Iterator[Anomaly]:
    """Return what contradicts a turn beyond all that is known of the order.

    No read reaches it. Another acknowledged turn may still claim its position, or one that was
    acknowledged before it was sent may stand behind it; or its own words contradict the order.
    """
    assert turn.read is not None
    position = turn.read.position
    facts = {"position": position, "place": None, "saw": list(turn.read.tail), "lost": []}
    first = position - len(turn.read.tail)
    known = case.order[first : first + len(turn.read.tail)]
    if known and list(turn.read.tail[: len(known)]) != list(known):
        facts["stands"] = list(known)
        yield Anomaly("fork", case.key, _parting(case, turn), turn.marker, facts)
        return
    for other in case.turns.values():
        read = other.read
        if read is None or other.type != "ok" or other is turn or read.is_suffix:
            continue
        if other.complete_ns < turn.invoke_ns and read.position >= position:
            yield Anomaly("stale read", case.key, (turn, other), other.marker, facts)
            return
        is_first = (other.invoke_ns, other.marker) < (turn.invoke_ns, turn.marker)
        if read.position == position and is_first and turn.complete_ns >= other.invoke_ns:
            yield Anomaly("lost update", case.key, (turn, other), turn.marker, facts)
            return


# ---- sessions with declarations


class Undecided(Exception):
    """Raised when the search did not end within its limit; its text says what would help."""


def declared(case: Case, crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return why no order of the turns and the declarations explains what was shown.

    Raises:
        Undecided: the search did not end within ``SEARCH_LIMIT_STEPS``.
    """
    crossed = list(_crossed_prompts(case))
    yield from crossed
    wrong = unexplained(case)
    if wrong is None or crossed:
        return
    if wrong.f == "fork":
        witness = (wrong, *case.reads[-1:])
        listed = [*(witness[-1].markers or ())[-WITNESS_TURNS:], wrong.details.upto]
        witness = _with_turns(case.source or case, witness, listed)
        yield Anomaly("broken fork", case.key, witness, wrong.details.upto)
        return
    found = [*_resurrected(case), *_of_last_epoch(case, crashes)]
    yield from found
    if not found:
        witness = (*case.declared[-1:], *case.reads[-1:])
        witness = witness or tuple(case.turns.values())[-1:]
        yield Anomaly("fork", case.key, witness, "", {"saw": "a list that no order explains"})


def unexplained(case: Case) -> Operation | None:
    """Return None if some order explains all that was shown, else what it is that none explains.

    That is the fork with which the session begins, if what it took over was never so in its source.

    Raises:
        Undecided: the search did not end within ``SEARCH_LIMIT_STEPS``.
    """
    if not _has_order(case):
        return case.tellers[-1]
    fork = next((one for one in case.declared if one.f == "fork" and one.type == "ok"), None)
    if fork is None or case.source is None:
        return None
    source, upto = case.source, fork.details.upto
    taken = [marker for marker, turn in case.turns.items() if turn.details.source is not None]
    shown = {marker for read in case.reads for marker in read.markers or ()}
    for one in case.tellers:
        shown.update(one.read.tail if one.read and one.details.source is None else ())
    if is_declared(source):
        is_shown = not shown.isdisjoint(source.turns)
        is_so = _has_order(source, fork, taken if is_shown else None) or not _has_order(source)
    elif upto in source.place:
        at = source.place[upto]
        is_so = taken == source.order[: at + 1] and source.latest_invoke[at] <= fork.complete_ns
    else:
        turn = source.turns.get(upto)
        is_so = turn is not None and turn.type != "fail" and turn.invoke_ns <= fork.complete_ns
    return None if is_so else fork


def _has_order(
    case: Case, fork: Operation | None = None, taken: Sequence[str] | None = None
) -> bool:
    outcome = session_outcome(case, forked=fork, order=taken, limit_steps=SEARCH_LIMIT_STEPS)
    if outcome.status == "unknown":
        raise Undecided(f"needs fewer turns at once in {case.key}: {outcome.reason}")
    return outcome.status == "valid"


def _resurrected(case: Case) -> Iterator[Anomaly]:
    """Return the turns that a deletion, a reset or an edit removed, and that are shown again."""
    edits = [turn for turn in case.turns.values() if turn.details.replaces]
    for removal in (*case.declared, *edits):
        if removal.type != "ok" or removal.f in ("compact", "fork"):
            continue
        gone = {removal.details.replaces} - {""}
        if not gone:
            gone = {m for m, t in case.turns.items() if t.complete_ns < removal.invoke_ns}
            for read in case.reads:
                if read.complete_ns < removal.invoke_ns:
                    gone.update(read.markers or ())
        for teller in sorted(case.tellers, key=lambda one: one.invoke_ns):
            shown = teller.markers or (teller.read.tail if teller.read is not None else ())
            back = [marker for marker in shown if marker in gone]
            if back and teller.invoke_ns > removal.complete_ns:
                turn = case.turns.get(back[0], teller)
                witness = tuple(dict.fromkeys((turn, removal, teller)))
                facts = {"count": len(back), "by": removal.f}
                yield Anomaly("resurrected", case.key, witness, back[0], facts)
                break


def _of_last_epoch(case: Case, crashes: Sequence[float]) -> Iterator[Anomaly]:
    """Return what the plain rules say of the session as it is after the last removal."""
    begun_ns = max(
        (d.complete_ns for d in case.declared if d.f in ("delete", "reset") and d.type == "ok"),
        default=-math.inf,
    )
    final = set(case.reads[-1].markers or ()) if case.reads else set()
    excusing = [d for d in case.declared if d.f == "compact"]
    excusing += [turn for turn in case.turns.values() if turn.details.replaces]
    until_ns = max((e.complete_ns for e in excusing), default=-math.inf)
    rest: list[Operation] = [r for r in case.reads if r.invoke_ns > begun_ns]
    inherited: list[Operation] = []
    for marker, turn in case.turns.items():
        is_excused = turn.invoke_ns <= until_ns and not _must_stay(case, turn, excusing)
        if marker in final or (turn.invoke_ns > begun_ns and not is_excused):
            is_shown_before = turn.invoke_ns <= max(begun_ns, until_ns)
            one = turn._replace(read=None) if is_shown_before else turn
            (inherited if turn.details.source is not None else rest).append(one)
    epoch = case_of(case.key, rest, inherited)
    for rule in (kept, ordered):
        for anomaly in rule(epoch, crashes):
            if anomaly.name == "garbage read" and anomaly.element in case.turns:
                continue  # a turn that is removed, which another rule names
            accused = anomaly.witness[0]
            if isinstance(accused, Operation) and accused.details.source is not None:
                source = case.source.turns if case.source is not None else {}
                taken = [source[m] for m in (anomaly.element,) if m in source]
                forks = [one for one in case.declared if one.f == "fork"]
                witness = (*forks[:1], *anomaly.witness[1:], *taken)
                yield anomaly._replace(name="broken fork", witness=witness)
            else:
                yield anomaly


def _must_stay(case: Case, turn: Operation, excusing: Sequence[Operation]) -> bool:
    """Whether no compaction and no edit can have removed a turn, by what it says of its place."""
    if turn.read is None or turn.read.is_suffix:
        return False
    for one in excusing:
        spoken_of = case.turns.get(one.details.upto or one.details.replaces)
        read = one.read if one.f == "turn" else (spoken_of.read if spoken_of is not None else None)
        if read is None:
            return False
        first, last = sorted((turn.read.position, read.position))
        if first == last or (turn.read.position == last) != (one.f == "compact"):
            return False
    return True


# ---- which anomaly follows from which

_CAUSES = ("lost update", "stale read", "fork", "lost write")


def followers(found: Iterable[Anomaly]) -> tuple[list[Anomaly], Counter[str]]:
    """Return a session's anomalies without those that follow from others, and how many follow.

    A turn that was shown a branch which the session lost is a fork as well, and the next one is
    again; each of them is a lost write, too. One cause is one anomaly, and counts what follows.
    """
    listed = list(found)
    worst: dict[str, Anomaly] = {}
    for name in _CAUSES:
        for anomaly in listed:
            if anomaly.name == name:
                worst.setdefault(anomaly.witness[0].marker, anomaly)  # type: ignore[union-attr]
    roots: list[Anomaly] = []
    follow: Counter[str] = Counter()
    caused: dict[int, Counter[str]] = defaultdict(Counter)
    for anomaly in listed:
        cause = _cause(anomaly, worst)
        if cause is anomaly:
            roots.append(anomaly)
        else:
            follow[anomaly.name] += 1
            caused[id(cause)][anomaly.name] += 1
    return [
        root._replace(facts={**root.facts, "follow": dict(caused[id(root)])})
        if id(root) in caused
        else root
        for root in roots
    ], follow


def _cause(anomaly: Anomaly, worst: Mapping[str, Anomaly]) -> Anomaly:
    """Return the first anomaly of the branch on which the accused turn stands."""
    seen: set[int] = set()
    while anomaly.name in _CAUSES and id(anomaly) not in seen:
        seen.add(id(anomaly))
        turn = anomaly.witness[0]
        assert isinstance(turn, Operation)
        above = worst.get(turn.marker, anomaly)
        if above is anomaly and anomaly.name == "fork" and turn.read is not None and turn.read.tail:
            above = worst.get(turn.read.tail[-1], anomaly)
        if above is anomaly:
            break
        anomaly = above
    return anomaly
