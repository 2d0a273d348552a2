"""``kode-lab serve --workers N``: N processes that serve one port, and the parent that keeps them.

The parent binds the port and passes the same listening socket to every worker, so a connection that
is not accepted yet is not lost with a worker. It serves nothing itself: it starts the workers,
restarts one that ends (later each time, and not without limit) and passes on the signals to stop.

A worker's options come as one line of JSON on its standard input, which stays open: its end tells
the worker that the parent ended, however it did. A DSN comes this way too, so that the list of
processes does not show it.

Source: the one listening socket and the parent without work are those of pre-forking servers
(Apache, gunicorn).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from kode_lab.errors import InvalidScenario, KodeLabError
from kode_lab.http import listening_on
from kode_lab.server.peers import WorkerSlot

__all__ = ["WORKERS_LIMIT", "read_options", "run_workers"]

_LOG = logging.getLogger("kode_lab.server")
WORKERS_LIMIT = 64
# A worker that ends is started again after this, twice as late each time it ends again soon.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
# Ends of one worker within the time that is looked back on; more are no accident.
_ENDS_LIMIT, _LOOKED_BACK_S = 10, 60.0
_KILLED = 128  # and the signal's number, as a shell shows it
_PATHS = ("data", "agents", "auth", "trace")


def run_workers(options: Namespace) -> int:
    """Serve with several processes until told to stop, and return the exit status.

    Raises:
        InvalidScenario: there are too many or too few of them.
        PortOccupied: another process listens on the port.
        KodeLabError: a worker ended again and again.
    """
    if not 1 <= options.workers <= WORKERS_LIMIT:
        raise InvalidScenario(
            f"--workers {options.workers} is not valid: choose 1 to {WORKERS_LIMIT=}"
        )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    # For this user alone: a process that can connect there can act as every user.
    directory = tempfile.mkdtemp(prefix="kode-lab-")
    try:
        return asyncio.run(_Workers(options, directory).run())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Workers:
    """The workers of one parent."""

    def __init__(self, options: Namespace, directory: str) -> None:
        self._options = options
        self._directory = directory
        self._listening = listening_on(options.host, options.port)
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Keep them until told to stop, and return the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        keepers: list[asyncio.Task[int]] = []
        try:
            # The first alone: a wrong option or an unusable database is reported once.
            said = await self._begun(keepers, [0])
            if said and await self._begun(keepers, range(1, self._options.workers)):
                sys.stdout.write(said.decode())
                sys.stdout.flush()
                await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not self._stopping.is_set():
                self._stop()
            await asyncio.wait(keepers)
        return max(keeper.result() for keeper in keepers)

    async def _begun(self, keepers: list[asyncio.Task[int]], numbers: Iterable[int]) -> bytes:
        """Start these workers; return what they say when all of them serve, else b""."""
        loop = asyncio.get_running_loop()
        said: list[asyncio.Future[bytes]] = [loop.create_future() for _ in numbers]
        keepers += [
            asyncio.create_task(self._keep(number, ready))
            for number, ready in zip(numbers, said, strict=True)
        ]
        for ready in said:
            awaited: list[asyncio.Future[Any]] = [ready, *keepers]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                return b""
        return said[0].result()

    async def _keep(self, number: int, ready: asyncio.Future[bytes]) -> int:
        """Have this worker run until all of them stop; return its last exit status.

        Raises:
            KodeLabError: it ends again and again.
        """
        ends: deque[float] = deque(maxlen=_ENDS_LIMIT)
        while True:
            status = await self._one(number, ready)
            if self._stopping.is_set() or not ready.done():
                # A worker that was stopped before it handled signals has served no request.
                if status == -signal.SIGTERM:
                    return 0
                return status if status >= 0 else _KILLED - status
            ends.append(time.monotonic())
            if len(ends) == _ENDS_LIMIT and ends[-1] - ends[0] < _LOOKED_BACK_S:
                raise KodeLabError(
                    f"worker {number} ended again and again, the last time with status {status}: "
                    f"see what it said, ends_limit={_ENDS_LIMIT} within {_LOOKED_BACK_S:g} s"
                )
            recent = sum(ends[-1] - end < _LOOKED_BACK_S for end in ends)
            pause_s = min(_FIRST_PAUSE_S * 2 ** (recent - 1), _LONGEST_PAUSE_S)
            _LOG.warning(
                "worker %d ended with status %d: it starts again in %g s", number, status, pause_s
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                return 0

    async def _one(self, number: int, ready: asyncio.Future[bytes]) -> int:
        """Have one process be this worker until it ends, and return its exit status."""
        slot = WorkerSlot(number, self._options.workers, self._directory, self._listening.fileno())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kode_lab", "worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(slot.listening,),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which passes it on
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._running[number] = process
        try:
            if self._stopping.is_set():  # while it was being started
                process.terminate()
            process.stdin.write(_options_line(self._options, slot))
            said = await process.stdout.readline()
            if said and not ready.done():
                ready.set_result(said)
            return await process.wait()
        finally:
            del self._running[number]

    def _stop(self) -> None:
        """Let all of them drain, and accept no connections; a second call makes them hurry."""
        self._listening.close()
        self._stopping.set()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()


def _options_line(options: Namespace, slot: WorkerSlot) -> bytes:
    fields = {name: value for name, value in vars(options).items() if name != "run"}
    for name in _PATHS:
        fields[name] = None if fields[name] is None else str(fields[name])
    return json.dumps([slot, fields]).encode() + b"\n"


def read_options(pipe: BinaryIO) -> Namespace:
    """Return the server's options as the parent wrote them, with the worker's ``slot``.

    Raises:
        InvalidScenario: they cannot be read.
    """
    try:
        slot, fields = json.loads(pipe.readline())
        for name in _PATHS:
            fields[name] = None if fields[name] is None else Path(fields[name])
        return Namespace(slot=WorkerSlot(*slot), **fields)
    except (ValueError, TypeError, KeyError):
        raise InvalidScenario(
            "a worker is started by kode-lab serve --workers N, which writes its options to it"
        ) from None
