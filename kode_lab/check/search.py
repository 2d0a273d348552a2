"""The slow reference: is there any order of these calls that the model allows?

A depth-first search over all linearizations, with memory of what was tried. It is the reference
that the rules for sessions are tested against, and the judge of what the rules cannot order:
sessions in which turns were removed, compacted, edited or forked, and objects whose writes do not
make their order evident (registers, key-value stores, mutexes). Its price grows exponentially with
how many calls overlap; so it has a limit, and past it the answer is "unknown".

``SessionState`` is what a session is: a list to which every turn appends itself after it was shown
all of it, or its end where the service declares a window, or what follows a compaction.

Source: Wing and Gong's search; the memory of (set of calls done, state) is Lowe's; checking each
key alone is Herlihy and Wing's locality, used so by Horn and Kroening and by porcupine.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.check.evidence import Case, case_of, undone
from kode_lab.history.digest import MULTIPLIER, digest_of
from kode_lab.history.operation import Operation, Read

__all__ = [
    "BUDGET_S",
    "KEY_VALUE",
    "MODELS",
    "MUTEX",
    "REGISTER",
    "Call",
    "Model",
    "Outcome",
    "linearizable",
    "search",
    "session_outcome",
]

# What one key may cost; the registers of public histories need milliseconds.
BUDGET_S = 10.0
# An outcome in a terminal shows so many calls.
_SHOWN_CALLS = 12
# The clock is asked once in so many steps.
_STEPS_A_LOOK = 256


class Call(NamedTuple):
    """One call of any object, from its invoke to its completion.

    Attributes:
        type: ``ok``, ``fail`` (it did not happen) or ``info`` (zero times or once, at any time).
        value: what was asked; for an ``ok`` read, what was answered.
        complete_ns: infinity when nothing ever came.
        key: which object it is about, where there are several.
    """

    process: Hashable
    f: str
    type: str
    invoke_ns: int
    complete_ns: float
    value: Any = None
    key: Hashable = None


class Model(NamedTuple):
    """What one object may do: from which state a call leads to which, or to none.

    Attributes:
        initial: the first state; hashable.
        step: gives (allowed, next state) of a state and a call. An ``info`` call's answer is not
            known and must not matter.
    """

    name: str
    initial: Hashable
    step: Callable[[Any, Any], tuple[bool, Any]]


class Outcome(NamedTuple):
    """What the search found.

    Attributes:
        status: ``valid``, ``invalid`` or ``unknown``.
        order: calls in an order that explains them; when invalid, the longest that was found.
        reason: why it is not valid; names the key.
    """

    status: str
    order: tuple[Any, ...] = ()
    reason: str = ""

    @property
    def exit_status(self) -> int:
        """0 valid, 1 invalid, 2 unknown."""
        return {"valid": 0, "invalid": 1, "unknown": 2}[self.status]

    def __str__(self) -> str:
        word = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}[self.status]
        lines = [f"{word}: {self.reason or 'some order of the calls explains all answers'}"]
        if self.status == "invalid":
            lines += [f"  {call}" for call in self.order[-_SHOWN_CALLS:]]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        order = [repr(call) for call in self.order]
        return {"status": self.status, "reason": self.reason, "order": order}


def linearizable(
    model: Model, *, budget_s: float = BUDGET_S, clock: Callable[[], float] = time.monotonic
) -> Callable[[Iterable[Call]], Outcome]:
    """Return the judge of a model: a function from calls to an outcome, each key judged alone."""

    def judge(calls: Iterable[Call]) -> Outcome:
        by_key: dict[Hashable, list[Call]] = defaultdict(list)
        for call in calls:
            if call.type != "fail":
                by_key[call.key].append(call)
        outcome = Outcome("unknown", reason="there is no call that may have happened")
        for number, (key, group) in enumerate(by_key.items()):
            found = search(model, group, budget_s=budget_s, clock=clock)
            if found.status == "invalid":
                return found._replace(reason=f"key {key!r}: no order of these calls is allowed")
            if found.status == "unknown":
                outcome = found._replace(reason=f"key {key!r}: {found.reason}")
            elif number == 0 or outcome.status == "valid":
                outcome = found
        return outcome

    return judge


def search(
    model: Model,
    calls: Sequence[Any],
    *,
    budget_s: float = BUDGET_S,
    limit_steps: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Return an order of ``calls`` that the model allows, or say that there is none.

    Calls have ``type``, ``invoke_ns`` and ``complete_ns`` (``Call`` and ``Operation`` do). What is
    not ``ok`` may be left out of the order, and ends at infinity.
    """
    calls = sorted(calls, key=lambda call: call.invoke_ns)
    ends = [call.complete_ns if call.type == "ok" else math.inf for call in calls]
    deadline_s = clock() + budget_s
    tried: set[tuple[int, int, Any]] = set()
    # Each frame: the first call that is not done, those done after it as bits, the state after
    # them, how many must still be done, and the candidates that are left to try next.
    first, done, state, left = 0, 0, model.initial, sum(call.type == "ok" for call in calls)
    frames = [(first, done, state, left, _candidates(calls, ends, first, done))]
    taken: list[int] = []
    longest: list[int] = []
    steps = 0
    while frames:
        first, done, state, left, candidates = frames[-1]
        if not left:
            return Outcome("valid", tuple(calls[at] for at in taken))
        for at in candidates:
            steps += 1
            if steps % _STEPS_A_LOOK == 0 and clock() > deadline_s:
                return Outcome("unknown", reason=f"not decided within budget_s={budget_s}")
            if steps > limit_steps:
                return Outcome("unknown", reason=f"not decided within limit_steps={limit_steps}")
            allowed, following = model.step(state, calls[at])
            entry = (*_done(first, done | 1 << at - first), following)
            if allowed and entry not in tried:
                tried.add(entry)
                taken.append(at)
                left -= calls[at].type == "ok"
                frames.append((*entry, left, _candidates(calls, ends, *entry[:2])))
                break
        else:
            frames.pop()
            if len(taken) > len(longest):
                longest = taken[:]
            if taken:
                taken.pop()
    return Outcome("invalid", tuple(calls[at] for at in longest))


