"""The judge: takes a history, hears each session alone, and gives the verdict.

It owns the order of things (gather, screen, hear, settle what needs all sessions, conclude) and
no rule. Sessions are independent objects, so all are linearizable together if and only if each is.

Source: locality is Herlihy and Wing's; "a checker that throws gives unknown" is Jepsen's rule.
"""

from __future__ import annotations

import gc
import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, lt

from kode_lab.check import plain
from kode_lab.check.case import Case, case_of
from kode_lab.check.columns import Columns, History, Screened, history_of
from kode_lab.check.guarantee import ANOMALIES, Anomaly
from kode_lab.check.overtaking import most_overtaken, overtakings
from kode_lab.check.rules import RULES
from kode_lab.check.service_rules import configuration, epoch_of, quiet_ns, stuck, tools
from kode_lab.check.trace_rules import holds_of, needless_serialisation, overlaps
from kode_lab.check.verdict import Evidence, Verdict, conclude
from kode_lab.errors import InvalidRecord, InvalidScenario
from kode_lab.history.operation import CRASHES, HEALS, NEMESIS, Effect, Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = ["NUMPY_FROM_OPERATIONS", "WITNESS_LIMIT", "Hearing", "check"]

# Below this, importing numpy costs more than it saves.
NUMPY_FROM_OPERATIONS = 20_000
# How many anomalies of one name are kept with their witnesses; all are counted.
WITNESS_LIMIT = 20
_process, _invoke, _complete, _read, _config, _effects = map(
    attrgetter, ("process", "invoke_ns", "complete_ns", "read", "config", "effects")
)
ENGINES = ("auto", "rules", "python", "numpy")


def check(
    history: Iterable[Operation] | History,
    trace: Iterable[Span] | None = None,
    guarantees: Collection[str] | None = None,
    *,
    overtaking_limit: int | None = None,
    engine: str = "auto",
) -> Verdict:
    """Return the verdict on a history, and on a trace where there is one.

    Args:
        history: operations in any order; ``history_of`` has their columns already.
        guarantees: names or codes (``apart``, ``G1``, ...) of what is claimed; None claims G1 to G4
            and whatever else there is evidence of.
        overtaking_limit: claims ``ordered``, and beyond it that of the turns sent after one was, no
            more than so many stand before it; None claims nothing of that kind.
        engine: ``rules`` hears every session; ``python`` first clears those that cannot break any,
            one by one, ``numpy`` all at once; ``auto`` is ``numpy`` for large histories where it
            is there, else ``python``.

    Raises:
        InvalidRecord: two turns share a marker, or an operation ends before it begins.
        InvalidScenario: no guarantee, or no engine, of that name; a limit below zero.
    """
    if engine not in ENGINES:
        raise InvalidScenario(f"no engine {engine!r}: name one of {', '.join(ENGINES)}")
    if overtaking_limit is not None and overtaking_limit < 0:
        raise InvalidScenario(f"overtaking_limit={overtaking_limit} is below 0")
    with _collector_paused():
        if not isinstance(history, History):
            history = History(list(history), None) if engine == "rules" else history_of(history)
        hearing = Hearing(_faults_of(history), overtaking_limit)
        rest: Iterable[Operation] = history.operations
        if engine != "rules" and history.columns is not None:
            rest = _screened(hearing, history.operations, history.columns, engine)
        hearing.hear(rest)
        operations = history.operations
        hearing.settle(lambda markers: (o for o in operations if o.marker in markers))
        if trace is not None:
            hearing.hear_trace(trace)
        return hearing.verdict(guarantees)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's collector from walking the caller's history again and again.

    The judge makes no cycles, and up to a fifth of its time went there.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _faults_of(history: History) -> list[Operation]:
    if history.columns is not None:
        return history.columns.faults
    return [operation for operation in history.operations if operation.process == NEMESIS]


def _screened(
    hearing: Hearing, operations: list[Operation], columns: Columns, engine: str
) -> Iterable[Operation]:
    screen = _screen_of(engine, len(operations))
    screened = screen(columns, hearing.overtaking_limit)
    if screened is None:
        return operations
    suspects = screened.suspects
    crossed = _crossed(columns, suspects, hearing.crashes)
    hearing.evidence = hearing.evidence.plus(screened.evidence._replace(crossed=crossed))
    if not columns.is_plain or quiet_ns(hearing.faults) < math.inf:
        hearing.note([o for o in operations if o.key not in suspects] if suspects else operations)
    return [o for o in operations if o.key in suspects] if suspects else ()


def _crossed(columns: Columns, suspects: Collection[SessionKey], crashes: list[int]) -> int:
    """Count the acknowledged turns of the cleared sessions that a crash parts from their read."""
    last_crash: dict[int, int] = {}
    for other in columns.others if crashes else ():
        at = bisect_right(crashes, other.invoke_ns)
        if at and other.f == "read" and other.key not in suspects:
            last_crash[columns.numbers[other.key]] = crashes[at - 1]
    if not last_crash:
        return 0
    return sum(
        complete_ns < last_crash.get(number, 0)
        for number, complete_ns in zip(columns.session, columns.complete, strict=True)
    )


