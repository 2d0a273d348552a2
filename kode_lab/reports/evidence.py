"""What claims are judged from: turns in the report's own seconds, files, machine, and the judge.

It owns how the records of a run find each other and how times at another speed are told in the
report's seconds; it says nothing of what they mean. A report's own turns have the same shape, so
that a report can be held against itself. Everything is read from the run's directory.

At another speed only what was slept on purpose (the model, tools with a time, the wait for a turn
of the own session that slept) was shortened. So it alone is stretched; everything else counts as it
was measured. A run at fifty times the speed then shows 2.19 s where one at the report's speed does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kode_lab.check import Verdict, check
from kode_lab.errors import InvalidRecord, KodeLabError
from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.records import Run
from kode_lab.lab.turn_view import TurnView, turns_of
from kode_lab.reports.report import Report, Test, built_in, parsed
from kode_lab.reports.timeline import Placed, placed_turns

__all__ = [
    "MESSAGES",
    "STORAGE",
    "Evidence",
    "Files",
    "Machine",
    "SeenTool",
    "SeenTurn",
    "evidence_in",
    "evidence_of",
    "report_of",
    "stored_files",
    "turn_id",
]

MESSAGES = "messages.json"
# Where the sessions of a test rest, below the test's directory.
STORAGE = ".kode"
# By test, then by path.
Files: TypeAlias = Mapping[str, Mapping[str, int | None]]
_PLAIN = re.compile(r"[A-Za-z0-9 _.-]{1,80}")
_LATE_WORDS = ("no answer within", "TimeoutError", "interrupted")


class SeenTool(NamedTuple):
    """One tool call of a turn."""

    name: str
    took_s: float
    is_error: bool = False
    result: str = ""


class SeenTurn(NamedTuple):
    """All that is known of one turn; times are the report's seconds, None is not known.

    Attributes:
        number: which turn of its session it is, from 1.
        outcome: ok, failed, refused, cancelled or unanswered.
        sent_s: after the first sending of the test.
        at_work_s: when it held its session and went to work, for ``work_s``.
        planned_s: what it takes when nothing but model and tools take time.
        pieces_s: when the pieces of a streamed answer came, after the sending.
        retries: how many of its model calls failed and were made again.
        foreign: prompts of other sessions that its model was shown.
        is_traced: the system's own steps are known.
        real_s: what was measured, before the speed was taken out.
    """

    name: str
    key: SessionKey
    phase: str
    prompt: str
    number: int
    outcome: str
    error: str
    sent_s: float
    answer_s: float | None
    at_work_s: float | None = None
    work_s: float | None = None
    planned_s: float | None = None
    first_token_s: float | None = None
    wait_own_s: float | None = None
    wait_other_s: float | None = None
    load_s: float | None = None
    model_s: float | None = None
    commit_s: float | None = None
    model_calls: tuple[float, ...] | None = None
    tools: tuple[SeenTool, ...] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    pieces_s: tuple[float, ...] = ()
    retries: int | None = None
    foreign: int | None = None
    is_traced: bool = True
    real_s: float = 0.0

    @property
    def ended_s(self) -> float:
        """When its client had the answer."""
        return self.sent_s + (self.answer_s or 0.0)


class Machine(NamedTuple):
    """How busy the machine was, and what the process needed, sampled during the test.

    Attributes:
        late_s: how late the event loop woke, added up; ``worst_late_s`` the worst time.
        samples: (second of the run, resident MB, share of one core, open files, sockets) each.
    """

    cores: int = 1
    load: float = 0.0
    late_s: float = 0.0
    worst_late_s: float = 0.0
    samples: tuple[tuple[float, float, float, float, float], ...] = ()


class Evidence(NamedTuple):
    """What the claims about one test are judged from.

    Attributes:
        turns: those that count (warm-up turns do not), by sending.
        files: the sessions' files by their paths below the storage directory; how many messages
            each has, or None where it has no array of them.
        is_simulated: the model's times are the report's, and not a real model's.
        users: how many users each phase had.
        verdict: of the judge, on this test's turns.
        is_reported: this is the report itself, not a run.
    """

    test: Test
    turns: tuple[SeenTurn, ...]
    files: Mapping[str, int | None] = {}
    speed: float = 1.0
    is_simulated: bool = True
    machine: Machine = Machine()
    users: Mapping[str, int] = {}
    prices: tuple[float, float] = (0.0, 0.0)
    verdict: Verdict | None = None
    is_reported: bool = False


def report_of(run: Run) -> Report:
    """Return the report that a run reproduced.

    Raises:
        InvalidRecord: the run is no reproduction.
    """
    asked = run.parameters
    if isinstance(asked.get("report"), dict):
        return parsed(asked["report"])
    if "tests" in asked:  # recorded when there was but one report
        return built_in()
    raise InvalidRecord(f"run {run.id} is no reproduction: it has no report")


def turn_id(test: Test, one: Placed) -> str:
    """Return the id under which a turn stands in the records."""
    name = one.name if _PLAIN.fullmatch(one.name) else f"turn-{one.place}"
    return f"{test.name}/{name.replace(' ', '-')}"


def evidence_of(run: Run) -> tuple[Evidence, ...]:
    """Return the evidence for each test of a recorded reproduction.

    Raises:
        InvalidRecord: history or trace cannot be read, or the run is no reproduction.
    """
    report, asked = report_of(run), run.parameters
    storage, notes = stored_files(run), _json(run, "tests.json")
    speed = float(asked.get("speed", 1.0))
    operations, spans = run.operations(), run.spans()
    return tuple(
        _evidence(
            report, test, speed, bool(asked.get("is_simulated", True)),
            [o for o in operations if o.turn_id.startswith(f"{test.name}/")],
            [s for s in spans if s.turn_id.startswith(f"{test.name}/")],
            storage.get(test.name, {}), notes.get(test.name, {}), run.facts.get("machine") or {},
        )
        for test in report.tests
    )  # fmt: skip


def _evidence(
    report: Report,
    test: Test,
    speed: float,
    is_simulated: bool,
    operations: Sequence[Operation],
    spans: Sequence[Span],
    files: Mapping[str, int | None],
    notes: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Evidence:
    views = turns_of(spans, operations)
    facts: dict[str, dict[str, Any]] = {}
    planned = {turn_id(test, one): one for one in placed_turns(test)}
    for id_, one in planned.items():
        plan_s = None if one.model_s is None else one.model_s + _tools_s(one)
        facts[id_] = {"name": one.name, "prompt": one.turn.prompt, "planned_s": plan_s}
    for id_, told in notes.get("turns", {}).items():
        facts.setdefault(id_, {}).update(told)
    if not is_simulated:
        for told in facts.values():
            told["planned_s"] = None
    origin_ns = min((view.start_ns for view in views), default=0)
    begins = {v.turn_id: v for v in views}
    at_s = {id_: one.at_s for id_, one in planned.items() if one.turn.arrived is not None}
    busy = _work_of(views)
    seen = [
        _seen(view, facts.get(view.turn_id, {}), speed, origin_ns, busy, at_s.get(view.turn_id))
        for view in views
    ]
    # A turn that was never asked is one without an answer, and no hole in the list.
    seen += [
        SeenTurn(one.name, one.turn.key, one.turn.phase, one.turn.prompt, 0, "unanswered",
                 "it was never asked", one.at_s, None, is_traced=False)
        for id_, one in planned.items()
        if id_ not in begins
    ]  # fmt: skip
    warm_up_s = test.load.warm_up if test.load is not None else 0.0
    counted = tuple(_numbered(turn for turn in seen if turn.sent_s >= warm_up_s))
    sampled = notes.get("machine", {})
    return Evidence(
        test,
        counted,
        files,
        speed,
        is_simulated,
        Machine(
            cores=int(machine.get("cores") or 1),
            load=float(sampled.get("load") or machine.get("load_at_start") or 0.0),
            late_s=float(sampled.get("late_s", 0.0)),
            worst_late_s=float(sampled.get("worst_late_s", 0.0)),
            samples=tuple(tuple(one) for one in sampled.get("samples", ())),
        ),
        notes.get("users", {}),
        (report.prices.input, report.prices.output),
        _verdict(operations, spans),
    )


def _tools_s(one: Placed) -> float:
    return sum(tool.took_s for tool in one.turn.tools)


def _verdict(operations: Sequence[Operation], spans: Sequence[Span]) -> Verdict | None:
    try:
        return check(operations, spans or None)
    except KodeLabError:
        return None


def _work_of(views: Iterable[TurnView]) -> dict[tuple[str, str], list[tuple[int, int, str]]]:
    """Return when each session had a turn at work, by the system's own steps."""
    busy: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for view in views:
        if view.whole is not None:
            held = max((s.end_ns for s in view.steps_named("wait")), default=view.whole.start_ns)
            own = busy.setdefault(view.key[:2], [])
            own.append((held, view.whole.end_ns, view.turn_id))
    return busy


