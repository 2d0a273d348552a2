"""The report's claims, each judged from the evidence of a recorded run.

It owns what each claim means and when it holds. Every claim is a function of the evidence and of
nothing else: it asks no clock and touches no running system, so a run can be judged again years
later, and a measured value can come from nowhere but the record.

Times are judged in real seconds. The model's share is scaled by the run's speed, everything else
is not (nine model calls and eight tools take their milliseconds at any speed), so the allowance for
everything else (``allowance_s``) is that of the report's own speed at any speed.

Idea: the two columns *reported | measured* of a replication study.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from kode_lab.reports.evidence import MESSAGES, Evidence, Turn

__all__ = ["Claim", "Verdict", "allowance_s", "claims_of", "time_verdict", "verdict_of"]

Verdict: TypeAlias = Literal["holds", "violated", "unknown", "not applicable"]

# The report: "less than 1 ms apart".
ARRIVAL_LIMIT_S = 0.001
# A free lock is taken in half a millisecond with the session's files, on a busy machine in five; a
# taken one after a model call at least, which is 830 ms.
WAIT_LIMIT_S = 0.025
# Ours may take this much on top of the model's own time: one per cent, or 50 ms for short turns.
_ALLOWED_SHARE, _ALLOWED_S = 0.01, 0.050
# "Truly parallel": both at work for most of the shorter turn. One after the other gives exactly 0;
# the room is for a machine that starts the second late, which counts at high speed.
_OVERLAP_SHARE = 0.5
_SCHEDULE_ID = re.compile(r'"schedule_id": *([0-9]+)')


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of the report beside what was measured.

    Attributes:
        test: the name of the documented test.
        what: the statement's subject.
        how: what it was measured on.
    """

    test: str
    what: str
    reported: str
    measured: str
    verdict: Verdict
    how: str


def allowance_s(critical_path_s: float, *, speed: float) -> float:
    """Return how much longer than its model's own time a turn may take.

    Args:
        critical_path_s: the model's own time in this run.
        speed: of this run.
    """
    return max(_ALLOWED_SHARE * critical_path_s * speed, _ALLOWED_S)


def time_verdict(took_s: float, reported_s: float, *, slack_s: float) -> Verdict:
    """Return whether a turn took its reported time.

    A time within the slack is unknown where the slack is as long as the reported time itself:
    nothing could then be too fast, and little too slow.
    """
    if abs(took_s - reported_s) > slack_s:
        return "violated"
    return "holds" if reported_s > slack_s else "unknown"


def claims_of(evidence: Evidence) -> tuple[Claim, ...]:
    """Return every claim about one test, judged."""
    first, second = evidence.turns
    claims = [_arrival(evidence)]
    for turn in (first, second):
        claims += _about_one(evidence, turn)
    claims += [_overlap(evidence), _waits(evidence), _serial(evidence)]
    claims += [_beyond(evidence), _apart(evidence)]
    return (*claims, _storage(evidence, first), _storage(evidence, second))


def verdict_of(claims: Iterable[Claim]) -> Verdict:
    """Return the verdict on all: a violated claim beats an unknown one, and that one the rest."""
    found = {claim.verdict for claim in claims}
    order: tuple[Verdict, ...] = ("violated", "unknown", "holds", "not applicable")
    return next((verdict for verdict in order if verdict in found), "unknown")


def _arrival(evidence: Evidence) -> Claim:
    def measure() -> tuple[str, bool]:
        sent = [turn.operation.invoke_ns for turn in evidence.turns if turn.operation is not None]
        gap_s = (max(sent) - min(sent)) / 1e9
        return _ms(gap_s), gap_s < ARRIVAL_LIMIT_S

    return _judged(
        evidence, "the requests arrive", "< 1 ms apart", "clients, send to send", measure
    )


