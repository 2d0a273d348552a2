"""How a verdict looks: as text for a terminal, as HTML for a notebook, as JSON for a machine.

The HTML uses JupyterLab's own CSS variables, so it is right in light and in dark, and says by a
word whatever it says by a colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from kode_lab.check.ascii_history import draw
from kode_lab.check.verdict import ANOMALIES, GUARANTEES, Anomaly, Evidence, Verdict
from kode_lab.check.witness import ENDED, explain, sentences
from kode_lab.history.operation import Operation, Read
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = ["anomaly_of", "html_of", "json_of", "reads_html", "text_of"]

# Of each name the smallest witness is told in full; the others are counted, and are in the JSON.
TOLD_LIMIT = 5
_WORDS = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}
_COLOURS = {"valid": "#009E73", "invalid": "#D55E00", "unknown": "var(--jp-ui-font-color2, #666)"}
# Seven hues that stay apart for colour-blind readers; a marker's word always stands beside them.
_HUES = (205, 35, 275, 170, 320, 95, 240)


def text_of(verdict: Verdict) -> str:
    """Return the verdict for a terminal, the finding first."""
    lines = [headline(verdict), ""]
    promises = {g.name: g.promise for g in GUARANTEES}
    for code, name, status, reason in verdict.findings:
        lines.append(f"  {code} {name:<8} {status:<11} {reason or promises[name]}")
    if verdict.evidence.overtaken or verdict.overtaking_limit is not None:
        lines += ["", f"  {overtaking_of(verdict)}"]
    for anomaly in _told(verdict):
        lines += ["", f"{anomaly.name}, in {anomaly.key}: {ANOMALIES[anomaly.name][1]}"]
        operations = [one for one in anomaly.witness if isinstance(one, Operation)]
        lines += [f"    {line}" for line in draw(operations).splitlines()]
        lines += [f"  {sentence}" for sentence in sentences(anomaly)]
    return "\n".join(lines)


def headline(verdict: Verdict) -> str:
    """Return the verdict in one sentence, with its evidence and the share of turns accepted."""
    evidence = verdict.evidence
    if verdict.status == "invalid":
        roots = {n: c - verdict.follow.get(n, 0) for n, c in verdict.counts.items()}
        found = ", ".join(f"{count} {name}" for name, count in roots.items() if count)
        after = ", ".join(f"{count} {name}" for name, count in verdict.follow.items() if count)
        said = f"FAIL: {found} in {_counted(evidence)}" + (
            f" (and what follows: {after})" * bool(after)
        )
    elif verdict.status == "unknown":
        said = f"UNKNOWN: {verdict.reason}; {_counted(evidence)}"
    else:
        held = "-".join(_ends([f.code for f in verdict.findings if f.status == "valid"]))
        said = f"PASS: no violation of {held} in {_counted(evidence)}"
    return f"{said}. {_admitted(evidence)}"


def overtaking_of(verdict: Verdict) -> str:
    """Return in one sentence who was overtaken, and what was claimed of it."""
    evidence, limit = verdict.evidence, verdict.overtaking_limit
    turns = f"{evidence.overtaken:,} turn{'' if evidence.overtaken == 1 else 's'}"
    claimed = "" if limit is None else f"; claimed: at most {limit:,}"
    return (
        f"Overtaken by what was sent later: {turns}; "
        f"the most that overtook one: {evidence.most_overtaken:,}{claimed}."
    )


def json_of(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as JSON values."""
    evidence = verdict.evidence
    return {
        "status": verdict.status,
        "headline": headline(verdict),
        "admission_rate": evidence.acknowledged / evidence.turns if evidence.turns else None,
        "guarantees": [finding._asdict() for finding in verdict.findings],
        "evidence": evidence._asdict(),
        "counts": dict(verdict.counts),
        "follow": dict(verdict.follow),
        "overtaking_limit": verdict.overtaking_limit,
        "anomalies": [_anomaly_json(anomaly) for anomaly in verdict.anomalies],
        "text": text_of(verdict),
    }


def anomaly_of(told: Mapping[str, Any]) -> Anomaly:
    """Return one of the anomalies that ``json_of`` wrote, its details and effects left out."""
    witness = tuple(map(_one_of, told["witness"]))
    facts = told["element"], told["facts"], told["origin_ns"]
    return Anomaly(told["name"], _key_of(told), witness, *facts)


def _one_of(told: Mapping[str, Any]) -> Operation | Span:
    fields: dict[str, Any] = {name: _frozen(value) for name, value in told.items()}
    fields["key"] = _key_of(told)
    if "step" in fields:
        return Span(**fields)
    if "read" in fields:
        shown = {name: _frozen(value) for name, value in told["read"].items()}
        fields["read"] = Read(**shown | {"digest": int(shown["digest"] or "0", 16)})
    for name in ("details", "effects"):
        fields.pop(name, None)
    return Operation(**{"complete_ns": math.inf, **fields})


def _key_of(told: Mapping[str, Any]) -> SessionKey:
    key = told["key"] if "key" in told else told["session"]
    return SessionKey(key["userId"], key["sessionId"], key["agentId"])


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def html_of(verdict: Verdict) -> str:
    """Return the verdict for a notebook."""
    word, _, rest = headline(verdict).partition(":")
    colour = _COLOURS[verdict.status]
    rows = "".join(
        f"<tr><td>{f.code}</td><td>{f.name}</td>"
        f'<td style="color:{_COLOURS.get(f.status, "inherit")}">{f.status}</td>'
        f'<td style="text-align:left">{escape(f.reason)}</td></tr>'
        for f in verdict.findings
    )
    has_figure = verdict.evidence.overtaken or verdict.overtaking_limit is not None
    overtaken = f"<p>{overtaking_of(verdict)}</p>" if has_figure else ""
    told = "".join(_anomaly_html(anomaly) for anomaly in _told(verdict))
    return (
        '<div style="color:var(--jp-content-font-color1,#000);font-family:var(--jp-ui-font-family,'
        'sans-serif);font-size:13px;max-width:60em">'
        f'<p><b style="color:{colour}">{word}</b>:{escape(rest)}</p>'
        f'<table style="font-size:12px">{rows}</table>{overtaken}{told}</div>'
    )


