"""One run of a load test, from its directory to its verdict, as listeners of Locust's events.

    test_start   a directory, a recorder in each process
    test_stop    hush everybody, wait for what is under way, ask and read every session once more
    quitting     the judge, whose answer is Locust's exit code
    quit         the verdict, as the last words

One process ends the run: the only one, or the master. It must never judge anything itself.
"""

from __future__ import annotations

import inspect
import logging
import secrets
import shlex
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp  # noqa: F401 - loaded now, not when the first test starts
import gevent
from gevent.pool import Pool
from locust import events
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from kode_lab.history.operation import QUIET
from kode_lab.key import SessionKey
from kode_lab.lab.records import RunRecorder
from kode_lab.load.bridge import Bridge
from kode_lab.load.machines import (
    ClockSample,
    Inbox,
    Merged,
    Outbox,
    WorkerClock,
    line_of,
    machine_clock,
    merge,
)
from kode_lab.load.ranges import problem_of
from kode_lab.load.recorder import HISTORY, Recorder, merged
from kode_lab.load.server_watch import ServerWatch
from kode_lab.load.services import start_target
from kode_lab.load.summary import Judged, judged, save_figures, told, write_page
from kode_lab.load.tail import Tail, percentiles_ms
from kode_lab.load.verdict_tab import add_tab
from kode_lab.targets.gateway import attached
from kode_lab.targets.ours import ServerTarget

__all__ = ["LoadRun", "listen"]

_LOG = logging.getLogger("kode_lab.load")
_HUSH, _HUSHED = "kode_lab_hush", "kode_lab_hushed"
_CLOCK, _HISTORY = "kode_lab_clock", "kode_lab_history"
# Questions about a clock: so many before and after a run, and fewer every few seconds meanwhile.
_QUESTIONS, _FEW_QUESTIONS, _CLOCK_EVERY_S, _ASK_EVERY_S = 16, 4, 5.0, 0.02
_SEND_EVERY_S = 0.25
# Beyond the patience: for messages on their way.
_GRACE_S = 10.0
_PROGRESS_S = 2.0
_WATCH_S = 0.5
# For the probe and the judge of a run that Locust is done with.
_END_S = 300.0
_STATUSES = ("valid", "invalid", "unknown")
_UNUSABLE = 3
_PROBES_AT_ONCE, _ATTEMPTS_LIMIT, _PROBE_PAUSE_S = 16, 20, 0.25
# By it a worker sees whether the master's directory is its own too.
_CLOCK_FILE = ".clock"