def _about_one(evidence: Evidence, turn: Turn) -> Iterator[Claim]:
    asked, name, alone = turn.asked, turn.asked.name, (turn,)
    speed = evidence.speed
    slack_s = allowance_s((asked.answered_s or 0) / speed, speed=speed)
    if (reported_s := asked.answered_s) is not None:

        def answered() -> tuple[str, Verdict]:
            due_s = reported_s / evidence.speed
            return _s(turn.took_s), time_verdict(turn.took_s, due_s, slack_s=slack_s)

        reported = _scaled(evidence, f"{reported_s:.2f} s", reported_s)
        how = "client, send to answer"
        yield _judged(
            evidence, f"{name} answered in", reported, how, answered, turns=alone, timed=True
        )
    if (done_s := asked.done_at_s) is not None:

        def done() -> tuple[str, bool]:
            at_s = _since_first_arrival_s(evidence, turn)
            # The report's clock shows whole seconds: from +2 s up to, not including, +3 s.
            early_s, late_s = done_s / evidence.speed, (done_s + 1) / evidence.speed + slack_s
            return f"+{_s(at_s)}", early_s <= at_s < late_s

        reported = _scaled(evidence, f"+{done_s} s", done_s)
        how = "client, since first send"
        yield _judged(evidence, f"{name} done at", reported, how, done, turns=alone, timed=True)
    if asked.tool_calls is not None:
        yield _tool_calls(evidence, turn)
    if asked.schedule_id is not None:
        yield _schedule_id(evidence, turn)


def _tool_calls(evidence: Evidence, turn: Turn) -> Claim:
    def measure() -> tuple[str, bool]:
        failed = sum(bool(tool.attributes.get("kode_lab.tool.is_error")) for tool in turn.tools)
        told = f"{len(turn.tools)}" + (f", {failed} failed" if failed else ", all succeeded")
        return told, len(turn.tools) == turn.asked.tool_calls and not failed

    what, reported = f"{turn.asked.name} tool calls", f"{turn.asked.tool_calls}"
    # How many calls it takes is the model's choice: the script's, or the real model's.
    return _judged(evidence, what, reported, "tool steps", measure, turns=(turn,), timed=True)


def _schedule_id(evidence: Evidence, turn: Turn) -> Claim:
    def measure() -> tuple[str, bool]:
        created = [
            found[1]
            for tool in turn.tools
            if tool.attributes.get("gen_ai.tool.name") == "create_schedule"
            and (found := _SCHEDULE_ID.search(str(tool.attributes.get("kode_lab.tool.result"))))
        ]
        return ", ".join(created) or "none", created == [str(turn.asked.schedule_id)]

    what, reported = f"{turn.asked.name} schedule id", f"{turn.asked.schedule_id}"
    return _judged(evidence, what, reported, "tool result", measure, turns=(turn,))


def _overlap(evidence: Evidence) -> Claim:
    def measure() -> tuple[str, bool]:
        starts, ends = zip(*(turn.work_ns for turn in evidence.turns), strict=True)
        both_s = max(0.0, min(ends) - max(starts)) / 1e9
        shorter_s = min(end - start for start, end in zip(starts, ends, strict=True)) / 1e9
        return f"{_s(both_s)} of {_s(shorter_s)}", both_s >= _OVERLAP_SHARE * shorter_s

    return _judged(evidence, "both at work", "truly parallel", "turns, without waits", measure)


def _waits(evidence: Evidence) -> Claim:
    def measure() -> tuple[str, bool]:
        waits_s = [turn.waited_s for turn in evidence.turns]
        return " and ".join(_ms(wait_s) for wait_s in waits_s), max(waits_s) <= WAIT_LIMIT_S

    return _judged(evidence, "waited for a lock", "nothing blocks", "wait steps", measure)


def _serial(evidence: Evidence) -> Claim:
    def measure() -> tuple[str, bool]:
        work_s = [(end - start) / 1e9 for start, end in (turn.work_ns for turn in evidence.turns)]
        took_s = max(_since_first_arrival_s(evidence, turn) for turn in evidence.turns)
        told = f"{_s(sum(work_s))} -> {_s(took_s)}"
        return told, took_s <= max(work_s) + allowance_s(max(work_s), speed=evidence.speed)

    times_s = [turn.asked.answered_s for turn in evidence.turns]
    known_s = [time_s / evidence.speed for time_s in times_s if time_s is not None]
    reported = "the longer alone"
    if len(known_s) == len(times_s) and evidence.is_simulated:
        reported = f"{_s(sum(known_s))} -> {_s(max(known_s))}"
    return _judged(evidence, "one by one -> together", reported, "sum of work; clients", measure)


