"""Bench of the load generator: what it costs to record everything that a verdict needs.

One Locust process sends turns at one rate to one server, with and without its history, in turns; a
request costs what CPU the generator spent on it, so that neither the server nor the machine's other
work decides. With the history: markers, two lines a turn, the echo parsed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kode_lab.experiment.bench import Row, row
from kode_lab.experiment.bench_sampling import share
from kode_lab.experiment.load_services import Service

__all__ = ["recording"]

_LOADTEST = Path(__file__).parents[2] / "loadtests" / "churn.py"
_USERS, _RATE, _FOR_S, _ROUNDS = 20, 8, 6, 3


def recording(effort: float) -> list[Row]:
    """Give the requests that a CPU-second of the generator is worth, with and without history."""
    with tempfile.TemporaryDirectory(prefix="kode-lab-bench-") as scratch:
        path = Path(scratch)
        words = ["serve", "--in-process", "--sessions-per-user", "1000000"]
        service = Service([*words, "--data", str(path / "data")], path / "server.log")
        try:
            rates: dict[bool, list[float]] = {True: [], False: []}
            for number in range(share(_ROUNDS, effort, least=1)):
                for is_recording in (True, False):
                    run = path / f"{number}-{is_recording}"
                    for_s = share(_FOR_S, effort, least=2)
                    rates[is_recording].append(_rate(service.url, run, for_s, is_recording))
        finally:
            service.close()
    # The best of each: whatever disturbs a round can only make it worse.
    return [
        row(
            "requests a CPU-second, recorded",
            max(rates[True]),
            "requests",
            baseline=max(rates[False]),
            bar="ratio >= 0.85",
        )
    ]


def _rate(url: str, run: Path, for_s: int, is_recording: bool) -> float:
    words = ["-f", str(_LOADTEST), "--headless", "--only-summary", "--host", url]
    words += ["-u", str(_USERS), "-r", "100", "-t", f"{for_s}s", "--rate", str(_RATE)]
    words += ["--run-dir", str(run), *([] if is_recording else ["--no-history"])]
    subprocess.run(  # noqa: S603 - our own command; its status is a verdict's
        [sys.executable, "-m", "locust", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    figures = json.loads((run / "load.json").read_bytes())
    return float(figures["requests"] / figures["generator"]["cpu_s"])
