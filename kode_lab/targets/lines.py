"""A child process that is asked by one JSON object a line, in any language, as a target.

It owns this end of the protocol that ``host`` describes, the processes, and their life. Several
processes may serve the same sessions, where the target declares it: turns go to them in rotation.

A process that prints something else, or dies, leaves open what happened to the turns it had.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.errors import KodeLabError
from kode_lab.history.operation import Effect, markers_in
from kode_lab.key import SessionKey
from kode_lab.targets.http_target import HttpTarget
from kode_lab.targets.target import DEFAULT_PROMISES, Answer, Declaration, History

__all__ = ["LinesTarget", "asking_process"]

LINE_LIMIT_BYTES = 32_000_000


class _Process:
    """One process and the questions that it has not answered."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.declares: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._reading = asyncio.ensure_future(self._read())

    async def ask(self, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the answer, or None when the process ended without one."""
        assert self.child.stdin is not None
        self._number += 1
        number = self._number
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self.child.stdin.write(json.dumps({"id": number, **fields}).encode() + b"\n")
            self.child.stdin.flush()
        except (OSError, ValueError):
            del self._waiting[number]
            return {"refused": "the process has ended"}
        try:
            return await answer
        except ConnectionResetError:
            return None
        finally:
            self._waiting.pop(number, None)

    async def _read(self) -> None:
        reader = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self.child.stdout
        )
        try:
            while line := await reader.readline():
                self._take(line)
        except (ValueError, OSError):
            pass
        finally:
            transport.close()
            gone = ConnectionResetError("the process ended")
            for future in (self.declares, *self._waiting.values()):
                if not future.done():
                    future.set_exception(gone)
            self.declares.exception() if self.declares.done() else None

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return  # it is the log of a careless program, not an answer
        if not isinstance(said, dict):
            return
        if "ready" in said and not self.declares.done():
            self.declares.set_result(said["ready"] or {})
        answer = self._waiting.get(said.get("id", 0))
        if answer is not None and not answer.done():
            answer.set_result(said)

    async def end(self, *, is_killed: bool) -> None:
        """End it, at once or in good order, and wait for its reader."""
        if is_killed:
            self.child.kill()
        else:
            await self.child.stopped(2.0)
        await asyncio.wait((self._reading,), timeout=5.0)
        self._reading.cancel()


class LinesTarget:
    """A target that is one or more child processes.

    Attributes:
        at_ns: when an asking process sends its next questions (monotonic nanoseconds); a time that
            is past is at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        ready_s: float = 120.0,
        is_silent: bool = False,
        service: HttpTarget | None = None,
    ) -> None:
        """Set it up; nothing is started yet.

        Args:
            command: starts one process.
            name: how reports call it, unless the process says otherwise.
            is_silent: the process says no ``ready`` line; it is asked at once.
            service: the started service that the process asks (``asking_process``).
        """
        self.at_ns = 0
        self._service = service
        self.declaration = Declaration(name, client="child process")
        if service is not None:
            self.declaration = service.declaration._replace(processes=1)
        self._command = tuple(command)
        self._env = dict(env or {})
        self._cwd = cwd
        self._log = log
        self._ready_s = ready_s
        self._is_silent = is_silent
        self._processes: list[_Process] = []
        self._rotation = cycle(self._processes)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    async def start(self, model_url: str = "") -> None:
        """Start its processes, and wait until each says that it is ready.

        Raises:
            KodeLabError: one ended or was not ready in time.
        """
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="kode-lab-target-")
        self._env |= {"KODE_LAB_MODEL_URL": model_url, "KODE_LAB_DATA": self._scratch.name}
        await self._begin()

    async def _begin(self) -> None:
        assert self._scratch is not None
        log = self._log or Path(self._scratch.name) / "target.log"
        processes: list[_Process] = []
        self._processes = processes
        while len(processes) < max(1, self.declaration.processes):
            child = Child(self._command, env=self._env, cwd=self._cwd, log=log, is_piped=True)
            process = _Process(child)
            processes.append(process)
            if self._is_silent:
                continue
            try:
                async with asyncio.timeout(self._ready_s):
                    declares = await asyncio.shield(process.declares)
            except (TimeoutError, ConnectionResetError) as error:
                said = process.child.last_words()
                await self._end(is_killed=True)
                ended = "ended" if isinstance(error, ConnectionResetError) else "was not ready"
                raise KodeLabError(f"{self.declaration.name} {ended}: {said}") from None
            known: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in declares.items()
                if name in Declaration._fields
            }
            if known.get("tool") and "promises" not in known:
                known["promises"] = (*DEFAULT_PROMISES, "tools")
            self.declaration = self.declaration._replace(**known)
        self._rotation = cycle(processes)

    async def _end(self, *, is_killed: bool) -> None:
        processes, self._processes = self._processes, []
        await asyncio.gather(*(process.end(is_killed=is_killed) for process in processes))

    async def stop(self) -> None:
        """End its processes."""
        try:
            await self._end(is_killed=False)
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()
                self._scratch = None

    async def kill(self) -> None:
        """Kill its processes as ``kill -9`` does."""
        await self._end(is_killed=True)

    async def restart(self) -> None:
        """Start them again on the same data."""
        await self._begin()

    def lost(self) -> str:
        """Return how a process ended if one ended by itself, or ""."""
        for process in self._processes:
            if not process.child.is_running:
                words = process.child.last_words()
                return f"it ended by itself with status {process.child.status}: {words}"
        return ""

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Ask one process for one turn."""
        told = await self._ask({"op": "turn", "prompt": prompt, "turn_id": turn_id}, key)
        if told is None:
            return Answer("unknown", error="the process ended before it answered")
        if "kind" in told:  # from an asking process: the answer as it is
            fields = {name: told[name] for name in Answer._fields if name in told}
            return Answer(**{**fields, "read": None, "pieces_ns": ()})
        for kind, word in (("refused", "refused"), ("unknown", "error")):
            if told.get(word):
                return Answer(kind, error=str(told[word])[:300])
        if not isinstance(told.get("reply"), str):
            return Answer("unknown", error=f"no reply in {json.dumps(told)[:300]}")
        return Answer("reply", told["reply"])

    async def history(self, key: SessionKey) -> History | None:
        """Ask one process for a session."""
        told = await self._ask({"op": "history"}, key)
        if told is not None and told.get("error"):
            raise KodeLabError(str(told["error"])[:300])
        prompts = None if told is None else told.get("prompts")
        return None if prompts is None else History(tuple(map(str, prompts)))

    async def effects(self, user_id: str) -> list[Effect]:
        """Ask one process what its tools did for a user."""
        told = await self._ask({"op": "effects"}, SessionKey(user_id, "-", "-")) or {}
        if not isinstance(told.get("effects"), list):
            raise KodeLabError(str(told.get("error") or f"no effects in {json.dumps(told)[:300]}"))
        tool = self.declaration.tool
        return [
            Effect(str(one.get("id")), tool, (*markers_in(json.dumps(one)), "")[0])
            for one in told["effects"]
        ]

    async def _ask(self, fields: dict[str, Any], key: SessionKey) -> dict[str, Any] | None:
        if not self._processes:
            return {"refused": "the process was killed"}
        if self._service is not None:
            opened = await self._service.opened(key)
            fields |= {"key": list(key), "at_ns": self.at_ns, "opened": opened}
        user, session = key.user_id, key.session_id
        if "user" not in self.declaration.parts:
            session = f"{user}.{session}"
        names = {"user": user, "session": session, "agent": key.agent_id}
        return await next(self._rotation).ask(fields | names)


def asking_process(spec: str, service: HttpTarget) -> LinesTarget:
    """Return another process of this machine that asks a service which was started here.

    It has connections and log-ins of its own. The history is written here, on one clock: a turn's
    interval is wider by the time that its question needs to the other process, and so never wrong.

    Args:
        spec: of the target, as ``open_target`` takes it.
        service: the same, started here.
    """
    words = (spec, "--ask", json.dumps(service.surroundings))
    command = (PYTHON_MODULE, "kode_lab.targets.gateway", *words)
    return LinesTarget(command, name=service.declaration.name, service=service)