def reads_html(operations: Iterable[Operation], key: SessionKey) -> str:
    """Return what each operation of one session was shown, by the time it was sent, as a table.

    Each marker has its colour wherever it is shown.
    """
    hues: dict[str, int] = {}
    rows: list[str] = []
    own = sorted((o for o in operations if o.key == key), key=lambda o: o.invoke_ns)
    for one in own:
        shown: tuple[str, ...] = one.markers or ()
        foreign: tuple[str, ...] = ()
        is_whole = True
        if one.f == "effects":
            continue
        if one.f == "turn" and one.read is not None:
            shown, foreign = one.read.tail, one.read.foreign
            is_whole = one.read.position == len(shown)
        sent_ms, ended_ms = ((t - own[0].invoke_ns) / 1e6 for t in (one.invoke_ns, one.complete_ns))
        chips = "".join(
            '<span style="padding:0 .3em;margin-right:.2em;background:'
            f'hsl({hues.setdefault(m, _HUES[len(hues) % len(_HUES)])} 70% 50% / .25)">'
            f"{escape(m)}</span>"
            for m in ((*shown, one.marker) if one.f == "turn" else shown)
        )
        strange = "".join(
            f'<span style="outline:1px solid {_COLOURS["invalid"]};padding:0 .3em">'
            f"foreign {escape(marker)}</span>"
            for marker in foreign
        )
        ended = "never" if ended_ms == math.inf else f"{ended_ms:.3f}"
        rows.append(
            f"<tr><td>{sent_ms:.3f}</td><td>{ended}</td><td>{escape(one.marker or 'read')}</td>"
            f'<td>{ENDED[one.type]}</td><td style="text-align:left">{"" if is_whole else "… "}'
            f"{chips}{strange}</td></tr>"
        )
    head = "<tr><th>sent, ms</th><th>ended, ms</th><th>turn</th><th></th><th>was shown</th></tr>"
    return (
        f'<table style="font-size:12px;color:var(--jp-content-font-color1,#000)">'
        f"<caption>Session {escape(str(key))}: what each turn was shown</caption>"
        f"{head}{''.join(rows)}</table>"
    )


def _told(verdict: Verdict) -> list[Anomaly]:
    first: dict[str, Anomaly] = {}
    for anomaly in verdict.anomalies:
        first.setdefault(anomaly.name, anomaly)
    return list(first.values())[:TOLD_LIMIT]


def _counted(evidence: Evidence) -> str:
    counts = [(evidence.turns, "turn"), (evidence.concurrent_pairs, "concurrent pair")]
    if evidence.crashes:
        counts.append((evidence.crashes, "crashe" if evidence.crashes > 1 else "crash"))
    return ", ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts)


def _admitted(evidence: Evidence) -> str:
    if not evidence.turns:
        return "No turn was asked for."
    share = 100 * evidence.acknowledged / evidence.turns
    return (
        f"Accepted: {evidence.acknowledged:,} of {evidence.turns:,} turns asked ({share:.3g} %); "
        f"{evidence.refused:,} refused, {evidence.indeterminate:,} indeterminate."
    )


def _ends(codes: list[str]) -> list[str]:
    """Return the first and last of codes that follow each other, else all of them as one."""
    numbers = [int(code[1:]) for code in codes]
    if len(codes) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return [codes[0], codes[-1]]
    return [", ".join(codes)]


def _anomaly_json(anomaly: Anomaly) -> dict[str, Any]:
    return {
        "name": anomaly.name,
        "session": anomaly.key.to_json(),
        "element": anomaly.element,
        "facts": dict(anomaly.facts),
        "origin_ns": anomaly.origin_ns,
        "witness": [_witness_json(one) for one in anomaly.witness],
        "because": list(sentences(anomaly)),
    }


def _witness_json(one: Operation | Span) -> dict[str, Any]:
    told = {name: value for name, value in one._asdict().items() if value not in (None, "")}
    told["key"] = one.key.to_json()
    if isinstance(one, Span):
        return told
    told["details"] = {name: value for name, value in one.details._asdict().items() if value}
    if one.complete_ns == math.inf:
        del told["complete_ns"]
    if one.read is not None:
        digest = None if one.read.digest is None else f"{one.read.digest:016x}"
        told["read"] = one.read._asdict() | {"digest": digest}
    if one.effects is not None:
        told["effects"] = [effect._asdict() for effect in one.effects]
    return told


def _anomaly_html(anomaly: Anomaly) -> str:
    operations = [one for one in anomaly.witness if isinstance(one, Operation)]
    picture = f"<pre>{escape(draw(operations))}</pre>" if operations else ""
    said = "<br>".join(escape(line) for line in explain(anomaly).splitlines())
    return (
        f'<p><b style="color:{_COLOURS["invalid"]}">{escape(anomaly.name)}</b> in '
        f"{escape(str(anomaly.key))}: {escape(ANOMALIES[anomaly.name][1])}</p>"
        f"{picture}<p>{said}</p>"
    )
