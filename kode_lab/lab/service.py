"""What a scenario's clients talk to: our sessions in this process, or served by a child process.

It owns how the service under test is set up, asked, killed and started again, and how its final
state is read. It writes no history and knows no scenario's script: a client's words are the
trial's.

The child is ``kode-lab serve`` with its model inside, so that ``kill -9`` takes everything with it
that a real crash would take. It hangs on a pipe of ours (``tether``): killed ourselves, we leave
nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import quote

from kode_lab.claude import Claude, SimulatedClaude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile
from kode_lab.errors import KodeLabError, ModelUnavailable, Refused, Superseded
from kode_lab.history.operation import Effect, Read, echo_in, markers_in
from kode_lab.history.span import Trace
from kode_lab.key import SessionKey
from kode_lab.lab.scenario import AGENT, Ask, Scenario
from kode_lab.message import Message, Model, text_of
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager, Store

__all__ = ["Answer", "Child", "MakeStore", "Service", "in_process", "served"]

MakeStore = Callable[[Path], Store]
# Starting Python and loading the server takes about a second; a noisy machine some more.
START_LIMIT_S = 30.0
_URL = re.compile(rb"http://127\.0\.0\.1:\d+")
# Definitely not accepted, as the judge's page lists it; any other error tells nobody anything.
_REFUSED = (400, 401, 403, 404, 409, 413, 415, 422, 429)
# Broken off by a crash and closed by a later turn: no sending of it will ever be answered.
_SUPERSEDED = 410


class Answer(NamedTuple):
    """What an acknowledged turn told its client.

    Attributes:
        read: what the model was shown, or None when nobody saw it.
        answered: the marker of the prompt that the reply says it answers, or "".
        config: the version of the agent's configuration.
    """

    read: Read | None
    answered: str
    config: str


class Service(Protocol):
    """A service under test, as its clients and the final reader see it."""

    async def turn(self, ask: Ask, strategy: str) -> Answer:
        """Take one turn.

        Raises:
            Refused: it was definitely not accepted.
            Superseded: another turn closed it; sending it again is useless.
            KodeLabError: it failed, and nobody knows how far it came.
        """
        ...

    async def markers(self, key: SessionKey) -> list[str]:
        """Return the markers of all prompts in the session, in order."""
        ...

    async def effects(self, user_id: str) -> list[Effect]:
        """Return what tools did for this user, as the schedule book tells it."""
        ...


class _InProcess:
    """Our manager, in this loop."""

    def __init__(
        self, manager: SessionManager, book: ScheduleBook, simulated: SimulatedClaude | None
    ) -> None:
        self._manager = manager
        self._book = book
        self._simulated = simulated

    async def turn(self, ask: Ask, strategy: str) -> Answer:
        reply = await self._manager.turn(
            ask.key, ask.prompt, turn_id=ask.turn_id, strategy=strategy or None
        )
        answer = _answer(ask, reply.text, reply.config_version)
        # What the simulated API received is the stronger witness: no reply passes through it.
        seen = self._simulated.read(ask.marker) if self._simulated is not None else None
        return answer if seen is None else answer._replace(read=seen)

    async def markers(self, key: SessionKey) -> list[str]:
        return _markers(await self._manager.history(key))

    async def effects(self, user_id: str) -> list[Effect]:
        return await asyncio.to_thread(_effects, self._book, user_id)


@asynccontextmanager
async def in_process(
    scenario: Scenario, path: Path, trace: Trace, make_store: MakeStore | None
) -> AsyncIterator[Service]:
    """Return our own sessions below ``path``, with the simulated model."""
    profile = scenario.profile.at(scenario.profile.speed * scenario.speed)
    async with AsyncExitStack() as stack:
        simulated: SimulatedClaude | None = None
        model: Model = InProcessClaude(profile)
        if scenario.is_http:
            simulated = await stack.enter_async_context(SimulatedClaude(profile))
            at_once = min(1_000, max(1, len(scenario.script())))
            model = await stack.enter_async_context(Claude(simulated.base_url, concurrency=at_once))
        book = stack.enter_context(closing(ScheduleBook(path / "schedules.sqlite3")))
        shelf = AgentShelf(AGENTS, toolbox(book))
        shelf.current(AGENT)  # imports what makes schemas, before anything is measured
        store = (make_store or _store(scenario))(path / ".kode")
        manager = await stack.enter_async_context(
            SessionManager(store=store, agents=shelf, model=model, trace=trace)
        )
        yield _InProcess(manager, book, simulated)


class Child:
    """``kode-lab serve`` as a child process that can be killed and comes back."""

    def __init__(self, command: list[str], data: Path, log: Path) -> None:
        self._command = command
        self._data = data
        self._log = log
        self._url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._client: Any = None
        self.is_up = asyncio.Event()

    async def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            KodeLabError: it does not come up.
        """
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_LIMIT_S):
                line = await self._process.stdout.readline()
        found = _URL.search(line)
        if found is None:
            raise KodeLabError(f"the server did not start; {self._log.name} in the run says why")
        self._url = found[0].decode()
        self.is_up.set()

    async def kill(self) -> None:
        """Kill it as ``kill -9`` does, and wait for its end."""
        self.is_up.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def turn(self, ask: Ask, strategy: str) -> Answer:
        """Take one turn over HTTP."""
        import aiohttp  # noqa: PLC0415 - here and below: only who has a child pays for it

        body = ask.key.to_json() | {"message": ask.prompt, "turnId": ask.turn_id}
        told = body | ({"strategy": strategy} if strategy else {})
        try:
            async with self._client.post(f"{self._url}/v1/turns", json=told) as answer:
                fields = await answer.json()
                if answer.status in _REFUSED:
                    raise Refused(f"{answer.status}: {json.dumps(fields)[:200]}")
                if answer.status == _SUPERSEDED:
                    raise Superseded(f"{answer.status}: {json.dumps(fields)[:200]}")
                if answer.status != 200:
                    raise ModelUnavailable(f"{answer.status}: {json.dumps(fields)[:200]}")
        except aiohttp.ClientConnectorError as error:
            raise Refused(f"{type(error).__name__}: nobody listens") from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise ModelUnavailable(f"{type(error).__name__}: the connection broke") from None
        return _answer(ask, fields["text"], fields["configVersion"])

    async def markers(self, key: SessionKey) -> list[str]:
        """Return the markers of the session over HTTP."""
        names = "/".join(quote(part, safe="") for part in key)
        async with self._client.get(f"{self._url}/v1/sessions/{names}/messages") as answer:
            if answer.status == 404:
                return []
            return _markers((await answer.json())["messages"])

    async def effects(self, user_id: str) -> list[Effect]:
        """Return what the schedule book on the disk says."""
        with closing(ScheduleBook(self._data / "+schedules.sqlite")) as book:
            return await asyncio.to_thread(_effects, book, user_id)

    async def __aenter__(self) -> Self:
        import aiohttp  # noqa: PLC0415

        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
        )
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self.kill()


