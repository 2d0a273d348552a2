"""``kode-lab judge``: do the standard battery to any agent service, and judge it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kode_lab.cli.status import INTERRUPTED

if TYPE_CHECKING:
    from kode_lab.lab.judging import Judged

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``judge``."""
    command = commands.add_parser(
        "judge", help="judge any agent service: a TOML file, a Python function, a shipped target"
    )
    option = command.add_argument
    option(
        "targets", nargs="*", metavar="TARGET",
        help="FILE.toml, FILE.py:FUNCTION, 'lines:COMMAND' or a shipped name (see --list)",
    )  # fmt: skip
    option("--list", action="store_true", help="list the shipped targets")
    option("--install", action="store_true", help="first make a shipped target's environment")
    option("--compare", action="store_true", help="print one table: target by anomaly")
    option("--loads", metavar="NAMES", help="only these loads of the battery, by commas")
    option("--rounds", type=int, default=3, help="how often each load is repeated (default: 3)")
    option("--timeout", type=float, default=20.0, help="seconds to wait for a reply (default: 20)")
    option("--limit", type=float, default=90.0, help="seconds for all loads (default: 90)")
    option("--model-port", type=int, default=0, help="of the simulated model (default: any)")
    option("--model-s", type=float, default=0.05, help="seconds of a model call (default: 0.05)")
    option("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    option("--json", action="store_true", help="print the verdict as JSON")
    option("--no-page", action="store_true", help="write no report page")
    option("--results", type=Path, default=Path("results"), help="where runs go (default: results)")
    command.set_defaults(run=_judge)


def _judge(options: argparse.Namespace) -> int:
    from kode_lab.errors import InvalidScenario, KodeLabError  # noqa: PLC0415 - here and below
    from kode_lab.targets.opening import install, shipped  # noqa: PLC0415

    if options.list:
        print("\n".join(shipped()))
        return 0
    if not options.targets:
        raise InvalidScenario("which target? Give a TOML file, FILE.py:FUNCTION, or a shipped name")
    judged: list[Judged] = []
    statuses = []
    for spec in options.targets:
        if options.install and spec in shipped():
            sys.stderr.write(f"kode-lab: installing {spec}\n")
            install(spec)
        try:
            one = _judged(spec, options)
        except KodeLabError as error:
            if len(options.targets) == 1:
                raise
            sys.stderr.write(f"kode-lab: {spec}: {type(error).__name__}: {error}\n")
            statuses.append(3)
            continue
        if one is None:
            return INTERRUPTED
        judged.append(one)
        statuses.append(one.verdict.exit_status)
        if not options.compare:
            _say(one, options)
    if options.compare and judged:
        from kode_lab.reports.matrix import matrix_text, save_matrix  # noqa: PLC0415

        print(matrix_text(judged))
        print(save_matrix(judged, options.results))
    return 1 if 1 in statuses else max(statuses)


def _judged(spec: str, options: argparse.Namespace) -> Judged | None:
    from kode_lab.claude import Profile  # noqa: PLC0415
    from kode_lab.errors import InvalidScenario  # noqa: PLC0415 - as above
    from kode_lab.lab import start  # noqa: PLC0415
    from kode_lab.lab.battery import LOADS, Settings  # noqa: PLC0415
    from kode_lab.lab.judging import judge_target, rows  # noqa: PLC0415
    from kode_lab.lab.live import Pace, Progress, card_for  # noqa: PLC0415

    loads = tuple(filter(None, (options.loads or "").split(",")))
    for load in loads:
        if load not in LOADS:
            raise InvalidScenario(f"--loads {load!r:.40} is not valid: choose {', '.join(LOADS)}")
    for name, value, least in (
        ("--rounds", options.rounds, 1),
        ("--timeout", options.timeout, 0.1),
        ("--limit", options.limit, 1),
        ("--model-s", options.model_s, 0),
    ):
        if not least <= value <= 3600:
            raise InvalidScenario(f"{name} {value:g} is not valid: choose {least:g} to 3600")
    settings = Settings(
        seed=options.seed,
        rounds=options.rounds,
        timeout_s=options.timeout,
        limit_s=options.limit,
        loads=loads,
    )
    progress = Progress(spec, rows())
    pace = Pace(card_for(sys.stderr), progress)
    handle = start(
        lambda: judge_target(
            spec,
            settings=settings,
            results=options.results,
            progress=progress,
            command=f"kode-lab judge {shlex.quote(spec)}",
            profile=Profile(ttft_s=options.model_s, jitter=0.5),
            model_port=options.model_port,
        ),
        name=f"battery on {spec}",
        on_tick=pace.tick,
        on_end=pace.end,
    )
    try:
        return handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"kode-lab: interrupted; what there is is kept in {progress.where}\n")
        return None


def _say(one: Judged, options: argparse.Namespace) -> None:
    """Print the verdict, then what could not be judged and why."""
    from kode_lab.reports.page import report  # noqa: PLC0415

    page = one.run.path / "report.html"
    if not options.no_page:
        report(one.run).save(page)
    if options.json:
        fields: dict[str, Any] = {
            "target": one.declaration.name,
            "run": str(one.run.path),
            "lost": one.lost,
        }
        fields |= {"remarks": one.remarks, "not_done": one.not_done, "first_error": one.first_error}
        print(json.dumps(fields | one.verdict.to_json(), ensure_ascii=False, indent=1))
        return
    print(one.verdict)
    print("\n".join(["", *_remarks(one)]))
    print(f"{one.run.path}" + ("" if options.no_page else f", {page.name}"))


def _remarks(one: Judged) -> list[str]:
    """Return what a reader of the verdict has to know about the run."""
    remarks = [f"not done: {name}: {why}" for name, why in one.not_done.items()]
    if not one.verdict.evidence.acknowledged:
        remarks.append(f"no turn was acknowledged; the first answer: {one.first_error}")
    elif one.first_error:
        remarks.append(f"the first turn that was not acknowledged: {one.first_error}")
    remarks += [f"the service was lost: {words}" for words in one.lost]
    if not one.model_requests and one.verdict.evidence.acknowledged:
        remarks.append(
            "the simulated model was never asked, so what a turn was shown is not known (G1, G4): "
            "point the service's model URL at {model_url} in env, or at --model-port"
        )
    if not one.declaration.has_history:
        remarks.append("its sessions cannot be read back: describe [history] to judge G2 and G3")
    remarks += one.remarks
    if one.declaration.notes:
        remarks.append(one.declaration.notes)
    return remarks
