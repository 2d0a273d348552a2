"""What came of a run: its figures beside Locust's, and the judge's verdict as a child gives it.

Latencies come from the history, in nanoseconds; Locust's, rounded to two digits, stand beside them.
A generator that was late or had no CPU left says so instead of blaming the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.lab.times import counted
from kode_lab.load.recorder import HISTORY, LAG, LATE, quantile
from kode_lab.load.server_watch import words_of
from kode_lab.load.tail import Tail, percentiles_ms

__all__ = ["FIGURES", "VERDICT", "Judged", "heard", "judged", "save_figures", "told", "write_page"]

FIGURES, VERDICT, SUMMARY = "load.json", "verdict.json", "summary.txt"
# A process that used more of one core than this had no time left to be punctual.
CPU_SHARE_LIMIT = 0.9
# Sending that late, against the time that a turn takes, falsifies what the server is said to take.
LATE_SHARE_LIMIT = 0.1
_LATE_LEAST_S = 0.005
_JUDGE = (sys.executable, "-m", "kode_lab", "check")
# From this size on the judge leaves the history's columns beside it, for whatever reads it next.
KEEP_FROM_BYTES = 2_000_000
_UNUSABLE, _MISSED = 3, 4


class Judged(NamedTuple):
    """The judge's answer: its exit status, its words, and the figures beside them."""

    status: int
    headline: str
    text: str
    figures: dict[str, Any]

    def exit_code(self, options: Any) -> int:
        """Return 0 valid, 1 violated, 2 unknown, 3 unusable, 4 valid but slower than asked for."""
        if self.status:
            return self.status
        if self.figures["generator"].get("lost"):
            return _UNUSABLE
        if self.figures["server"].get("trouble"):
            return _MISSED
        if not options.slo_p99_ms:
            return 0
        if self.figures["generator"]["is_bound"]:
            return _UNUSABLE
        p99_ms = self.figures["ms"].get("p99", 0.0)
        return _MISSED if p99_ms > options.slo_p99_ms else 0