def _done(first: int, done: int) -> tuple[int, int]:
    """Count the first call on past those that are done."""
    while done & 1:
        first, done = first + 1, done >> 1
    return first, done


def _candidates(
    calls: Sequence[Any], ends: Sequence[float], first: int, done: int
) -> Iterator[int]:
    """Return the calls that may come next: those sent before (or as) the first open one ended."""
    first_end = math.inf
    for at in range(first, len(calls)):
        # What was sent later ended later still.
        if calls[at].invoke_ns > first_end:
            break
        if not done >> at - first & 1:
            first_end = min(first_end, ends[at])
    else:
        at = len(calls)
    return iter([one for one in range(first, at) if not done >> one - first & 1])


# ---- registers, key-value stores, mutexes


def _register(state: Any, call: Call) -> tuple[bool, Any]:
    if call.f == "read":
        return call.type != "ok" or call.value == state, state
    if call.f == "write":
        return True, call.value
    expected, new = call.value
    return state == expected, new


def _key_value(state: Any, call: Call) -> tuple[bool, Any]:
    if call.f in ("get", "r"):
        # Nothing was put yet: some stores answer nil, others the empty text.
        return call.type != "ok" or (call.value or None) == state, state
    if call.f == "append":
        return True, f"{state or ''}{call.value}"
    if call.f in ("put", "w"):
        return True, call.value or None
    return _register(state, call)


def _mutex(state: bool, call: Call) -> tuple[bool, bool]:
    return state == (call.f == "release"), call.f == "acquire"


