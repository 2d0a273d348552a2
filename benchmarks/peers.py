"""``make bench-peers``: a turn of kode_lab beside a turn of other frameworks, in one run.

It starts a process for each side in turns (A B C A B C), each in the environment that the side
needs, and compares the medians. It is no part of ``make bench``, because the frameworks must be
downloaded: ``benchmarks/peers.txt`` has their versions.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bench import Row, row, save, table
from benchmarks.peer import SIDES
from kode_lab.lab.provenance import machine

__all__ = ["peers"]

_HERE = Path(__file__).resolve().parent
_ROUNDS = 5
_LIMIT_S = 120.0


def peers(environment: Path, rounds: int = _ROUNDS) -> list[Row]:
    """Return the CPU time of a turn on each side; ``environment`` is that of the frameworks.

    Raises:
        subprocess.CalledProcessError: a side could not be measured; it said why.
    """
    taken_us: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, all_us in taken_us.items():
            is_ours = name in ("kode_lab", "bare_append")
            python = sys.executable if is_ours else str(environment / "bin" / "python")
            with tempfile.TemporaryDirectory() as directory:
                done = subprocess.run(  # noqa: S603 - our own file
                    [python, _HERE / "peer.py", name, directory],
                    stdout=subprocess.PIPE,
                    timeout=_LIMIT_S,
                    check=True,
                    text=True,
                )
            all_us.append(float(done.stdout.split()[-1]))
    medians = {name: statistics.median(all_us) for name, all_us in taken_us.items()}
    return [
        row(
            f"peers: a turn from the tenth on, CPU of {name}, against kode_lab",
            value,
            "us",
            baseline=medians["kode_lab"],
        )
        for name, value in medians.items()
    ]


def main() -> int:
    """Measure, print the table, and with ``--save`` keep it in results/bench."""
    environment = Path(sys.argv[1])
    before = machine()
    rows = peers(environment)
    sys.stdout.write(f"before: {before}\nafter:  {machine()}\n\n{table(rows)}")
    if "--save" in sys.argv:
        path = save(rows, ["peers"], before, Path("results") / "bench")
        command = "make bench-peers ARGS=--save"
        path.write_text(path.read_text().replace("python -m benchmarks peers --save", command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
