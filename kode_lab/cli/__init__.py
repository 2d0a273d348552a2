"""``kode-lab``: one small function a command.

It owns the words of the command line and the exit status, and does no work: each command imports
what it needs when it runs, so that ``kode-lab --help`` costs nothing of the laboratory.

    0    every claim, every guarantee holds
    1    one is violated
    2    unknown: not enough was seen to tell
    3    the input cannot be used; one line on stderr says why
    4    valid, but slower than was asked for
    130  interrupted; what there was is kept
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kode_lab import __version__
from kode_lab.cli.serve import add_serve
from kode_lab.errors import KodeLabError

__all__ = ["main"]

_STATUS_OF_VERDICT = {"holds": 0, "not applicable": 0, "violated": 1, "unknown": 2}
_UNUSABLE, _INTERRUPTED = 3, 130
_ARGPARSE_UNUSABLE = 2
# What a shell shows of a command whose reader went away (128 + SIGPIPE).
_UNREAD = 141
# Where nobody has a window, as in a pipe or a log, and COLUMNS says nothing.
_UNWATCHED_CHARS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and give the exit status."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as ended:
        # argparse says 2 for what it cannot parse; 2 means unknown here.
        return _UNUSABLE if ended.code == _ARGPARSE_UNUSABLE else 0
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KodeLabError as error:
        sys.stderr.write(f"kode-lab: {type(error).__name__}: {error}\n")
        return _UNUSABLE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # `| head` has seen enough; without this, flushing at exit would complain.
        _hush()
        return _UNREAD
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"kode-lab: {what}{error.strerror or error}\n")
        _hush()
        return _UNUSABLE
    return status


def _hush() -> None:
    """Write nothing more to stdout, which cannot be written to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kode-lab",
        description="Do sessions of LLM agents stay apart and in order under load, and how fast?",
        epilog="Exit status: 0 holds, 1 violated, 2 unknown, 3 unusable input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"kode-lab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "reproduce", help="run the concurrency report's two tests and compare number by number"
    )
    command.add_argument(
        "report", nargs="?", type=Path, metavar="REPORT",
        help="instead: a JSON of arrivals, times and tool calls (see record), or a run to repeat",
    )  # fmt: skip
    command.add_argument(
        "--speed", type=float, default=1.0, help="make the simulated model faster (default: 1)"
    )
    command.add_argument("--model", help="ask this real model; needs ANTHROPIC_API_KEY")
    command.add_argument(
        "--profile", type=Path, help="other latencies for the simulated model (a TOML file)"
    )
    command.add_argument(
        "--results", type=Path, default=Path("results"), help="where runs go (default: results)"
    )
    command.add_argument("--json", action="store_true", help="print the claims as JSON")
    command.set_defaults(run=_reproduce)

    command = commands.add_parser("simulate", help="serve the simulated Messages API on loopback")
    command.add_argument("--port", type=int, default=8765, help="0 is any free one (default: 8765)")
    command.add_argument("--speed", type=float, help="this much faster than the profile says")
    command.add_argument("--profile", help="report (default), instant, or a TOML file")
    command.set_defaults(run=_simulate)

    command = commands.add_parser("postgres", help="run a PostgreSQL that is thrown away")
    command.add_argument("--port", type=int, help="also on loopback; 0 is any free one")
    command.add_argument("--data", type=Path, help="keep what is stored in this directory")
    command.set_defaults(run=_postgres)

    add_serve(commands)
    _add_load(commands)
    _add_check(commands)
    _add_faults(commands)
    _add_pages(commands)
    return parser


