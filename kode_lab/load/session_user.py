"""A Locust user that talks to sessions: open-loop arrivals, a marker in each prompt, all recorded.

    class Ada(SessionUser):
        rate_per_s = 2.0

        def session(self):
            return self.key("ada", "hot")

Turns arrive by a Poisson process whatever the service does: each on a greenlet of its own, and its
time counts from when it was *meant* to be sent. A closed loop, where a slow service slows its own
clients and hides it, is what ``--closed-loop`` asks for.

A user is itself a target (``targets.target``): its two methods ``turn`` and ``history`` ask the
server at ``--host``, or what ``--target`` names. A service that no target describes is asked by
overriding these two. They run in the asyncio loop of the ``Bridge``; ``lab.client`` records.

Source: coordinated omission is Gil Tene's word for what a closed loop hides.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial

import gevent
from locust import User, task
from locust.exception import StopTest

from kode_lab.errors import KodeLabError
from kode_lab.history.operation import Effect
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client
from kode_lab.load.load_run import listen
from kode_lab.load.ranges import problem_of
from kode_lab.load.recorder import LATE, Recorder
from kode_lab.targets.target import Answer, Declaration, History, Outcome, Target

__all__ = ["SessionUser", "ToolUser"]

_PAUSE_S, _PAUSE_LIMIT_S = 0.05, 2.0
FIRST, BETWEEN = "time to first token", "between tokens"

# The assistant asks for eight days in one turn, and is shown at most fifty schedules a day: so
# many of one user's turns are told of as these days hold.
_DAYS, _DAYS_ASKED = 64, 8
_FIRST_DAY = date(2031, 1, 1)
_AUDIT = "audit"

listen()


class SessionUser(User):
    """One source of turns; which session it talks to and what it says is its subclass's.

    Attributes:
        rate_per_s: turns that one user begins in a second, on average.
        think_s: between an answer and the next turn, in a closed loop.
        double_share: of the arrivals, how many are two turns of one session at once.
        attempts_limit: how often one turn is sent, under one turn id.
        timeout_s: how long a client waits for an answer.
        is_streaming: replies are asked for as streams, where the target has both.
        target: what is asked: our server, or what ``--target`` names.
    """

    abstract = True
    rate_per_s = 2.0
    think_s = 0.5
    double_share = 0.0
    attempts_limit = 1
    timeout_s = 120.0
    is_streaming = False
    agent_id = "schedule-assistant"

    def on_start(self) -> None:
        """Draw when the first turn is due, so that users do not fire in phase."""
        options = self.environment.parsed_options
        if problem := problem_of(options):  # the web page can change what was right at the start
            raise StopTest(problem)
        run = self.environment.load_run
        self.recorder: Recorder = run.recorder
        self.target: Target = run.target
        self.number = self.recorder.next_user()
        self.draw = random.Random(f"{options.seed}/{self.recorder.worker}/{self.number}")
        self.rate_per_s = options.rate or self.rate_per_s
        self.is_closed = options.closed_loop
        self.due_ns = time.monotonic_ns()
        self._client = Client(self, self.recorder.history)
        self._bridge = run.bridge

    # ---- what a load test says

    def session(self) -> SessionKey:
        """Return the session of the next turn."""
        raise NotImplementedError

    def prompt(self, marker: str) -> str:
        """Return the words of the next turn: by default two model calls and one of a tool."""
        return f"List my schedules for 1 day from tomorrow {marker}"

    def key(self, user: str, session: str | None = None) -> SessionKey:
        """Return a session of this run's own user of that name."""
        return SessionKey.of(f"{user}-{self.recorder.tag}", self.agent_id, session)

    def epoch(self, length_s: float) -> int:
        """Return the number of the present stretch of time, the same for all users of a run."""
        ahead_ns = self.environment.load_run.ahead_ns
        return int((time.monotonic_ns() - ahead_ns) / 1e9 // length_s)

    # ---- how the service is asked: override these two for one that no target describes

    @property
    def declaration(self) -> Declaration:
        """What the target says about itself."""
        return self.target.declaration

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn."""
        return await self.target.turn(key, prompt, turn_id)

    async def history(self, key: SessionKey) -> History | Sequence[str] | None:
        """Return what the user said in a session; None when it cannot be read."""
        return await self.target.history(key)

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return all that tools did for a user; only users with tools can."""
        raise KodeLabError(f"what tools did for {user_id} is not known")

    # ---- the arrivals

    @task
    def arrive(self) -> None:
        """Wait until the next turn is due, and begin it."""
        gap_s = self.think_s if self.is_closed else 1 / self.rate_per_s
        self.due_ns += int(self.draw.expovariate(1 / gap_s) * 1e9)
        gevent.sleep(max(0.0, (self.due_ns - time.monotonic_ns()) / 1e9))
        if self.recorder.is_hushed:
            gevent.sleep(1.0)
            return
        key = self.session()
        turn = self.recorder.in_flight.spawn(self.take_turn, key, self.due_ns)
        if self.draw.random() < self.double_share:
            self.recorder.in_flight.spawn(self.take_turn, key, self.due_ns)
        if self.is_closed:
            turn.join()
            self.due_ns = time.monotonic_ns()

    def take_turn(self, key: SessionKey, due_ns: int, *, is_load: bool = True) -> Outcome:
        """Take one turn of ``key``, sent again while that may help; return how it ended.

        Args:
            due_ns: when it was meant to be sent.
            is_load: whether Locust's figures count it.
        """
        marker = self.recorder.marker(key)
        outcome = self._attempt(key, marker, due_ns, is_load=is_load)
        pause_s = _PAUSE_S
        for _ in range(self.attempts_limit - 1):
            if outcome.type == "ok" or outcome.is_final:
                break
            gevent.sleep(max(outcome.retry_after_s, pause_s * self.draw.uniform(0.5, 1.5)))
            pause_s = min(2 * pause_s, _PAUSE_LIMIT_S)
            outcome = self._attempt(key, marker, time.monotonic_ns(), is_load=is_load)
        return outcome

    def _attempt(self, key: SessionKey, marker: str, due_ns: int, *, is_load: bool) -> Outcome:
        ended: tuple[Outcome, int] = self._bridge.call(self._sent, key, marker, due_ns, is_load)
        outcome, ended_ns = ended
        if is_load:
            self._tell_locust(outcome, ended_ns - due_ns)
            latest_ns = 0
            for at_ns in outcome.pieces_ns:
                name, took_ns = (
                    (BETWEEN, at_ns - latest_ns) if latest_ns else (FIRST, at_ns - due_ns)
                )
                self.recorder.count(name, took_ns)
                latest_ns = at_ns
        return outcome

    async def _sent(
        self, key: SessionKey, marker: str, due_ns: int, is_load: bool
    ) -> tuple[Outcome, int]:
        if is_load:
            self.recorder.count(LATE, time.monotonic_ns() - due_ns)
        process = self.recorder.next_process()
        outcome = await self._client.turn(
            process, key, marker, self.prompt(marker), timeout_s=self.timeout_s
        )
        return outcome, time.monotonic_ns()

    def _tell_locust(self, outcome: Outcome, took_ns: int) -> None:
        failure = None if outcome.type == "ok" else f"{outcome.type}: {outcome.error}"
        self.environment.events.request.fire(
            request_type="POST",
            name="turn",
            response_time=took_ns / 1e6,
            response_length=len(outcome.text),
            exception=failure,
            context={},
        )

    # ---- the end of a run

    def read_back(self, key: SessionKey) -> str:
        """Read a session and record it; return "" or why it could not be read."""
        read = partial(self._client.read, has_effects=getattr(self, "has_tools", False))
        error: str = self._bridge.call(read, self.recorder.next_process(), key)
        return error

    def ask_world(self, key: SessionKey) -> None:
        """Ask what tools did for a user and record it."""
        self._bridge.call(self._client.effects, self.recorder.next_process(), key)


class ToolUser(SessionUser):
    """One whose turns each make one schedule, and who asks at the end what was made.

    The title of a schedule is its turn's marker, so each one names the turn that made it: one id
    for two turns, two schedules of one turn, or one in another user's book are plain to see. Each
    session's record of its tools tells of them (the target's ``history``), and so does the book,
    which each user asks in a session that nothing else uses.
    """

    abstract = True
    has_tools = True

    def prompt(self, marker: str) -> str:
        """Ask for a schedule with the turn's marker as its title, on one of the days."""
        day = _FIRST_DAY + timedelta(days=self.draw.randrange(_DAYS))
        return f'Create "plan {marker[1:]}" on {day} at 10:00 {marker}'

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return every schedule in this user's book, asked for day by day.

        Raises:
            KodeLabError: the book was not shown whole.
        """
        key = SessionKey.of(user_id, self.agent_id, _AUDIT)
        for at in range(0, _DAYS, _DAYS_ASKED):
            day = _FIRST_DAY + timedelta(days=at)
            words = f"List my schedules for {_DAYS_ASKED} days from {day}"
            answer = await self.target.turn(key, words, f"{_AUDIT}-{at}")
            if answer.kind != "reply":
                raise KodeLabError(f"the book was not told: {answer.error}")
        told = await self.target.history(key)
        if not isinstance(told, History) or told.listed is None:
            raise KodeLabError("the book was not told whole")
        return [effect._replace(user_id=user_id) for effect in told.listed]
