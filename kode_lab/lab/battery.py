"""The standard battery: the loads that make an unsafe service show itself, done to one target.

It owns which loads there are, who asks what in each, and how a battery ends however its target
behaves: every wait is bounded, a lost service is noted and started again, and what could not be
done is reported. It judges nothing and knows no framework.

Each load exists because a service was seen that only this load convicts: turns of one session in
the same millisecond, one session name of two users, a session longer than any window, a second
delivery while the first one runs, a client that leaves, a crash under load.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from kode_lab.errors import KodeLabError
from kode_lab.history.operation import HistoryWriter, digest_of, marker_of
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client, Witness
from kode_lab.lab.live import Row
from kode_lab.targets.lines import LinesTarget
from kode_lab.targets.target import Killable, Outcome, Target

__all__ = ["LOADS", "Battery", "Settings"]

AGENT = "agent"
_PROMPTS = (
    "Please remember this for me: {marker}",
    "Thank you. And now this one: {marker}",
    "What was the last thing that I told you? {marker}",
)
_TOOL_PROMPT = "Use the tool {tool} for tomorrow at 10:00: {marker}"
# So many turns in a row that were shown only the latest ones make a window evident.
_WINDOW_TURNS = 3
# For another process to have its question before both ask.
_TOGETHER_S = 0.02
_LOST_POLL_S = 0.1
_GONE = "the service ended by itself, and does not promise that sessions survive that"
# So many turns in a row without an answer, and it is not loaded any more.
_SILENT_LIMIT = 6
# A service that starts, or still works on turns whose clients left, gets so much longer.
_PATIENT_FACTOR = 3
# A service that fails one turn in five must not be called stuck: 0.2^8 is 3 in a million.
_PROBE_ATTEMPTS, _PROBE_LIMIT_S = 8, 8.0


# The long session comes first: it shows whether the service shows its model a window. Then the
# crash, on sessions of its own whose turns never meet: what another load makes a service lose is
# then never blamed on a crash. What each does: docs/judge-your-service.md.
LOADS = (
    *("long", "crash", "together", "processes", "same name", "one user", "tools", "again"),
    *("cancel", "probe"),
)


class Settings(NamedTuple):
    """How much a battery does.

    Attributes:
        seed: of sessions' names and of what is drawn.
        rounds: how often each load meets its sessions.
        at_once: turns of one session that are sent together.
        long_turns: of the longest session.
        timeout_s: how long a client waits for an answer.
        limit_s: no load begins after this; the probe still runs.
        crashes: how often the service is killed.
        loads: names of loads to do; empty is all.
    """

    seed: int = 0
    rounds: int = 3
    at_once: int = 3
    long_turns: int = 14
    timeout_s: float = 20.0
    limit_s: float = 90.0
    crashes: int = 2
    loads: tuple[str, ...] = ()


class Battery:
    """One battery on one target.

    Attributes:
        not_done: for each load that was left out or broken off, why.
        window: how many of the latest turns the model is shown, as the long session showed; 0
            where it is shown all of them.
        first_error: of the first turn that was not acknowledged.
        lost: how often the service ended by itself, with its last words.
    """

    def __init__(
        self,
        target: Target,
        history: HistoryWriter,
        *,
        witness: Witness | None = None,
        settings: Settings = Settings(),  # noqa: B008 - a frozen value
        second: LinesTarget | None = None,
        rows: Sequence[Row] = (),
    ) -> None:
        """Set it up.

        Args:
            witness: returns what the simulated model was shown with a marker.
            second: the same service, asked by another process.
            rows: of the progress, one a load, in the order of ``LOADS``.
        """
        self.not_done: dict[str, str] = {}
        self.window = 0
        self.first_error = ""
        self.lost: list[str] = []
        self.target = target
        self._declares = target.declaration
        self._history = history
        self._settings = settings
        self._client = Client(target, history, witness=witness)
        self._other = second
        self._second = None if second is None else Client(second, history, witness=witness)
        self._rows = dict(zip(LOADS, rows, strict=False))
        self._draw = random.Random(settings.seed)
        self._numbers: dict[SessionKey, int] = {}
        self._working: set[SessionKey] = set()
        self._process = 0
        self._sent = self._acknowledged = 0
        self._is_killing = self._is_over = False
        self._silent = 0
        self._few = 1 if self._declares.is_heavy else 99
        self._rounds = 1 if self._declares.is_heavy else settings.rounds

    async def run(self) -> None:
        """Do every load, then the probe."""
        began_s = time.monotonic()
        watch = asyncio.ensure_future(self._watch())
        try:
            if not await self._greets():
                self.not_done |= dict.fromkeys(LOADS[:-1], "no first turn was acknowledged")
                return
            loads: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                "long": self._long,
                "crash": self._crash,
                "together": self._together,
                "processes": self._processes,
                "same name": self._same_name,
                "one user": self._one_user,
                "tools": self._tools,
                "again": self._again,
                "cancel": self._cancel,
            }
            for name, do in loads.items():
                if self._settings.loads and name not in self._settings.loads:
                    continue
                if self._is_over:
                    self.not_done[name] = _GONE
                    continue
                if self._silent >= _SILENT_LIMIT:
                    self.not_done[name] = f"the last {self._silent} turns had no answer in time"
                    continue
                if (left_s := self._settings.limit_s - (time.monotonic() - began_s)) <= 0:
                    limit = f"limit_s={self._settings.limit_s:g}"
                    self.not_done[name] = f"the time was up ({limit})"
                    continue
                await self._do(name, do, left_s)
        finally:
            watch.cancel()
            await asyncio.wait((watch,))
        self._history.fault("quiet", time.monotonic_ns())
        if self._is_over:
            self.not_done["probe"] = _GONE
        if "probe" not in self.not_done:
            await self._do("probe", self._probe, None)

    async def _do(
        self, name: str, do: Callable[[], Coroutine[Any, Any, None]], limit_s: float | None
    ) -> None:
        row = self._rows.get(name) or Row("", name, "")
        row.began_ns, row.doing = time.monotonic_ns(), "running"
        before = self._sent, self._acknowledged
        try:
            async with asyncio.timeout(limit_s):
                await do()
        except TimeoutError:
            self.not_done[name] = f"broken off: the time was up (limit_s={limit_s:g})"
        except KodeLabError as error:
            self.not_done[name] = f"broken off: {error}"
        row.ended_ns = time.monotonic_ns()
        sent, acknowledged = self._sent - before[0], self._acknowledged - before[1]
        row.doing = self.not_done.get(name) or f"{acknowledged} of {sent} turns acknowledged"

    # ---- the loads

    async def _greets(self) -> bool:
        """Take a first turn, alone: a service that refuses everything is not loaded."""
        key = self._key("greeting", "first")
        # The first turn of some frameworks imports half of their packages.
        patience_s = _PATIENT_FACTOR * self._settings.timeout_s
        outcome = await self._turn(self._client, key, timeout_s=patience_s)
        for _ in range(2):
            if outcome.type == "ok" or "timeout_s" in outcome.error:
                break
            await asyncio.sleep(0.5)
            outcome = await self._turn(self._client, key)
        self.first_error = "" if outcome.type == "ok" else outcome.error
        if "timeout_s" in outcome.error:
            self.not_done["probe"] = "the first turn had no answer in time"
        return outcome.type == "ok"

    async def _together(self) -> None:
        keys = [self._key("ada", f"hot-{number}") for number in range(3)][: self._few]
        for _ in range(self._rounds):
            await self._all(
                (self._client, key) for key in keys for _ in range(self._settings.at_once)
            )

    async def _processes(self) -> None:
        if self._second is None and self._declares.processes < 2:
            self.not_done["processes"] = (
                "its sessions are in one process, which only this one can ask"
            )
            return
        other = self._second or self._client
        keys = [self._key("bob", f"shared-{number}") for number in range(2)][: self._few]
        for key in keys if self._second is not None else ():
            await self._turn(other, key)  # its connection is open before they meet
        for _ in range(self._rounds):
            await self._all((client, key) for key in keys for client in (self._client, other) * 2)

    async def _same_name(self) -> None:
        if "user" not in self._declares.parts:
            self.not_done["same name"] = "the service is not told which user speaks"
            return
        names = ("cyd", "dot", "eve")
        keys = [self._key(user, "main") for user in names]
        # A user's name as a session's name, both ways round, and what is the same once joined.
        keys += [self._key("cyd", "dot"), self._key("dot", "cyd")]
        keys += [self._key("cyd-dot", "x"), self._key("cyd", "dot-x")]
        for _ in range(self._rounds):
            await self._all((self._client, key) for key in keys[: 2 * self._few] for _ in range(2))

    async def _one_user(self) -> None:
        keys = [self._key("fay", f"talk-{number}") for number in range(4)][: 2 * self._few]
        for _ in range(self._rounds):
            await self._all((self._client, key) for key in keys)

    async def _long(self) -> None:
        """Take the turns of one session one by one, and learn what its model is shown."""
        key = self._key("gil", "long")
        client, partial = self._client, list[int]()
        acknowledged: list[str] = []
        client.is_learning = True
        try:
            for _ in range(self._settings.long_turns):
                marker = self._marker(key)
                outcome = await self._turn(client, key, marker)
                read = outcome.read
                if read is not None and outcome.type == "ok" and read.position < len(acknowledged):
                    latest = acknowledged[len(acknowledged) - read.position :]
                    is_summary = not latest and self._declares.compacts
                    if read.digest != digest_of(latest) or not (latest or is_summary):
                        return  # neither all of it nor the end of it: a fault
                    partial.append(read.position)
                if outcome.type == "ok":
                    acknowledged.append(marker)
            if len(partial) >= _WINDOW_TURNS:
                client.least_shown = min(*partial, client.least_shown)
                if self._second is not None:
                    self._second.least_shown = client.least_shown
                self.window = max(partial)
        finally:
            client.release()

    async def _tools(self) -> None:
        if not self._declares.tool:
            self.not_done["tools"] = "it names no tool whose effects can be judged ([effects])"
            return
        keys = [self._key("kim", "work-0"), self._key("kim", "work-1"), self._key("lee", "work-0")]
        self._working.update(keys)
        for _ in range(self._rounds):
            await self._all((self._client, key) for key in keys[: self._few] for _ in range(2))
        if not self._client.tool_calls:
            offered = ", ".join(sorted(self._client.offered)) or "none"
            self.not_done["tools"] = (
                f"no call of {self._declares.tool} succeeded; the tools that the service offers: "
                f"{offered}"
            )

    async def _again(self) -> None:
        if not self._declares.is_idempotent:
            self.not_done["again"] = (
                "the service does not promise that a second delivery is harmless"
            )
            return
        for number in range(self._rounds):
            key = self._key("hal", f"again-{number}")
            self._working.add(key)
            marker = self._marker(key)
            first = asyncio.ensure_future(self._turn(self._client, key, marker))
            await asyncio.sleep(self._draw.uniform(0.0, 0.05))
            await self._turn(self._second or self._client, key, marker)
            await first
            await self._turn(self._client, key, marker)

    async def _cancel(self) -> None:
        key = self._key("ivy", "leaving")
        for _ in range(self._rounds):
            gone = self._turn(self._client, key, timeout_s=self._draw.uniform(0.005, 0.05))
            stays = self._turn(self._client, key)
            await asyncio.gather(gone, stays)

    async def _crash(self) -> None:
        target = self.target
        if not isinstance(target, Killable) or not getattr(target, "can_start", True):
            self.not_done["crash"] = (
                "it does not say how it is killed and started again (start = ...)"
            )
            return
        if "durable" not in self._declares.promises:
            self.not_done["crash"] = (
                "it does not promise that sessions survive a crash (durable = true)"
            )
            return
        keys = [self._key("jon", f"crash-{number}") for number in range(4)][: 2 * self._few]
        self._working.update(keys[:2])
        for number in range(self._settings.crashes):
            # Acknowledged before the crash, in flight during it, asked again after it.
            await self._all((self._client, key) for key in keys)
            markers = {key: self._marker(key) for key in keys}
            flying = [
                asyncio.ensure_future(self._turn(self._client, key, marker))
                for key, marker in markers.items()
            ]
            await asyncio.sleep(self._draw.uniform(0.0, 0.06))
            self._is_killing = True
            self._history.fault("kill", time.monotonic_ns(), f"crash {number + 1}")
            await target.kill()
            ended = await asyncio.gather(*flying)
            await target.restart()
            self._history.fault("restart", time.monotonic_ns())
            self._is_killing = False
            if self._declares.is_idempotent:  # as a client does that had no answer
                unknown = [k for k, one in zip(keys, ended, strict=True) if one.type == "info"]
                again = (self._turn(self._client, key, markers[key]) for key in unknown)
                await asyncio.gather(*again)
            await self._all((self._client, key) for key in keys)

    async def _probe(self) -> None:
        """Ask each session once more, then read it; some services need a moment after a crash."""
        self._silent = 0
        at_once = asyncio.Semaphore(8)
        await asyncio.gather(*(self._ask_again(key, at_once) for key in list(self._numbers)))
        for key in list(self._numbers) if self._declares.has_history else ():
            for _ in range(3):
                self._process += 1
                if not await self._client.read(f"r{self._process}", key, timeout_s=20.0):
                    break
                await asyncio.sleep(0.2)
        for key in {key.user_id: key for key in self._working}.values():
            if self._declares.has_book:
                self._process += 1
                if error := await self._client.effects(f"e{self._process}", key):
                    self.not_done["tools"] = f"what tools did cannot be read: {error}"

    async def _ask_again(self, key: SessionKey, at_once: asyncio.Semaphore) -> None:
        async with at_once:
            if self._silent >= _SILENT_LIMIT:
                self.not_done["probe"] = f"the last {self._silent} turns had no answer in time"
                return
            patience_s = _PATIENT_FACTOR * self._settings.timeout_s
            due_s = time.monotonic() + _PROBE_LIMIT_S
            for _ in range(_PROBE_ATTEMPTS):
                outcome = await self._turn(self._client, key, timeout_s=patience_s)
                is_late = time.monotonic() > due_s
                if outcome.type == "ok" or "timeout_s" in outcome.error or is_late:
                    break
                await asyncio.sleep(max(0.2, min(2.0, outcome.retry_after_s)))

    # ---- one turn, and the service's own end

    def _key(self, user: str, session: str) -> SessionKey:
        return SessionKey(f"{user}{self._settings.seed or ''}", session, AGENT)

    def _marker(self, key: SessionKey) -> str:
        number = self._numbers.get(key, 0)
        self._numbers[key] = number + 1
        return marker_of(key, number, seed=self._settings.seed)

    async def _all(self, asked: Iterable[tuple[Client, SessionKey]]) -> None:
        """Take turns that begin together, also where another process asks some of them."""
        asked = list(asked)
        at_ns = 0
        if self._other is not None and any(client is self._second for client, _ in asked):
            at_ns = self._other.at_ns = time.monotonic_ns() + int(_TOGETHER_S * 1e9)

        async def begin(client: Client, key: SessionKey) -> None:
            if client is self._client:
                await asyncio.sleep((at_ns - time.monotonic_ns()) / 1e9 if at_ns else 0)
            await self._turn(client, key)

        await asyncio.gather(*(begin(client, key) for client, key in asked))

    async def _turn(
        self,
        client: Client,
        key: SessionKey,
        marker: str = "",
        timeout_s: float | None = None,
    ) -> Outcome:
        """Take one turn; what is refused for now is sent again, a few times."""
        marker = marker or self._marker(key)
        # By the marker, so that a second delivery of a turn has the same words.
        number = int(marker[-6:], 16)
        said = _TOOL_PROMPT if key in self._working else _PROMPTS[number % len(_PROMPTS)]
        if not self._declares.tool:
            said = _PROMPTS[number % len(_PROMPTS)]
        prompt = said.format(marker=marker, tool=self._declares.tool)
        self._sent += 1
        for attempt in range(6):
            self._process += 1
            outcome = await client.turn(
                f"c{self._process}",
                key,
                marker,
                prompt,
                timeout_s=timeout_s or self._settings.timeout_s,
            )
            is_last = outcome.is_final or self._is_killing or self._is_over
            if outcome.type != "fail" or is_last:
                break
            pause_s = max(min(outcome.retry_after_s, 2.0), 0.05 * 2**attempt)
            await asyncio.sleep(pause_s * self._draw.uniform(0.5, 1.5))
        self._acknowledged += outcome.type == "ok"
        is_patient = timeout_s is None or timeout_s >= self._settings.timeout_s
        if is_patient:
            self._silent = self._silent + 1 if "timeout_s" in outcome.error else 0
        if outcome.type != "ok" and not self.first_error and timeout_s is None:
            self.first_error = outcome.error
        return outcome

    async def _watch(self) -> None:
        """Start the service again when it ends by itself, and note it as a crash."""
        target = self.target
        lost = getattr(target, "lost", None)
        if lost is None or not isinstance(target, Killable):
            return
        while len(self.lost) < 10:
            await asyncio.sleep(_LOST_POLL_S)
            if self._is_killing or not (words := lost()):
                continue
            self.lost.append(words)
            if "durable" not in self._declares.promises:
                # What it kept is gone, as it may be: started again, it would be judged for that.
                self._is_over = True
                return
            self._history.fault("kill", time.monotonic_ns(), words)
            try:
                await target.restart()
            except KodeLabError as error:
                self.lost.append(str(error))
                return
            self._history.fault("restart", time.monotonic_ns())