class LoadRun:
    """The run that this process takes part in.

    Attributes:
        environment: Locust's.
        recorder: this process's evidence, once a test has started.
        tail: the history so far; only in the process that ends the run.
        verdict: what the judge said last, or None.
        watch: what the server's process takes.
        bridge: the asyncio loop in which turns are taken.
        target: what is asked.
        inboxes: what came from workers on other machines, by their node ids.
        merged: what the merge of these came to.
        ahead_ns: by about how much this process's clock is ahead of the master's.
    """

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.recorder: Recorder | None = None
        self.tail: Tail | None = None
        self.verdict: Judged | None = None
        self.watch = ServerWatch("")
        self.state = "no test has run yet"
        self.bridge = Bridge()
        self.target: Any = None
        self._services: list[Any] = []
        self._asked_dir = environment.parsed_options.run_dir
        self._hushed: dict[str, dict[str, Any]] = {}
        self._generators: set[str] = set()
        self.lost: dict[str, float] = {}
        self._record: RunRecorder | None = None
        self._clocks: dict[str, WorkerClock] = {}
        runner = environment.runner
        self.inboxes: dict[str, Inbox] = {}
        self.merged: Merged | None = None
        self.ahead_ns = 0
        self._outbox: Outbox | None = None
        self._round = 0
        if isinstance(runner, WorkerRunner):
            runner.register_message(_HUSH, self._hush_worker, concurrent=True)
            runner.register_message(_CLOCK, self._tell_clock)
            runner.register_message(_HISTORY, self._history_taken)
        elif isinstance(runner, MasterRunner):
            runner.register_message(_HUSHED, self._worker_hushed)
            runner.register_message(_CLOCK, self._clock_told)
            runner.register_message(_HISTORY, self._take_history)

    @property
    def is_worker(self) -> bool:
        """Whether another process ends the run."""
        return isinstance(self.environment.runner, WorkerRunner)

    def start(self) -> None:
        """Make the run's directory, or open the one that the master made."""
        options = self.environment.parsed_options
        if not self.is_worker:
            # Workers learn it with their first users.
            options.run_dir = str(self._directory().resolve())
            nonce = secrets.token_hex(8)
            options.kode_lab_clock = [nonce, machine_clock(), time.monotonic_ns()]
            (Path(options.run_dir) / _CLOCK_FILE).write_text(nonce)
            options.kode_lab_workers = getattr(self.environment.runner, "worker_count", 0)
        if self.recorder is not None:
            self.recorder.close()
        worker = self.environment.runner.worker_index + 1 if self.is_worker else 0
        run_dir = Path(options.run_dir)
        own = self._own_history(run_dir) if worker else None
        self.recorder = Recorder(
            run_dir,
            worker,
            workers=options.kode_lab_workers if worker else 1,
            is_recording=not options.no_history,
            history=own,
        )
        if own is not None:
            self._outbox = Outbox(own)
            gevent.spawn(self._send_history, self._outbox)
        if not self.is_worker:  # the run may be ended while its target is not up yet
            self.verdict, self.tail = None, Tail(run_dir / HISTORY)
        self._open_target()
        self._hushed.clear()
        self.inboxes.clear()
        self.merged = None
        self.lost.clear()
        self._generators.clear()
        if not self.is_worker:
            self.watch = ServerWatch(options.server_pid, is_steady=self.environment.is_steady)
            self.state = "running"
            if options.progress:
                gevent.spawn(self._tell_progress)
            if isinstance(self.environment.runner, MasterRunner):
                gevent.spawn(self._watch_generators)
                gevent.spawn(self._watch_clocks)

    def stop(self) -> None:
        """End the load and, in the process that ends the run, gather the last evidence."""
        if self.recorder is None:
            return
        if self.is_worker:
            self._drain()
            return
        self.state = "waiting for turns under way"
        try:
            self._gather()
        finally:
            self.state = "over"
            self.recorder.close()

    def _gather(self) -> None:
        assert self.recorder is not None
        self.watch.end()
        if self.environment.nemesis is not None:
            self.environment.nemesis.end()
        figures = merged([self._drain(), *self._hush_workers()])
        (self.recorder.run_dir / _CLOCK_FILE).unlink(missing_ok=True)
        if not self.environment.parsed_options.no_history:
            assert self.tail is not None
            self.state = "asking every session once more"
            # Who never answered is not there: nothing is known of it, and it owes nothing.
            if self.tail.look().counts["ok"]:
                _probe(self.environment, self.recorder, list(self.tail.sessions))
            self._merge()
            self.state = "judging"
        save_figures(self.environment, self.recorder.run_dir, self.tail, figures)
        if not self.environment.parsed_options.no_history:
            self.verdict = judged(self.recorder.run_dir)

    def _directory(self) -> Path:
        """Return the directory that was asked for if it has no history yet, else a new run's."""
        history = Path(self._asked_dir) / HISTORY
        if self._asked_dir and not (history.exists() and history.stat().st_size):
            path = Path(self._asked_dir)
            path.mkdir(parents=True, exist_ok=True)
            return path
        options = self.environment.parsed_options
        name = Path(self.environment.locustfile or "load").stem
        users, for_s = options.num_users or 1, options.run_time or 0
        self._record = RunRecorder(
            Path(self._asked_dir).parent if self._asked_dir else Path("results"),
            "".join(char if char.isalnum() or char in "-_" else "-" for char in name),
            parameters={"users": users, "for_s": for_s, "rate": options.rate}
            | {"host": options.target or self.environment.host or ""},
            seed=options.seed,
            command=" ".join(["locust", *map(shlex.quote, sys.argv[1:])]),
        )
        self._record.close()
        return self._record.path

    def _open_target(self) -> None:
        """Connect to what is asked, and start it if nothing else did."""
        options = self.environment.parsed_options
        if self.target is not None:
            self.bridge.call(self.target.stop)
        if not options.target:
            classes = self.environment.user_classes
            is_streaming = any(getattr(one, "is_streaming", False) for one in classes)
            host = (self.environment.host or "").rstrip("/")
            self.target = ServerTarget(url=host, is_streaming=is_streaming)
            self.bridge.call(self.target.start)
            return
        if not options.target_gateway and not self.is_worker:
            log = Path(options.run_dir)
            self._services = start_target(options.target, log, options.model_url)
            options.target_gateway = self._services[-1].url
            options.model_url = options.model_url or self._services[0].url
        self.target = self.bridge.call(attached, options.target_gateway)

    def close(self) -> None:
        """End what this process started."""
        if self.target is not None:
            self.bridge.call(self.target.stop)
        self.bridge.close()
        for service in reversed(self._services):
            service.close()

    def finish(self) -> None:
        """End a test that still runs, and make the verdict Locust's exit code."""
        runner = self.environment.runner
        if self.is_worker:
            return
        self.environment.process_exit_code = _UNUSABLE
        if self.recorder is None:
            return
        if self.state == "running":
            runner.stop(*([False] if isinstance(runner, MasterRunner) else []))
        # A shape that is over stops the test in a greenlet of its own, while Locust goes on.
        due_s = time.monotonic() + self.environment.parsed_options.patience + _END_S
        while self.state != "over" and time.monotonic() < due_s:
            gevent.sleep(0.05)
        if self.verdict is not None:
            options = self.environment.parsed_options
            self.environment.process_exit_code = self.verdict.exit_code(options)
        if self._record is not None:
            status = "unknown" if self.verdict is None else _STATUSES[min(self.verdict.status, 2)]
            said = {} if self.verdict is None else {"finding": self.verdict.headline}
            self._record.finish("complete", verdict=status, **said)
            self._record = None
            write_page(self.recorder.run_dir)

    def say(self) -> None:
        """Print the verdict; nothing comes after it."""
        if not self.is_worker and self.verdict is not None:
            sys.stderr.flush()
            sys.stdout.write(f"{told(self.verdict)}\n")
            sys.stdout.flush()

    def _tell_progress(self) -> None:
        began_s = time.monotonic()
        while self.state != "over" and self.tail is not None:
            gevent.sleep(_PROGRESS_S)
            counts, took_ns = self.tail.look().counts, self.tail.took_ns[-1_000:]
            p50_ms = percentiles_ms(took_ns).get("p50", 0.0)
            sys.stdout.write(
                f"{time.monotonic() - began_s:5.0f} s  {self.state}: {counts['ok']:,} acknowledged,"
                f" {counts['fail']:,} refused, {counts['info']:,} indeterminate, "
                f"{len(self.tail.open)} under way, median {p50_ms:.1f} ms\n"
            )
            sys.stdout.flush()

    def _drain(self) -> dict[str, Any]:
        """Begin nothing more, wait for what is under way; give this process's figures."""
        assert self.recorder is not None
        self.recorder.is_hushed = True
        group = self.recorder.in_flight
        group.join(timeout=self.environment.parsed_options.patience)
        if group:
            _LOG.warning("%d turns never ended: they are indeterminate", len(group))
            group.kill()
        return self.recorder.figures()

    def _hush_worker(self, environment: Any, msg: Any) -> None:  # noqa: ARG002 - Locust calls it so
        figures = self._drain() if self.recorder is not None else None
        due_s = time.monotonic() + self.environment.parsed_options.patience
        while self._outbox and not self._outbox.is_empty and time.monotonic() < due_s:
            gevent.sleep(_SEND_EVERY_S / 10)
        environment.runner.send_message(_HUSHED, figures)

    # ---- workers on other machines

    def _own_history(self, run_dir: Path) -> Path | None:
        """Return a worker's own file where the master's directory or clock is not this one's."""
        nonce, clock, masters_ns = self.environment.parsed_options.kode_lab_clock
        try:
            is_here = (run_dir / _CLOCK_FILE).read_text("utf-8") == nonce
        except OSError:
            is_here = False
        if is_here and clock == machine_clock():
            return None
        self.ahead_ns = time.monotonic_ns() - masters_ns
        path = Path(tempfile.mkdtemp(prefix="kode-lab-worker-")) / HISTORY
        path.touch()
        return path

    def _send_history(self, outbox: Outbox) -> None:
        while outbox is self._outbox:
            for piece in outbox.pieces():
                self.environment.runner.send_message(_HISTORY, piece)
            gevent.sleep(_SEND_EVERY_S)

    def _history_taken(self, environment: Any, msg: Any) -> None:  # noqa: ARG002 - as above
        if self._outbox is not None:
            self._outbox.taken(msg.data)

    def _take_history(self, environment: Any, msg: Any) -> None:
        """Keep what a worker sent, and put it into the history as its clock is known now."""
        assert self.recorder is not None
        inbox = self.inboxes.get(msg.node_id)
        if inbox is None:
            worker = environment.runner.get_worker_index(msg.node_id) + 1
            inbox = self.inboxes[msg.node_id] = Inbox(self.recorder.run_dir, worker)
            inbox.clock = self._clocks.setdefault(msg.node_id, inbox.clock)
        try:
            upto = inbox.take(msg.data)
        except (ValueError, KeyError, zlib.error) as error:
            _LOG.error("a piece of the history of %s is not usable: %s", msg.node_id, error)
            return
        environment.runner.send_message(_HISTORY, upto, client_id=msg.node_id)
        with (self.recorder.run_dir / HISTORY).open("a", encoding="utf-8") as history:
            history.writelines(map(line_of, inbox.fresh()))

    def _tell_clock(self, environment: Any, msg: Any) -> None:
        got_ns = time.monotonic_ns()
        told = [*msg.data, got_ns, time.monotonic_ns()]
        environment.runner.send_message(_CLOCK, told)

    def _clock_told(self, environment: Any, msg: Any) -> None:  # noqa: ARG002 - as above
        back_ns = time.monotonic_ns()
        round_, sent_ns, got_ns, left_ns = msg.data
        clock = self._clocks.setdefault(msg.node_id, WorkerClock())
        clock.note(round_, ClockSample.of(sent_ns, got_ns, left_ns, back_ns))

    def _ask_clocks(self, count: int) -> None:
        self._round += 1
        for _ in range(count):
            for node_id in self._living():
                told = [self._round, time.monotonic_ns()]
                self.environment.runner.send_message(_CLOCK, told, client_id=node_id)
            gevent.sleep(_ASK_EVERY_S)

    def _watch_clocks(self) -> None:
        self._ask_clocks(_QUESTIONS)
        while self.state == "running":
            gevent.sleep(_CLOCK_EVERY_S)
            self._ask_clocks(_FEW_QUESTIONS)

    def _merge(self) -> None:
        """Write the history anew with all that is known of the clocks now."""
        assert self.recorder is not None
        if not self.inboxes:
            return
        history = self.recorder.run_dir / HISTORY
        self.recorder.close()
        # A worker that was silent to the end may have asked turns of which it told nothing.
        silent = self.environment.runner.worker_indexes.keys() - self._hushed.keys()
        lost = {
            self.environment.runner.get_worker_index(node_id) + 1: self._clocks[node_id].bound_ns
            if node_id in self._clocks
            else 0.0
            for node_id in silent
        }
        inboxes = self.inboxes.values()
        self.merged = merge(history, inboxes, lost, self.recorder.worker_of)
        self.tail = Tail(history).look()

    def _worker_hushed(self, environment: Any, msg: Any) -> None:  # noqa: ARG002 - as above
        self._hushed[msg.node_id] = msg.data

    def _living(self) -> set[str]:
        """Return the generator processes that answer."""
        clients = self.environment.runner.clients
        return {name for name, node in clients.items() if node.state != STATE_MISSING}

    def _watch_generators(self) -> None:
        """Say at once that a generator process was lost: Locust goes on with fewer users."""
        began_s = time.monotonic()
        while self.state == "running":
            living = self._living()
            self._generators |= living
            for name in self._generators - living - self.lost.keys():
                self.lost[name] = time.monotonic() - began_s
                _LOG.error(
                    "a generator process was lost after %.0f s (%s): the figures of speed are not "
                    "usable, the verdict on safety stands",
                    self.lost[name],
                    name,
                )
            gevent.sleep(_WATCH_S)

    def _hush_workers(self) -> list[dict[str, Any]]:
        runner = self.environment.runner
        if not isinstance(runner, MasterRunner) or not runner.clients:
            return []
        runner.send_message(_HUSH)
        patience_s = self.environment.parsed_options.patience + _GRACE_S
        due_s = time.monotonic() + patience_s
        while self._living() - self._hushed.keys() and time.monotonic() < due_s:
            gevent.sleep(0.1)
        self._ask_clocks(_QUESTIONS)
        if self._living() - self._hushed.keys():
            _LOG.warning("not all workers answered within %g s of --patience", patience_s)
        return [figures for figures in self._hushed.values() if figures]


