"""``python -m benchmarks [NAME ...]``: measure the claimed speed; exit 1 below a bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bench
from kode_lab.errors import InvalidScenario
from kode_lab.lab.provenance import machine

__all__ = ["main"]

_MISSED, _UNUSABLE, _INTERRUPTED = 1, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benches, print their rows, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "names", nargs="*", metavar="NAME", help="only these (default: all; a wrong one lists them)"
    )
    add("--json", action="store_true", help="print the rows as one JSON list")
    add("--save", action="store_true", help="write them to RESULTS/bench, as JSON and as a table")
    add("--effort", type=float, default=1.0, help="do this share of the work; means little below 1")
    add("--results", type=Path, default=Path("results"), help="(default: results)")
    options = parser.parse_args(arguments)
    before, rows, is_interrupted = machine(), [], False
    try:
        for name, found in bench.bench(options.names, effort=options.effort):
            rows += found
            sys.stderr.write(f"{name}: {len(found)} rows\n")
    except InvalidScenario as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return _UNUSABLE
    except KeyboardInterrupt:
        is_interrupted = True
        sys.stderr.write(f"benchmarks: interrupted; {len(rows)} rows were measured\n")
    if options.json:
        sys.stdout.write(bench.as_json(rows))
    else:
        sys.stdout.write(f"before: {before}\nafter:  {machine()}\n\n{bench.table(rows)}")
    if is_interrupted:
        return _INTERRUPTED
    if options.save:
        path = bench.save(rows, options.names, before, options.results / "bench")
        sys.stderr.write(f"saved in {path}\n")
    return 0 if all(row.ok for row in rows) else _MISSED


if __name__ == "__main__":
    sys.exit(main())
