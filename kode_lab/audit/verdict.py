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
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.audit.readers import Log
from kode_lab.audit.rules import GUARANTEE_OF, Finding, findings_of
from kode_lab.audit.turns import ROOT, Conversations, Turn

__all__ = ["AuditVerdict", "Judged", "audit", "verdict_on"]

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
    """

    status: str
    guarantees: tuple[Judged, ...]
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    recognised: Mapping[str, int]
    skipped: Mapping[str, int]
    turns: Sequence[Turn]

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


def verdict_on(log: Log, *, sessions_per_user: bool = False) -> AuditVerdict:
    """Return the verdict on what was read so far."""
    conversations = Conversations(log)
    found, recognised = findings_of(conversations, log, sessions_per_user=sessions_per_user)
    order = {name: number for number, name in enumerate(GUARANTEE_OF)}
    found.sort(key=lambda one: (not one.is_proved, order[one.name], len(one.turns)))
    counts = _counts(conversations, log)
    guarantees = tuple(_judged(log, found, counts))
    if any(finding.is_proved for finding in found):
        status = "invalid"
    elif found or not counts["turns seen again in a later history"]:
        status = "unknown"
    else:
        status = "valid"
    skipped = Counter(log.skipped)
    for why, times in conversations.unread.items():
        skipped[f"model calls with {why}"] += times
    return AuditVerdict(
        status, guarantees, tuple(found), counts, recognised, skipped, conversations.turns
    )


def _counts(conversations: Conversations, log: Log) -> dict[str, int]:
    turns = conversations.turns
    tree = conversations.tree
    by_base: dict[int, list[Turn]] = {}
    for turn in turns:
        by_base.setdefault(turn.base, []).append(turn)
    overlapping = sum(
        one.overlaps(two)
        for base, group in by_base.items()
        if base != ROOT
        for one, two in pairwise(group)
    )
    # What was shown of earlier turns: every node of a history before an ask, each looked at once.
    shown: set[bytes] = set()
    counted: set[int] = set()
    for turn in turns:
        for node in tree.up(turn.base):
            if node in counted:
                break
            counted.add(node)
            if tree.is_ask(node):
                shown.add(tree.digest[node])
    seen_again = sum(1 for turn in turns if turn.asks and tree.digest[turn.asks[-1]] in shown)
    return {
        "lines": log.lines,
        "calls": conversations.calls,
        "turns": len(turns),
        "sessions": len({turn.who for turn in turns if turn.session}),
        "users": len({turn.user for turn in turns if turn.user}),
        "turns seen again in a later history": seen_again,
        "turns with a root span": sum(turn.root is not None for turn in turns),
        "turns of one history at the same time": overlapping,
        "tool calls with an id": sum(bool(span.tool_call_id) for span in log.spans.values()),
    }


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


def _lines(verdict: AuditVerdict, *, show_words: bool) -> Iterable[str]:
    counts = verdict.counts
    kinds = Counter((finding.name, finding.is_proved) for finding in verdict.findings)
    told = ", ".join(
        f"{times} {name}{'' if proved else ' suspected'}" for (name, proved), times in kinds.items()
    )
    yield (
        f"{_HEADLINES[verdict.status]}: {told or 'nothing proved, nothing suspected'} in "
        f"{counts['calls']:,} model calls, {counts['turns']:,} turns, {counts['sessions']:,} "
        f"sessions of {counts['users']:,} users."
    )
    yield ""
    for judged in verdict.guarantees:
        yield f"  {_CODES[judged.name]} {judged.name:8} {judged.status:10}  {judged.evidence}"
    told_kinds: Counter[tuple[str, bool]] = Counter()
    for finding in verdict.findings:
        kind = (finding.name, finding.is_proved)
        told_kinds[kind] += 1
        if told_kinds[kind] > _EXAMPLES:
            continue
        yield ""
        yield from _finding_lines(finding, show_words=show_words)
        if told_kinds[kind] == _EXAMPLES and kinds[kind] > _EXAMPLES:
            yield f"  ... and {kinds[kind] - _EXAMPLES} more of this kind"
    for title, table in (("recognised", verdict.recognised), ("left out", verdict.skipped)):
        if table:
            yield ""
            yield f"{title}: " + ", ".join(f"{times:,} {what}" for what, times in table.items())


def _finding_lines(finding: Finding, *, show_words: bool) -> Iterable[str]:
    yield f"{'proved' if finding.is_proved else 'suspect'}: {finding.name}: {finding.why}"
    for number, turn in enumerate(finding.turns, 1):
        call = turn.calls[0]
        trace = f", trace {turn.trace_id[:16]}" if turn.trace_id else ""
        yield (
            f"  T{number} = {call.file}:{call.line}, {_moment(turn.begin_ns)} to "
            f"{_moment(turn.end_ns)[11:]}, {turn.user or '?'}:{turn.session or '?'}{trace}"
        )
        asked = [item.text for item in call.history.items[-1:]] if call.history else []
        if show_words and asked:
            yield f"       asks {asked[0][:200]!r}, is answered {turn.answer_text[:200]!r}"


def _moment(time_ns: int) -> str:
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
                "calls": [{"file": call.file, "line": call.line} for call in turn.calls],
            }
            for turn in finding.turns
        ],
    }
