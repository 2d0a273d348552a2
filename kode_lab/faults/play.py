"""One play of a scenario: its clients, its nemesis, and the history that they write.

It owns who asks what of which process, and when a process dies. What a client records is
``lab.client``'s, by the virtual loop's own clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from itertools import count
from pathlib import Path
from typing import Any

from kode_lab.claude.conversation import shown_to
from kode_lab.errors import CallerError, KodeLabError, Refused, Superseded
from kode_lab.faults.models import Scribe
from kode_lab.faults.scenario import AGENT_ID, Scenario
from kode_lab.faults.site import Parts, Process, Site
from kode_lab.faults.virtual_time import VirtualClock
from kode_lab.faults.world import World, remembered
from kode_lab.history.operation import (
    HEALS,
    NEMESIS,
    QUIET,
    Details,
    Operation,
    Read,
    marker_of,
    markers_in,
)
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client, OperationList
from kode_lab.message import Message, user
from kode_lab.sessions import AgentShelf, TurnEvent, TurnReply
from kode_lab.sessions.ticket import Steered
from kode_lab.targets.target import Answer, Declaration

__all__ = ["Play"]

_NO_SESSION = SessionKey("", "", "")
# When the nemesis strikes, after the beginning; and how long its victim is down.
_STRIKES_AFTER_MS, _STRIKES_WITHIN_MS = 25.0, 60.0
_DOWN_MS = 4.0
# Longer than whatever a service does behind its clients' backs.
_SETTLE_S = 1.0
_PROBE_PATIENCE_S = 120.0
_NO_SUCH_NUMBER = 0xFFFFFF


class _Sending:
    """One sending of a turn to one process, by a client with so much patience: a target.

    Attributes:
        own_mistake: an exception that no service may raise: the laboratory is wrong.
        reply: what came back, or None.
        is_rolled_back: another turn with the strategy ``rollback`` ended it.
        heard: the events that came while it ran.
    """

    declaration = Declaration("the process under test", needs_quote=False)

    def __init__(
        self, process: Process, patience_s: float, how: dict[str, Any], scenario: Scenario
    ) -> None:
        self._process = process
        self._patience_s = patience_s
        self._how = how
        self._scenario = scenario
        self.is_rolled_back = False
        self.heard: list[TurnEvent] = []
        # Clients are told of steering, whatever comes of it.
        if scenario.is_streaming or scenario.strategy == "steer":
            how["on_event"] = self.heard.append
        self.own_mistake: BaseException | None = None
        self.reply: TurnReply | None = None

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Send it; leave when the patience is over."""
        process = self._process
        if not process.is_up():
            return Answer("refused", error="connection refused")
        work = process.site.spawn(process.front.turn(key, prompt, turn_id=turn_id, **self._how))
        done, _ = await asyncio.wait((work,), timeout=self._patience_s)
        if not done:
            if self._scenario.is_cancelling:
                work.cancel()
            return Answer("unknown", error="the client left")
        if work.cancelled() or not process.is_up():
            return Answer("unknown", error="connection lost")
        error = work.exception()
        if error is None:
            self.reply = work.result()
            told = self.reply
            return Answer(
                "reply",
                told.text,
                config=told.config_version,
                steered=told.steered,
                into=told.into,
            )
        if not isinstance(error, KodeLabError | asyncio.CancelledError):
            self.own_mistake = error
        is_final = isinstance(error, Superseded)
        into = error.into if isinstance(error, Superseded) else ""
        self.is_rolled_back = is_final and not into and self._scenario.strategy == "rollback"
        is_refused = isinstance(error, Refused | CallerError) or self.is_rolled_back
        kind = "refused" if is_refused else "unknown"
        return Answer(kind, error=type(error).__name__, is_final=is_final, into=into)

    async def history(self, key: SessionKey) -> None:
        """Read nothing: the play reads by itself."""