REGISTER = Model("register", None, _register)
# One key of a store: get, put, cas, and append to a text; ``linearizable`` takes the keys apart.
KEY_VALUE = Model("key-value", None, _key_value)
MUTEX = Model("mutex", False, _mutex)
# Which calls each model knows.
MODELS: Mapping[frozenset[str], Model] = {
    frozenset(("read", "write", "cas")): REGISTER,
    frozenset(("get", "put", "append", "r", "w", "cas")): KEY_VALUE,
    frozenset(("acquire", "release")): MUTEX,
}


# ---- sessions


class SessionState:
    """A session's list, its last element first; equal to another one if nothing tells them apart.

    Attributes:
        above: the list without its last element; None if it is empty.
        starts: where a list that was compacted may begin, with the digest of what is before.
    """

    __slots__ = ("above", "digest", "length", "marker", "starts")

    def __init__(
        self,
        above: SessionState | None = None,
        marker: str = "",
        digest: int = 0,
        starts: frozenset[tuple[int, int]] = frozenset(((0, 0),)),
    ) -> None:
        self.above, self.marker, self.digest, self.starts = above, marker, digest, starts
        self.length: int = 0 if above is None else above.length + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionState) and (
            (self.digest, self.length, self.starts) == (other.digest, other.length, other.starts)
        )

    def __hash__(self) -> int:
        return hash((self.digest, self.starts))

    def added(self, markers: Iterable[str]) -> SessionState:
        """Return the list with these markers behind it."""
        state = self
        for marker in markers:
            state = SessionState(state, marker, digest_of((marker,), state.digest), self.starts)
        return state

    def before(self, marker: str) -> SessionState | None:
        """Return what stands before a marker; None if it is not there."""
        at: SessionState | None = self
        while at is not None and at.marker != marker:
            at = at.above
        if at is None or at.above is None:
            return None
        starts = frozenset(start for start in self.starts if start[0] < at.length)
        return SessionState(at.above.above, at.above.marker, at.above.digest, starts)

    def end(self, length: int) -> tuple[list[str], int] | None:
        """Return the last elements, and the digest of those before; None if there are too few."""
        markers: list[str] = []
        at = self
        while len(markers) < length:
            if at.above is None:
                return None
            markers.append(at.marker)
            at = at.above
        return markers[::-1], at.digest

    def shows(self, read: Read) -> bool:
        """Whether a turn can be shown this."""
        if not read.is_suffix and not any(n + read.position == self.length for n, _ in self.starts):
            return False
        last = self.end(len(read.tail)) if read.digest is None and read.tail else None
        if last is not None and last[0] != list(read.tail):
            return False
        if not read.is_suffix:
            before = [digest for n, digest in self.starts if n + read.position == self.length]
        else:
            shown = self.end(read.position) if read.position >= 0 else None
            before = [] if shown is None else [shown[1]]
        power = pow(MULTIPLIER, max(read.position, 0), 2**64)
        own = [(self.digest - digest * power) % 2**64 for digest in before]
        return bool(own) and (read.digest is None or read.digest in own)

    def lists(self, markers: Sequence[str], *, is_suffix: bool) -> bool:
        """Whether a read can list these markers."""
        start = self.length - len(markers)
        if not is_suffix and all(start != n for n, _ in self.starts):
            return False
        last = self.end(len(markers))
        return last is not None and last[0] == list(markers)


class _Step(NamedTuple):
    """One operation on a session, as the search needs it."""

    f: str
    type: str
    invoke_ns: float
    complete_ns: float
    markers: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()
    spoken_of: str = ""
    is_suffix: bool = False


def _session_step(state: SessionState, step: _Step) -> tuple[bool, SessionState]:
    # What stands before the marker that the step speaks of; the whole list if it speaks of none.
    base = state.before(step.spoken_of) if step.spoken_of else state
    if step.f == "read":
        return state.lists(step.markers, is_suffix=step.is_suffix), state
    if step.f in ("delete", "reset", "fork"):
        return step.f != "fork" or state.length == 0, SessionState().added(step.markers)
    if base is None:  # what was never there can be compacted, but not replaced or forked
        return step.f == "compact", state
    if step.f == "turn":
        return all(map(base.shows, step.reads)), base.added(step.markers)
    upto = base.added((step.spoken_of,))
    if step.f == "compact":
        starts = state.starts | {(upto.length, upto.digest)}
        return True, SessionState(state.above, state.marker, state.digest, starts)
    # Another session took over the list up to there.
    upto.starts = frozenset(start for start in state.starts if start[0] <= upto.length)
    return upto.lists(step.markers, is_suffix=step.is_suffix), state


