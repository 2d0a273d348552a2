"""The laboratory's own event loop, and the handle by which a caller waits for what runs on it.

    run = await lab.run(Scenario(users=4))        # in a cell
    run = lab.run(Scenario(users=4)).result()     # in a script

It owns the thread, the loop and the ways a run is waited for or broken off; of what runs it knows
only where to find it. One run, one thread, one loop: what is made for a run (clients, locks, pools)
is bound to the loop that uses it, and ends with it.

Why not in the caller's loop: a notebook's loop is busy with the notebook, a script has none, and
the one trick that lets both call the same blocking function (nest-asyncio) loses queued cells. So a
handle is *awaited* in a cell and asked for its *result()* in a script, and nothing is written
twice. For a blocking callback inside a running loop there is ``lab.nested``, opt-in.

While somebody waits, the handle ticks ten times a second. An awaited future alone wakes its loop
only when it is done, and until the loop wakes, Interrupt does nothing. The tick also redraws
whatever shows the progress, in the waiting thread: a notebook takes output from no other.

Source: measured in ``notebooks-and-pictures`` of the design (interrupt 14 s late without a tick).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from kode_lab.lab.live import Card, Progress
    from kode_lab.lab.records import Run, RunList
    from kode_lab.lab.scenario import Scenario
    from kode_lab.lab.trial import MakeStore
    from kode_lab.targets.target import Target

__all__ = [
    "SETTLE_LIMIT_S",
    "TICK_S",
    "Handle",
    "Interrupted",
    "is_notebook",
    "load",
    "run",
    "runs",
    "start",
]

T = TypeVar("T")

TICK_S = 0.1
# How long a cancelled run may take to close its servers and write what it has.
SETTLE_LIMIT_S = 10.0


def run(
    scenario: Scenario,
    *,
    make_store: MakeStore | None = None,
    target: Target | str | None = None,
    results: Path | str | None = None,
    progress: Progress | None = None,
    card: Card | None = None,
) -> Handle[Run]:
    """Begin a scenario now; await the handle, or ask it for its ``result()``: the judged run.

    Args:
        scenario: what is done.
        make_store: gives the store for a directory, instead of ours: to try another, or a broken
            one. A scenario with kills has no use for it.
        target: is asked instead of our own sessions: a target, or what names one ("mine.toml",
            "agent.py:chat"); its model is the simulated one. The run claims what it promises.
        results: where the run's directory goes; None is ``records.results_directory()``: the
            checkout's ``results``, or ``$KODE_LAB_RESULTS``.
        progress: is kept up to date, for a caller who wants to look.
        card: shows the progress while somebody waits; None picks what suits.

    Raises:
        InvalidScenario: a store for a scenario whose service is a child process.
        StoreUnwritable: ``results`` cannot be written.
    """
    # Here and not above: starting other work on the lab's loop needs none of it.
    from kode_lab.errors import InvalidScenario  # noqa: PLC0415
    from kode_lab.lab.live import Pace, Progress, Row, card_for  # noqa: PLC0415
    from kode_lab.lab.records import RunRecorder, results_directory  # noqa: PLC0415
    from kode_lab.lab.trial import conduct  # noqa: PLC0415

    if make_store is not None and scenario.kills:
        raise InvalidScenario("a store of your own cannot be killed: leave out make_store or kills")
    if target is not None and make_store is not None:
        raise InvalidScenario("a target has its own store: leave out make_store or target")
    recorder = RunRecorder(
        results_directory() if results is None else Path(results),
        scenario.name,
        parameters=scenario.to_json(),
        store=_name_of(make_store),
        seed=scenario.seed,
    )
    watched = progress or Progress("")
    watched.title, watched.where = scenario.name, str(recorder.path)
    sessions = len(scenario.session_keys())
    watched.rows = [Row("", f"{sessions:,} session{'s' * (sessions != 1)}", "")]
    pace = Pace(card or card_for(), watched)
    return start(
        lambda: conduct(scenario, recorder, watched, make_store, target),
        name=f"run of {scenario.name}",
        on_tick=pace.tick,
        on_end=pace.end,
        where=watched.where,
    )


def load(
    name: str,
    *,
    seconds: float = 10.0,
    users: int | None = None,
    fault: str = "",
    target: str = "",
    results: Path | str | None = None,
    card: Card | None = None,
    **options: Any,
) -> Handle[Run]:
    """Begin a Locust load test in a process of its own; await the handle for the judged run.

    Args:
        name: of a load test that comes with kode_lab, or the path of a Locust file.
        seconds: how long the load lasts.
        users: how many; None is the test's own number.
        fault: the server that is started makes this mistake (``kode-lab faults --list``).
        target: another service than ours, as for ``kode-lab judge``.
        results: as for ``run``.
        card: shows the progress while somebody waits; None picks what suits.
        options: of ``kode-lab load``, as words: ``rate=5``, ``closed_loop=True``.

    Raises:
        InvalidScenario: on waiting: the load test cannot be run; says why.
    """
    from kode_lab.lab.live import Pace, Progress, Row, card_for  # noqa: PLC0415 - as above
    from kode_lab.lab.load_process import load_words, run_load_process  # noqa: PLC0415
    from kode_lab.lab.records import results_directory  # noqa: PLC0415

    where = results_directory() if results is None else Path(results)
    words = load_words(name, seconds, users, fault, target, options)
    row = Row("", name, f"{users} users" if users else "", expected_s=seconds)
    watched = Progress(f"load test {name}", [row], str(where))
    pace = Pace(card or card_for(), watched)
    return start(
        lambda: run_load_process(words, where, watched),
        name=f"load test {name}",
        on_tick=pace.tick,
        on_end=pace.end,
        where=str(where / "latest"),
    )


def _name_of(make_store: MakeStore | None) -> str:
    if make_store is None:
        return ""
    name = getattr(make_store, "__qualname__", type(make_store).__qualname__)
    return str(name).rpartition("<locals>.")[2]


def runs(results: Path | str | None = None) -> RunList:
    """Return the runs below ``results``, the newest first."""
    from kode_lab.lab.records import results_directory, run_list  # noqa: PLC0415 - as above

    return run_list(results_directory() if results is None else Path(results))


def start(
    work: Callable[[], Coroutine[Any, Any, T]],
    *,
    name: str = "run",
    on_tick: Callable[[], None] = lambda: None,
    on_end: Callable[[], None] = lambda: None,
    where: str = "",
) -> Handle[T]:
    """Run ``work()`` on a loop and thread of its own, beginning now, and give its handle.

    Args:
        work: makes the coroutine; it is called in the new thread.
        name: what the handle and the thread are called.
        on_tick: called ten times a second while somebody waits, in the thread that waits.
        on_end: called when the waiting is over, in that thread.
        where: what an interrupt says was kept.
    """
    return Handle(work, name, on_tick, on_end, where)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted in a notebook: one line there, instead of a page of traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Handle(Generic[T]):
    """A run that has begun. ``await`` it in a notebook, ask for its ``result()`` in a script."""

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        name: str,
        on_tick: Callable[[], None],
        on_end: Callable[[], None],
        where: str = "",
    ) -> None:
        self._name = name
        self._where = where
        self._on_tick = on_tick
        self._on_end = on_end
        self._future: Future[T] = Future()
        self._cancel: Callable[[], object] | None = None
        self._begun = threading.Event()
        # A daemon: a script that ends without waiting is not held up by its experiment.
        self._thread = threading.Thread(
            target=self._live, args=(work,), name=f"kode-lab-{name}", daemon=True
        )
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """The run has ended, one way or another."""
        return self._future.done()

    def __await__(self) -> Generator[Any, None, T]:
        return self._awaited().__await__()

    def result(self) -> T:
        """Wait for the end, and give what came of it; for callers without a running loop.

        Raises:
            KeyboardInterrupt: it was interrupted; the run was cancelled first and has settled.
            CancelledError: the run was cancelled.
        """
        try:
            while not self._future.done():
                # Not thread.join(): interrupted, Python 3.11 takes the living thread for ended.
                futures.wait((self._future,), TICK_S)
                self._on_tick()
        except BaseException:
            # An interrupt, or an error of the progress display: the waiting is over.
            self._settle()
            self._on_tick()
            raise
        finally:
            self._on_end()
        return self._future.result()

    def _settle(self) -> None:
        """Cancel it and wait through further interrupts: an unwritten run would say "running"."""
        until_s = time.monotonic() + SETTLE_LIMIT_S
        while not self._future.done() and (left_s := until_s - time.monotonic()) > 0:
            with suppress(KeyboardInterrupt):
                self.cancel()
                futures.wait((self._future,), left_s)

    def cancel(self) -> None:
        """Ask the run to stop; it cancels its turns, keeps what it has, and then is done.

        Asking again does no harm: what a cancelled run still writes is not broken off.
        """
        self._begun.wait()
        if self._cancel is not None:
            # The loop may have closed since; then there is nothing left to cancel.
            with suppress(RuntimeError):
                self._cancel()

    async def _awaited(self) -> T:
        try:
            await self._ticking(None)
        except BaseException as error:
            self.cancel()
            with suppress(TimeoutError):
                await self._ticking(SETTLE_LIMIT_S)
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt) and is_notebook():
                raise Interrupted(self._last_words()) from None
            raise
        finally:
            self._on_end()
        return self._future.result()

    def _last_words(self) -> str:
        kept = f' What was recorded is in {self._where}: Run.load("{self._where}") judges it.'
        return f"Interrupted: {self._name} was stopped.{kept if self._where else ''}"

    async def _ticking(self, limit_s: float | None) -> None:
        ended = asyncio.wrap_future(_follower(self._future))
        async with asyncio.timeout(limit_s):
            while not ended.done():
                await asyncio.wait((ended,), timeout=TICK_S)
                self._on_tick()

    def _live(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                result = runner.run(self._cancellable(work))
        except (asyncio.CancelledError, CancelledError):
            self._future.cancel()
            self._future.set_running_or_notify_cancel()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._future.set_exception(error)
        else:
            self._future.set_result(result)
        finally:
            self._begun.set()

    async def _cancellable(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        is_cancelled = False

        def cancel() -> None:
            nonlocal is_cancelled
            if not is_cancelled:
                is_cancelled = task.cancel()

        self._cancel = lambda: loop.call_soon_threadsafe(cancel)
        self._begun.set()
        return await work()

    def __repr__(self) -> str:
        if not self._future.done():
            return f"<{self._name} is running: write `await` before it to wait for its result>"
        return f"<{self._name} is done: write `await` before it to get its result>"

    def _repr_html_(self) -> str:
        state = "is done" if self._future.done() else "is running in the background"
        wish = "get" if self._future.done() else "wait for"
        return (
            '<div style="border-left:3px solid var(--jp-border-color1,#999);padding:2px 10px">'
            f"The {escape(self._name)} {state}. Write <code>await</code> before the call to {wish} "
            "its result.</div>"
        )


def is_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    # A kernel has IPython loaded; importing it to find out would cost 0.3 s.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _follower(future: Future[T]) -> Future[None]:
    """A future that is done when ``future`` is, however that ended; cancelling it touches no one.

    It carries no exception, so that no warning comes of one that was never asked for.
    """
    follower: Future[None] = Future()

    def follow(_: Future[T]) -> None:
        if follower.set_running_or_notify_cancel():
            follower.set_result(None)

    future.add_done_callback(follow)
    return follower


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