def _probe(environment: Any, recorder: Recorder, keys: Iterable[SessionKey]) -> None:
    """Declare all faults over; take one turn of each session, read it, and ask what tools did.

    A lock that leaked, or a session that was damaged, shows only here; and without the
    authoritative read it cannot be known whether an acknowledged turn was kept.
    """
    user = environment.user_classes[0](environment)
    user.on_start()
    user.attempts_limit = _ATTEMPTS_LIMIT
    recorder.fault(QUIET)
    pool = Pool(_PROBES_AT_ONCE)
    asked = list(keys)
    for key in asked:
        pool.spawn(_ask_again, user, key)
    pool.join()
    if getattr(user, "has_tools", False):
        for key in {key.user_id: key for key in asked}.values():
            pool.spawn(user.ask_world, key)
        pool.join()


def _ask_again(user: Any, key: SessionKey) -> None:
    user.take_turn(key, time.monotonic_ns(), is_load=False)
    if not user.declaration.has_history:
        return
    for _ in range(_ATTEMPTS_LIMIT):
        if not user.read_back(key):
            return
        gevent.sleep(_PROBE_PAUSE_S)


def listen() -> None:
    """Take part in every test of this Locust process."""
    if getattr(events, "is_kode_lab_listening", False):
        return
    events.is_kode_lab_listening = True  # type: ignore[attr-defined]
    events.init_command_line_parser.add_listener(_add_options)
    events.init.add_listener(_begin)
    events.test_start.add_listener(lambda environment, **_: environment.load_run.start())
    events.test_stop.add_listener(lambda environment, **_: environment.load_run.stop())
    events.quitting.add_listener(_finish)