def _screen_of(engine: str, size: int) -> Callable[[Columns, int | None], Screened | None]:
    if engine == "python" or (engine == "auto" and size < NUMPY_FROM_OPERATIONS):
        return plain.screen
    try:
        from kode_lab.check import fast  # noqa: PLC0415 - numpy is not always there
    except ImportError:
        if engine == "numpy":
            raise InvalidScenario("engine numpy needs numpy: pip install numpy") from None
        return plain.screen
    return fast.screen


@dataclass(slots=True)
class Hearing:
    """What has been heard so far; sessions may come in several portions, each session whole.

    Attributes:
        faults: all that the nemesis did; must be known before any session is heard.
        overtaking_limit: how many turns may overtake one, or None.
        strange: anomalies about markers whose owners are not yet known.
        asked: sessions with a turn before all faults were over, where they ever were.
    """

    faults: Sequence[Operation]
    overtaking_limit: int | None = None
    evidence: Evidence = field(default_factory=Evidence)
    counts: Counter[str] = field(default_factory=Counter)
    anomalies: dict[str, list[Anomaly]] = field(default_factory=lambda: defaultdict(list))
    strange: list[Anomaly] = field(default_factory=list)
    effects: list[tuple[Effect, Operation]] = field(default_factory=list)
    versions: dict[tuple[str, int, str], Operation] = field(default_factory=dict)
    probes: list[Operation] = field(default_factory=list)
    asked: set[SessionKey] = field(default_factory=set)
    troubles: dict[str, str] = field(default_factory=dict)

    @property
    def crashes(self) -> list[int]:
        """When something crashed, sorted."""
        return sorted(fault.invoke_ns for fault in self.faults if fault.f in CRASHES)

    def hear(self, operations: Iterable[Operation]) -> None:
        """Judge the sessions of these operations.

        Raises:
            InvalidRecord: two turns share a marker, or an operation ends before it begins.
        """
        by_session: dict[SessionKey, list[Operation]] = defaultdict(list)
        for operation in operations:
            by_session[operation.key].append(operation)
        limit, crashes = self.overtaking_limit, self.crashes
        heard: set[str] = set()
        for key, session in by_session.items():
            if session[0].process == NEMESIS:
                continue
            case = case_of(key, session)
            if not heard.isdisjoint(case.turns):
                marker = min(heard.intersection(case.turns))
                raise InvalidRecord(
                    f"marker {marker!r:.60} is sent in {key} and in another session: "
                    "a marker names one turn of one session"
                )
            heard.update(case.turns)
            if any(map(lt, map(_complete, session), map(_invoke, session))):
                raise InvalidRecord(f"an operation of {key} completes before it was invoked")
            self.note(session)
            self.evidence = self.evidence.plus(_evidence_of(case, session, crashes))
            for name, rule in RULES.items():
                self._apply(name, lambda rule=rule, case=case: rule(case, crashes))  # type: ignore[misc]
            if limit is not None:
                self._apply("ordered", lambda case=case: overtakings(case, limit))  # type: ignore[misc]

    def note(self, operations: Sequence[Operation]) -> None:
        """Keep what is judged over all sessions: effects, configurations, probes."""
        quiet = quiet_ns(self.faults)
        changes = [f for f in self.faults if f.f in ("configure", HEALS["configure"])]
        configured = 0
        told = any(map(_effects, operations)) or any(map(_config, operations))
        for operation in operations if told or quiet < math.inf else ():
            if operation.effects is not None:
                self.effects += [(effect, operation) for effect in operation.effects]
            if operation.config and operation.type == "ok":
                configured += 1
                epoch = epoch_of(operation, changes)
                if epoch is not None:
                    version = (operation.key.agent_id, epoch, operation.config)
                    known = self.versions.get(version, operation)
                    # Sessions come in another order from each engine.
                    self.versions[version] = min(known, operation, key=_sent)
            if operation.f == "turn" and operation.invoke_ns > quiet:
                self.probes.append(operation)
            elif operation.f == "turn" and quiet < math.inf:
                self.asked.add(operation.key)
        self.evidence = self.evidence._replace(configured=self.evidence.configured + configured)

    def settle(self, find: Callable[[Collection[str]], Iterable[Operation]]) -> None:
        """Judge what needs all sessions, once all have been heard.

        Args:
            find: gives the operations whose marker is one of those it is given.
        """
        wanted = {a.element for a in self.strange} | {effect.marker for effect, _ in self.effects}
        wanted.discard("")
        owners: dict[str, Operation] = {}
        for operation in find(wanted) if wanted else ():
            known = owners.setdefault(operation.marker, operation)
            if known.type == "fail":  # of several attempts, one that was not refused
                owners[operation.marker] = operation
        for anomaly in self.strange:
            owner = owners.get(anomaly.element)
            if anomaly.name == "garbage read" and owner is not None and owner.key == anomaly.key:
                one = f"{anomaly.element!r:.60} is told as a stranger's in its own session"
                self.troubles.setdefault("apart", one)
            else:
                self._add(_owned(anomaly, owner))
        self.strange.clear()
        self._apply("tools", lambda: tools(self.effects, owners))
        self._apply("service", lambda: configuration(self.versions))
        self._apply("service", lambda: stuck(self.probes))
        silent = sorted(self.asked - {probe.key for probe in self.probes})
        if silent and self.probes:
            one = f"{len(silent)} of the sessions were not asked after the faults ({silent[0]})"
            self.troubles.setdefault("service", one)

    def hear_trace(self, spans: Iterable[Span]) -> None:
        """Judge the system's own account of all sessions."""
        listed = list(spans)
        self.evidence = self.evidence._replace(spans=self.evidence.spans + len(listed))
        holds = holds_of(listed)
        if listed and not holds:
            self.troubles.setdefault("lock", "the trace shows no turn that holds its session")
        self._apply("lock", lambda: overlaps(holds))
        self._apply("lock", lambda: needless_serialisation(holds))

    def verdict(self, guarantees: Collection[str] | None) -> Verdict:
        """Conclude from all that was heard.

        Raises:
            InvalidScenario: no guarantee of that name.
        """
        evidence = self.evidence._replace(
            crashes=len(self.crashes), effects=len(self.effects), probes=len(self.probes)
        )
        kept = [a for of_name in self.anomalies.values() for a in sorted(of_name, key=_size)]
        names = sorted(self.counts, key=list(ANOMALIES).index)
        limited = [a for n in names for a in [x for x in kept if x.name == n][:WITNESS_LIMIT]]
        counts = {name: self.counts[name] for name in names}
        if self.overtaking_limit is not None:
            guarantees = None if guarantees is None else {*guarantees, "ordered"}
        concluded = conclude(
            evidence, sorted(limited, key=_size), counts, self.troubles, guarantees
        )
        return concluded._replace(overtaking_limit=self.overtaking_limit)

    def _apply(self, guarantee: str, rule: Callable[[], Iterable[Anomaly]]) -> None:
        try:
            for anomaly in rule():
                if anomaly.name in ("garbage read", "foreign reply"):
                    self.strange.append(anomaly)
                else:
                    self._add(anomaly)
        except Exception as error:  # noqa: BLE001 - a rule that throws must never look like "valid"
            self.troubles.setdefault(guarantee, f"the rule failed: {error!r:.200}")

    def _add(self, anomaly: Anomaly) -> None:
        self.counts[anomaly.name] += 1
        of_name = self.anomalies[anomaly.name]
        of_name.append(anomaly)
        if len(of_name) > 50 * WITNESS_LIMIT:
            of_name.sort(key=_size)
            del of_name[WITNESS_LIMIT:]


