"""The rules over all sessions: tools, configuration, service, and the lock.

An id is unique in the whole world, a configuration is shared by all sessions of an agent, and a
lock that is too coarse shows only between sessions.

The lock's rules read *holds*: the times at which a turn was at work. They come from the system's
own trace (from the first to the last of a turn's inner steps: load, ask, tool, commit; waiting is
not holding), or from the model's side (from a turn's first model call to its last). A turn that was
killed leaves steps without a turn around them; each of these is a hold of its own.

Sessions are named here as the lock names them (``userId:sessionId``): two agents of one session
share its lock, and should wait for each other.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.check.verdict import Anomaly
from kode_lab.history.operation import HEALS, QUIET, Effect, Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = [
    "Hold",
    "configuration",
    "epoch_of",
    "holds_of",
    "holds_of_turns",
    "lost_effects",
    "needless_serialisation",
    "overlaps",
    "quiet_ns",
    "stuck",
    "tools",
    "within_turn",
]

# So many waits of a group of sessions must each have ended only when another session's turn did,
# and none of its turns may ever have overlapped, before the lock is called too coarse: one such
# wait may be chance.
CHANCES_NEEDED = 3
# ... and at least so many times those of its waits that ended with turns of other groups only.
OTHERS_FACTOR = 2
# Of the turns that ended last, so many are looked at as what a turn may have waited for.
ENDED_LIMIT = 64
_GROUPS: tuple[Callable[[SessionKey], str], ...] = (
    lambda _: "all sessions",
    lambda key: f"sessions of user {key.user_id}",
    lambda key: f"sessions named {key.session_id}",
)


class Hold(NamedTuple):
    """One turn's hold of its session, and its wait for it.

    Attributes:
        wait_ns: when it began to wait, or ``start_ns`` when it did not.
        turn: the turn's id.
        one: the turn as an operation; or its span, or that of a step that has no turn around it.
    """

    start_ns: int
    end_ns: int
    wait_ns: int
    turn: str
    one: Operation | Span

    @property
    def is_step(self) -> bool:
        """Whether it is a step of a turn that was killed."""
        return isinstance(self.one, Span) and self.one.step != "turn"


def tools(
    told: Iterable[tuple[Effect, Operation]], owners: Mapping[str, Operation]
) -> Iterator[Anomaly]:
    """Return ids that two effects share, calls that acted twice, and effects that must not be.

    One effect told twice, by its turn and by the world, is one effect; who tells of it first names
    a session or not.

    Args:
        told: each effect, with the operation that told of it, in any order.
        owners: the turn of each marker that an effect names; a refused one only where all attempts
            at it were.
    """
    by_id: dict[str, tuple[Effect, Operation]] = {}
    by_call: dict[tuple[str, str], tuple[Effect, Operation]] = {}
    heard: set[tuple[str, ...]] = set()
    for effect, operation in sorted(told, key=_by_time):
        owner = owners.get(effect.marker)
        if effect not in heard and owner is not None:
            yield from _astray(effect, operation, owner)
        first = by_id.setdefault(effect.id, (effect, operation))
        is_known = effect[:3] in heard
        heard.update((effect, effect[:3]))
        if first[0][:3] != effect[:3] and not is_known:
            witness = _both(first[1], operation)
            both = _facts(first[0], effect)
            yield Anomaly("duplicate id", operation.key, witness, effect.id, both)
        elif effect.marker and not is_known:
            earlier = by_call.setdefault((effect.marker, effect.name), (effect, operation))
            if earlier[0].id != effect.id:
                is_list = earlier[0] in (operation.effects or ())
                witness = (operation,) if is_list else _both(earlier[1], operation)
                both = _facts(earlier[0], effect)
                yield Anomaly("effect twice", operation.key, witness, effect.marker, both)


def lost_effects(acting: Iterable[Operation], worlds: Sequence[Operation]) -> Iterator[Anomaly]:
    """Return turns, and reads, whose client was told of a tool call that had no effect.

    Args:
        acting: what tells of effects or of tool calls, each of which has one effect.
        worlds: lists of all effects; a list speaks for its user's sessions.
    """
    listed: dict[str, list[Operation]] = defaultdict(list)
    ids: set[str] = set()
    done: dict[tuple[str, str], set[str]] = defaultdict(set)
    for world in worlds:
        listed[world.key.user_id].append(world)
        for effect in world.effects or ():
            ids.add(effect.id)
            done[effect.marker, _tool(effect.name)].add(effect.id)
    for turn in sorted(acting, key=lambda turn: (turn.invoke_ns, turn.key)):
        after = [w for w in listed[turn.key.user_id] if w.invoke_ns > turn.complete_ns]
        if not after:
            continue
        told = [effect for effect in turn.effects or () if effect.id not in ids]
        gone = Counter(_tool(effect.name) or effect.id for effect in told)
        for name, times in Counter(map(_tool, turn.details.tools or ())).items():
            gone[name] = max(gone[name], times - len(done[turn.marker, name]))
        if +gone:
            facts = {"calls": sum((+gone).values()), "tool": next(iter(+gone))}
            element = turn.marker or told[0].marker
            yield Anomaly("lost effect", turn.key, (turn, after[-1]), element, facts)


def _tool(name: str) -> str:
    """Return the tool's own name: the second effect of a turn is ``create_schedule/2``."""
    return name.partition("/")[0]


