"""The fleet: workers that are started, asked, stopped and killed, as their clients' side sees them.

It owns the processes and the lines to them, and knows of each worker which turns it was asked and
which of these it has begun. It writes no history and chooses no victim.

A worker is killed by its number; it cannot be another process's meanwhile, because the process
that forked it takes note of deaths only when it forks the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from kode_lab.errors import InvalidScenario, ModelUnavailable, Refused, Superseded
from kode_lab.history.operation import Read, echo_in
from kode_lab.key import SessionKey
from kode_lab.lab.scenario import Ask
from kode_lab.storms.worker import LINE_LIMIT_BYTES, Post

__all__ = ["Fleet", "Held", "Worker"]

# Python, asyncpg and a schema take about a second; a noisy machine some more.
_START_LIMIT_S = 60.0


class WorkerAnswer(NamedTuple):
    """What an acknowledged turn told its client: what the model was shown, whom it answers."""

    read: Read | None
    answered: str
    config: str


class Held(NamedTuple):
    """A turn came to its session: which, at which worker, and when by the worker's clock."""

    ask: Ask
    worker: str
    at_ns: int


class Worker:
    """One worker, from its first word to its end.

    Attributes:
        asked: turns sent there and not answered, by their turn ids, with when they were sent.
        held: those of them that have their session.
        is_stopped: somebody stopped it (SIGSTOP), and it does not go on yet.
    """

    def __init__(
        self, name: str, pid: int, writer: asyncio.StreamWriter, heard: Callable[[Held], None]
    ) -> None:
        self.name = name
        self.pid = pid
        self.asked: dict[str, tuple[Ask, int]] = {}
        self.held: dict[str, Ask] = {}
        self.is_stopped = False
        self.gone = asyncio.Event()
        self._writer = writer
        self._heard = heard
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def turn(self, ask: Ask) -> WorkerAnswer:
        """Send a turn, and give its answer.

        Raises:
            Refused: it was definitely not accepted.
            Superseded: another turn closed it; sending it again is useless.
            ModelUnavailable: it failed, or the worker died; nobody knows how far it came.
        """
        self.asked[ask.turn_id] = ask, time.monotonic_ns()
        try:
            told = await self._told(
                {"key": list(ask.key), "prompt": ask.prompt, "turn_id": ask.turn_id}
            )
        finally:
            self.asked.pop(ask.turn_id, None)
            self.held.pop(ask.turn_id, None)
        if told["outcome"] == "ok":
            own, read = echo_in(told["text"]) or ("", None)
            return WorkerAnswer(read if own == ask.marker else None, own, told["config"])
        name = told["error"].partition(":")[0]
        kinds = {"fail": Refused, "info": Superseded if name == "Superseded" else ModelUnavailable}
        raise kinds[told["outcome"]](told["error"])

    async def markers(self, key: SessionKey) -> list[str]:
        """Return the markers of all prompts of a session, as the database says at this moment.

        Raises:
            ModelUnavailable: it cannot be read.
        """
        told = await self._told({"read": list(key)})
        if told["outcome"] != "ok":
            raise ModelUnavailable(told["error"])
        markers: list[str] = told["markers"]
        return markers

    async def _told(self, order: dict[str, Any]) -> dict[str, Any]:
        if self.gone.is_set():
            raise Refused(f"worker {self.name} is gone: nothing was sent")
        self._number += 1
        number = self._number
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self._writer.write(json.dumps({"n": number, **order}).encode() + b"\n")
            return await answer
        finally:
            del self._answers[number]

    # ---- for the fleet

    def take(self, said: dict[str, Any]) -> None:
        """Take what the worker says."""
        if "held" in said:
            ask, _ = self.asked.get(said["held"], (None, 0))
            if ask is not None:
                self.held[ask.turn_id] = ask
                self._heard(Held(ask, self.name, said["ns"]))
        elif (answer := self._answers.get(said["n"])) is not None and not answer.done():
            answer.set_result(said)

    def end(self) -> None:
        """Take note that it is gone: of what it was asked nobody knows anything."""
        self.gone.set()
        self._writer.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({"outcome": "info", "error": f"worker {self.name} is gone"})


