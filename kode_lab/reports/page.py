"""A run as one HTML page to send to somebody: the verdict first, then what it rests on.

It owns the order of the page and its words; pictures are the figures', the verdict is the judge's.
The page is self-contained, runs no script and loads nothing; it is read on a phone, in
the dark and on paper (``report.html`` beside this file has the style).

A run that is cut short, has no trace or holds a line that cannot be read still has a report: what
is missing is a sentence in it, at the place where it is missing.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kode_lab.check import ANOMALIES, GUARANTEES, Anomaly, Verdict, check, explain
from kode_lab.check.render import headline
from kode_lab.errors import InvalidRecord, KodeLabError, StoreUnwritable
from kode_lab.history.operation import NEMESIS, QUIET, Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.records import Run
from kode_lab.lab.times import shown_s
from kode_lab.lab.turn_view import TurnView, turns_of
from kode_lab.reports.claims import Claim, finding, verdict_of
from kode_lab.reports.claims import Verdict as ClaimVerdict
from kode_lab.reports.measures import percentile

if TYPE_CHECKING:
    from kode_lab.pictures import Picture

__all__ = ["Report", "claims_in", "figure_of", "heading_of", "page_of", "report"]

_WITNESS_LIMIT = 5
_SLOWEST = 10
_LANES_LIMIT = 12
# Of more turns than this a picture says no more than of these, and takes minutes.
_DRAWN_LIMIT = 200_000
_ERRORS_LIMIT = 8
_CLAIM = ("test", "what", "verdict", "reported", "measured", "how")
# A page is read, not searched: claims.json has all of them.
_CLAIMS_LIMIT, _AGAINST_LIMIT = 200, 50
_WORDS = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}


@dataclass(frozen=True, slots=True)
class Report:
    """The page; a notebook shows it, ``save`` writes it.

    Attributes:
        title: the verdict in one sentence.
        status: ``valid``, ``invalid`` or ``unknown``.
        html: the whole page.
    """

    title: str
    status: str
    html: str

    def save(self, path: Path) -> Path:
        """Write the page; it opens from disk.

        Raises:
            StoreUnwritable: there is no such directory, or the path is one.
        """
        try:
            path.write_text(self.html, encoding="utf-8")
        except OSError as error:
            raise StoreUnwritable(
                f"the page {path}: {error.strerror}: give a file in a directory that is there"
            ) from None
        return path

    def __repr__(self) -> str:
        return f"<Report: {self.title}>"

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="{escape(self.title)}" '
            'style="width:100%;height:640px;border:0"></iframe>'
        )


@dataclass(frozen=True, slots=True)
class _Records:
    """What could be read of a run, read once, and what could not."""

    run: Run
    history: tuple[Operation, ...]
    trace: tuple[Span, ...]
    turns: Sequence[TurnView]
    notes: tuple[str, ...]

    def operations(self) -> tuple[Operation, ...]:
        """Return the history."""
        return self.history

    def spans(self) -> tuple[Span, ...]:
        """Return the trace."""
        return self.trace


def report(run: Run, *, figures: Path | None = None) -> Report:
    """Return the report of a run, judged anew from its records.

    Args:
        figures: a directory where the pictures are kept as files, too.
    """
    records = _records(run)
    try:
        verdict: Verdict | None = check(records.history, records.trace or None, run.claimed)
        said = headline(verdict) if verdict else ""
    except KodeLabError as error:
        verdict, said = None, f"UNKNOWN: the judge cannot use this history: {error}"
    status = verdict.status if verdict else "unknown"
    claims = claims_in(run)
    title, _, accepted = said.partition(" Accepted: ")
    under = f"Accepted: {accepted}" if accepted else ""
    if claims:
        title, status = claims["finding"], claims["status"]
        under = f"The judge of sessions says, of the same run: {said}"
    parts = [
        *_head(records, title, status, under),
        *(_claims_part(claims) if claims else ()),
        *(_verdict_part(verdict) if verdict else ()),
        *(_witness_part(verdict, figures) if verdict else ()),
        *_pictures_part(records, figures),
        *_tables_part(records),
        *_printed_part(run),
        *(() if "history" in run.facts else _repeat_part(run)),
    ]
    return Report(title, status, page_of(f"{title[:120]} ({run.id})", parts))


def page_of(title: str, parts: Iterable[str]) -> str:
    """Return the whole page with these parts as its body: for a phone, the dark, and paper."""
    page = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    before, _, after = page.replace("<!--TITLE-->", escape(title)).partition("<!--BODY-->")
    body = "\n".join(parts).encode("utf-8", "backslashreplace").decode()
    return f"{before}{body}{after}"


def _records(run: Run) -> _Records:
    notes: list[str] = []

    def read(what: str, reader: Callable[[], tuple[Any, ...]], lost: str) -> tuple[Any, ...]:
        try:
            found = reader()
        except InvalidRecord as error:
            notes.append(f"{error}. {lost}")
            return ()
        if not found:
            notes.append(f"There is no {what}. {lost}")
        return found

    history = read("history", run.operations, "So there is nothing to judge.")
    trace = read("trace", run.spans, "So steps, waits and overlaps inside the service are unknown.")
    if run.status == "running":
        notes.append("The run never ended: its process died, or is still at work.")
    elif run.status != "complete":
        notes.append(f"The run was {run.status}: it holds what there was until then.")
    turns = turns_of(trace, history)
    return _Records(run, history, trace, turns, tuple(notes))


def _head(records: _Records, title: str, status: str, said: str) -> Iterator[str]:
    yield from heading_of(records.run, title, status, said)
    yield from (f'<p class="note">{escape(note)}</p>' for note in records.notes)


def heading_of(run: Run, title: str, status: str, said: str) -> Iterator[str]:
    """Return the top of a run's page: which run, the verdict, and what is said below it."""
    word, colon, rest = title.partition(":")
    shown = f'<b class="{status}">{escape(word)}</b>{colon}{escape(rest)}' if colon else title
    started = str(run.facts.get("started_at", ""))[:16].replace("T", " ")
    yield f'<p class="soft">{escape(run.id)} · {escape(started)} UTC</p>'
    yield f"<h1>{shown}</h1>"
    if said:
        yield f'<p class="soft">{escape(said)}</p>'