def within_turn(turn: Operation) -> Iterator[Anomaly]:
    """Return what the model's side recorded of one turn that no turn may show."""
    model = turn.details.model
    assert model is not None
    if len(set(model.configs)) > 1:
        facts = {"configs": list(dict.fromkeys(model.configs))}
        yield Anomaly("mixed configuration", turn.key, (turn,), turn.marker, facts)
    for asked, answers in model.tool_results:
        if asked != answers:
            crossed = {"asked": asked, "answers": answers}
            yield Anomaly("crossed tool answers", turn.key, (turn,), asked, crossed)
            return


def _by_time(told: tuple[Effect, Operation]) -> tuple[int, float, SessionKey, Effect]:
    effect, operation = told
    return operation.invoke_ns, operation.complete_ns, operation.key, effect


def _astray(effect: Effect, operation: Operation, owner: Operation) -> Iterator[Anomaly]:
    """Return an effect for another session than its turn's, or of a turn that was refused."""
    key = owner.key
    if effect.user_id not in ("", key.user_id) or effect.session_id not in ("", key.session_id):
        facts: dict[str, Any] = {"owner": str(key), "ran_for": [effect.user_id, effect.session_id]}
        yield Anomaly("tool misattributed", key, _both(operation, owner), effect.marker, facts)
    # A rollback takes a turn out of its session; what its tools did elsewhere stays.
    if owner.type == "fail" and not owner.details.is_rolled_back:
        facts = {"effect": list(effect)}
        yield Anomaly("aborted read", key, (owner, operation), effect.marker, facts)


def _both(one: Operation, other: Operation) -> tuple[Operation, ...]:
    return (one,) if one is other else (one, other)


def _facts(one: Effect, other: Effect) -> dict[str, list[str]]:
    return {"one": list(one), "other": list(other)}


def epoch_of(turn: Operation, faults: Iterable[Operation]) -> int | None:
    """Return after how many changes of the configuration a turn ran, or None when during one.

    Changes are the faults ``configure`` (it begins) and ``configured`` (it has been made).
    """
    made = begun = 0
    for fault in faults:
        made += fault.f == HEALS["configure"] and fault.invoke_ns < turn.invoke_ns
        begun += fault.f == "configure" and fault.invoke_ns <= turn.complete_ns
    return made if begun <= made else None


def configuration(seen: Mapping[tuple[str, int, str], Operation]) -> Iterator[Anomaly]:
    """Return agents whose turns ran with different configurations between two changes of it.

    Args:
        seen: a turn for each agent, epoch and version.
    """
    first: dict[tuple[str, int], Operation] = {}
    told: set[str] = set()
    in_time = sorted(seen.items(), key=lambda one: (one[1].invoke_ns, one[0]))
    for (agent_id, epoch, version), turn in in_time:
        one = first.setdefault((agent_id, epoch), turn)
        if one is not turn and agent_id not in told:
            told.add(agent_id)
            facts = {"one": one.config, "other": version}
            yield Anomaly("configuration drift", turn.key, (one, turn), version, facts)


def quiet_ns(faults: Iterable[Operation]) -> float:
    """Return when the run declared all faults over, or infinity when it never did."""
    return max((fault.invoke_ns for fault in faults if fault.f == QUIET), default=math.inf)


