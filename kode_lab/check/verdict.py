"""What is promised, the names of the ways to break it, and the verdict on a history.

Eight guarantees; each anomaly carries its name from the literature and the guarantees it breaks.
``ANOMALIES`` is the one table that rules, verdicts, witnesses and documents agree on.

Each guarantee is judged by itself, wherever there is evidence for it: it is *valid*, *invalid*, or
*not judged*, and then the finding says which evidence it needs. The verdict on the whole is invalid
if a claimed guarantee is, and unknown if the run shows nothing. A verdict never says "correct": it
says what did not happen in how many turns, beside the share of turns that were accepted at all.

Source: the names are those of Adya (aborted, intermediate read, lost update), Herlihy and Wing
(real-time order), Elle (duplicate elements, incompatible orders, garbage reads) and Jepsen's
reports (stale read, lost write).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = [
    "ANOMALIES",
    "GUARANTEES",
    "SAFETY",
    "Anomaly",
    "Evidence",
    "Finding",
    "Guarantee",
    "Verdict",
    "breaks",
    "conclude",
    "worst",
]


class Guarantee(NamedTuple):
    """One promise: its code, its name, and the promise itself."""

    code: str
    name: str
    promise: str


GUARANTEES = (
    Guarantee("G1", "apart", "no session is shown, stores or answers another's words"),
    Guarantee("G2", "kept", "an acknowledged turn is in its session, exactly once"),
    Guarantee("G3", "whole", "a turn shows whole or not at all; a refused or removed one never"),
    Guarantee("G4", "ordered", "turns happen one after another, within the time each took"),
    Guarantee("G5", "durable", "what was acknowledged survives a crash"),
    Guarantee("G6", "tools", "a tool call acts once, for its own session, under its own id"),
    Guarantee("G7", "lock", "one session's turns never overlap, and wait for no other session"),
    Guarantee("G8", "service", "every session answers after faults, with the shared configuration"),
)
# What a history alone decides.
SAFETY = ("apart", "kept", "whole", "ordered")

# The guarantees that each anomaly breaks, then what it is in one clause.
ANOMALIES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "cross-session leak": (("apart",), "a session holds or is shown another session's marker"),
    "garbage read": (("apart",), "a session holds or is shown a marker that was never sent"),
    "foreign reply": (("apart",), "a reply answers a prompt that is not its turn's"),
    "lost write": (("kept",), "an acknowledged turn is not in the session"),
    "duplicate": (("kept",), "one turn stands in the session twice, or ran twice"),
    "broken fork": (("kept",), "a fork does not hold exactly what it was declared to take over"),
    "aborted read": (("whole",), "a turn that was refused is in the session, or was shown"),
    "rolled-back turn": (("whole",), "a turn that was rolled back is in the session, or was shown"),
    "resurrected": (("whole",), "a turn that was declared removed is shown again"),
    "intermediate read": (
        ("whole",),
        "a turn was shown half of another, which was completed later",
    ),
    "torn turn": (("whole",), "half of a turn rests in the session"),
    "cut reply": (("whole",), "a reply that the model did not finish was acknowledged as whole"),
    "lost update": (("kept", "ordered"), "two turns took one position; one overlooks the other"),
    "fork": (("ordered",), "what a turn was shown is no prefix of the session"),
    "interleaved turn": (("ordered",), "a turn's model was shown another prompt after its own"),
    "future read": (("ordered",), "a reader was shown what was sent only after it returned"),
    "stale read": (("ordered",), "a reader missed what was acknowledged before it asked"),
    "real-time reorder": (("ordered",), "a turn stands before one that ended before it began"),
    "overtaking": (("ordered",), "more turns overtook one than the limit that is claimed"),
    "lost after acknowledgement": (
        ("kept", "durable"),
        "an acknowledged turn is gone after a crash",
    ),
    "duplicate id": (("tools",), "two effects of tools have one id"),
    "effect twice": (("tools",), "one tool call of one turn acted twice"),
    "lost effect": (("tools",), "a tool call that the client was told of has no effect"),
    "tool misattributed": (("tools",), "a tool acted for a session that did not ask for it"),
    "crossed tool answers": (("tools",), "a tool call was given another call's answer"),
    "overlap": (("lock",), "two turns of one session were at work at once"),
    "needless serialisation": (("lock",), "turns of different sessions wait for each other"),
    "stuck session": (("service",), "a session never answers again, though all faults are over"),
    "configuration drift": (("service",), "turns of one agent ran with different configurations"),
    "mixed configuration": (("service",), "one turn ran with several configurations"),
}
_NOTHING: Mapping[str, Any] = {}


class Anomaly(NamedTuple):
    """One breach: its name, where, and the fewest operations that show it.

    Attributes:
        key: the session in which it shows.
        witness: operations (spans, for what only a trace can show), the accused first.
        element: the marker, id or version that it is about, or "".
        facts: numbers and lists that its sentences are made from; JSON values. ``hint`` names the
            declaration that would explain it; ``follow`` counts by name the anomalies that follow
            from this one.
        origin_ns: when the run began, so that times can be those of the run.
    """

    name: str
    key: SessionKey
    witness: tuple[Operation | Span, ...]
    element: str = ""
    facts: Mapping[str, Any] = _NOTHING
    origin_ns: int | None = None


def breaks(anomaly: Anomaly) -> tuple[str, ...]:
    """Return the names of the guarantees that an anomaly breaks."""
    return ANOMALIES[anomaly.name][0]


class Evidence(NamedTuple):
    """How much there was to judge by; counts add up over sessions.

    Attributes:
        turns: distinct turns asked, however often each was tried.
        acknowledged: of these, how many were ``ok``; ``refused``: ``fail``; the rest: ``info``.
        observed: acknowledged turns that tell what they were shown.
        lists: authoritative reads of sessions.
        concurrent_pairs: pairs of acknowledged turns of one session whose intervals meet.
        contended: turns that were not acknowledged, and met an acknowledged one of their session:
            refused, or ended with an answer (or none) that leaves open what happened.
        overtaken: turns that stand behind one that was sent later; a figure, not a fault.
        most_overtaken: the most turns that overtook one; of several sessions, the largest.
        unread: acknowledged turns without an authoritative read after them.
        unread_in: one of their sessions.
        crossed: acknowledged turns with a crash between them and the authoritative read.
        probes: turns that were asked after all faults were over.
        unprobed: sessions that were asked before all faults were over, and not after.
        timed: turns of which the model's side recorded when it was called.
    """

    operations: int = 0
    sessions: int = 0
    turns: int = 0
    requests: int = 0
    acknowledged: int = 0
    refused: int = 0
    indeterminate: int = 0
    observed: int = 0
    lists: int = 0
    concurrent_pairs: int = 0
    contended: int = 0
    overtaken: int = 0
    most_overtaken: int = 0
    unread: int = 0
    crashes: int = 0
    crossed: int = 0
    effects: int = 0
    configured: int = 0
    probes: int = 0
    unprobed: int = 0
    spans: int = 0
    timed: int = 0
    unread_in: str = ""

    def plus(self, other: Evidence) -> Evidence:
        """Return the evidence of both together."""
        counts = [one + more for one, more in zip(self[:-1], other[:-1], strict=True)]
        both = Evidence._make([*counts, self.unread_in or other.unread_in])
        return both._replace(most_overtaken=max(self.most_overtaken, other.most_overtaken))


class Finding(NamedTuple):
    """What came of one guarantee.

    Attributes:
        status: ``valid``, ``invalid``, ``not judged`` or ``not claimed``.
        reason: invalid: which anomalies; not judged: ``needs ...``, or why no rule could be
            applied; valid: what the evidence leaves open, or "".
    """

    code: str
    name: str
    status: str
    reason: str = ""


class Verdict(NamedTuple):
    """What the judge says of a history.

    Attributes:
        status: ``valid``, ``invalid`` or ``unknown``.
        findings: one for each guarantee, in the order G1 to G8.
        anomalies: breaches of what was claimed, the smallest witness first, bounded for each name;
            without those that only follow from another one.
        counts: how many there were of each name.
        follow: of these, how many follow from another anomaly.
        overtaking_limit: how many turns may overtake one, if that was claimed.
    """

    status: str
    findings: tuple[Finding, ...]
    evidence: Evidence
    anomalies: tuple[Anomaly, ...] = ()
    counts: Mapping[str, int] = {}
    follow: Mapping[str, int] = {}
    overtaking_limit: int | None = None

    @property
    def reason(self) -> str:
        """The first reason for not being valid, or ""."""
        wanted = {"invalid": "invalid", "unknown": "not judged"}.get(self.status)
        return next((f.reason for f in self.findings if f.status == wanted), "")

    @property
    def exit_status(self) -> int:
        """0 valid, 1 invalid, 2 unknown."""
        return {"valid": 0, "invalid": 1, "unknown": 2}[self.status]

    def finding(self, guarantee: str) -> Finding:
        """Return what came of one guarantee, by its name or code.

        Raises:
            InvalidScenario: there is no guarantee of that name.
        """
        (name,) = _named((guarantee,))
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self) -> str:
        from kode_lab.check.render import text_of  # noqa: PLC0415 - render imports this module

        return text_of(self)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values, witnesses and their sentences included."""
        from kode_lab.check.render import json_of  # noqa: PLC0415

        return json_of(self)

    def _repr_html_(self) -> str:
        from kode_lab.check.render import html_of  # noqa: PLC0415

        return html_of(self)


