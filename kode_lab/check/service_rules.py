"""The rules beside the list: tools, configuration, and whether a session still answers.

Each takes what was gathered over all sessions, because an id is unique in the whole world, and a
configuration is shared by all sessions of an agent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from kode_lab.check.guarantee import Anomaly
from kode_lab.history.operation import HEALS, QUIET, Effect, Operation
from kode_lab.key import SessionKey

__all__ = ["configuration", "epoch_of", "quiet_ns", "stuck", "tools"]


def tools(
    told: Iterable[tuple[Effect, Operation]], owners: Mapping[str, Operation]
) -> Iterator[Anomaly]:
    """Return ids that two effects share, calls that acted twice, and effects that nobody may see.

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
        is_known = effect in heard or effect[:3] in heard
        heard.update((effect, effect[:3]))
        if first[0][:3] != effect[:3] and not is_known:
            witness = _both(first[1], operation)
            both = _facts(first[0], effect)
            yield Anomaly("duplicate id", operation.key, witness, effect.id, both)
        elif effect.marker and not is_known:
            earlier = by_call.setdefault((effect.marker, effect.name), (effect, operation))
            if earlier[0].id != effect.id:
                witness = _both(earlier[1], operation)
                both = _facts(earlier[0], effect)
                yield Anomaly("effect twice", operation.key, witness, effect.marker, both)


def _by_time(told: tuple[Effect, Operation]) -> tuple[int, float, SessionKey, Effect]:
    effect, operation = told
    return operation.invoke_ns, operation.complete_ns, operation.key, effect


def _astray(effect: Effect, operation: Operation, owner: Operation) -> Iterator[Anomaly]:
    """Return an effect for another session than its turn's, or of a turn that was refused."""
    key = owner.key
    if effect.user_id not in ("", key.user_id) or effect.session_id not in ("", key.session_id):
        facts = {"owner": str(key), "ran_for": [effect.user_id, effect.session_id]}
        yield Anomaly("tool misattributed", key, (operation,), effect.marker, facts)
    if owner.type == "fail":
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
