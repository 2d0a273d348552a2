"""``kode-lab load NAME``: a Locust file with everything around it, from servers to pictures.

It starts what is missing (simulated Claude, server), runs Locust as a child, because importing it
would patch this process's sockets, and keeps all that came of it in one run's directory. What the
run is worth, the judge says inside Locust's run; here it is only passed on: exit status and verdict
are Locust's.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from kode_lab.child import Child
from kode_lab.errors import InvalidScenario
from kode_lab.lab.exports import export
from kode_lab.lab.records import RunRecorder
from kode_lab.load.ranges import problem_of
from kode_lab.load.services import Service, start_target
from kode_lab.targets.http_target import free_port

__all__ = ["SETTINGS", "Setting", "run_load", "seconds_of"]

_UNUSABLE, _INTERRUPTED = 3, 130
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, None: 1}
# What Locust may take beyond the load itself: turns under way, probes, the judge.
_END_LIMIT_S = 900.0


class Setting(NamedTuple):
    """How a load test is run by default.

    Attributes:
        users: Locust's; each is a source of turns.
        for_s: how long.
        profile: latencies of the simulated model, as lines of its TOML file.
        residents: how many sessions the server keeps at hand; 0 is its default.
        is_traced: whether the server records its steps; long and killed runs do without.
    """

    users: int = 20
    for_s: float = 10.0
    profile: str = ""
    residents: int = 0
    is_traced: bool = True


# Fast, and yet slow enough for turns of one session to meet.
_QUICK = "ttft_s = 0.04\njitter = 0.5"
SETTINGS = {
    "hot_session": Setting(),
    "same_name": Setting(users=30, profile=_QUICK),
    "many_sessions": Setting(users=400, for_s=30, profile="ttft_s = 0.2\njitter = 0.5"),
    "churn": Setting(users=20, for_s=20, profile=_QUICK, residents=16),
    "tools": Setting(profile=_QUICK),
    "streaming": Setting(users=30, profile="ttft_s = 0.1\ntoken_s = 0.01\njitter = 0.2"),
    "chaos": Setting(users=20, for_s=300, profile=_QUICK, is_traced=False),
    "soak": Setting(users=10, for_s=600, residents=64, is_traced=False),
    "spike": Setting(users=60, for_s=30),
}


def run_load(options: Namespace) -> int:
    """Run one load test, and give its exit status.

    Raises:
        InvalidScenario: there is no such load test, an option makes no sense, or a server did not
            start.
    """
    path = _locustfile(options.name)
    if importlib.util.find_spec("locust") is None:
        raise InvalidScenario("load tests need Locust: pip install locust")
    if problem := problem_of(options, may_be_zero=False):
        raise InvalidScenario(problem)
    _check_fault(options)
    setting = SETTINGS.get(path.stem, Setting())
    for_s = setting.for_s if options.run_time is None else seconds_of(options.run_time)
    users = options.users or setting.users
    recorder = RunRecorder(
        options.results,
        path.stem,
        parameters={"users": users, "for_s": for_s, "rate": options.rate or 0.0, "host": "its own"}
        | ({"host": options.host} if options.host else {})
        | ({"target": options.target} if options.target else {})
        | {"fault": options.fault}
        | {"is_closed_loop": options.closed_loop, "processes": options.processes or 0},
        seed=options.seed,
        command=" ".join(["kode-lab load", shlex.quote(options.name), f"--for {for_s:g}s"]),
    )
    sys.stderr.write(f"kode-lab: {path.stem}, {users} users, {for_s:g} s; run {recorder.path}\n")
    status = "crashed"
    code = _UNUSABLE
    with ExitStack() as stack:
        _end_on_sigterm(stack)
        try:
            words = _servers(options, setting, recorder.path, stack)
            words += ["-u", str(users), "-r", str(options.spawn_rate or users)]
            words += ["-t", f"{max(1, round(for_s))}s", "--run-dir", str(recorder.path)]
            words += _passed_on(options)
            code = _locust(path, words, recorder.path, is_web=options.web, limit_s=for_s)
            status = "complete"
        except KeyboardInterrupt:
            status, code = "interrupted", _INTERRUPTED
        finally:
            recorder.close()
    run = recorder.finish(status, exit_status=code)
    export(run)
    where = f"run {run.path}"
    if not options.no_pictures and (run.path / "verdict.json").exists():
        from kode_lab.reports.page import report  # noqa: PLC0415 - matplotlib

        page = report(run, figures=run.path / "figures")
        page.save(run.path / "report.html")
        where += f", report.html with {page.html.count('<figure>')} pictures"
    sys.stderr.write(f"kode-lab: {where}\n")
    sys.stderr.flush()
    return _say_verdict(run.path, code)


def _check_fault(options: Namespace) -> None:
    if options.fault is None:
        return
    if options.host or options.target:
        raise InvalidScenario(
            "--fault is made by a server that is started here: leave it out with --host or --target"
        )
    from kode_lab.faults.catalogue import fault_of  # noqa: PLC0415 - few runs have one
    from kode_lab.faults.serving import SERVABLE  # noqa: PLC0415 - as above

    if fault_of(options.fault).name not in SERVABLE:
        raise InvalidScenario(
            f"--fault {options.fault} needs the laboratory, and cannot be served: choose one of "
            f"{', '.join(SERVABLE)}"
        )


def seconds_of(text: str) -> float:
    """Return the seconds of ``10s``, ``2m``, ``1h`` or ``10``.

    Raises:
        InvalidScenario: it is none of these, or nothing.
    """
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise InvalidScenario(f"--for {text!r:.40} is no duration: write 10s, 2m or 1h")
    return seconds


def _locustfile(name: str) -> Path:
    """Return the load test of that name, from here or from the checkout, or the file itself."""
    given = Path(name)
    if given.suffix == ".py" and given.is_file():
        return given
    # Here, in a checkout, and in an installed package.
    package = Path(__file__).parents[1]
    places = (Path("loadtests"), package.parent / "loadtests", package / "loadtests")
    for place in places:
        if name in SETTINGS and (place / f"{name}.py").is_file():
            return place / f"{name}.py"
    known = ", ".join(SETTINGS)
    raise InvalidScenario(f"there is no load test {name!r:.60}: choose {known}, or give a file")


def _servers(options: Namespace, setting: Setting, path: Path, stack: ExitStack) -> list[str]:
    """Start the services that were not given, and tell Locust where all of them are."""
    if options.host:
        given = {"--server-pid": options.server_pid, "--model-url": options.model_url}
        return ["--host", options.host, *(w for pair in given.items() if pair[1] for w in pair)]
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kode-lab-load-")))
    if options.target:
        # Slow enough for turns to meet, as in the standard battery.
        (scratch / "profile.toml").write_text(setting.profile or "ttft_s = 0.05\njitter = 0.5\n")
        model = ["--profile", options.profile or str(scratch / "profile.toml")]
        services = start_target(options.target, path, options.model_url or "", model)
        for service in services:
            stack.callback(service.close)
        model_url = options.model_url or services[0].url
        told = ["--target", options.target, "--target-gateway", services[-1].url]
        return [*told, "--model-url", model_url]
    profile = options.profile
    if profile is None:
        profile = str(scratch / "profile.toml")
        Path(profile).write_text(f"{setting.profile}\n", encoding="utf-8")
    serve = ["serve", "--sessions-per-user", "1000000"]
    if setting.residents:
        serve += ["--residents", str(setting.residents)]
    if options.fault:
        serve = ["serve-fault", options.fault]
    serve += ["--data", str(scratch / "data")]
    words: list[str] = []
    if options.in_process:
        # A faulty server simulates inside itself unless it is told otherwise.
        serve += [*([] if options.fault else ["--in-process"]), "--profile", profile]
    else:
        claude = Service(["simulate", "--profile", profile], path / "simulated.log")
        stack.callback(claude.close)
        serve += ["--model-url", claude.url]
        words += ["--model-url", claude.url]
    if setting.is_traced and not (options.no_trace or options.fault):
        serve += ["--trace", str(path / "trace.jsonl")]
    pid_file = scratch / "server.pid"
    server = Service(serve, path / "server.log", pid_file=pid_file)
    stack.callback(server.close)
    return ["--host", server.url, "--server-pid", str(pid_file), *words]


def _passed_on(options: Namespace) -> list[str]:
    words = ["--seed", str(options.seed), "--progress"]
    if options.rate:
        words += ["--rate", str(options.rate)]
    if options.closed_loop:
        words.append("--closed-loop")
    if options.slo_p99_ms:
        words += ["--slo-p99-ms", str(options.slo_p99_ms)]
    if options.kills is not None:
        words += ["--kills", str(options.kills)]
    if options.processes:
        words += ["--processes", str(options.processes), "--enable-rebalancing"]
        # Two such runs at once would meet at Locust's one port.
        port = str(free_port())
        words += ["--master-bind-port", port, "--master-port", port]
    return words


def _locust(path: Path, words: list[str], run: Path, *, is_web: bool, limit_s: float) -> int:
    """Run Locust to its end; its progress goes to our stderr, all else that it writes to a file."""
    mode = ["--autostart", "--web-host", "127.0.0.1"] if is_web else ["--headless"]
    command = [sys.executable, "-m", "locust", "-f", str(path), *mode, "--only-summary", *words]
    # In a group of its own: Ctrl-C in a terminal is for us, and Locust is then asked to end once.
    child = Child(command, log=run / "locust.log", is_piped=True)
    teller = threading.Thread(target=_tell, args=(child, run / "locust.log"), daemon=True)
    teller.start()
    if is_web:
        sys.stderr.write("kode-lab: Locust's page is http://127.0.0.1:8089; Ctrl-C ends it\n")
    try:
        if not child.wait(None if is_web else limit_s + _END_LIMIT_S):
            raise InvalidScenario(
                f"Locust did not end within _END_LIMIT_S={_END_LIMIT_S:g} s; see locust.log"
            )
        return child.status or 0
    finally:
        # Locust itself judges what there is before it ends.
        if child.is_running:
            sys.stderr.write("kode-lab: ending; what was recorded so far is judged\n")
            child.ask_to_end()
            with suppress(KeyboardInterrupt):
                child.wait(_END_LIMIT_S)
        teller.join(5)
        child.kill()


def _tell(child: Child, log: Path) -> None:
    """Pass on how it goes; the rest is for the file."""
    assert child.stdout is not None
    with log.open("ab") as rest:
        for line in child.stdout:
            if re.match(rb" *\d+ s  ", line):
                sys.stderr.write(line.decode("utf-8", "replace"))
                sys.stderr.flush()
            else:
                rest.write(line)
                rest.flush()


def _say_verdict(path: Path, code: int) -> int:
    """Print the verdict; return the exit status, which is 3 when Locust ended without one."""
    try:
        sys.stdout.write((path / "summary.txt").read_text("utf-8"))
    except FileNotFoundError:
        log = path / "locust.log"
        said = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
        why = f": {said[-1].strip()}" if said else ""
        told = "" if code == _INTERRUPTED else f"; all that it said is in {log}"
        sys.stdout.write(f"Locust ended with {code} and without a verdict{why}{told}\n")
        return code if code == _INTERRUPTED else _UNUSABLE
    return code


def _end_on_sigterm(stack: ExitStack) -> None:
    """Let SIGTERM end this as Ctrl-C does: no child is left behind."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    stack.callback(signal.signal, signal.SIGTERM, before)