def _verdict_part(verdict: Verdict) -> Iterator[str]:
    promises = {guarantee.name: guarantee.promise for guarantee in GUARANTEES}
    rows = [
        (
            f.code,
            f.name,
            (f.status, f"word {f.status}"),
            f.reason or promises[f.name],
        )
        for f in verdict.findings
    ]
    yield "<h2>What is guaranteed, and what came of it</h2>"
    yield _table(("", "guarantee", "verdict", "promise, or reason"), rows)
    evidence = verdict.evidence
    told = {
        "sessions": evidence.sessions,
        "turns asked": evidence.turns,
        "acknowledged": evidence.acknowledged,
        "refused": evidence.refused,
        "outcome unknown": evidence.indeterminate,
        "pairs at once": evidence.concurrent_pairs,
        "crashes": evidence.crashes,
        "tool effects": evidence.effects,
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{n:,}</dd></div>" for name, n in told.items())
    yield f"<dl>{tiles}</dl>"


def _witness_part(verdict: Verdict, kept: Path | None) -> Iterator[str]:
    smallest: dict[str, Anomaly] = {}
    for anomaly in verdict.anomalies:
        smallest.setdefault(anomaly.name, anomaly)
    if not smallest:
        return
    from kode_lab.pictures import witness  # noqa: PLC0415 - matplotlib, here and below

    yield "<h2>The proof</h2>"
    for name, anomaly in list(smallest.items())[:_WITNESS_LIMIT]:
        count = verdict.counts.get(name, 1)
        yield f"<h3>{escape(name)}: {escape(ANOMALIES[name][1])} ({count:,} found)</h3>"
        is_first = anomaly is verdict.anomalies[0]
        stem = kept and kept / ("witness" if is_first else f"witness-{name.replace(' ', '-')}")
        yield from _figure(lambda anomaly=anomaly: witness(anomaly), stem)  # type: ignore[misc]
        yield f"<pre>{escape(explain(anomaly))}</pre>"
    if len(smallest) > _WITNESS_LIMIT:
        yield f'<p class="soft">{len(smallest) - _WITNESS_LIMIT} more kinds are left out.</p>'


def _pictures_part(records: _Records, kept: Path | None) -> Iterator[str]:
    from kode_lab import pictures as figures  # noqa: PLC0415

    run = records.run
    yield "<h2>Pictures</h2>"
    drawn = sorted((run.path / "figures").glob("*.png"))
    if drawn and "report" in run.parameters:
        # A reproduction has drawn its tests already, each in the seconds of its report.
        yield from (_image(path.stem.replace("-", " "), "", path.read_bytes()) for path in drawn)
        return
    if not records.turns or len(records.turns) > _DRAWN_LIMIT:
        why = f"{len(records.turns):,} turns are too many" if records.turns else "There is no turn"
        yield f"<p>{why} to draw.</p>"
        return
    drawers: dict[str, Callable[[], Picture]] = {
        "sessions": lambda: figures.many_sessions(records),
        "percentiles": lambda: figures.percentiles(records),
        "latency": lambda: figures.latency(records),
    }
    if len(records.turns) <= _LANES_LIMIT:
        speed = run.parameters.get("speed")
        speed = speed if isinstance(speed, int | float) and speed > 0 else 1.0
        drawers = {"sessions": lambda: figures.two_sessions(records, speed=speed)}
    if any(o.process == NEMESIS and o.f != QUIET for o in records.history):
        drawers["crashes"] = lambda: figures.crash_bands(records)
    for name, draw in drawers.items():
        yield from _figure(draw, kept and kept / name)


def _figure(draw: Callable[[], Picture], stem: Path | None) -> Iterator[str]:
    try:
        picture = draw()
    except KodeLabError as error:
        yield f'<p class="soft">A picture is missing: {escape(str(error))}</p>'
        return
    if stem is not None:
        picture.save(stem)
    yield figure_of(picture)


def figure_of(picture: Picture) -> str:
    """Return the picture as a part of the page, with all its bytes."""
    return _image(picture.title, picture.reading, picture.png())


def _image(title: str, reading: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return (
        f"<figure><figcaption>{escape(title)}<span>{escape(reading)}</span></figcaption>"
        f'<div class="wide"><img alt="{escape(title)}" src="data:image/png;base64,{data}"></div>'
        "</figure>"
    )


def _tables_part(records: _Records) -> Iterator[str]:
    answered = sorted(
        (turn for turn in records.turns if turn.outcome == "ok"),
        key=lambda turn: -turn.latency_ns,
    )
    if not records.turns:
        return
    yield "<h2>Figures</h2>"
    if answered:
        shares = (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("slowest", 1.0))
        took = [turn.latency_ns for turn in answered]
        row = tuple(_s(percentile(took, share)) for _, share in shares)
        yield _table(tuple(name for name, _ in shares), [row])
        yield f"<h3>The {min(_SLOWEST, len(answered))} slowest answered turns</h3>"
        yield _table(
            ("session", "turn", "took", "waited", "model", "tools"),
            [
                (
                    str(turn.key),
                    turn.turn_id,
                    _s(turn.latency_ns),
                    *(_s(turn.time_in(step)) for step in ("wait", "ask", "tool")),
                )
                for turn in answered[:_SLOWEST]
            ],
        )
        by_index: dict[int, list[float]] = {}
        numbers: Counter[SessionKey] = Counter()
        for turn in records.turns:
            numbers[turn.key] += 1
            if turn.outcome == "ok":
                by_index.setdefault(numbers[turn.key], []).append(turn.latency_ns)
        if len(by_index) > 1:
            yield "<h3>By the turn's place in its session</h3>"
            yield _table(
                ("turn", "answered", "median", "p90", "slowest"),
                [
                    (str(n), f"{len(took):,}", *(_s(percentile(took, at)) for at in (0.5, 0.9, 1)))
                    for n, took in list(by_index.items())[:_SLOWEST]
                ],
            )
    errors = Counter(turn.error.partition(":")[0] for turn in records.turns if turn.error)
    if errors:
        yield "<h3>Turns without an answer, by what their clients were told</h3>"
        listed = [(f"{count:,}", name) for name, count in errors.most_common(_ERRORS_LIMIT)]
        yield _table(("turns", "error"), listed)


def _printed_part(run: Run) -> Iterator[str]:
    """Return what a load test printed: its figures beside Locust's, and the generator's own."""
    try:
        said = (run.path / "summary.txt").read_text("utf-8", "replace")
    except OSError:
        return
    yield f'<h2>As it was printed</h2>\n<pre class="columns">{escape(said.strip())}</pre>'


def claims_in(run: Run) -> dict[str, Any] | None:
    """Return what the claims of a reproduction came to; None for another run, or a damaged file."""
    try:
        fields = json.loads((run.path / "claims.json").read_bytes())
        rows = [{name: str(claim[name]) for name in _CLAIM} for claim in fields["claims"]]
        against = [f"{one['test']}: {one['what']}" for one in fields.get("contradictions", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    for row in rows:  # as it was called before
        row["verdict"] = row["verdict"].replace("unknown", "inconclusive")
    if not rows or not {row["verdict"] for row in rows} <= set(get_args(ClaimVerdict)):
        return None
    claims = [Claim(**row) for row in rows]  # type: ignore[arg-type]
    status = {"holds": "valid", "not applicable": "valid", "violated": "invalid"}
    return {
        "finding": finding(claims),
        "status": status.get(verdict_of(claims), "unknown"),
        "claims": rows,
        "against": against,
    }


def _claims_part(claims: Mapping[str, Any]) -> Iterator[str]:
    css = {"holds": "word valid", "violated": "word invalid"}
    if claims["against"]:
        yield "<h2>What the report says against itself</h2><ul>"
        yield from (f"<li>{escape(one)}</li>" for one in claims["against"][:_AGAINST_LIMIT])
        yield "</ul>"
        if len(claims["against"]) > _AGAINST_LIMIT:
            yield f"<p>... and {len(claims['against']) - _AGAINST_LIMIT} more</p>"
    order = {"violated": 0, "inconclusive": 1}
    rows = claims["claims"]
    if len(rows) > _CLAIMS_LIMIT:
        rows = sorted(rows, key=lambda row: order.get(row["verdict"], 2))[:_CLAIMS_LIMIT]
    yield "<h2>The report's claims, number by number</h2>"
    yield _table(
        # The verdict before the figures: a phone shows no more than three columns at once.
        ("test", "claim", "verdict", "reported", "measured", "measured on"),
        [
            (
                (claim["test"], "name"),
                claim["what"],
                (claim["verdict"], css.get(claim["verdict"], "word")),
                claim["reported"],
                claim["measured"],
                claim["how"],
            )
            for claim in rows
        ],
    )
    if len(rows) < len(claims["claims"]):
        yield f"<p>... and {len(claims['claims']) - len(rows)} more, most of which hold.</p>"


def _repeat_part(run: Run) -> Iterator[str]:
    facts = run.facts
    commit, machine = facts.get("commit") or {}, facts.get("machine") or {}
    versions = ", ".join(f"{name} {v}" for name, v in (facts.get("versions") or {}).items())
    changed = " with changes that are in no commit" if commit.get("is_dirty") else ""
    told = [
        ("command", _command(run)),
        ("seed", facts.get("seed", "")),
        ("commit", f"{commit.get('id', 'unknown')}{changed}"),
        ("versions", versions),
        ("machine", ", ".join(f"{name} {value}" for name, value in machine.items())),
        ("took", f"{facts.get('took_s', '?')} s"),
    ]
    yield "<h2>How to repeat it</h2>"
    yield _table(("", ""), [(name, str(value)) for name, value in told])
    parameters = json.dumps(run.parameters, ensure_ascii=False, indent=1)
    yield f"<details><summary>All parameters</summary><pre>{escape(parameters)}</pre></details>"
    yield (
        '<p class="soft">The evidence lies beside this page: history.jsonl (what the clients saw), '
        "trace.jsonl (what the system did). <code>kode-lab check</code> judges it again.</p>"
    )


def _command(run: Run) -> str:
    if run.own_store:
        return f"none: {run.own_store}"
    return str(run.facts.get("command") or "kode-lab reproduce DIRECTORY_OF_THIS_RUN")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]]) -> str:
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _cell(cell: str | tuple[str, str]) -> str:
    text, css = cell if isinstance(cell, tuple) else (cell, "")
    return f'<td class="{css}">{escape(text)}</td>' if css else f"<td>{escape(text)}</td>"


def _s(duration_ns: float) -> str:
    return shown_s(duration_ns / 1e9)
