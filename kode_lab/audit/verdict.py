"""The verdict of an audit: what traces prove, what they suggest, and what they cannot show.

A trace shows a part of what happened. So each guarantee is *valid*, *invalid*, *suspect* or *not
judged*, and then the line says what to switch on. Words of users are hidden unless they are asked
for; nothing of them is in the JSON.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kode_lab.audit.readers import Log, without_collector
from kode_lab.audit.rules import GUARANTEE_OF, Finding, judged
from kode_lab.audit.turns import Tree, Turn

if TYPE_CHECKING:
    from kode_lab.pictures.page import Picture

__all__ = [
    "AuditVerdict", "Judged", "audit", "finding_lines", "headline_of", "moment", "verdict_on",
]  # fmt: skip

_EXAMPLES = 3
_CODES = {"apart": "G1", "kept": "G2", "whole": "G3", "ordered": "G4", "tools": "G6"}


class Judged(NamedTuple):
    """One guarantee: ``valid``, ``invalid``, ``suspect`` or ``not judged``, and its evidence."""

    name: str
    status: str
    evidence: str


class AuditVerdict(NamedTuple):
    """What an audit found.

    Attributes:
        status: ``valid``, ``invalid`` (something is proved) or ``unknown`` (only suspicions, or
            nothing that can be judged).
        guarantees: one line each.
        findings: proved ones first, then those with the fewest calls.
        counts: calls, turns, conversations and other evidence.
        recognised: legitimate oddities, by how often they were seen.
        skipped: what could not be used, by reason.
        turns: all turns, by time.
        tree: what was said; empty of words where they were not kept.
    """

    status: str
    guarantees: tuple[Judged, ...]
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    recognised: Mapping[str, int]
    skipped: Mapping[str, int]
    turns: Sequence[Turn]
    tree: Tree

    def __str__(self) -> str:
        return self.text()

    def text(self, *, show_words: bool = False) -> str:
        """Return the verdict for a terminal."""
        return "\n".join(_lines(self, show_words=show_words))

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values, without any words of users."""
        return {
            "status": self.status,
            "guarantees": [judged._asdict() for judged in self.guarantees],
            "findings": [_finding_json(finding) for finding in self.findings],
            "counts": dict(self.counts),
            "recognised": dict(self.recognised),
            "skipped": dict(self.skipped),
        }

    def picture(self) -> Picture:
        """Return the picture of sessions and turns over time.

        Raises:
            InvalidRecord: there is no turn.
        """
        from kode_lab.audit.page import draw_audit  # noqa: PLC0415 - it imports this module

        return draw_audit(self)

    def page(self) -> str:
        """Return one HTML page that needs nothing else."""
        from kode_lab.audit.page import page_of  # noqa: PLC0415

        return page_of(self)

    def frames(self) -> dict[str, Any]:
        """Return the pandas tables ``turns``, ``sessions`` and ``findings``."""
        from kode_lab.audit.page import frames_of  # noqa: PLC0415

        return frames_of(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"


def audit(
    *paths: Path | str, sessions_per_user: bool = False, log: Log | None = None
) -> AuditVerdict:
    """Return the verdict on the model calls that these files recorded.

    Args:
        paths: traces, request logs or transcripts, in any of the formats of ``docs/audit.md``.
        sessions_per_user: two users never share a session here, whatever its name.
        log: calls that were read already; the files are added to it.

    Raises:
        InvalidRecord: a file cannot be opened.
    """
    log = Log() if log is None else log
    for path in paths:
        log.read(Path(path))
    return verdict_on(log, sessions_per_user=sessions_per_user)


def verdict_on(
    log: Log,
    *,
    sessions_per_user: bool = False,
    before: int | None = None,
    earlier: Sequence[Finding] = (),
) -> AuditVerdict:
    """Return the verdict on what was read so far.

    Args:
        log: what was read.
        sessions_per_user: as ``audit``.
        before: of a log that goes on: leave out traces that were touched since.
        earlier: what was found before in what is forgotten.
    """
    with without_collector():
        log.close(before)
        judgement = judged(log, sessions_per_user=sessions_per_user)
    told = {(one.name, tuple(turn.number for turn in one.turns)) for one in judgement.findings}
    found = judgement.findings + [
        one for one in earlier if (one.name, tuple(turn.number for turn in one.turns)) not in told
    ]
    order = {name: number for number, name in enumerate(GUARANTEE_OF)}
    found.sort(key=lambda one: (not one.is_proved, order[one.name], len(one.turns)))
    counts = {"lines": log.lines, "calls": log.conversations.calls, **judgement.counts}
    counts["turns forgotten to bound memory"] = log.conversations.forgotten
    counts["tool calls with an id"] = sum(map(len, log.tool_runs.values()))
    guarantees = tuple(_judged(log, found, counts))
    if any(finding.is_proved for finding in found):
        status = "invalid"
    elif found or not counts["turns seen again in a later history"]:
        status = "unknown"
    else:
        status = "valid"
    skipped = Counter(log.skipped)
    for why, times in log.conversations.unread.items():
        skipped[f"model calls with {why}"] += times
    if log.tree.shortened:
        skipped["long texts of which only the beginning was kept"] += log.tree.shortened
    turns = sorted(log.conversations.turns, key=lambda turn: (turn.begin_ns, turn.number))
    return AuditVerdict(
        status, guarantees, tuple(found), counts, judgement.recognised, skipped, turns, log.tree
    )


def _judged(log: Log, found: Sequence[Finding], counts: Mapping[str, int]) -> Iterable[Judged]:
    again = counts["turns seen again in a later history"]
    turns = counts["turns"]
    if not turns:
        needs = "needs the messages of model calls (switch content capture on)"
        if not log.lines:
            needs = "needs a file with lines"
    else:
        needs = "needs a later turn of the same conversation"
    evidence = {
        "apart": f"{again} of {turns} turns are shown in later histories",
        "kept": f"{again} of {turns} turns are shown in later histories",
        "whole": f"{again} of {turns} turns are shown in later histories",
        "ordered": (
            f"{counts['turns of one history at the same time']} pairs of turns of one history at "
            "the same time; overlap is as good as the clocks"
        ),
        "tools": f"{counts['tool calls with an id']} tool calls with an id",
    }
    for name in _CODES:
        mine = [finding for finding in found if GUARANTEE_OF[finding.name] == name]
        proved = sum(finding.is_proved for finding in mine)
        if proved:
            yield Judged(name, "invalid", f"{proved} proved; {evidence[name]}")
        elif mine:
            yield Judged(name, "suspect", f"{len(mine)} suspected; {evidence[name]}")
        elif name == "tools":
            has_ids = counts["tool calls with an id"] > 0
            said = evidence[name] if has_ids else "needs tool spans with the id of the call"
            yield Judged(name, "valid" if has_ids else "not judged", said)
        elif name == "apart" and turns and counts["users"] < 2:
            yield Judged(name, "not judged", "needs user.id on the spans, and two users or more")
        elif again:
            yield Judged(name, "valid", evidence[name])
        else:
            yield Judged(name, "not judged", needs)


_HEADLINES = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}


