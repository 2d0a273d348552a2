"""The judge: takes a history, hears each session alone, and returns the verdict.

It owns the order of things (screen, hear the suspects, settle what needs all sessions, conclude)
and no rule. Sessions are independent objects, so all are linearizable together if and only if each
is; a fork ties two sessions together, which are then heard together.

There is one engine: the screen (``kode_lab.check.screen``) clears whole columns of sessions that
cannot break any rule, and the rules hear the rest. A short history is heard by the rules alone.

    0  valid      1  invalid      2  unknown      3  the input cannot be used

Source: locality is Herlihy and Wing's; "a checker that throws gives unknown" is Jepsen's rule.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from operator import attrgetter, lt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kode_lab.check.evidence import Case, case_of, evidence_of, overtakings
from kode_lab.check.rules import RULES, Undecided, declared, followers, is_declared, unexplained
from kode_lab.check.shared_rules import (
    configuration,
    epoch_of,
    holds_of,
    holds_of_turns,
    lost_effects,
    needless_serialisation,
    overlaps,
    quiet_ns,
    stuck,
    tools,
    within_turn,
)
from kode_lab.check.verdict import ANOMALIES, SAFETY, Anomaly, Evidence, Verdict, conclude
from kode_lab.errors import InvalidRecord, InvalidScenario
from kode_lab.history.digest import digest_of
from kode_lab.history.operation import (
    CRASHES,
    HEALS,
    NEMESIS,
    NO_DETAILS,
    QUIET,
    Effect,
    Operation,
    Read,
)
from kode_lab.history.reader import lines_of, read_operations
from kode_lab.history.span import Span, read_spans
from kode_lab.key import SessionKey

if TYPE_CHECKING:
    from kode_lab.check.columns import Columns, Flags

__all__ = [
    "COLUMNS_FROM_BYTES",
    "COLUMNS_FROM_OPERATIONS",
    "check",
    "check_path",
    "main",
]

# Below these, importing numpy and msgspec costs more than they save.
COLUMNS_FROM_OPERATIONS, COLUMNS_FROM_BYTES = 5_000, 2_000_000
# How many anomalies of one name are kept with their witnesses; all are counted.
WITNESS_LIMIT = 20
# Suspects are read again and heard in portions of so many operations, so memory stays bounded.
PORTION_OPERATIONS = 50_000
# So many orders are tried of what a fork may have taken over.
FORK_ORDERS_LIMIT = 12
ENGINES = ("auto", "rules", "columns")
_invoke, _complete, _effects, _config, _details = map(
    attrgetter, ("invoke_ns", "complete_ns", "effects", "config", "details")
)


def check(
    history: Iterable[Operation],
    trace: Iterable[Span] | None = None,
    guarantees: Collection[str] | None = None,
    *,
    overtaking_limit: int | None = None,
    engine: str = "auto",
) -> Verdict:
    """Return the verdict on a history, and on a trace where there is one.

    Args:
        history: operations in any order.
        guarantees: names or codes (``apart``, ``G1``, ...) of what must be judged; None judges
            whatever there is evidence of.
        overtaking_limit: claims ``ordered``, and beyond it that of the turns sent after one was, no
            more than so many stand before it; None claims nothing of that kind.
        engine: ``rules`` hears every session; ``columns`` first clears those that cannot break any;
            ``auto`` is ``columns`` for long histories.

    Raises:
        InvalidRecord: two turns share a marker, or an operation ends before it begins.
        InvalidScenario: no guarantee, or no engine, of that name; a limit below zero.
    """
    _check_options(engine, overtaking_limit)
    with _collector_paused():
        operations = history if isinstance(history, list) else list(history)
        columns = None
        is_long = len(operations) >= COLUMNS_FROM_OPERATIONS
        if engine == "columns" or (engine == "auto" and is_long):
            from kode_lab.check.columns import columns_of  # noqa: PLC0415 - numpy

            columns = columns_of(operations)
        if columns is not None:
            hearing = _heard(columns, overtaking_limit)
            if hearing is not None:
                return _concluded(hearing, trace, guarantees)
        faults = [operation for operation in operations if operation.process == NEMESIS]
        origin_ns = min(map(_invoke, operations), default=0)
        hearing = Hearing(faults, overtaking_limit, origin_ns)
        hearing.hear(operations)
        hearing.settle(lambda markers: (o for o in operations if o.marker in markers))
        return _concluded(hearing, trace, guarantees)


def check_path(
    path: Path,
    guarantees: Collection[str] | None = None,
    *,
    overtaking_limit: int | None = None,
    engine: str = "auto",
    keep: bool = False,
) -> Verdict:
    """Return the verdict on ``path``: a history, or a directory with one and perhaps a trace.

    A history is JSON Lines, or EDN (a file whose name ends in ``.edn``) with list-append
    transactions that can be turns. Columns that are kept beside a history are used as long as they
    are those of its bytes.

    Args:
        keep: write the columns of a history that is long enough to be judged by them beside it.

    Raises:
        InvalidRecord: it cannot be read; names the line and the reason.
    """
    _check_options(engine, overtaking_limit)
    history, trace = path, None
    if path.is_dir():
        history, trace = path / "history.jsonl", path / "trace.jsonl"
    try:
        size_bytes = history.stat().st_size
    except OSError as error:
        raise InvalidRecord(f"{history.name} cannot be read: {error.strerror}") from None
    spans = None
    if trace is not None and trace.exists():
        try:
            spans = list(read_spans(lines_of(trace)))
        except InvalidRecord as error:
            raise InvalidRecord(f"{trace.name}: {error}") from None
    if history.suffix == ".edn":
        from kode_lab.check.edn import operations_of  # noqa: PLC0415 - rarely wanted

        read = operations_of("".join(lines_of(history)))
        return check(read, spans, guarantees, overtaking_limit=overtaking_limit, engine=engine)
    if engine == "columns" or (engine == "auto" and size_bytes >= COLUMNS_FROM_BYTES):
        from kode_lab.check.columns import columns_beside  # noqa: PLC0415 - numpy

        # A refusal here knows no line: the careful reader will find it again.
        with _collector_paused(), suppress(InvalidRecord):
            columns = columns_beside(history, keep=keep)
            hearing = None if columns is None else _heard(columns, overtaking_limit)
            del columns
            if hearing is not None:
                return _concluded(hearing, spans, guarantees)
        # Something is wrong: let the careful reader find it before anything is kept in memory.
        with closing(lines_of(history)) as lines:
            for _ in _unambiguous(read_operations(lines)):
                pass
        engine = "rules"
    # Closed here: a refused line's traceback would hold the file open until it is collected.
    with closing(lines_of(history)) as lines:
        operations = list(_unambiguous(read_operations(lines)))
    return check(operations, spans, guarantees, overtaking_limit=overtaking_limit, engine=engine)


def main(
    path: Path,
    *,
    as_json: bool = False,
    guarantees: Collection[str] | None = None,
    overtaking_limit: int | None = None,
    keep: bool = False,
) -> int:
    """Print the verdict on a run's directory or a history's file, and return the exit status.

    Raises:
        InvalidRecord: the input cannot be used; names the line and the reason (exit status 3).
    """
    if path.suffix == ".edn":
        from kode_lab.check.edn import verdict_of  # noqa: PLC0415 - rarely wanted

        text = "".join(lines_of(path))
        verdict: Any = verdict_of(text, guarantees, overtaking_limit=overtaking_limit)
    else:
        engine = "columns" if keep else "auto"  # a short history has them, too, if they are wanted
        verdict = check_path(
            path, guarantees, overtaking_limit=overtaking_limit, engine=engine, keep=keep
        )
    if as_json:
        sys.stdout.write(json.dumps(verdict.to_json(), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(f"{verdict}\n")
    status: int = verdict.exit_status
    return status


def _check_options(engine: str, overtaking_limit: int | None) -> None:
    if engine not in ENGINES:
        raise InvalidScenario(f"no engine {engine!r}: name one of {', '.join(ENGINES)}")
    if overtaking_limit is not None and overtaking_limit < 0:
        raise InvalidScenario(f"overtaking_limit={overtaking_limit} is below 0")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's collector from walking the history again and again.

    The judge makes no cycles, and up to a fifth of its time went there.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unambiguous(operations: Iterable[Operation]) -> Iterator[Operation]:
    """Pass operations on, unless a marker is sent by two turns: they could not be told apart."""
    sent: dict[str, tuple[SessionKey, str]] = {}
    for operation in operations:
        if operation.marker:
            turn = operation.key, operation.turn_id
            if sent.setdefault(operation.marker, turn) is not turn and (
                not operation.turn_id or sent[operation.marker] != turn
            ):
                raise InvalidRecord(
                    f"marker {operation.marker!r:.60} was already sent by another turn; "
                    "attempts at one turn have one session and one turn_id",
                    line=operation.line or None,
                )
        yield operation


def _heard(columns: Columns, overtaking_limit: int | None) -> Hearing | None:
    """Hear what the screen does not clear; None if the whole history must be heard."""
    import numpy as np  # noqa: PLC0415 - there is none without columns

    from kode_lab.check.columns import DECLARED, OK, TURN, hashes_of  # noqa: PLC0415
    from kode_lab.check.screen import screen  # noqa: PLC0415

    session, is_turn, is_ok = columns.session, columns.kind == TURN, columns.type == OK
    origin_ns = min(
        [*columns.invoke.min(keepdims=True, initial=2**62), *map(_invoke, columns.faults)]
    )
    hearing = Hearing(columns.faults, overtaking_limit, int(origin_ns))

    def of_sessions(*masks: Flags) -> list[Flags]:
        found = [np.zeros(len(columns.keys), np.bool_) for _ in masks]
        for marked, mask in zip(found, masks, strict=True):
            marked[session[mask]] = True
        return found

    # Forks tie sessions together, and sessions that may be stuck must be heard.
    is_probe = is_turn & (columns.invoke > quiet_ns(columns.faults))
    forks = [o for o in columns.fetch(np.flatnonzero(columns.kind == DECLARED)) if o.f == "fork"]
    tied = {key for fork in forks for key in (fork.key, fork.details.source)}
    probed, answered, asked = of_sessions(is_probe, is_probe & is_ok, is_turn & ~is_probe)
    doubted = probed & ~answered
    doubted |= np.array([key in tied for key in columns.keys], np.bool_)
    screened = screen(columns, overtaking_limit, doubted)
    if screened is None:
        return None
    evidence, suspect = screened
    cleared = ~suspect[session]
    noted = columns.is_shared | columns.is_timed
    if len(columns.configs) > 2:  # several versions: some agent may have run with two of them
        noted |= columns.config > 0
    hearing.evidence = evidence._replace(
        crossed=_crossed(columns, suspect, hearing.crashes),
        probes=int((is_probe & cleared).sum()),
        unprobed=int((asked & ~probed & ~suspect).sum()) if is_probe.any() else 0,
        configured=int(((columns.config > 0) & is_ok & cleared & ~noted).sum()),
    )
    rows = np.flatnonzero(noted & cleared)
    for start in range(0, len(rows), PORTION_OPERATIONS):
        hearing.note(columns.fetch(rows[start : start + PORTION_OPERATIONS]))
    for portion in _portions(columns, suspect, tied):
        hearing.hear(columns.of_sessions(portion))

    def find(markers: Collection[str]) -> list[Operation]:
        hashes = hashes_of(sorted(markers))
        return columns.fetch(np.flatnonzero(is_turn & np.isin(columns.marker, hashes)))

    hearing.settle(find)
    return hearing


def _portions(columns: Columns, suspect: Flags, tied: Collection[Any]) -> Iterator[Flags]:
    """Return the suspects in portions of so many operations; those that are tied in the first."""
    import numpy as np  # noqa: PLC0415

    sizes = np.bincount(columns.session, minlength=len(suspect))
    portion, size = np.zeros_like(suspect), 0
    numbers = np.flatnonzero(suspect).tolist()
    for number in sorted(numbers, key=lambda number: columns.keys[number] not in tied):
        is_tied = columns.keys[number] in tied
        if size and size + sizes[number] > PORTION_OPERATIONS and not is_tied:
            yield portion
            portion, size = np.zeros_like(suspect), 0
        portion[number] = True
        size += int(sizes[number])
    if size:
        yield portion


def _crossed(columns: Columns, suspect: Flags, crashes: Sequence[float]) -> int:
    """Count the acknowledged turns of the cleared sessions that a crash parts from their read."""
    import numpy as np  # noqa: PLC0415

    from kode_lab.check.columns import OK, READ, TURN  # noqa: PLC0415

    if not crashes:
        return 0
    last_crash = np.full(len(suspect), -1, np.int64)
    is_list = (columns.kind == READ) & (columns.list_length >= 0)
    read = np.flatnonzero(is_list & ~suspect[columns.session])
    at = np.searchsorted(np.array(crashes, np.int64), columns.invoke[read], side="right")
    told = read[at > 0]
    last_crash[columns.session[told]] = np.array(crashes, np.int64)[at[at > 0] - 1]
    is_turn = (columns.kind == TURN) & (columns.type == OK)
    return int((is_turn & (columns.complete < last_crash[columns.session])).sum())


def _concluded(
    hearing: Hearing, trace: Iterable[Span] | None, guarantees: Collection[str] | None
) -> Verdict:
    hearing.judge_calls()
    if trace is not None:
        hearing.hear_trace(trace)
    return hearing.verdict(guarantees)


@dataclass(slots=True)
class Hearing:
    """What has been heard so far; sessions may come in several portions, each session whole.

    Attributes:
        faults: all that the nemesis did; must be known before any session is heard.
        overtaking_limit: how many turns may overtake one, or None.
        origin_ns: when the run began.
        strange: anomalies about markers whose owners are not yet known.
        effects: each effect with the operation that told of it.
        acting: acknowledged turns and reads whose client was told of effects or tool calls.
        worlds: the lists of all effects.
        versions: a turn for each agent, epoch and version of the configuration.
        probes: turns that were asked after all faults were over.
        asked: sessions with a turn before that.
        timed: acknowledged turns of which the model's side recorded its calls.
    """

    faults: Sequence[Operation]
    overtaking_limit: int | None = None
    origin_ns: int = 0
    evidence: Evidence = field(default_factory=Evidence)
    counts: Counter[str] = field(default_factory=Counter)
    follow: Counter[str] = field(default_factory=Counter)
    anomalies: dict[str, list[Anomaly]] = field(default_factory=lambda: defaultdict(list))
    strange: list[Anomaly] = field(default_factory=list)
    effects: list[tuple[Effect, Operation]] = field(default_factory=list)
    acting: list[Operation] = field(default_factory=list)
    worlds: list[Operation] = field(default_factory=list)
    versions: dict[tuple[str, int, str], Operation] = field(default_factory=dict)
    probes: list[Operation] = field(default_factory=list)
    asked: set[SessionKey] = field(default_factory=set)
    timed: list[Operation] = field(default_factory=list)
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
        crashes = self.crashes
        heard: set[str] = set()
        quiet = quiet_ns(self.faults)
        for key, session in by_session.items():
            if session[0].process == NEMESIS:
                continue
            sent = {o.marker for o in session if o.f == "turn"}
            if not heard.isdisjoint(sent):
                marker = min(heard.intersection(sent))
                raise InvalidRecord(
                    f"marker {marker!r:.60} is sent in {key} and in another session: "
                    "a marker names one turn of one session"
                )
            heard |= sent
            if any(map(lt, map(_complete, session), map(_invoke, session))):
                raise InvalidRecord(f"an operation of {key} completes before it was invoked")
            self.note(session)
            for operation in session if quiet < math.inf else ():
                if operation.f == "turn":
                    is_probe = operation.invoke_ns > quiet
                    self.probes.append(operation) if is_probe else self.asked.add(key)
            try:
                case = _case_in(key, by_session)
                self.evidence = self.evidence.plus(evidence_of(case, session, crashes))
            except InvalidRecord:
                raise
            except Exception as error:  # noqa: BLE001 - as a rule that throws
                one = f"the evidence of {key} cannot be laid out: {error!r:.200}"
                self.troubles |= dict.fromkeys(SAFETY, one)
                continue
            self._judge(case, crashes)

    def _judge(self, case: Case, crashes: Sequence[float]) -> None:
        found: list[Anomaly] = []
        rules = dict(RULES)
        if is_declared(case):
            # The order is the search's to find: both guarantees stand or fall with it.
            rules = {"apart": RULES["apart"], "whole": RULES["whole"], "ordered": declared}
        for name, rule in rules.items():
            with self._guarded(name):
                found += rule(case, crashes)
        roots, follow = followers(found)
        self.follow += follow
        self.counts += follow
        for anomaly in roots:
            self._add_or_ask(anomaly)
        limit = self.overtaking_limit
        if limit is not None:
            self._apply("ordered", lambda: overtakings(case, limit))

    def note(self, operations: Sequence[Operation]) -> None:
        """Keep what is judged over all sessions: effects, configurations, the model's calls."""
        changes = [f for f in self.faults if f.f in ("configure", HEALS["configure"])]
        configured = 0
        told = any(map(_effects, operations)) or any(map(_config, operations))
        told = told or any(o.effects is not None for o in operations)
        for operation in operations if told else ():
            if operation.effects is not None:
                self.effects += [(effect, operation) for effect in operation.effects]
                if operation.f == "effects" and operation.type == "ok":
                    self.worlds.append(operation)
            if operation.config and operation.type == "ok":
                configured += 1
                epoch = epoch_of(operation, changes)
                if epoch is not None:
                    version = (operation.key.agent_id, epoch, operation.config)
                    known = self.versions.get(version, operation)
                    # Sessions come in another order from each engine.
                    self.versions[version] = min(known, operation, key=_sent)
        for operation in operations:
            if operation.effects or operation.details is not NO_DETAILS:
                self._note_details(operation)
        self.evidence = self.evidence._replace(configured=self.evidence.configured + configured)

    def _note_details(self, operation: Operation) -> None:
        details = operation.details
        if operation.type == "ok" and operation.f != "effects":
            if operation.effects or details.tools:
                self.acting.append(operation)
            calls = () if details.model is None else details.model.calls
            # A call outside may be of an earlier attempt, which was given up and went on.
            if calls and all(
                operation.invoke_ns <= s and e <= operation.complete_ns for s, e in calls
            ):
                self.timed.append(operation)
        if details.model is not None:
            self._apply("tools", lambda: within_turn(operation))

    def settle(self, find: Callable[[Collection[str]], Iterable[Operation]]) -> None:
        """Judge what needs all sessions, once all have been heard.

        Args:
            find: returns the operations whose marker is one of those it is given.
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
                one = f"{anomaly.element!r:.60} is told as another session's in its own session"
                self.troubles.setdefault("apart", one)
            else:
                self._add(_owned(anomaly, owner))
        self.strange.clear()
        self._apply("tools", lambda: tools(self.effects, owners))
        self._apply("tools", lambda: lost_effects(self.acting, self.worlds))
        self._apply("service", lambda: configuration(self.versions))
        self._apply("service", lambda: stuck(self.probes))
        if self.probes or self.evidence.probes:
            unprobed = len(self.asked - {probe.key for probe in self.probes})
            self.evidence = self.evidence._replace(unprobed=self.evidence.unprobed + unprobed)

    def judge_calls(self) -> None:
        """Judge the lock by the times at which the model was called."""
        self.evidence = self.evidence._replace(timed=len(self.timed))
        holds = holds_of_turns(self.timed)
        self._apply("lock", lambda: overlaps(holds))
        self._apply("lock", lambda: needless_serialisation(holds))

    def hear_trace(self, spans: Iterable[Span]) -> None:
        """Judge the system's own account of all sessions."""
        listed = list(spans)
        self.evidence = self.evidence._replace(spans=self.evidence.spans + len(listed))
        self.origin_ns = min([self.origin_ns, *(span.start_ns for span in listed)])
        holds = holds_of(listed)
        if listed and not holds:
            self.troubles.setdefault("lock", "the trace shows no turn that holds its session")
        known = set(self.counts)
        for rule in (overlaps, needless_serialisation):
            # One breach that both the trace and the model's side show is told once.
            self._apply("lock", lambda rule=rule: (a for a in rule(holds) if a.name not in known))  # type: ignore[misc]

    def verdict(self, guarantees: Collection[str] | None) -> Verdict:
        """Conclude from all that was heard.

        Raises:
            InvalidScenario: no guarantee of that name.
        """
        evidence = self.evidence._replace(
            crashes=len(self.crashes),
            effects=len(self.effects) + len(self.worlds),
            probes=self.evidence.probes + len(self.probes),
        )
        kept = [a for of_name in self.anomalies.values() for a in sorted(of_name, key=_size)]
        names = sorted(self.counts, key=list(ANOMALIES).index)
        limited = [
            a._replace(origin_ns=self.origin_ns)
            for n in names
            for a in [x for x in kept if x.name == n][:WITNESS_LIMIT]
        ]
        counts = {name: self.counts[name] for name in names}
        if self.overtaking_limit is not None:
            guarantees = None if guarantees is None else {*guarantees, "ordered"}
        concluded = conclude(
            evidence,
            sorted(limited, key=_size),
            counts,
            self.follow,
            self.troubles,
            guarantees,
        )
        return concluded._replace(overtaking_limit=self.overtaking_limit)

    @contextmanager
    def _guarded(self, guarantee: str) -> Iterator[None]:
        try:
            yield
        except Undecided as undecided:
            for name in ("kept", "ordered"):
                self.troubles.setdefault(name, str(undecided))
        except Exception as error:  # noqa: BLE001 - a rule that throws must never look like "valid"
            self.troubles.setdefault(guarantee, f"the rule failed: {error!r:.200}")

    def _apply(self, guarantee: str, rule: Callable[[], Iterable[Anomaly]]) -> None:
        with self._guarded(guarantee):
            for anomaly in rule():
                self._add_or_ask(anomaly)

    def _with_faults(self, anomaly: Anomaly) -> Anomaly:
        """Return an anomaly whose witness holds the faults that its argument needs."""
        names = {"lost after acknowledgement": CRASHES, "stuck session": (QUIET,)}
        needed = [f for f in self.faults if f.f in names.get(anomaly.name, ())]
        at_ns = anomaly.facts.get("crash_ns", quiet_ns(self.faults))
        own = [f for f in needed if f.invoke_ns == at_ns][:1]
        return anomaly._replace(witness=(*anomaly.witness, *own))

    def _add_or_ask(self, anomaly: Anomaly) -> None:
        if anomaly.name in ("garbage read", "foreign reply"):
            self.strange.append(anomaly)
        else:
            self._add(self._with_faults(anomaly))

    def _add(self, anomaly: Anomaly) -> None:
        self.counts[anomaly.name] += 1
        of_name = self.anomalies[anomaly.name]
        of_name.append(anomaly)
        if len(of_name) > 50 * WITNESS_LIMIT:
            of_name.sort(key=_size)
            del of_name[WITNESS_LIMIT:]