def _add_load(commands: Any) -> None:
    """Add ``load``, which wraps Locust."""
    command = commands.add_parser("load", help="load a server with sessions, and judge what came")
    add = command.add_argument
    add("name", metavar="NAME", help="a load test (a wrong one lists them), a file, or faults")
    add("--for", dest="run_time", metavar="TIME", help="10s, 2m, 1h (default: the test's own)")
    add("--users", type=int, help="sources of turns (default: the test's own)")
    add("--spawn-rate", type=float, help="users a second (default: all at once)")
    add("--rate", type=float, help="turns a second of each user (default: the test's own)")
    add("--closed-loop", action="store_true", help="wait for each answer before the next turn")
    add("--slo-p99-ms", type=float, help="exit with 4 when turns are slower")
    add("--processes", type=int, help="of the generator (default: one)")
    add("--seed", type=int, default=0, help="of arrivals and choices (default: 0)")
    add("--web", action="store_true", help="with Locust's web UI; Ctrl-C ends it")
    add("--host", help="a server that runs already (default: one is started, with its model)")
    add("--server-pid", help="with --host: the file with its pid, for tests that kill or watch it")
    add("--model-url", help="with --host: its simulated model, for tests that break that")
    add("--profile", help="latencies of the simulated model: instant, report, a TOML file")
    add("--fault", help="start a server that makes this mistake (see kode-lab faults --list)")
    add("--in-process", action="store_true", help="simulate the model inside the server")
    add("--no-pictures", action="store_true", help="write no report")
    add("--kills", type=int, help="of the server, in chaos (default: 20)")
    add("--no-trace", action="store_true", help="the server records no steps")
    add("--results", type=Path, default=Path("results"), help="where runs go (default: results)")
    command.set_defaults(run=_load)


def _load(options: argparse.Namespace) -> int:
    if options.name == "faults":
        from kode_lab.load.fault_table import run_table  # noqa: PLC0415

        return run_table(options)
    from kode_lab.load.command import run_load  # noqa: PLC0415

    return run_load(options)