def save_figures(environment: Any, run_dir: Path, tail: Tail | None, of_us: dict[str, Any]) -> None:
    """Write ``load.json``: what was asked for, how long turns took, how punctual we were."""
    options, locust = environment.parsed_options, environment.stats.get("turn", "POST")
    ms = percentiles_ms(tail.took_ns) if tail is not None else {}
    times = of_us["times"]
    late_s, lag_s = quantile(times[LATE], 0.99), quantile(times[LAG], 0.99)
    bound = _bound(of_us["cpu_share"], late_s, ms.get("p99", 0.0) / 1e3)
    slo_ms = options.slo_p99_ms or None
    figures = {
        "is_closed_loop": options.closed_loop,
        "seed": options.seed,
        "turns": tail.turns if tail is not None else 0,
        "attempts": dict(tail.counts) if tail is not None else {},
        "sessions": len(tail.sessions) if tail is not None else 0,
        "first_error": tail.first_error if tail is not None else "",
        "turns_per_s": len(tail.took_ns) / tail.span_s if tail is not None else 0.0,
        "requests": locust.num_requests,
        "requests_per_s": locust.total_rps,
        "ms": ms,
        "locust_ms": {
            f"p{share * 100:g}": locust.get_response_time_percentile(share)
            for share in (0.5, 0.9, 0.95, 0.99)
        },
        "times_ms": {
            name: {
                f"p{share * 100:g}": quantile(classes, share) * 1e3 for share in (0.5, 0.9, 0.99)
            }
            for name, classes in times.items()
            if name not in (LATE, LAG)
        },
        "server": environment.load_run.watch.figures(),
        "slo_p99_ms": slo_ms,
        "good_turns_per_s": None
        if tail is None or slo_ms is None
        else sum(took / 1e6 <= slo_ms for took in tail.took_ns) / tail.span_s,
        "generator": {
            "cpu_s": of_us["cpu_s"],
            "cpu_share": of_us["cpu_share"],
            "late_p50_ms": quantile(times[LATE], 0.5) * 1e3,
            "late_p99_ms": late_s * 1e3,
            "loop_lag_p99_ms": lag_s * 1e3,
            "is_bound": bool(bound),
            "why": bound,
            "lost": len(environment.load_run.lost),
            "machines": _machines(environment.load_run),
        },
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (run_dir / FIGURES).write_text(text + "\n", encoding="utf-8")


def heard(run_dir: Path) -> dict[str, Any]:
    """Return the judge's JSON on a history that is still being written; nothing if it has none."""
    asked = subprocess.run([*_JUDGE, "--json", str(run_dir)], capture_output=True, text=True)  # noqa: S603, PLW1510 - our own command; its status is the answer
    verdict: dict[str, Any] = json.loads(asked.stdout) if asked.returncode in (0, 1, 2) else {}
    return verdict


def judged(run_dir: Path) -> Judged:
    """Ask the judge, in a process of its own, and keep what it says as ``verdict.json``."""
    is_long = (run_dir / HISTORY).stat().st_size >= KEEP_FROM_BYTES
    command = [*_JUDGE, "--json", *(["--keep"] if is_long else []), str(run_dir)]
    asked = subprocess.run(command, capture_output=True, text=True)  # noqa: S603, PLW1510 - our own command; its status is the answer
    figures = json.loads((run_dir / FIGURES).read_text("utf-8"))
    if asked.returncode not in (0, 1, 2):
        return Judged(_UNUSABLE, asked.stderr.strip(), asked.stderr.strip(), figures)
    (run_dir / VERDICT).write_text(asked.stdout, encoding="utf-8")
    said = json.loads(asked.stdout)
    verdict = Judged(asked.returncode, said["headline"], said["text"], figures)
    (run_dir / SUMMARY).write_text(f"{told(verdict)}\n", encoding="utf-8")
    return verdict


def write_page(run_dir: Path) -> None:
    """Write the run's report page, in a process of its own: drawing needs what Locust patches."""
    command = [sys.executable, "-m", "kode_lab", "report", str(run_dir)]
    subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own command


def told(verdict: Judged) -> str:
    """Return the figures and, last, the verdict."""
    figures = verdict.figures
    ms, locust, us = figures["ms"], figures["locust_ms"], figures["generator"]
    loop = "closed loop" if figures["is_closed_loop"] else "open loop"
    turns, sessions = counted(figures["turns"], "turn"), counted(figures["sessions"], "session")
    late = f"p99 sent {us['late_p99_ms']:.2f} ms late"
    lag = f"p99 loop lag {us['loop_lag_p99_ms']:.2f} ms"
    lines = [
        "",
        f"{turns} in {sessions}, {loop}, {figures['turns_per_s']:.1f} acknowledged a second",
        f"{'ms':<10}" + "".join(f"{name:>10}" for name in ms),
        f"{'history':<10}" + "".join(f"{value:>10.3f}" for value in ms.values()),
        f"{'Locust':<10}"
        + "".join(f"{locust.get(name, 0):>10.0f}" for name in ms if name != "max"),
        f"generator: {us['cpu_share']:.0%} of a core, {late}, {lag}",
    ]
    lines += [
        f"{name}: " + ", ".join(f"{share} {value:.1f} ms" for share, value in shares.items())
        for name, shares in figures["times_ms"].items()
    ]
    if figures["first_error"] and not figures["attempts"].get("ok"):
        lines.append(f"nothing was acknowledged; the first answer: {figures['first_error']}")
    if figures["server"]:
        lines.append(words_of(figures["server"]))
    if us.get("lost"):
        lines.append(
            f"{counted(us['lost'], 'generator process')} lost: the figures of speed are not "
            "usable, the verdict on safety stands"
        )
    if us.get("machines"):
        lines += _words_of_machines(us["machines"])
    if us["is_bound"]:
        lines.append(f"generator-bound: {us['why']}; the times above are not the server's alone")
    if figures["slo_p99_ms"]:
        # A turn is good when it was in time *and* nothing was broken.
        good = figures["good_turns_per_s"] if verdict.status == 0 else 0.0
        lines.append(f"correct goodput: {good:.1f} turns/s within {figures['slo_p99_ms']:g} ms")
    return "\n".join([*lines, "", verdict.text])


def _machines(run: Any) -> dict[str, Any]:
    """Return what is known of the workers on other machines; nothing where there are none."""
    if run.merged is None:
        return {}
    clocks = {
        str(inbox.worker): {
            "ahead_s": inbox.clock.offset_at(inbox.clock.rounds[-1].at_ns)[0] / 1e9,
            "within_ms": inbox.clock.bound_ns / 1e6,
            "rounds": len(inbox.clock.rounds),
            "bytes": inbox.size,
        }
        for inbox in run.inboxes.values()
    }
    return {"workers": clocks, **run.merged._asdict()}


def _words_of_machines(found: dict[str, Any]) -> list[str]:
    clocks = found["workers"]
    ahead = ", ".join(f"{one['ahead_s']:+.3f} s" for one in clocks.values())
    within = f"{found['bound_ns'] / 1e6:.2f} ms: each operation is judged as that much longer"
    lines = [f"{counted(len(clocks), 'worker')} with other clocks ({ahead}), within {within}"]
    followed, undecided = found["followed"], found["undecided"]
    if undecided:
        close = f"{undecided} of {followed} neighbouring turns of two machines are closer than that"
        is_all = undecided == followed
        lines.append(
            f"{close}: the clocks are too far apart to judge any order between machines"
            if is_all
            else f"{close}: their order is not judged"
        )
    if found["unheard"]:
        lines.append(
            f"{counted(found['unheard'], 'turn')} of a lost worker show only in what others were "
            "shown: their outcome is unknown"
        )
    return lines


def _bound(cpu_share: float, late_s: float, turn_s: float) -> str:
    if cpu_share > CPU_SHARE_LIMIT:
        return f"a process used {cpu_share:.0%} of a core, CPU_SHARE_LIMIT={CPU_SHARE_LIMIT:.0%}"
    if late_s > max(_LATE_LEAST_S, LATE_SHARE_LIMIT * turn_s):
        return f"p99 sent late by {late_s * 1e3:.1f} ms, with p99 of a turn {turn_s * 1e3:.1f} ms"
    return ""