def _size(anomaly: Anomaly) -> tuple[int, int, float, SessionKey, str]:
    """Order anomalies: the fewest operations first, then the shortest history up to them."""
    first = anomaly.witness[0]
    began = first.start_ns if isinstance(first, Span) else first.invoke_ns
    names = list(ANOMALIES)
    return len(anomaly.witness), began, names.index(anomaly.name), anomaly.key, anomaly.element


def _owned(anomaly: Anomaly, owner: Operation | None) -> Anomaly:
    """Name a stranger's anomaly, now that its owner is known to be somebody or nobody."""
    if owner is None:
        return anomaly
    witness = (*anomaly.witness, owner)
    is_leak = anomaly.name == "garbage read"
    return anomaly._replace(name="cross-session leak" if is_leak else anomaly.name, witness=witness)


def _sent(operation: Operation) -> tuple[int, SessionKey, str]:
    return operation.invoke_ns, operation.key, operation.marker


def _evidence_of(case: Case, session: Sequence[Operation], crashes: Sequence[int]) -> Evidence:
    acknowledged = [turn for turn in case.turns.values() if turn.type == "ok"]
    count = len(acknowledged)
    refused = (
        sum(turn.type == "fail" for turn in case.turns.values()) if count < len(case.turns) else 0
    )
    invokes = sorted(map(_invoke, acknowledged))
    completes = sorted(map(_complete, acknowledged))
    met = sum(map(bisect_right, repeat(invokes), completes))
    before_ns = -math.inf if case.final is None else case.final.invoke_ns
    unread = count - bisect_left(completes, before_ns)
    at = bisect_right(crashes, before_ns)
    return Evidence(
        operations=len(session),
        sessions=1,
        turns=len(case.turns),
        requests=len(case.turns) + len(case.attempts) - len({a.marker for a in case.attempts}),
        acknowledged=count,
        refused=refused,
        indeterminate=len(case.turns) - count - refused,
        observed=count - list(map(_read, acknowledged)).count(None),
        concurrent_pairs=met - count * (count + 1) // 2,
        overtaken=sum(map(lt, case.invokes, case.latest_invoke)),
        most_overtaken=most_overtaken(case),
        unread=unread,
        crossed=bisect_left(completes, crashes[at - 1]) if at else 0,
        unread_in=str(case.key) if unread else "",
    )