def _case_in(
    key: SessionKey,
    by_session: Mapping[SessionKey, Sequence[Operation]],
    visited: tuple[SessionKey, ...] = (),
) -> Case:
    """Return a session's case; what it took over by a fork is what its source held."""
    session = by_session[key]
    forks = [o for o in session if o.f == "fork" and o.type != "fail"]
    source = min(forks, key=_invoke).details.source if forks else None
    if source is None or source not in by_session or source in (*visited, key):
        return case_of(key, session)
    fork = min(forks, key=_invoke)
    held = _case_in(source, by_session, (*visited, key))
    upto = fork.details.upto
    orders = [list(held.order[: held.place[upto] + 1])] if upto in held.place else []
    shown: set[str] = set()
    if not orders or is_declared(held):
        # No one list shows the source up to there. What the fork shows of it is believed, if that
        # explains all; after a compaction it may have taken over less.
        told = [_taken(one, held, fork) for one in sorted(session, key=_invoke)]
        for taken in told:
            orders.append(taken[: taken.index(upto) + 1] if upto in taken else [*taken, upto])
            if any(one.f == "compact" for one in held.declared) and upto not in taken:
                orders.append(taken)
        shown = {marker for taken in told for marker in taken}
        orders.sort(key=lambda order: -len(shown.intersection(order)))
    orders = [list(order) for order in dict.fromkeys(map(tuple, orders))][:FORK_ORDERS_LIMIT]
    cases = [
        case_of(key, session, _inherited(fork, order))._replace(source=held) for order in orders
    ]
    whole = [case for case in cases[1:] and cases if shown <= case.turns.keys()]
    return next((case for case in whole if unexplained(case) is None), cases[0])