def _beyond(evidence: Evidence) -> Claim:
    def measure() -> tuple[str, bool]:
        beyond_s = [(turn.took_s - turn.critical_path_s) for turn in evidence.turns]
        allowed_s = [
            allowance_s(turn.critical_path_s, speed=evidence.speed) for turn in evidence.turns
        ]
        told = " and ".join(_ms(time_s) for time_s in beyond_s)
        return told, all(b <= a for b, a in zip(beyond_s, allowed_s, strict=True))

    what, reported = "time beyond the model's", "(ours: 1 % or 50 ms)"
    if not evidence.is_simulated:
        return Claim(evidence.test.name, what, reported, "no profile", "not applicable", "clients")
    return _judged(evidence, what, reported, "clients, minus the profile", measure)


def _apart(evidence: Evidence) -> Claim:
    def measure() -> tuple[str, bool]:
        foreign = sum(len(read.foreign) for read in reads)
        return f"{foreign} foreign prompts shown", not foreign

    observed = [turn.operation.read for turn in evidence.turns if turn.operation is not None]
    reads = [read for read in observed if read is not None]
    claim = _judged(evidence, "no interference", "data isolated", "what the model saw", measure)
    if claim.verdict == "unknown" or len(reads) == len(evidence.turns):
        return claim
    # The simulated model always tells what it was shown; the real one has no way to.
    verdict: Verdict = "unknown" if evidence.is_simulated else "not applicable"
    return replace(claim, measured="nobody observed it", verdict=verdict)


def _storage(evidence: Evidence, turn: Turn) -> Claim:
    asked = turn.asked

    def measure() -> tuple[str, bool]:
        of_user = {
            path: messages
            for path, messages in evidence.files.items()
            if path.startswith(f"{user}/") and path.endswith(f"/{MESSAGES}")
        }
        others = f", {len(of_user) - 1} others" if len(of_user) > 1 else ""
        if path not in of_user:
            return f"not there{others}", False
        messages = of_user[path]
        told = "no array" if messages is None else f"{messages} messages"
        return f"there, {told}{others}", messages is not None and not others

    user = asked.key.user_part
    path = f"{user}/{asked.storage}/{asked.storage}/runtime/{MESSAGES}"
    what = f"{asked.name} stored in"
    return _judged(evidence, what, asked.storage, MESSAGES, measure, turns=(turn,))


def _since_first_arrival_s(evidence: Evidence, turn: Turn) -> float:
    first_ns = min(t.operation.invoke_ns for t in evidence.turns if t.operation is not None)
    assert turn.operation is not None
    return (turn.operation.complete_ns - first_ns) / 1e9


def _judged(
    evidence: Evidence,
    what: str,
    reported: str,
    how: str,
    measure: Callable[[], tuple[str, bool | Verdict]],
    *,
    turns: Sequence[Turn] | None = None,
    timed: bool = False,
) -> Claim:
    """Judge by ``measure``, unless one of ``turns`` (or of all) did not end.

    What is ``timed`` compares with the profile's times and choices; a real model has its own.
    """
    verdict: Verdict
    broken = next((t for t in turns or evidence.turns if not t.ended), None)
    if broken is not None:
        error = broken.operation.error if broken.operation is not None else ""
        measured, verdict = f"{broken.asked.name} has no answer {error}".rstrip(), "unknown"
    else:
        measured, found = measure()
        verdict = found if isinstance(found, str) else "holds" if found else "violated"
        if timed and not evidence.is_simulated:
            verdict = "not applicable"
    return Claim(evidence.test.name, what, reported, measured, verdict, how)


def _scaled(evidence: Evidence, reported: str, reported_s: float) -> str:
    if evidence.speed == 1:
        return reported
    sign = "+" if reported.startswith("+") else ""
    return f"{reported} / {evidence.speed:g} = {sign}{_s(reported_s / evidence.speed)}"


def _s(seconds: float) -> str:
    return f"{seconds:.3f} s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