def headline_of(verdict: AuditVerdict) -> str:
    """Return what was found, in one sentence."""
    counts = verdict.counts
    kinds = Counter((finding.name, finding.is_proved) for finding in verdict.findings)
    told = ", ".join(
        f"{times} {name}{'' if proved else ' suspected'}" for (name, proved), times in kinds.items()
    )
    return (
        f"{_HEADLINES[verdict.status]}: {told or 'nothing proved, nothing suspected'} in "
        f"{counts['calls']:,} model calls, {counts['turns']:,} turns, {counts['sessions']:,} "
        f"sessions of {counts['users']:,} users."
    )


def _lines(verdict: AuditVerdict, *, show_words: bool) -> Iterable[str]:
    kinds = Counter((finding.name, finding.is_proved) for finding in verdict.findings)
    yield headline_of(verdict)
    yield ""
    for one in verdict.guarantees:
        yield f"  {_CODES[one.name]} {one.name:8} {one.status:10}  {one.evidence}"
    told_kinds: Counter[tuple[str, bool]] = Counter()
    for finding in verdict.findings:
        kind = (finding.name, finding.is_proved)
        told_kinds[kind] += 1
        if told_kinds[kind] > _EXAMPLES:
            continue
        yield ""
        yield from finding_lines(finding, verdict.tree if show_words else None)
        if told_kinds[kind] == _EXAMPLES and kinds[kind] > _EXAMPLES:
            yield f"  ... and {kinds[kind] - _EXAMPLES} more of this kind"
    for title, table in (("recognised", verdict.recognised), ("left out", verdict.skipped)):
        if table:
            yield ""
            yield f"{title}: " + ", ".join(f"{times:,} {what}" for what, times in table.items())


def finding_lines(finding: Finding, tree: Tree | None) -> Iterable[str]:
    """Yield a finding and its turns, with the words of users if a tree is given."""
    yield f"{'proved' if finding.is_proved else 'suspect'}: {finding.name}: {finding.why}"
    for number, turn in enumerate(finding.turns, 1):
        file, line = turn.calls[0]
        trace = f", trace {turn.trace_id[:16]}" if turn.trace_id else ""
        yield (
            f"  T{number} = {file}:{line}, {moment(turn.begin_ns)} to "
            f"{moment(turn.end_ns)[11:]}, {turn.user or '?'}:{turn.session or '?'}{trace}"
        )
        if tree is not None and turn.asks:
            asked = tree.start_of(tree.item_of[turn.asks[-1]])
            answer = tree.start_of(turn.answer)
            yield f"       asks {asked[:200]!r}, is answered {answer[:200]!r}"


def moment(time_ns: int) -> str:
    """Return a time in UTC, for people."""
    if not time_ns:
        return "an unknown time"
    at = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_ns // 10**6 % 1000:03d}Z"


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "is_proved": finding.is_proved,
        "why": finding.why,
        "turns": [
            {
                "user": turn.user,
                "session": turn.session,
                "trace_id": turn.trace_id,
                "begin_ns": turn.begin_ns,
                "end_ns": turn.end_ns,
                "calls": [{"file": file, "line": line} for file, line in turn.calls],
            }
            for turn in finding.turns
        ],
    }