STATUSES = ("valid", "unknown", "invalid")


def worst(statuses: Collection[str]) -> str:
    """Return the status of the whole from those of its parts; of nothing, unknown."""
    return max(statuses, key=STATUSES.index, default="unknown")


def conclude(
    evidence: Evidence,
    anomalies: Sequence[Anomaly],
    counts: Mapping[str, int],
    follow: Mapping[str, int],
    troubles: Mapping[str, str],
    guarantees: Collection[str] | None,
) -> Verdict:
    """Return the verdict.

    Args:
        troubles: why a guarantee could not be examined, by its name: a rule that threw.
        guarantees: names or codes of what is claimed, all of which must then be judged; None judges
            whatever there is evidence of.

    Raises:
        InvalidScenario: a guarantee of that name does not exist.
    """
    missing, left_open = _missing(evidence), _left_open(evidence)
    claimed = {g.name for g in GUARANTEES} if guarantees is None else set(_named(guarantees))
    findings: list[Finding] = []
    for code, name, _ in GUARANTEES:
        broken = [
            f"{count} {a}" for a, count in counts.items() if name in ANOMALIES[a][0] and count
        ]
        if name not in claimed:
            findings.append(Finding(code, name, "not claimed"))
        elif broken:
            findings.append(Finding(code, name, "invalid", ", ".join(broken)))
        elif name in troubles or name in missing:
            findings.append(Finding(code, name, "not judged", troubles.get(name) or missing[name]))
        else:
            findings.append(Finding(code, name, "valid", left_open.get(name, "")))
    is_claimed = {n: not claimed.isdisjoint(ANOMALIES[n][0]) for n in counts}
    status_of = {finding.name: finding.status for finding in findings}
    if "invalid" in status_of.values():
        status = "invalid"
    elif guarantees is not None:
        is_unknown = "not judged" in status_of.values() or not claimed
        status = "unknown" if is_unknown else "valid"
    else:
        # Apart and whole alone say nothing of a session that was never read, or never contended.
        is_shown = "valid" in (status_of["kept"], status_of["ordered"])
        status = "valid" if is_shown and not troubles else "unknown"
    return Verdict(
        status,
        tuple(findings),
        evidence,
        tuple(a for a in anomalies if is_claimed.get(a.name)),
        {n: c for n, c in counts.items() if is_claimed[n]},
        {n: c for n, c in follow.items() if is_claimed.get(n) and c},
    )