def _seen(
    view: TurnView,
    facts: Mapping[str, Any],
    speed: float,
    origin_ns: int,
    busy: Mapping[tuple[str, str], list[tuple[int, int, str]]],
    planned_at_s: float | None,
) -> SeenTurn:
    is_traced = view.whole is not None
    waits = view.steps_named("wait")
    waited_ns = view.time_in("wait")
    own_ns = sum(
        max(0, min(wait.end_ns, end) - max(wait.start_ns, start))
        for wait in waits
        for start, end, id_ in busy.get(view.key[:2], ())
        if id_ != view.turn_id
    )
    own_ns = min(own_ns, waited_ns)
    # A free lock is taken in less than a millisecond; that is no wait.
    asks = [span for span in view.steps_named("ask") if not span.error]
    tools = view.steps_named("tool")
    stretch = speed - 1
    planned_s = facts.get("planned_s")
    slept_s = (
        planned_s / speed
        if planned_s is not None
        else ((view.time_in("ask") + view.time_in("tool")) / 1e9 if speed != 1 else 0.0)
    )
    real_s = view.latency_ns / 1e9
    sent_s = (view.start_ns - origin_ns) / 1e9
    scaled_at_s = sent_s if planned_at_s is None else planned_at_s / speed
    outcome = _outcome(view, facts)
    is_over = view.outcome == "ok"
    reads = [o.read for o in view.operations if o.read is not None]
    held_ns = max((s.end_ns for s in waits), default=view.start_ns)
    tokens = [
        [s.attributes[name] for s in asks if s.attributes.get(name) is not None]
        for name in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    ]
    pieces_s = tuple(facts.get("pieces_s", ()))
    if pieces_s and planned_s is not None and facts.get("first_s") is not None:
        # Each piece has its due time; what it was late is not the model's.
        gap_s = (planned_s - facts["first_s"]) / max(1, len(pieces_s) - 1)
        due_s = [(facts["first_s"] + gap_s * at) / speed for at in range(len(pieces_s))]
        pieces_s = tuple(
            at_s + stretch * (due + own_ns / 1e9) for at_s, due in zip(pieces_s, due_s, strict=True)
        )
    else:
        pieces_s = tuple(at_s * speed for at_s in pieces_s)
    return SeenTurn(
        name=str(facts.get("name", view.turn_id.partition("/")[2])),
        key=view.key,
        phase=str(facts.get("phase", "")),
        prompt=str(facts.get("prompt", "")),
        number=0,
        outcome=outcome,
        error=view.error,
        sent_s=sent_s + stretch * scaled_at_s,
        answer_s=real_s + stretch * (slept_s + own_ns / 1e9) if is_over else None,
        at_work_s=sent_s
        + stretch * scaled_at_s
        + (held_ns - view.start_ns) / 1e9
        + stretch * own_ns / 1e9,
        work_s=None
        if view.whole is None or not is_over
        else (view.whole.end_ns - held_ns) / 1e9 + stretch * slept_s,
        planned_s=planned_s,
        # The time to the first token is the model's, but for the little that is ours.
        first_token_s=pieces_s[0] if pieces_s else None,
        pieces_s=pieces_s,
        retries=len(view.steps_named("ask")) - len(asks) if is_traced else None,
        wait_own_s=own_ns / 1e9 * speed if is_traced else None,
        wait_other_s=(waited_ns - own_ns) / 1e9 if is_traced else None,
        load_s=view.time_in("load") / 1e9 if is_traced else None,
        model_s=view.time_in("ask") / 1e9 * speed if is_traced else None,
        commit_s=view.time_in("commit") / 1e9 if is_traced else None,
        model_calls=tuple((s.end_ns - s.start_ns) / 1e9 * speed for s in asks)
        if is_traced
        else None,
        tools=tuple(
            SeenTool(
                str(tool.attributes.get("gen_ai.tool.name", "")),
                (tool.end_ns - tool.start_ns) / 1e9 * speed,
                bool(tool.error or tool.attributes.get("kode_lab.tool.is_error")),
                str(tool.attributes.get("kode_lab.tool.result", "")),
            )
            for tool in tools
        )
        if is_traced
        else None,
        input_tokens=sum(tokens[0]) if tokens[0] else None,
        output_tokens=sum(tokens[1]) if tokens[1] else None,
        foreign=len(reads[-1].foreign) if reads else None,
        is_traced=is_traced,
        real_s=real_s,
    )