SESSION = Model("session", SessionState(), _session_step)


def session_outcome(
    history: Case | list[Operation],
    *,
    forked: Operation | None = None,
    order: Sequence[str] | None = None,
    limit_steps: float = math.inf,
    budget_s: float = BUDGET_S,
) -> Outcome:
    """Return whether an order of one session's operations explains all that was shown.

    Refused operations are left out. What is in a list though it was refused, or never sent, counts
    as a turn at any time: that it is there is for other rules to name.

    Args:
        forked: a fork by another session, which took over ``order``; None if it was not shown.
    """
    if isinstance(history, Case):
        case = history
    else:
        listed = list(history)
        case = case_of(listed[0].key, listed)
    steps = list(_steps(case))
    if forked is not None:
        upto = forked.details.upto
        times = forked.invoke_ns, forked.complete_ns
        took = tuple(order or ())
        steps.append(_Step("forked", "ok", *times, took, spoken_of=upto, is_suffix=order is None))
    return search(SESSION, steps, budget_s=budget_s, limit_steps=limit_steps)


def _steps(case: Case) -> Iterator[_Step]:
    turns = [t for t in case.turns.values() if t.details.source is None and t.type != "fail"]
    grouped: dict[tuple[str, ...], list[Operation]] = defaultdict(list)
    for turn in turns:
        group = turn.details.merged
        if group and turn.type == "ok":
            grouped[group].append(turn)
    merged = {marker for group in grouped for marker in group}
    for turn in turns:
        if turn.marker not in merged:
            yield _Step(
                "turn", turn.type, turn.invoke_ns, turn.complete_ns, (turn.marker,),
                () if turn.read is None else (turn.read,), turn.details.replaces,
            )  # fmt: skip
    for group, members in grouped.items():
        yield _together(case, group, members)
    for read in case.reads:
        shown = tuple(case.own(read.markers or ()))
        yield _Step("read", "ok", read.invoke_ns, read.complete_ns, shown, is_suffix=read.is_suffix)
    for one in case.declared:
        inherited = tuple(m for m, t in case.turns.items() if t.details.source is not None)
        yield _Step(
            one.f, one.type, one.invoke_ns, one.complete_ns,
            inherited if one.f == "fork" else (), spoken_of=one.details.upto,
        )  # fmt: skip
    known = {turn.marker for turn in turns} | {
        m for m, t in case.turns.items() if t.details.source is not None
    }
    shown_at_all = {m for read in case.reads for m in case.own(read.markers or ())}
    shown_at_all |= {m for turn in turns if turn.read is not None for m in turn.read.tail}
    for marker in shown_at_all - known:
        yield _Step("turn", "info", -math.inf, math.inf, (marker,))


def _together(case: Case, group: Sequence[str], members: Sequence[Operation]) -> _Step:
    """Return the one step that prompts are which were answered together."""
    all_of = [case.turns[marker] for marker in group if marker in case.turns]
    reads: list[Read] = []
    for member in members:
        read = member.read
        # A member's view was restated as if the prompts had come one by one.
        ahead = group[: group.index(member.marker)] if member.marker in group else ()
        if read is None or (read.is_suffix and read.position < len(ahead)):
            continue
        for marker in reversed(ahead):
            digest = None if read.digest is None else undone(read.digest, marker)
            read = read._replace(position=read.position - 1, digest=digest)
        reads.append(read)
    return _Step(
        "turn",
        "ok",
        max(turn.invoke_ns for turn in all_of),
        min(turn.complete_ns if turn.type == "ok" else math.inf for turn in all_of),
        tuple(group),
        tuple(reads),
    )