def _named(guarantees: Collection[str]) -> list[str]:
    by_word = {word: g.name for g in GUARANTEES for word in (g.code, g.name)}
    for word in guarantees:
        if word not in by_word:
            raise InvalidScenario(f"no guarantee {word!r}: name some of {', '.join(by_word)}")
    return [by_word[word] for word in guarantees]


def _missing(evidence: Evidence) -> dict[str, str]:
    """Return the evidence that each guarantee lacks, for those that lack any."""
    missing: dict[str, str] = {}
    unread = (
        f"needs a read of each session after its last turn: {evidence.unread} acknowledged turns "
        f"have none (one in {evidence.unread_in})"
    )
    if not evidence.acknowledged:
        missing = dict.fromkeys((*SAFETY, "durable"), "needs an acknowledged turn")
    elif not evidence.concurrent_pairs and not evidence.contended:
        one = "needs turns of one session that overlap"
        missing = dict.fromkeys((*SAFETY, "durable"), one)
    elif not evidence.observed and not evidence.lists:
        one = "needs a read of each session, or turns that tell what they were shown"
        missing = dict.fromkeys((*SAFETY, "durable"), one)
    elif evidence.unread:
        missing = dict.fromkeys(("kept", "ordered", "durable"), unread)
    if not evidence.crossed:
        one = "needs a crash between an acknowledgement and a read of the session"
        missing.setdefault("durable", one)
    return missing | _missing_beside(evidence)


def _missing_beside(evidence: Evidence) -> dict[str, str]:
    missing: dict[str, str] = {}
    if not evidence.effects:
        missing["tools"] = "needs the effects of tools"
    if not evidence.spans and not evidence.timed:
        missing["lock"] = "needs a trace, or the times of the model's calls"
    elif evidence.spans and not evidence.concurrent_pairs:
        missing["lock"] = "needs turns of one session that overlap"
    if not evidence.probes:
        missing["service"] = "needs a turn of every session after all faults are over"
    elif evidence.unprobed:
        missing["service"] = (
            f"needs a turn of every session after all faults are over: {evidence.unprobed} "
            "sessions have none"
        )
    return missing


def _left_open(evidence: Evidence) -> dict[str, str]:
    """Return what a valid guarantee does not speak of, for lack of evidence."""
    if evidence.observed:
        return {}
    one = "judged by the lists alone: no turn tells what it was shown"
    return {"apart": one, "ordered": one}