def _finish(environment: Any, **_: Any) -> None:
    try:
        environment.load_run.finish()
    finally:
        environment.load_run.close()


def _add_options(parser: Any) -> None:
    group = parser.add_argument_group("kode_lab")
    at_start = {"is_secret": False, "is_required": False, "is_multiple": False}

    def add(name: str, *, is_in_form: bool = False, **given: Any) -> None:
        option = group.add_argument(name, **given)
        # Locust reads these from an option, and sets them only where no group is asked for.
        vars(option).update(at_start, include_in_web_ui=is_in_form)

    add(
        "--rate",
        type=float,
        default=0.0,
        is_in_form=True,
        help="turns a second of each user (0: the load test's own)",
    )
    add(
        "--closed-loop",
        action="store_true",
        is_in_form=True,
        help="wait for each answer before the next turn",
    )
    add("--seed", type=int, default=0, is_in_form=True, help="of arrivals and choices")
    add(
        "--slo-p99-ms",
        type=float,
        default=0.0,
        is_in_form=True,
        help="exit with 4 when the 99th percentile is slower (0: no objective)",
    )
    add(
        "--patience",
        type=float,
        default=60.0,
        is_in_form=True,
        help="seconds for turns under way at the end",
    )
    add("--run-dir", default="", help="where the evidence goes (default: results/<utc>-<name>-…)")
    add("--server-pid", default="", help="file with the server's pid: to kill it, or to watch it")
    add("--model-url", default="", help="the simulated model, where faults can be armed")
    add("--target", default="", help="asked instead of --host: mine.toml, a.py:chat, a name")
    add("--target-gateway", default="", help="where that target was started already")
    add("--progress", action="store_true", help="tell every two seconds how it goes")
    add("--no-history", action="store_true", help="record nothing: measures what recording costs")


def _begin(environment: Any, web_ui: Any, **_: Any) -> None:
    if wrong := problem_of(environment.parsed_options):
        if not isinstance(environment.runner, WorkerRunner):  # it is said once
            sys.stderr.write(f"kode-lab: {wrong}\n")
        sys.exit(_UNUSABLE)
    # With it, -t 5s runs five seconds: gevent's idea of now is as old as its last wait.
    gevent.get_hub().loop.update_now()
    # Locust looks at its stack when it stops, which stalls the whole process for a third of a
    # second the first time, just when turns are under way.
    inspect.getframeinfo(inspect.stack()[0][0])
    # What a load test may add: somebody who breaks things, a demand that memory stays flat.
    environment.nemesis = None
    environment.is_steady = False
    environment.load_run = LoadRun(environment)
    events.quit.add_listener(lambda **_: environment.load_run.say())
    if web_ui is not None:
        add_tab(environment, web_ui)
