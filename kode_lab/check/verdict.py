"""From anomalies and counted evidence to a verdict: valid, invalid or unknown.

Invalid beats unknown beats valid. Nothing is valid for want of evidence: a service that answered
nobody, turns that never met, a crash that never came, a list that nobody read at the end leave it
unknown, with the reason. A verdict never says "correct": it says what did not happen in how many
turns, and beside it stands the share of turns that were accepted at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from kode_lab.check.guarantee import ANOMALIES, GUARANTEES, SAFETY, Anomaly
from kode_lab.errors import InvalidScenario

__all__ = ["Evidence", "Finding", "Verdict", "conclude", "worst"]

STATUSES = ("valid", "unknown", "invalid")


class Evidence(NamedTuple):
    """How much there was to judge by; counts add up over sessions.

    Attributes:
        turns: distinct turns asked, however often each was tried.
        acknowledged: of these, how many were ``ok``; ``refused``: ``fail``; the rest: ``info``.
        observed: acknowledged turns of which somebody saw what they were shown.
        concurrent_pairs: pairs of acknowledged turns of one session whose intervals meet.
        overtaken: turns that stand behind one that was sent later; a figure, not a fault.
        most_overtaken: the most turns that overtook one (``kode_lab.check.overtaking``); of several
            sessions, the largest.
        unread: acknowledged turns without an authoritative read after them.
        unread_in: one of their sessions.
        crossed: acknowledged turns with a crash between them and the authoritative read.
        probes: turns that were asked after all faults were over.
    """

    operations: int = 0
    sessions: int = 0
    turns: int = 0
    requests: int = 0
    acknowledged: int = 0
    refused: int = 0
    indeterminate: int = 0
    observed: int = 0
    concurrent_pairs: int = 0
    overtaken: int = 0
    most_overtaken: int = 0
    unread: int = 0
    crashes: int = 0
    crossed: int = 0
    effects: int = 0
    configured: int = 0
    probes: int = 0
    spans: int = 0
    unread_in: str = ""

    def plus(self, other: Evidence) -> Evidence:
        """Return the evidence of both together."""
        counts = [one + more for one, more in zip(self[:-1], other[:-1], strict=True)]
        both = Evidence._make([*counts, self.unread_in or other.unread_in])
        return both._replace(most_overtaken=max(self.most_overtaken, other.most_overtaken))


class Finding(NamedTuple):
    """What came of one guarantee.

    Attributes:
        status: ``valid``, ``unknown``, ``invalid``, or ``not claimed``.
        reason: which anomalies, or which evidence is missing.
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
        anomalies: breaches of what was claimed, the smallest witness first, bounded for each name.
        counts: how many there were of each name.
        overtaking_limit: how many turns may overtake one, if that was claimed.
    """

    status: str
    findings: tuple[Finding, ...]
    evidence: Evidence
    anomalies: tuple[Anomaly, ...] = ()
    counts: Mapping[str, int] = {}
    overtaking_limit: int | None = None

    @property
    def reason(self) -> str:
        """The first reason for not being valid, or ""."""
        return next((f.reason for f in self.findings if f.status == self.status and f.reason), "")

    @property
    def exit_status(self) -> int:
        """0 valid, 1 invalid, 2 unknown."""
        return {"valid": 0, "invalid": 1, "unknown": 2}[self.status]

    def __str__(self) -> str:
        from kode_lab.check.render import text_of  # noqa: PLC0415 - faces know verdicts, not they them

        return text_of(self)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values, witnesses and their sentences included."""
        from kode_lab.check.render import json_of  # noqa: PLC0415

        return json_of(self)

    def _repr_html_(self) -> str:
        from kode_lab.check.render import html_of  # noqa: PLC0415

        return html_of(self)


def worst(statuses: Collection[str]) -> str:
    """Return the status of the whole from those of its parts; of nothing, unknown."""
    return max(statuses, key=STATUSES.index, default="unknown")


def conclude(
    evidence: Evidence,
    anomalies: Sequence[Anomaly],
    counts: Mapping[str, int],
    troubles: Mapping[str, str],
    guarantees: Collection[str] | None,
) -> Verdict:
    """Return the verdict.

    Args:
        troubles: why a guarantee could not be examined, by its name: a rule that threw.
        guarantees: names or codes of what is claimed; None claims what a history alone decides,
            and whatever else there is evidence of.

    Raises:
        InvalidScenario: a guarantee of that name does not exist.
    """
    missing = _missing(evidence)
    claimed = _claimed(guarantees, evidence, counts)
    findings: list[Finding] = []
    for code, name, _ in GUARANTEES:
        broken = [
            f"{count} {a}" for a, count in counts.items() if name in ANOMALIES[a][0] and count
        ]
        if name not in claimed:
            findings.append(Finding(code, name, "not claimed"))
        elif broken:
            findings.append(Finding(code, name, "invalid", ", ".join(broken)))
        elif name in troubles or missing.get(name):
            reason = troubles.get(name) or missing[name]
            findings.append(Finding(code, name, "unknown", reason))
        else:
            findings.append(Finding(code, name, "valid"))
    of_claims = tuple(a for a in anomalies if not claimed.isdisjoint(ANOMALIES[a.name][0]))
    counted = {n: c for n, c in counts.items() if not claimed.isdisjoint(ANOMALIES[n][0])}
    status = worst([f.status for f in findings if f.status != "not claimed"])
    return Verdict(status, tuple(findings), evidence, of_claims, counted)


def _claimed(
    guarantees: Collection[str] | None, evidence: Evidence, counts: Mapping[str, int]
) -> set[str]:
    if guarantees is None:
        shown = {
            "durable": evidence.crashes,
            "tools": evidence.effects,
            "lock": evidence.spans,
            "service": evidence.probes,
        }
        broken = {name for anomaly in counts for name in ANOMALIES[anomaly][0]}
        return {*SAFETY, *broken, *(name for name, count in shown.items() if count)}
    by_word = {word: g.name for g in GUARANTEES for word in (g.code, g.name)}
    for word in guarantees:
        if word not in by_word:
            raise InvalidScenario(f"no guarantee {word!r}: name some of {', '.join(by_word)}")
    return {by_word[word] for word in guarantees}


def _missing(evidence: Evidence) -> dict[str, str]:
    """Return for each guarantee the evidence that it lacks, or ""."""
    enough = ""
    if not evidence.acknowledged:
        enough = "no turn was acknowledged"
    elif not evidence.concurrent_pairs:
        enough = "no two acknowledged turns of one session overlapped"
    elif evidence.unread:
        enough = (
            f"{evidence.unread} acknowledged turns have no authoritative read after them "
            f"(one in {evidence.unread_in})"
        )
    missing = dict.fromkeys((*SAFETY, "durable"), enough)
    if not evidence.observed:
        missing["apart"] = missing["apart"] or "no turn tells what it was shown"
        missing["ordered"] = missing["ordered"] or "no turn tells what it was shown"
    if not evidence.crossed:
        met = "no turn was acknowledged before a crash and read after it"
        missing["durable"] = enough or met if evidence.crashes else "nothing crashed"
    missing["tools"] = "" if evidence.effects else "nobody told what tools did"
    missing["lock"] = "there is no trace"
    if evidence.spans:
        missing["lock"] = "" if evidence.concurrent_pairs else enough
    missing["service"] = "" if evidence.probes else "no turn was asked after the faults"
    return missing
