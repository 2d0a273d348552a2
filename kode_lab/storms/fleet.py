"""The workers of a storm as their clients see them: started, asked, stopped and killed.

It owns the processes and the connections to them, and knows of each worker which turns it was asked
and which of these have begun. It writes no history and chooses no victim.

A worker is killed by its number; the number cannot be another process's meanwhile, because the
process that forked it collects dead workers only when it forks the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.errors import InvalidScenario, ModelUnavailable, Refused, Superseded
from kode_lab.history.operation import Effect
from kode_lab.key import SessionKey
from kode_lab.schedule_assistant import ScheduleBook
from kode_lab.storms.worker import LINE_LIMIT_BYTES, Post
from kode_lab.targets.ours import book_effects
from kode_lab.targets.target import Answer, Declaration, History

__all__ = ["Fleet", "HeldTurn", "Worker"]

# Python, asyncpg and a schema take about a second; a noisy machine some more.
_START_LIMIT_S = 60.0


class HeldTurn(NamedTuple):
    """A turn got its session: which one, at which worker, and when by the worker's clock."""

    key: SessionKey
    worker: str
    at_ns: int


class Worker:
    """One worker, from its first message to its end; a target.

    Attributes:
        asked: turns sent there and not answered, by turn id: the session and when they were sent.
        held: the sessions of those of them that have begun.
        is_stopped: it was stopped (SIGSTOP), and was not continued yet.
    """

    declaration = Declaration("kode_lab", is_idempotent=True, client="a worker of a storm")

    def __init__(
        self,
        name: str,
        pid: int,
        writer: asyncio.StreamWriter,
        heard: Callable[[HeldTurn], None],
        book: Path,
    ) -> None:
        self.name = name
        self.pid = pid
        self.asked: dict[str, tuple[SessionKey, int]] = {}
        self.held: dict[str, SessionKey] = {}
        self.is_stopped = False
        self.gone = asyncio.Event()
        self._writer = writer
        self._heard = heard
        self._book = book
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Ask for a turn.

        Raises:
            Refused: it was definitely not accepted.
            Superseded: another turn ended it; sending it again is useless.
            ModelUnavailable: it failed, or the worker died; how far it came is not known.
        """
        self.asked[turn_id] = key, time.monotonic_ns()
        try:
            told = await self._told({"key": list(key), "prompt": prompt, "turn_id": turn_id})
        finally:
            self.asked.pop(turn_id, None)
            self.held.pop(turn_id, None)
        if told["outcome"] == "ok":
            return Answer("reply", told["text"], config=told["config"])
        if told["outcome"] == "fail":
            raise Refused(told["error"])
        is_closed = told["error"].startswith("Superseded")
        raise (Superseded if is_closed else ModelUnavailable)(told["error"])

    async def history(self, key: SessionKey) -> History:
        """Return the prompts of a session, as the database has them at this moment.

        Raises:
            ModelUnavailable: it cannot be read.
        """
        told = await self._told({"read": list(key)})
        if told["outcome"] != "ok":
            raise ModelUnavailable(told["error"])
        return History(tuple(told["prompts"]))

    async def effects(self, user_id: str) -> list[Effect]:
        """Return what tools did for this user, from the book that all workers share."""
        with closing(ScheduleBook(self._book)) as book:
            return book_effects(book, user_id)

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
        """Handle a message of the worker."""
        if "held" in said:
            key, _ = self.asked.get(said["held"], (None, 0))
            if key is not None:
                self.held[said["held"]] = key
                self._heard(HeldTurn(key, self.name, said["ns"]))
        elif (answer := self._answers.get(said["n"])) is not None and not answer.done():
            answer.set_result(said)

    def end(self) -> None:
        """Note that it is gone; the outcome of what it was asked is unknown."""
        self.gone.set()
        self._writer.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({"outcome": "info", "error": f"worker {self.name} is gone"})


class Fleet:
    """The workers of one run; an async context manager that leaves no process behind.

    Args:
        home: a short path for the socket and the workers' log (``workers.log``).
        heard: is called when a turn gets its session.
        code: the directory of another ``kode_lab``, which the workers run instead of this one.
    """

    def __init__(
        self,
        post: Post,
        home: Path,
        *,
        heard: Callable[[HeldTurn], None] = lambda _: None,
        code: Path | None = None,
    ) -> None:
        self.workers: list[Worker] = []
        self.one_came = asyncio.Event()
        self._post = post
        self._log = home / "workers.log"
        self._heard = heard
        self._code = code
        self._expected: dict[str, asyncio.Future[Worker]] = {}
        self._listeners: set[asyncio.Task[Any]] = set()

    async def start(self, name: str, dsn: str) -> Worker:
        """Start a worker and return it when it is ready.

        Raises:
            InvalidScenario: it does not start.
        """
        coming: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._expected[name] = coming
        self._say(f"{name} {dsn}")
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                return await coming
        except TimeoutError:
            last = self._mother.last_words()
            raise InvalidScenario(f"worker {name} did not start: {last}") from None
        finally:
            del self._expected[name]

    async def kill(self, worker: Worker) -> int:
        """Kill it as ``kill -9`` does, wait until that is seen, and return when it was done."""
        killed_ns = time.monotonic_ns()
        os.kill(worker.pid, signal.SIGKILL)
        await worker.gone.wait()
        return killed_ns

    def stop(self, worker: Worker) -> None:
        """Stop it wherever it is."""
        worker.is_stopped = True
        os.kill(worker.pid, signal.SIGSTOP)

    def go_on(self, worker: Worker) -> None:
        """Continue it as if nothing had happened."""
        worker.is_stopped = False
        os.kill(worker.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(
            self._hear, self._post.socket, limit=LINE_LIMIT_BYTES
        )
        # With another directory, or the one of this code would come before PYTHONPATH.
        environment = {} if self._code is None else {"PYTHONPATH": str(self._code)}
        self._mother = Child(
            (PYTHON_MODULE, "kode_lab.storms.worker"),
            log=self._log,
            env=environment,
            cwd=self._log.parent,
            is_piped=True,
        )
        self._say(json.dumps(self._post._asdict()))
        assert self._mother.stdout is not None
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_LIMIT_S):
                line = await asyncio.to_thread(self._mother.stdout.readline)
        if line != b"ready\n":
            await self.__aexit__(None, None, None)
            raise InvalidScenario(f"the workers cannot start: {self._mother.last_words()}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._mother.kill()  # and with it all workers: they are of its group
        self._server.close()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    def complaints(self) -> str:
        """Return what the workers wrote on stderr."""
        return self._log.read_text(errors="replace")

    def _say(self, line: str) -> None:
        assert self._mother.stdin is not None
        self._mother.stdin.write(line.encode() + b"\n")
        self._mother.stdin.flush()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._listeners.add(task)
        task.add_done_callback(self._listeners.discard)
        worker: Worker | None = None
        try:
            first = json.loads(await reader.readline())
            book = Path(self._post.book)
            worker = Worker(first["worker"], first["pid"], writer, self._heard, book)
            self.workers.append(worker)
            self.one_came.set()
            coming = self._expected.get(worker.name)
            if coming is not None and not coming.done():
                coming.set_result(worker)
            while line := await reader.readline():
                worker.take(json.loads(line))
        except (ConnectionError, ValueError):
            pass  # it was killed in the middle of a message
        finally:
            if worker is not None:
                self.workers.remove(worker)
                worker.end()
            writer.close()
            if not self.workers:
                self.one_came.clear()