def _outcome(view: TurnView, facts: Mapping[str, Any]) -> str:
    match view.outcome:
        case "ok":
            return "ok"
        case "fail":
            return "refused"
        case _ if facts.get("is_cancelled"):
            return "cancelled"
        case _ if view.is_open or view.error.startswith(_LATE_WORDS) or not view.error:
            return "unanswered"
        case _:
            return "failed"


def _numbered(turns: Iterable[SeenTurn]) -> Iterable[SeenTurn]:
    """Number the turns of each session by their sending."""
    numbers: dict[SessionKey, int] = {}
    for turn in sorted(turns, key=lambda turn: turn.sent_s):
        numbers[turn.key] = numbers.get(turn.key, 0) + 1
        yield turn._replace(number=numbers[turn.key])


def evidence_in(report: Report, test: Test) -> Evidence:
    """Return what the report says itself, in the shape of evidence."""
    seen = []
    for one in placed_turns(test):
        turn = one.turn
        calls = turn.calls or None
        model_s = turn.model if turn.model is not None else sum(turn.calls) if calls else None
        tools: tuple[SeenTool, ...] | None = None
        if turn.tools:
            tools = tuple(SeenTool(t.name, t.took_s, t.failed, t.result) for t in turn.tools)
        elif turn.tool_calls is not None:
            tools = (SeenTool("", 0.0),) * turn.tool_calls
        is_stated = turn.waited is not None
        seen.append(
            SeenTurn(
                one.name, turn.key, turn.phase, turn.prompt, 0, turn.outcome, turn.error, one.at_s,
                one.took_s if turn.outcome == "ok" else None,
                at_work_s=one.at_s + one.waited_own_s + one.waited_other_s,
                work_s=None
                if one.took_s is None
                else one.took_s - one.waited_own_s - one.waited_other_s,
                planned_s=None if model_s is None else model_s + _tools_s(one),
                first_token_s=turn.first_token,
                wait_own_s=one.waited_own_s if is_stated else None,
                wait_other_s=one.waited_other_s if is_stated else None,
                model_s=model_s, model_calls=calls, tools=tools,
                input_tokens=turn.input_tokens, output_tokens=turn.output_tokens,
                is_traced=one.took_s is not None,
            )
        )  # fmt: skip
    prices = (report.prices.input, report.prices.output)
    return Evidence(test, tuple(_numbered(seen)), prices=prices, is_reported=True)


def stored_files(run: Run) -> Files:
    """Return the files of each test's sessions, as the run noted them, or as they lie there.

    The note (``storage.json``) is what travels: directories with ``:`` in their names do not go
    everywhere.
    """
    noted: Files = _json(run, "storage.json")
    if noted:
        return noted
    names = [test.name for test in report_of(run).tests]
    return {name: _listed(run.path / name / STORAGE) for name in names}


def _json(run: Run, name: str) -> dict[str, Any]:
    """Return a JSON object of the run; empty where it is not there.

    Raises:
        InvalidRecord: it is not JSON.
    """
    try:
        found = json.loads((run.path / name).read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"{name} of {run.id} is not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _listed(storage: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for path in sorted(storage.rglob("*")):
        name = path.relative_to(storage).as_posix()
        # "+" begins what is the store's own; no user's directory can begin so.
        if path.is_file() and not name.startswith("+"):
            found[name] = _messages(path) if path.name == MESSAGES else None
    return found


def _messages(path: Path) -> int | None:
    try:
        return len(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return None
