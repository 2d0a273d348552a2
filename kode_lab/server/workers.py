"""``kode-lab serve --workers N``: N processes that serve one port, and the parent that keeps them.

The parent binds the port and gives every worker the same listening socket, so a connection that
nobody has taken yet is lost with no worker. It serves nothing itself: it starts the workers, starts
one again that ends (later each time, and not for ever), passes on what tells it to stop, and is the
other end of a pipe whose closing tells them that it is gone.

Source: the one listening socket and the parent without work are those of pre-forking servers
(Apache, gunicorn).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable
from typing import Any

from kode_lab.errors import InvalidScenario, KodeLabError
from kode_lab.http import is_loopback, listening_on
from kode_lab.server.worker_slot import Place, words_for

__all__ = ["WORKERS_LIMIT", "run_workers"]

_LOG = logging.getLogger("kode_lab.server")
WORKERS_LIMIT = 64
# A worker that ends is started again after this, twice as late each time it ends again soon.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
# Ends of one worker within the time that is looked back on; more are no accident.
_ENDS_LIMIT, _LOOKED_BACK_S = 10, 60.0
_KILLED = 128  # and the signal's number, as a shell shows it


def run_workers(options: Namespace) -> int:
    """Serve with several processes until told to stop, and give the exit status.

    Raises:
        InvalidScenario: the number makes no sense, or an address needs ``--auth``.
        PortOccupied: somebody else listens on the port.
        KodeLabError: a worker ended again and again.
    """
    if not 1 <= options.workers <= WORKERS_LIMIT:
        raise InvalidScenario(f"--workers {options.workers}: choose 1 to {WORKERS_LIMIT=}")
    if not is_loopback(options.host) and options.auth is None:
        raise InvalidScenario(
            f"--host {options.host}: others can reach this address, and without --auth FILE "
            "everybody would be every user: give a file of tokens, or bind to 127.0.0.1"
        )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    # Readable by this user alone: whoever can write there is every user.
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
        """Keep them until told to stop, and give the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        keepers: list[asyncio.Task[int]] = []
        try:
            # The first alone: what is wrong with the options, or the database, is said once.
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
        """Start these workers; give what they say when all of them serve, else nothing."""
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
        """Have this worker run until all of them stop; give its last exit status.

        Raises:
            KodeLabError: it ends again and again.
        """
        ends: deque[float] = deque(maxlen=_ENDS_LIMIT)
        while True:
            status = await self._one(number, ready)
            if self._stopping.is_set() or not ready.done():
                # Who was told before it listened to signals has served nobody.
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
        """Have one process be this worker until it ends, and give its exit status."""
        place = Place(number, self._options.workers, self._directory, self._listening.fileno())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kode_lab", "worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(place.listening,),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which passes it on
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._running[number] = process
        try:
            if self._stopping.is_set():  # told while it was being started
                process.terminate()
            process.stdin.write(words_for(self._options, place))
            said = await process.stdout.readline()
            if said and not ready.done():
                ready.set_result(said)
            return await process.wait()
        finally:
            del self._running[number]

    def _stop(self) -> None:
        """Let all of them drain, and nobody connect; told again, let them hurry."""
        self._listening.close()
        self._stopping.set()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