def _inherited(fork: Operation, order: Sequence[str]) -> list[Operation]:
    """Return the turns that a fork took over, as its own session's."""
    return [
        fork._replace(
            f="turn",
            marker=marker,
            turn_id=f"fork {marker}",
            read=Read(at, digest_of(order[:at]), tuple(order[max(0, at - 8) : at])),
        )
        for at, marker in enumerate(order)
    ]


def _taken(operation: Operation, source: Case, fork: Operation) -> list[str]:
    """Return what an operation shows of the turns that its session can have taken over."""
    shown, read = list(operation.markers or ()), operation.read
    if read is not None and not shown:
        shown = list(read.markers or (*read.foreign, *read.tail))
        if len(read.tail) < read.position and shown[:1] and shown[0] in source.place:
            shown = [*source.order[: source.place[shown[0]]], *shown]
    sent = {m for m, turn in source.turns.items() if turn.invoke_ns <= fork.complete_ns}
    return [marker for marker in dict.fromkeys(shown) if marker in sent]


def _size(anomaly: Anomaly) -> tuple[int, int, float, SessionKey, str]:
    """Order anomalies: the fewest operations first, then the shortest history up to them."""
    first = anomaly.witness[0]
    began = first.start_ns if isinstance(first, Span) else first.invoke_ns
    names = list(ANOMALIES)
    return len(anomaly.witness), began, names.index(anomaly.name), anomaly.key, anomaly.element


def _owned(anomaly: Anomaly, owner: Operation | None) -> Anomaly:
    """Name the anomaly of a stranger, now that its owner is known, or known not to exist."""
    if owner is None:
        return anomaly
    if anomaly.name == "foreign reply":
        return anomaly
    return anomaly._replace(name="cross-session leak", witness=(*anomaly.witness, owner))


def _sent(operation: Operation) -> tuple[int, SessionKey, str]:
    return operation.invoke_ns, operation.key, operation.marker
