"""What looking at a run costs: its tables, its pictures, its page, and a million operations.

It owns a synthetic run of any size, drawn from a seed, and how these costs are taken: CPU seconds
of this process, with everything imported before, because a session of looking imports once.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bench import Row, row
from kode_lab.history.digest import MULTIPLIER, hash_of
from kode_lab.history.operation import marker_of
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.records import Run, RunRecorder

__all__ = ["looking", "synthetic"]

_AGENT = "schedule-assistant"
_TURNS = 10_000
_OPERATIONS = 1_000_000
_SEED = 7
_MASK = 0xFFFF_FFFF_FFFF_FFFF


def synthetic(results: Path, turns: int, *, sessions: int, traced: bool = True) -> Run:
    """Return a valid run of that size: the turns of a session one by one, two always meeting.

    Sessions follow each other in the file; each is shorter than two lines' times may fall apart.
    """
    recorder = RunRecorder(results, f"synthetic-{turns}", parameters={"seed": _SEED}, seed=_SEED)
    draw = random.Random(_SEED)
    with (recorder.path / "history.jsonl").open("a", encoding="utf-8") as history:
        for number in range(sessions):
            key = SessionKey(f"user-{number // 2}", f"session-{number % 2}", _AGENT)
            share = turns // sessions
            for event in _events(key, share, draw, recorder.trace if traced else None):
                history.write(event)
    return recorder.finish("complete", verdict="valid", finding="synthetic")


def _events(
    key: SessionKey, turns: int, draw: random.Random, trace: Callable[[Span], None] | None
) -> Iterator[str]:
    """Return a session's lines: each turn is sent while the one before it is at work."""
    shown: list[str] = []
    digest, sent_ns, free_ns = 0, 1_000_000_000, 0
    for number in range(turns):
        marker = marker_of(key, number, seed=_SEED)
        process = f"{key.lock_name}/{number}"
        begun_ns = max(sent_ns + 50_000, free_ns)
        ended_ns = begun_ns + int(draw.uniform(0.04, 0.16) * 1e9)
        common = {"process": process, "marker": marker, "turn_id": marker[1:]}
        yield _line({"type": "invoke", "f": "turn", **common, "time_ns": sent_ns} | key.to_json())
        read = {"position": number, "digest": f"{digest:016x}", "tail": shown[-2:]}
        yield _line({"type": "ok", "process": process, "time_ns": ended_ns + 50_000, "read": read})
        if trace is not None:
            _steps(key, marker[1:], (sent_ns, begun_ns, ended_ns), trace)
        shown.append(marker)
        # The digest of a prefix grows by one element: the whole would be quadratic.
        digest = (digest * MULTIPLIER + hash_of(marker)) & _MASK
        sent_ns, free_ns = begun_ns + 1_000_000, ended_ns
    process = f"reader {key.lock_name}"
    read_ns = free_ns + 1_000_000
    yield _line(
        {"type": "invoke", "f": "read", "process": process, "time_ns": read_ns} | key.to_json()
    )
    yield _line({"type": "ok", "process": process, "time_ns": read_ns + 1_000, "markers": shown})


def _steps(
    key: SessionKey, turn_id: str, times_ns: tuple[int, int, int], trace: Callable[[Span], None]
) -> None:
    sent_ns, begun_ns, ended_ns = times_ns
    middle_ns = (begun_ns + ended_ns) // 2
    tool = {"gen_ai.tool.name": "create_schedule", "gen_ai.tool.call.id": turn_id}
    tokens = {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 20}
    trace(Span(key, turn_id, "wait", sent_ns, begun_ns, {"kode_lab.queue.length": 1}))
    trace(Span(key, turn_id, "ask", begun_ns, middle_ns, tokens))
    trace(Span(key, turn_id, "tool", middle_ns, middle_ns + 1_000_000, tool))
    trace(Span(key, turn_id, "ask", middle_ns + 1_000_000, ended_ns - 100_000, tokens))
    trace(Span(key, turn_id, "commit", ended_ns - 100_000, ended_ns))
    trace(Span(key, turn_id, "turn", sent_ns, ended_ns, {"kode_lab.fence": 1}))


def _line(event: dict[str, object]) -> str:
    return json.dumps(event, separators=(",", ":")) + "\n"


def looking(effort: float) -> list[Row]:
    """Return the costs of looking at 10,000 turns, and of judging a million operations."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory)
        small = synthetic(results, int(_TURNS * effort), sessions=max(2, int(500 * effort)))
        rows = list(_looked_at(small))
        large = synthetic(
            results, int(_OPERATIONS * effort), sessions=max(2, int(10_000 * effort)), traced=False
        )
        return [*rows, *_large(large)]


def _looked_at(run: Run) -> Iterator[Row]:
    from kode_lab import pictures as figures  # noqa: PLC0415 - pandas and matplotlib
    from kode_lab.lab import tables  # noqa: PLC0415 - pandas and matplotlib
    from kode_lab.lab.timeline import timeline  # noqa: PLC0415
    from kode_lab.reports.page import report  # noqa: PLC0415

    def all_tables() -> None:
        for table in (tables.turns_table, tables.tool_calls_table, tables.sessions_table):
            table(run)

    figures.latency(run).png()  # loads the fonts
    yield _timed("look: the three tables of 10,000 turns", all_tables, 2)
    for name in ("many_sessions", "latency"):
        draw = getattr(figures, name)
        yield _timed(f"look: picture {name}", lambda draw=draw: draw(run).png(), 2)  # type: ignore[misc]
    sizes: list[int] = []
    yield _timed("look: report, judged and drawn", lambda: sizes.append(len(report(run).html)), 5)
    yield row("look: report", sizes[0] / 1e6, "MB", bar="value <= 5")
    yield row("look: timeline", len(timeline(run).html) / 1e6, "MB", bar="value <= 2")


def _large(run: Run) -> Iterator[Row]:
    path = run.path
    yield _timed(
        "look: a million operations, loaded and summed up", lambda: repr(Run.load(path)), 10
    )
    yield _timed("look: a million operations, judged again", run.verdict, None)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    size_mb = (path / "history.jsonl").stat().st_size / 1e6
    yield row("look: memory for that, against the file", peak_mb, "MB", baseline=size_mb)


def _timed(name: str, work: Callable[[], object], bar_s: float | None) -> Row:
    begun_s = time.process_time()
    work()
    took_s = time.process_time() - begun_s
    return row(name, took_s, "CPU-s", bar=None if bar_s is None else f"value <= {bar_s:g}")