def stuck(probes: Iterable[Operation]) -> Iterator[Anomaly]:
    """Return sessions that were asked after all faults were over, and never answered."""
    by_session: dict[SessionKey, list[Operation]] = defaultdict(list)
    for probe in probes:
        by_session[probe.key].append(probe)
    for key, asked in by_session.items():
        if all(probe.type != "ok" for probe in asked):
            facts = {"asked": len(asked), "errors": sorted({p.error for p in asked})}
            yield Anomaly("stuck session", key, (asked[-1],), asked[-1].marker, facts)


# ---- the lock


def holds_of_turns(turns: Iterable[Operation]) -> dict[str, list[Hold]]:
    """Return each session's holds as the model's side shows them, by their start.

    A turn holds its session at least from its first model call to its last; from when its client
    sent it until then, it may have waited.
    """
    holds: dict[str, list[Hold]] = defaultdict(list)
    for turn in turns:
        assert turn.details.model is not None
        start_ns = min(start for start, _ in turn.details.model.calls)
        end_ns = max(end for _, end in turn.details.model.calls)
        wait_ns = min(turn.invoke_ns, start_ns)
        hold = Hold(start_ns, end_ns, wait_ns, turn.turn_id or turn.marker, turn)
        holds[turn.key.lock_name].append(hold)
    for session in holds.values():
        session.sort(key=lambda hold: hold[:3])
    return holds


def holds_of(spans: Iterable[Span]) -> dict[str, list[Hold]]:
    """Return each session's holds by their start; sessions by the names of their locks."""
    by_turn: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        by_turn[span.key.lock_name, span.turn_id].append(span)
    holds: dict[str, list[Hold]] = defaultdict(list)
    for (lock_name, _), steps in by_turn.items():
        holds[lock_name] += _holds(steps)
    for session in holds.values():
        session.sort(key=lambda hold: hold[:3])
    return {lock_name: session for lock_name, session in holds.items() if session}


def _holds(steps: list[Span]) -> Iterator[Hold]:
    around = sorted((s for s in steps if s.step == "turn"), key=lambda s: s.start_ns)
    waits = [step for step in steps if step.step == "wait"]
    inner = [step for step in steps if step.step not in ("turn", "wait")]
    for turn in around:
        within = [s for s in inner if turn.start_ns <= s.start_ns and s.end_ns <= turn.end_ns]
        inner = [step for step in inner if step not in within]
        waited = [w for w in waits if turn.start_ns <= w.start_ns and w.end_ns <= turn.end_ns]
        if within:
            start_ns = min(step.start_ns for step in within)
            wait_ns = min([start_ns, *(wait.start_ns for wait in waited)])
            end_ns = max(step.end_ns for step in within)
            yield Hold(start_ns, end_ns, wait_ns, turn.turn_id, turn)
    for step in inner:
        yield Hold(step.start_ns, step.end_ns, step.start_ns, step.turn_id, step)


def overlaps(holds: Mapping[str, Sequence[Hold]]) -> Iterator[Anomaly]:
    """Return for each session the first two turns that held it at once."""
    for lock_name, session in holds.items():
        longest = session[0]
        for hold in session[1:]:
            # Steps of one killed turn may overlap each other: tools run together.
            is_other = hold.turn != longest.turn or not (hold.is_step or longest.is_step)
            if hold.start_ns < longest.end_ns and is_other:
                facts = {
                    "lock": lock_name,
                    "overlap_ns": min(hold.end_ns, longest.end_ns) - hold.start_ns,
                }
                witness = (longest.one, hold.one)
                yield Anomaly("overlap", hold.one.key, witness, hold.turn, facts)
                break
            if hold.end_ns > longest.end_ns:
                longest = hold


class _Wait(NamedTuple):
    """A turn that began to work just when turns of other sessions ended, and had waited before.

    Attributes:
        since_ns: when it was sent and its own session was free.
        ended: the other sessions' holds that ended meanwhile, the last one first.
    """

    hold: Hold
    name: str
    since_ns: int
    ended: Sequence[tuple[Hold, str]]


def needless_serialisation(holds: Mapping[str, Sequence[Hold]]) -> Iterator[Anomaly]:
    """Return groups of sessions that never work at once, although their turns wait for each other.

    A right lock lets such turns overlap. The groups are all sessions, those of a user, those of a
    name, and last those that share a lock by neither (stripes): two sessions belong together if one
    waited for the other and they never worked at once. Of turns that wait for a free place in a
    pool, most do not wait for their group.
    """
    met, waits = _waits(holds)
    for group_of in _GROUPS:
        groups = {name: group_of(session[0].one.key) for name, session in holds.items()}
        found = list(_coarse(groups, met, waits))
        if found:
            yield from found
            return  # a smaller group would only say the same again
    pairs = {frozenset((wait.name, wait.ended[0][1])) for wait in waits}
    groups = {}
    for names in _components(pairs - met):
        listed = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
        group = f"{len(names)} sessions that share neither user nor name ({listed})"
        groups |= dict.fromkeys(names, group)
    yield from _coarse(groups, met, waits, each=2)