@asynccontextmanager
async def served(scenario: Scenario, path: Path) -> AsyncIterator[Child]:
    """Return our sessions in a child process that appends its trace to the run's."""
    profile = scenario.profile.at(scenario.profile.speed * scenario.speed)
    (path / "profile.toml").write_text(_profile_toml(profile), encoding="utf-8")
    data = path / ".kode"
    command = [
        *(sys.executable, "-m", "kode_lab.lab.die_with_parent"),
        *("serve", "--port", "0", "--in-process"),
        *("--data", str(data), "--durability", scenario.durability, "--layout", scenario.layout),
        *("--profile", str(path / "profile.toml"), "--trace", str(path / "trace.jsonl")),
    ]
    async with Child(command, data, path / "server.log") as child:
        yield child


def _store(scenario: Scenario) -> MakeStore:
    def make(root: Path) -> Store:
        return JsonStore(root, layout=scenario.layout, durability=scenario.durability)  # type: ignore[arg-type]

    return make


def _answer(ask: Ask, text: str, config: str) -> Answer:
    echo = echo_in(text)
    if echo is None:
        return Answer(None, "", config)
    return Answer(echo[1] if echo[0] == ask.marker else None, echo[0], config)


def _markers(messages: Iterable[Message]) -> list[str]:
    prompts = (message for message in messages if message["role"] == "user")
    return [marker for prompt in prompts for marker in markers_in(text_of(prompt))]


def _effects(book: ScheduleBook, user_id: str) -> list[Effect]:
    """Return the entries; a title that is a marker's says which turn asked for its entry."""
    found = []
    for schedule in book.query(user_id):
        marker = markers_in(f"#{schedule.title}")
        found.append(
            Effect(str(schedule.id), "create_schedule", marker[0] if marker else "", user_id)
        )
    return found


def _profile_toml(profile: Profile) -> str:
    lines = [
        f"{name} = {getattr(profile, name)!r}"
        for name in ("ttft_s", "token_s", "jitter", "speed", "seed")
    ]
    for plan in profile.plans:
        lines += ["[[plans]]", f"name = {json.dumps(plan.name)}"]
        lines += [f"intent = {json.dumps(plan.intent)}", f"words = {json.dumps(list(plan.words))}"]
        lines += [f"calls_s = {list(plan.calls_s)}"]
    return "\n".join(lines) + "\n"