def _add_check(commands: Any) -> None:
    """Add ``check``, the judge's command."""
    command = commands.add_parser(
        "check", help="judge a run or a history: valid, invalid or unknown, with witnesses"
    )
    command.add_argument(
        "path", type=Path, metavar="RUN_OR_JSONL", help="id, directory or docs/history-format.md"
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="(default: results)")
    command.add_argument(
        "--guarantee", action="append", metavar="NAME", help="claim only this (G1 or apart, ...)"
    )
    command.add_argument(
        "--overtaking-limit", type=int, metavar="N",
        help="claim that no more than N turns sent after one stand before it",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the verdict as JSON")
    command.set_defaults(run=_check)


def _add_faults(commands: Any) -> None:
    """Add ``faults``, the laboratory's command."""
    command = commands.add_parser(
        "faults", help="make mistakes on purpose, and see whether the judge convicts them"
    )
    add = command.add_argument
    add(
        "names", nargs="*", metavar="NAME",
        help="only these (default: all); or: serve NAME; or: postgres [NAME ...]",
    )  # fmt: skip
    add("--list", action="store_true", help="say what there is")
    add("--seeds", type=int, default=10, help="schedules of each fault and its twin (default: 10)")
    add("--replay", type=int, metavar="SEED", help="play this schedule again, and tell the witness")
    add("--shrink", action="store_true", help="find the smallest play that convicts")
    add("--keep", type=Path, metavar="DIR", help="keep the play's history and trace there")
    add("--json", action="store_true", help="print the outcomes as one JSON list")
    add("--save", action="store_true", help="keep them in RESULTS/faults, as JSON and as a table")
    add("--results", type=Path, default=Path("results"), help="(default: results)")
    serve = command.add_argument_group("with serve NAME: a server that has the fault")
    add = serve.add_argument
    add("--port", type=int, default=8000, help="0 is any free one (default: 8000)")
    add("--data", type=Path, default=Path(".kode"), help="where sessions rest (default: .kode)")
    add("--model-url", help="ask the Messages API at this address (default: simulated, no HTTP)")
    add("--profile", help="latencies of the simulation: instant (default), report, a TOML file")
    storm = command.add_argument_group("with postgres: what happens to workers and database")
    add = storm.add_argument
    add("--turns", type=int, help="the least that is asked (default: the storm's own)")
    add("--sessions", type=int, help="(default: 240)")
    add("--workers", type=int, help="processes (default: 4)")
    add("--times", type=int, help="how often each fault comes (default: the storm's own)")
    add("--seed", type=int, help="of what is drawn (default: 0)")
    command.set_defaults(run=_faults)


def _faults(options: argparse.Namespace) -> int:
    if options.names[:1] == ["postgres"]:
        from kode_lab.storms.command import run_storms  # noqa: PLC0415

        return run_storms(options)
    if options.names[:1] == ["serve"]:
        from kode_lab.faults.serving import serve_fault  # noqa: PLC0415

        return serve_fault(options)
    from kode_lab.faults.command import run_faults  # noqa: PLC0415

    return run_faults(options)


def _add_pages(commands: Any) -> None:
    """Add what makes one file of a run: ``report`` and ``record``."""
    command = commands.add_parser("report", help="write a run as one HTML page to send to somebody")
    command.add_argument(
        "run_id", metavar="RUN", nargs="?", default="latest", help="id or directory"
    )
    command.add_argument("--output", type=Path, help="the page (default: report.html in the run)")
    command.add_argument("--results", type=Path, default=Path("results"), help="(default: results)")
    command.set_defaults(run=_report)
    command = commands.add_parser("record", help="print a run as a JSON that reproduce can replay")
    command.add_argument(
        "run_id", metavar="RUN", nargs="?", default="latest", help="id or directory"
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="(default: results)")
    command.set_defaults(run=_record)


def _report(options: argparse.Namespace) -> int:
    from kode_lab.lab.run import Run  # noqa: PLC0415
    from kode_lab.reports.page import report  # noqa: PLC0415

    run = Run.load(options.run_id, options.results)
    page = report(run)
    print(f"{page.title}\n{page.save(options.output or run.path / 'report.html')}")
    return {"valid": 0, "invalid": 1}.get(page.status, _STATUS_OF_VERDICT["unknown"])


def _record(options: argparse.Namespace) -> int:
    from kode_lab.lab.run import Run  # noqa: PLC0415
    from kode_lab.reports.record import left_out_of, recorded  # noqa: PLC0415

    run = Run.load(options.run_id, options.results)
    fields = recorded(run)
    print(json.dumps(fields, ensure_ascii=False, indent=1))
    if missing := left_out_of(fields):
        sys.stderr.write(f"kode-lab: {run.id}: {missing}\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    from kode_lab.check import main as judge  # noqa: PLC0415

    return judge(
        _found(options.path, options.results),
        as_json=options.json,
        guarantees=options.guarantee,
        overtaking_limit=options.overtaking_limit,
    )


def _found(path: Path, results: Path) -> Path:
    """Return what a path means: itself, or the run of that id below ``results``."""
    below = results / path
    return below if not path.exists() and below.exists() else path


def _reproduce(options: argparse.Namespace) -> int:
    if options.report is not None:
        from kode_lab.reports.replay import replay_command  # noqa: PLC0415

        options.report = _found(options.report, options.results)
        return replay_command(options)
    from rich.console import Console  # noqa: PLC0415 - here and below: --help needs none of it

    from kode_lab.claude.profile import profile_of  # noqa: PLC0415
    from kode_lab.lab.live import Progress, card_for  # noqa: PLC0415
    from kode_lab.reports.reproduce import reproduce  # noqa: PLC0415
    from kode_lab.reports.summary import print_summary  # noqa: PLC0415

    progress = Progress("")
    handle = reproduce(
        speed=options.speed,
        model=options.model,
        profile=profile_of(options.profile) if options.profile else None,
        results=options.results,
        progress=progress,
        # With --json, stdout is the document's alone.
        card=card_for(sys.stderr if options.json else sys.stdout),
    )
    try:
        recording = handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"kode-lab: interrupted; what there is is kept in {progress.where}\n")
        return _INTERRUPTED
    if options.json:
        claims = json.loads((recording.run.path / "claims.json").read_bytes())
        print(json.dumps({"run": str(recording.run.path), **claims}, ensure_ascii=False, indent=1))
    else:
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNWATCHED_CHARS
        print_summary(recording.run, recording.claims, Console(width=width, highlight=False))
    return _STATUS_OF_VERDICT[recording.verdict]


def _simulate(options: argparse.Namespace) -> int:
    from kode_lab.claude.simulated import run_simulated  # noqa: PLC0415

    return run_simulated(options)


def _postgres(options: argparse.Namespace) -> int:
    from kode_lab.testing.postgres.command import run_postgres  # noqa: PLC0415

    return run_postgres(options)
