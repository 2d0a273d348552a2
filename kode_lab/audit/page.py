"""An audit to look at: the picture of sessions and turns, the page around it, and data frames.

A row is a session, the worst first; where the trace names no session it is a conversation, told by
how it begins. Words of users are on no page. This module must not judge.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kode_lab.audit.rules import Finding
from kode_lab.audit.turns import ROOT, Turn
from kode_lab.audit.verdict import AuditVerdict, finding_lines, headline_of, moment

if TYPE_CHECKING:
    from kode_lab.pictures.page import Picture

__all__ = ["SessionRow", "draw_audit", "frames_of", "page_of", "sessions_of"]

_ROWS = 40
_LEFT_PT, _RIGHT_PT = 120.0, 96.0
_PITCH_PT = 12.0
_STRIP_PT = 54.0
_COLUMNS = 320
_FINDINGS_ON_PAGE = 20


class SessionRow(NamedTuple):
    """A session with its turns.

    Attributes:
        overlaps: of each two turns that extend one history at once, when both were under way.
        marked: the numbers of turns in proved findings.
    """

    name: str
    turns: list[Turn]
    overlaps: list[tuple[int, int]]
    proved: int
    suspected: int
    marked: set[int]


def sessions_of(verdict: AuditVerdict) -> list[SessionRow]:
    """Return a row for each session, the worst first."""
    tree = verdict.tree
    names: dict[int, str] = {}
    groups: dict[str, list[Turn]] = {}
    name_of: dict[int, str] = {}
    for turn in verdict.turns:
        if turn.session:
            name = f"{turn.user or '?'}:{turn.session}"
        else:
            first = turn.asks[-1] if turn.asks else turn.base
            while first != ROOT and tree.parent[first] != ROOT:
                first = tree.parent[first]
            name = names.setdefault(first, f"conversation {len(names) + 1}")
        groups.setdefault(name, []).append(turn)
        name_of[turn.number] = name
    proved: Counter[str] = Counter()
    suspected: Counter[str] = Counter()
    marked: set[int] = set()
    for finding in verdict.findings:
        for name in {name_of.get(turn.number, "") for turn in finding.turns}:
            (proved if finding.is_proved else suspected)[name] += 1
        if finding.is_proved:
            marked.update(turn.number for turn in finding.turns)
    rows = [
        SessionRow(name, turns, _overlaps(turns), proved[name], suspected[name], marked)
        for name, turns in groups.items()
    ]
    rows.sort(key=lambda row: (-row.proved, -row.suspected, -len(row.overlaps), row.name))
    return rows


def _overlaps(turns: Sequence[Turn]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    open_until: dict[int, int] = {}
    for turn in turns:
        until = open_until.get(turn.base, 0)
        if turn.base != ROOT and until > turn.begin_ns:
            found.append((turn.begin_ns, min(until, turn.end_ns)))
        open_until[turn.base] = max(until, turn.end_ns)
    return found


def draw_audit(verdict: AuditVerdict) -> Picture:
    """Draw sessions and turns over time, with the overlap of turns that extend one history.

    Raises:
        InvalidRecord: there is no turn.
    """
    from kode_lab.errors import InvalidRecord  # noqa: PLC0415
    from kode_lab.pictures.page import MARGIN_PT, Page, Scale, Tick, nice_ticks  # noqa: PLC0415
    from kode_lab.pictures.style import (  # noqa: PLC0415 - matplotlib only for a picture
        GUIDE,
        SOFT,
        TYPE_LIMIT_PT,
        VIOLATION,
        VIOLATION_WORD,
        WAIT,
        WAIT_WORD,
        WIDTH_PT,
        WORK,
        shortened,
    )

    timed = [turn for turn in verdict.turns if turn.begin_ns]
    if not timed:
        raise InvalidRecord("there is no turn with a time to draw: the log holds none")
    sessions = sessions_of(verdict)
    rows = sessions[:_ROWS]
    start_ns = min(turn.begin_ns for turn in timed)
    end_ns = max(*(turn.end_ns for turn in timed), start_ns + 1)
    scale = Scale(start_ns, end_ns, MARGIN_PT + _LEFT_PT, WIDTH_PT - MARGIN_PT - _RIGHT_PT)
    reading = "Each row is a session. Blue: a turn. Orange: two turns of one history at once."
    if any(row.marked for row in rows):
        reading += " Red: a turn of a proved anomaly."
    if len(rows) < len(sessions):
        reading += (
            f" Shown are the {len(rows)} worst; the other {len(sessions) - len(rows):,} are in the "
            "strip only."
        )
    page = Page(headline_of(verdict), reading)

    top = page.top_pt + 18
    base = top + _STRIP_PT
    counted = _per_column(((turn.begin_ns, turn.end_ns) for turn in timed), start_ns, end_ns)
    doubled = _per_column((one for row in sessions for one in row.overlaps), start_ns, end_ns)
    tallest = max(counted, default=1) or 1
    width = (scale.end_pt - scale.start_pt) / _COLUMNS
    for counts, color in ((counted, WORK), (doubled, WAIT)):
        page.boxes(
            [
                (scale.start_pt + at * width, base - _STRIP_PT * count / tallest, width * 1.02,
                 _STRIP_PT * count / tallest)
                for at, count in enumerate(counts) if count
            ],
            color,
        )  # fmt: skip
    page.line([(scale.start_pt, base), (scale.end_pt, base)], GUIDE)
    words = f"{tallest:,} turns at once at most"
    page.text(scale.start_pt, top - 5, words, color=WORK, is_bold=True)
    if most := max(doubled, default=0):
        page.text(
            scale.end_pt, top - 5, f"{most:,} beside another of their history",
            color=WAIT_WORD, align="right", is_bold=True,
        )  # fmt: skip

    top = base + 16
    for number, row in enumerate(rows):
        y = top + number * _PITCH_PT
        name = shortened(row.name, _LEFT_PT - 8, TYPE_LIMIT_PT, keeps_end=True)
        page.text(scale.start_pt - 8, y + 8.5, name, TYPE_LIMIT_PT, color=SOFT, align="right")
        plain = [turn for turn in row.turns if turn.begin_ns and turn.number not in row.marked]
        bad = [turn for turn in row.turns if turn.begin_ns and turn.number in row.marked]
        for turns, color in ((plain, WORK), (bad, VIOLATION)):
            page.boxes(
                [
                    (
                        at := scale(turn.begin_ns),
                        y + 2,
                        max(0.8, scale(turn.end_ns) - at),
                        _PITCH_PT - 6,
                    )
                    for turn in turns
                ],
                color,
            )  # fmt: skip
        page.boxes(
            [
                (scale(begin), y + _PITCH_PT - 4, max(0.8, scale(end) - scale(begin)), 2.5)
                for begin, end in row.overlaps
            ],
            WAIT,
        )
        words, color = f"{len(row.turns):,} turns", SOFT
        if row.proved or row.suspected:
            words = f"{row.proved} proved" if row.proved else f"{row.suspected} suspected"
            color = VIOLATION_WORD if row.proved else WAIT_WORD
        page.text(scale.end_pt + 8, y + 8.5, words, TYPE_LIMIT_PT, color=color)
    bottom = top + _PITCH_PT * len(rows) + 4
    spread_ns = end_ns - start_ns
    unit, per_unit = next(
        (unit, each) for unit, each, least in (
            ("days", 86_400e9, 3 * 86_400e9), ("hours", 3_600e9, 3 * 3_600e9),
            ("minutes", 60e9, 3 * 60e9), ("seconds", 1e9, 1e9), ("milliseconds", 1e6, 0),
        ) if spread_ns >= least
    )  # fmt: skip
    high = spread_ns / per_unit
    in_unit = scale._replace(low=0.0, high=high)
    ticks = [Tick(high, f"{high:.1f}", is_telling=True), *nice_ticks(high)]
    captions = [f"{unit} since {moment(start_ns)}; overlap is as good as the clocks"]
    return page.finish(page.time_axis(in_unit, bottom, ticks, captions))


def _per_column(intervals: Iterable[tuple[int, int]], start_ns: int, end_ns: int) -> list[int]:
    """Return how many intervals touch each column of the strip."""
    change = [0] * (_COLUMNS + 1)
    spread = end_ns - start_ns
    for begin, end in intervals:
        first = min(_COLUMNS - 1, max(0, (begin - start_ns) * _COLUMNS // spread))
        last = min(_COLUMNS - 1, max(first, (end - start_ns) * _COLUMNS // spread))
        change[first] += 1
        change[last + 1] -= 1
    counts, now = [], 0
    for one in change[:-1]:
        now += one
        counts.append(now)
    return counts


_STYLE = """
:root { color-scheme: light dark; --paper:#fff; --ink:#1a1a1a; --soft:#595959; --guide:#d4d4d4;
  --row:#f5f5f5; --valid:#007a57; --invalid:#b84e00; --suspect:#8a5a00 }
@media (prefers-color-scheme: dark) { :root { --paper:#141414; --ink:#ececec; --soft:#a8a8a8;
  --guide:#3a3a3a; --row:#1d1d1d; --valid:#2bc194; --invalid:#ff8a3d; --suspect:#e69f00 } }
body { margin: 0 auto; max-width: 58rem; padding: 1.2rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; line-height: 1.3 } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid var(--guide) } th { color: var(--soft) }
.valid { color: var(--valid) } .invalid { color: var(--invalid) } .suspect { color: var(--suspect) }
pre { background: var(--row); padding: .6rem .8rem; white-space: pre-wrap; font-size: .82rem }
img { width: 100%; background: #fff; border-radius: 4px } .wide { overflow-x: auto }
"""


def page_of(verdict: AuditVerdict) -> str:
    """Return the verdict as one HTML page that needs nothing else."""
    parts = [f"<h1>{html.escape(headline_of(verdict))}</h1>"]
    rows = [(one.name, one.status, one.evidence) for one in verdict.guarantees]
    parts += ["<h2>Guarantees</h2>", _html_table(("guarantee", "status", "evidence"), rows)]
    if any(turn.begin_ns for turn in verdict.turns):
        picture = b64encode(draw_audit(verdict).svg()).decode()
        parts.append(
            "<h2>Sessions and turns</h2><div class=wide>"
            f'<img alt="sessions and turns over time" src="data:image/svg+xml;base64,{picture}">'
            "</div>"
        )
    worst = [row for row in sessions_of(verdict) if row.proved or row.suspected][:_ROWS]
    if worst:
        parts.append("<h2>Worst sessions</h2>")
        names = ("session", "turns", "proved", "suspected", "overlaps")
        parts.append(
            _html_table(
                names,
                [
                    (row.name, len(row.turns), row.proved, row.suspected, len(row.overlaps))
                    for row in worst
                ],
            )
        )
    if verdict.findings:
        parts.append("<h2>Findings</h2>")
        for finding in _examples(verdict.findings):
            parts.append(f"<pre>{html.escape(chr(10).join(finding_lines(finding, None)))}</pre>")
    for title, table in (
        ("Evidence", verdict.counts), ("Recognised as legitimate", verdict.recognised),
        ("Left out", verdict.skipped),
    ):  # fmt: skip
        if table:
            rows = [(what, f"{times:,}", "") for what, times in table.items()]
            parts += [f"<h2>{title}</h2>", _html_table(("what", "count", ""), rows)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>Audit</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts)
        + "\n</body></html>\n"
    )  # fmt: skip


def _examples(findings: Sequence[Finding]) -> list[Finding]:
    seen: Counter[tuple[str, bool]] = Counter()
    shown = []
    for finding in findings:
        seen[finding.name, finding.is_proved] += 1
        if seen[finding.name, finding.is_proved] <= 3:
            shown.append(finding)
    return shown[:_FINDINGS_ON_PAGE]


def _html_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = ""
    for row in rows:
        cells = "".join(
            f'<td class="{cell}">{cell}</td>' if cell in ("valid", "invalid", "suspect")
            else f"<td>{html.escape(str(cell))}</td>"
            for cell in row
        )  # fmt: skip
        body += f"<tr>{cells}</tr>"
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def frames_of(verdict: AuditVerdict) -> dict[str, Any]:
    """Return the tables ``turns``, ``sessions`` and ``findings``.

    Times are seconds since the first turn; what was not recorded is missing. ``turns`` has the
    columns ``turn``, ``user_id``, ``session_id``, ``trace_id``, ``root``, ``file``, ``line``,
    ``began_s``, ``took_s``, ``model_calls``, ``is_answered``, ``is_rooted``.
    """
    from kode_lab.lab.tables import columns_table  # noqa: PLC0415 - pandas only for frames

    origin_ns = min((turn.begin_ns for turn in verdict.turns if turn.begin_ns), default=0)

    def began(turn: Turn) -> float | None:
        return (turn.begin_ns - origin_ns) / 1e9 if turn.begin_ns else None

    turns = [
        (
            turn.number, turn.user or None, turn.session or None, turn.trace_id or None, turn.root,
            turn.calls[0][0], turn.calls[0][1], began(turn), (turn.end_ns - turn.begin_ns) / 1e9,
            len(turn.calls), bool(turn.answer), turn.is_rooted,
        )
        for turn in verdict.turns
    ]  # fmt: skip
    sessions = [
        (row.name, len(row.turns), len(row.overlaps), row.proved, row.suspected)
        for row in sessions_of(verdict)
    ]
    findings = [
        (
            finding.name, finding.is_proved, finding.why, began(finding.turns[0])
            if finding.turns else None, ", ".join(str(turn.number) for turn in finding.turns),
        )
        for finding in verdict.findings
    ]  # fmt: skip
    return {
        "turns": columns_table(
            turns,
            ("turn", "user_id", "session_id", "trace_id", "root", "file", "line", "began_s",
             "took_s", "model_calls", "is_answered", "is_rooted"),
            texts=("user_id", "session_id", "trace_id", "root", "file"),
            counts=("turn", "line", "model_calls"),
            flags=("is_answered", "is_rooted"),
        ),
        "sessions": columns_table(
            sessions,
            ("session", "turns", "overlaps", "proved", "suspected"),
            texts=("session",),
            counts=("turns", "overlaps", "proved", "suspected"),
        ),
        "findings": columns_table(
            findings,
            ("name", "is_proved", "why", "began_s", "turns"),
            texts=("name", "why", "turns"),
            flags=("is_proved",),
        ),
    }  # fmt: skip