def _waits(holds: Mapping[str, Sequence[Hold]]) -> tuple[set[frozenset[str]], list[_Wait]]:
    """Return which two sessions ever worked at once, and the waits for other sessions."""
    met: set[frozenset[str]] = set()
    waits: list[_Wait] = []
    last_of: dict[str, int] = {}
    active: list[tuple[int, int, str]] = []
    ended: deque[tuple[Hold, str]] = deque(maxlen=ENDED_LIMIT)
    ordered = sorted(
        ((hold, name) for name, session in holds.items() for hold in session),
        key=lambda pair: pair[0][:3],
    )
    for at, (hold, name) in enumerate(ordered):
        while active and active[0][0] <= hold.start_ns:
            _, which, other = heapq.heappop(active)
            ended.appendleft((ordered[which][0], other))
        met.update(frozenset((name, other)) for _, _, other in active if other != name)
        since_ns = max(hold.wait_ns, last_of.get(name, hold.wait_ns))
        others = [one for one in ended if one[1] != name and one[0].end_ns > since_ns]
        if any(_is_needless(hold, before, since_ns) for before, _ in others):
            waits.append(_Wait(hold, name, since_ns, others))
        last_of[name] = max(hold.end_ns, last_of.get(name, hold.end_ns))
        heapq.heappush(active, (hold.end_ns, at, name))
    return met, waits


def _is_needless(hold: Hold, before: Hold, since_ns: int) -> bool:
    """Whether a turn began soon after another one ended, for which it may have waited.

    A lock that is given up is taken soon. Seen from outside, each turn takes its time on the way;
    to be a wait, it must be a long one.
    """
    length_ns = before.end_ns - before.start_ns
    return 2 * (hold.start_ns - before.end_ns) <= length_ns <= 4 * (before.end_ns - since_ns)


def _coarse(
    groups: Mapping[str, str],
    met: Iterable[frozenset[str]],
    waits: Iterable[_Wait],
    *,
    each: int = 0,
) -> Iterator[Anomaly]:
    """Return the groups of sessions that share a lock.

    Args:
        groups: of each session, the name of its group.
        each: so many waits are needed for each session of a group, and ``CHANCES_NEEDED`` of each.
    """
    apart = {
        groups[one] for one, other in met if one in groups and groups[one] == groups.get(other)
    }
    found: dict[str, list[tuple[int, Hold, Hold]]] = defaultdict(list)
    others: Counter[str] = Counter()
    for wait in waits:
        group = groups.get(wait.name)
        if group is None or group in apart:
            continue
        own = [one for one, name in wait.ended if groups.get(name) == group]
        waited_ns = wait.hold.start_ns - wait.since_ns
        # While it waits for a lock, there is always a turn that holds it.
        busy_ns = sum(one.end_ns - max(one.start_ns, wait.since_ns) for one in own)
        known_ns = wait.hold.start_ns - min(one.start_ns for one, _ in wait.ended)
        cause = next((one for one in own if _is_needless(wait.hold, one, wait.since_ns)), None)
        if cause is None or 2 * busy_ns < min(waited_ns, known_ns):
            others[group] += 1
        else:
            found[group].append((waited_ns, wait.hold, cause))
    sizes = Counter(groups.values())
    for group, chances in found.items():
        least = max(CHANCES_NEEDED, each * sizes[group])
        if len(chances) >= least and len(chances) >= OTHERS_FACTOR * others[group]:
            waited_ns, waiting, working = max(chances, key=lambda chance: chance[0])
            facts = {"group": group, "waits": len(chances), "waited_ns": waited_ns}
            witness = (waiting.one, working.one)
            key = waiting.one.key
            yield Anomaly("needless serialisation", key, witness, waiting.turn, facts)


def _components(pairs: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Return the sets of names that are connected by pairs."""
    of: dict[str, set[str]] = {}
    for pair in pairs:
        joined = set().union(*(of.get(name, {name}) for name in pair))
        of |= dict.fromkeys(joined, joined)
    return [frozenset(one) for one in {id(names): names for names in of.values()}.values()]