class Fleet:
    """The workers of one run; an async context manager that leaves no process behind.

    Args:
        home: a short path; the socket and the workers' complaints (``workers.log``) go there.
        heard: is told when a turn comes to its session.
        code: where another ``kode_lab`` lies that the workers run instead of this one.
    """

    def __init__(
        self,
        post: Post,
        home: Path,
        *,
        heard: Callable[[Held], None] = lambda _: None,
        code: Path | None = None,
    ) -> None:
        self.workers: list[Worker] = []
        self.one_came = asyncio.Event()
        self._post = post
        self._home = home
        self._heard = heard
        self._code = code
        self._expected: dict[str, asyncio.Future[Worker]] = {}
        self._listeners: set[asyncio.Task[Any]] = set()

    async def start(self, name: str, dsn: str) -> Worker:
        """Start a worker and give it when it is ready.

        Raises:
            InvalidScenario: it does not come.
        """
        coming: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._expected[name] = coming
        assert self._mother.stdin is not None
        self._mother.stdin.write(f"{name} {dsn}\n".encode())
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                return await coming
        except TimeoutError:
            raise InvalidScenario(f"worker {name} did not come: {self._complaints()}") from None
        finally:
            del self._expected[name]

    async def kill(self, worker: Worker) -> int:
        """Kill it as ``kill -9`` does, wait until that is seen, and give when it was done."""
        killed_ns = time.monotonic_ns()
        os.kill(worker.pid, signal.SIGKILL)
        await worker.gone.wait()
        return killed_ns

    def stop(self, worker: Worker) -> None:
        """Stop it where it stands."""
        worker.is_stopped = True
        os.kill(worker.pid, signal.SIGSTOP)

    def go_on(self, worker: Worker) -> None:
        """Let it go on as if nothing had been."""
        worker.is_stopped = False
        os.kill(worker.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(
            self._hear, self._post.socket, limit=LINE_LIMIT_BYTES
        )
        environment = dict(os.environ)
        if self._code is not None:
            environment["PYTHONPATH"] = str(self._code)
        with (self._home / "workers.log").open("ab") as log:
            self._mother = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kode_lab.storms.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=self._home,  # else the directory of this code would come before PYTHONPATH
            )
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        self._mother.stdin.write(json.dumps(self._post._asdict()).encode() + b"\n")
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_LIMIT_S):
                line = await self._mother.stdout.readline()
        if line != b"ready\n":
            await self.__aexit__(None, None, None)
            raise InvalidScenario(f"the workers cannot start: {self._complaints()}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._mother.stdin is not None
        self._mother.stdin.close()
        await self._mother.wait()  # it ends all workers first
        self._server.close()
        for task in list(self._listeners):
            task.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    def complaints(self) -> str:
        """Return what the workers wrote on stderr."""
        return (self._home / "workers.log").read_text(errors="replace")

    def _complaints(self) -> str:
        said = self.complaints().strip().splitlines()
        return said[-1] if said else "it said nothing"

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._listeners.add(task)
        task.add_done_callback(self._listeners.discard)
        worker: Worker | None = None
        try:
            first = json.loads(await reader.readline())
            worker = Worker(first["worker"], first["pid"], writer, self._heard)
            self.workers.append(worker)
            self.one_came.set()
            coming = self._expected.get(worker.name)
            if coming is not None and not coming.done():
                coming.set_result(worker)
            while line := await reader.readline():
                worker.take(json.loads(line))
        except (ConnectionError, ValueError):
            pass  # it was killed in the middle of a word
        finally:
            if worker is not None:
                self.workers.remove(worker)
                worker.end()
            writer.close()
            if not self.workers:
                self.one_came.clear()