class Play:
    """A service, its clients, and what they saw.

    Attributes:
        history: what clients saw, in the order of completions.
        trace: what the service did, at the system's own times.
    """

    def __init__(
        self,
        scenario: Scenario,
        parts: Parts,
        root: Path,
        world: World,
        agents: AgentShelf,
        clock: VirtualClock,
        seed: int,
    ) -> None:
        self._log = OperationList()
        self.history = self._log.done
        self.trace: list[Span] = []
        self._scenario = scenario
        self._parts = parts
        self._root = root
        self._world = world
        self._agents = agents
        self._clock = clock
        self._delays = clock.delays
        self._seed = seed
        self._model = Scribe(
            clock.delays,
            now_ns=clock.now_ns,
            failing_percent=scenario.failing_percent,
            cutting_percent=scenario.cutting_percent,
        )
        self._shared: dict[str, Any] = {}
        self._numbers = {key: count() for key in scenario.keys}
        self._names = count(1)
        self._processes: list[Process] = []
        self._dead: list[Process] = []

    async def run(self) -> None:
        """Play it to its end."""
        scenario = self._scenario
        self._processes = [self._start(number) for number in range(scenario.processes)]
        world = self._world
        world.delegate_to = self._delegate
        try:
            if scenario.is_deleting:
                await self._use_and_delete()
            async with asyncio.TaskGroup() as group:
                for key in scenario.keys:
                    for number in range(scenario.clients):
                        group.create_task(self._client(key, number))
                if scenario.crash:
                    group.create_task(self._nemesis())
            await self._finish()
        finally:
            for process in self._processes:
                await process.close()
            for worker in world.workers:
                worker.cancel()

    def _start(self, number: int, root: Path | None = None) -> Process:
        site = Site(number, root or self._root, self._delays, self._shared)
        durability = "power" if self._scenario.crash == "power-cut" else "process"
        return Process(
            site,
            self._parts,
            agents=self._agents,
            model=self._model,
            trace=self.trace.append,
            durability=durability,
        )

    # ---- clients

    async def _client(self, key: SessionKey, number: int) -> None:
        scenario = self._scenario
        name = f"{key}/{number}"
        for _ in range(scenario.turns):
            await asyncio.sleep(self._delays.take_s(scenario.think_ms))
            is_hurried = self._delays.is_chosen(scenario.hurried_percent)
            patience_s = (scenario.hurried_ms if is_hurried else scenario.patient_ms) / 1_000
            await self._turn(key, name, number, patience_s, scenario.deadline_s)
            if scenario.is_reading:
                await asyncio.sleep(self._delays.take_s(scenario.think_ms))
                await self._read(key, f"{name}r", self._processes[number % scenario.processes])

    async def _turn(
        self,
        key: SessionKey,
        name: str,
        number: int,
        patience_s: float,
        deadline_s: float | None = None,
    ) -> None:
        """Ask one turn, as often as the scenario says while it is not acknowledged."""
        scenario = self._scenario
        marker = marker_of(key, next(self._numbers[key]), seed=self._seed)
        asks = "Please delegate this" if scenario.is_delegating else "Please note this"
        for attempt in range(scenario.attempts):
            process = self._processes[(number + attempt) % scenario.processes]
            how: dict[str, Any] = {"deadline_s": deadline_s}
            if scenario.strategy is not None and number == scenario.clients - 1:
                how["strategy"] = scenario.strategy
            sending = _Sending(process, patience_s, how, scenario)
            ended = await self._client_of(sending).turn(
                f"{name}#{next(self._names)}", key, marker, f"{asks} {marker}", turn_id=marker
            )
            if sending.own_mistake is not None:
                raise sending.own_mistake
            heard = sending.heard
            steered = [event.data for event in heard if event.kind == "steered"]
            if sending.reply is not None or steered or sending.is_rolled_back:
                self._log.done[-1] = self._log.done[-1]._replace(
                    details=self._details(marker, sending, steered)
                )
            # Whose place another turn took must not take it back.
            if ended.type == "ok" or ended.is_final:
                return
            pause_ms = _DOWN_MS if not process.is_up() else 0.0
            await asyncio.sleep(pause_ms / 1_000 + self._delays.take_s(scenario.think_ms))
            patience_s = scenario.patient_ms / 1_000

    def _details(self, marker: str, sending: _Sending, heard: Sequence[Steered]) -> Details:
        """Return what the client was told beside the text, and what the model's side recorded."""
        reply = sending.reply
        steered = [one.turn_id for one in heard if one.into == marker]
        into = next((one.into for one in heard if one.turn_id == marker), "")
        if reply is None:
            merged = (marker, *steered) if steered else ()
            return Details(merged=merged, into=into, is_rolled_back=sending.is_rolled_back)
        steered = steered or [*reply.steered]
        # Each note has one effect, which the world knows by its text.
        notes = (call.input["text"] for call in reply.tool_calls if call.name == "note")
        streamed = "".join(event.data for event in sending.heard if event.kind == "text")
        return Details(
            tools=tuple(text for text in notes if marker in text),
            stop_reason=reply.stop_reason,
            model=self._model.recorded.get(marker),
            merged=(marker, *steered) if steered else (),
            into=into or reply.into,
            streamed=tuple(markers_in(streamed)) if self._scenario.is_streaming else (),
        )

    def _client_of(self, sending: _Sending) -> Client:
        return Client(sending, self._log, now_ns=self._clock.now_ns)

    async def _read(self, key: SessionKey, name: str, process: Process) -> None:
        """Read a session's history, as its service tells it."""
        name = f"{name}#{next(self._names)}"
        self._log.invoke(key, name, self._clock.now_ns(), f="read")
        kind, error, markers, read = "ok", "", None, None
        if not process.is_up():
            kind, error = "fail", "connection refused"
        else:
            try:
                markers, read = self._told(key, await process.manager.history(key))
            except KodeLabError as failure:
                kind, error = "info", type(failure).__name__
            else:
                if not process.is_up():
                    kind, error, markers, read = "info", "connection lost", None, None
        now_ns = self._clock.now_ns()
        self._log.complete(name, now_ns, kind, markers=markers, read=read, error=error)

    def _told(
        self, key: SessionKey, messages: list[Message]
    ) -> tuple[tuple[str, ...], Read | None]:
        """Return the markers of a conversation's prompts, and what of it shows by halves."""
        markers = [
            marker
            for message in messages
            if message["role"] == "user"
            for block in message["content"]
            if block["type"] == "text"
            for marker in markers_in(block["text"])
        ]
        next_one = marker_of(key, _NO_SUCH_NUMBER, seed=self._seed)
        shown = shown_to([*messages, user(next_one)])
        return tuple(markers), None if shown is None else shown[1]

    async def _delegate(self, key: SessionKey, _text: str) -> None:
        """Ask a sub-agent: right, in a session of its own; wrong, in the session that waits.

        Its turn is in the history, as one of the child's session.
        """
        process = self._processes[0]
        where = getattr(process.front, "sub_session", None)
        child = key.child(AGENT_ID) if where is None else where(key)
        name = f"{child}/sub#{next(self._names)}"
        number = next(self._numbers.setdefault(child, count()))
        marker = marker_of(child, number, seed=self._seed)
        patient = self._scenario._replace(is_cancelling=False)
        sending = _Sending(process, _PROBE_PATIENCE_S, {"deadline_s": None}, patient)
        asked = self._client_of(sending).turn(
            name, child, marker, f"Please note this {marker}", turn_id=marker
        )
        # As a request over a socket comes: without the context by which the manager would know it.
        await asyncio.get_running_loop().create_task(asked, context=Context())
        if sending.reply is not None:
            done = next(n for n, one in enumerate(self.history) if one.process == name)
            details = self._details(marker, sending, ())
            self.history[done] = self.history[done]._replace(details=details)

    # ---- the nemesis, and the end

    async def _nemesis(self) -> None:
        crash = self._scenario.crash
        await asyncio.sleep(_STRIKES_AFTER_MS / 1_000)
        victim = self._processes[0]
        if self._scenario.has_full_disk:
            await asyncio.sleep(self._delays.take_s(_STRIKES_WITHIN_MS / 2))
            victim.disk.is_full = True
            self._fault("full-disk")
            await asyncio.sleep(_STRIKES_WITHIN_MS / 1_000)
        await asyncio.sleep(self._delays.take_s(_STRIKES_WITHIN_MS))
        self._fault(crash)
        root = None
        if crash == "power-cut":
            root = self._root / "after the power cut"
            for inner, content in victim.disk.image().items():
                path = root / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        await victim.kill()
        await asyncio.sleep(_DOWN_MS / 1_000)
        if root is not None:
            root.mkdir(exist_ok=True)
        self._processes[0] = self._start(0, root)
        self._fault(HEALS.get(crash, "restart"))

    def _fault(self, name: str) -> None:
        now_ns = self._clock.now_ns()
        self.history.append(Operation(_NO_SESSION, name, NEMESIS, "info", now_ns, now_ns))

    async def _use_and_delete(self) -> None:
        """Use each session and delete it: of that, nothing may ever be seen again."""
        for key in self._scenario.keys:
            await self._turn(key, "before", 0, _PROBE_PATIENCE_S)
            await asyncio.sleep(_SETTLE_S)  # what ends as the deletion begins may come after it
            name = f"deleting#{next(self._names)}"
            self._log.invoke(key, name, self._clock.now_ns(), f="delete")
            await self._processes[0].manager.delete(key)
            self._log.complete(name, self._clock.now_ns(), "ok")
            await asyncio.sleep(_SETTLE_S)

    async def _fork(self, key: SessionKey) -> None:
        """Copy a session, take a turn in the copy, and read it."""
        markers, _ = self._told(key, await self._processes[0].manager.history(key))
        copy = key._replace(session_id=f"{key.session_id}, copied")
        self._numbers[copy] = count()
        details = Details(source=key, upto=markers[-1])
        name = f"forking#{next(self._names)}"
        self._log.invoke(copy, name, self._clock.now_ns(), f="fork")
        await self._processes[0].manager.fork(key, copy)
        self._log.complete(name, self._clock.now_ns(), "ok", details=details)
        await asyncio.sleep(_SETTLE_S)
        await self._turn(copy, "copied", 0, _PROBE_PATIENCE_S)
        await self._read(copy, "final", self._processes[0])

    async def _finish(self) -> None:
        """Wait for quiet, then probe each session once, and read it once."""
        scenario = self._scenario
        await asyncio.sleep(_SETTLE_S)
        self._fault(QUIET)
        await asyncio.sleep(_SETTLE_S)  # what is asked at that very moment is no probe
        self._model.failing_percent = 0
        for number, key in enumerate(scenario.keys):
            await self._turn(key, "probe", number, _PROBE_PATIENCE_S)
        await asyncio.sleep(_SETTLE_S)
        for key in scenario.keys:
            await self._read(key, "final", self._processes[0])
        if scenario.is_forking:
            for key in scenario.keys:
                await self._fork(key)
        now_ns = self._clock.now_ns()
        self.history.append(
            Operation(
                scenario.keys[0], "effects", "world", "ok", now_ns, now_ns,
                effects=(*self._world.effects, *remembered(self._shared["memories"])),
            )
        )  # fmt: skip
