"""The crash proof: a process full of turns is killed again and again; what is lost is counted.

The proof is the client. It knows what it asked for and what was acknowledged, and after each
``kill -9`` it reads what is stored: every acknowledged turn must be there, once, in order, with its
tools' effects, in a conversation that the Messages API takes. Then the next process continues, and
turns that were on their way are sent again under their ids, or given up. With PostgreSQL, every
fifth kill is one of the database, too.

It owns the counting; the process that is killed is ``crash_worker``.

Source: the kill -9 loop is that of SQLite's crash tests (https://sqlite.org/testing.html).
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, Self, TypeAlias, get_args

import orjson

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.claude.legality import problem_of
from kode_lab.errors import InvalidScenario
from kode_lab.key import SessionKey
from kode_lab.message import Message, text_of, user
from kode_lab.schedule_assistant import ScheduleBook
from kode_lab.storms.crash_worker import (
    fork_of,
    key_of,
    kind_of,
    managing,
    prompts_of,
    removed_by,
    store_in,
    take,
    titles_of,
)
from kode_lab.testing.postgres import ThrowawayPostgres

__all__ = ["KILLS", "STORES", "TURNS_A_LIFE", "CrashCount", "crash_proof"]

KILLS = 300
StoreName: TypeAlias = Literal["process", "power", "postgres"]
STORES: tuple[StoreName, ...] = get_args(StoreName)
_SESSIONS = 8
TURNS_A_LIFE = 200
# New sessions from time to time: looking at a conversation costs its length.
_LIVES_A_SESSION = 10
_GIVE_UP = 0.1
_KILLS_A_DATABASE = 5
# A worker that was killed may hold its sessions until the database sees its connection end.
_QUEUE = 10
# A worker that is silent for so long is stuck, and that is a finding.
_SILENCE_S = 60.0


class CrashCount(NamedTuple):
    """What was counted: ``misordered`` and ``illegal`` at each check, the others once.

    Attributes:
        acknowledged: turns that the client was told are saved.
        resent: turns that were on their way at a kill and were sent again under their ids.
        given_up: such turns that the client never asked for again.
        steered: acknowledged turns that were given a second prompt while they ran.
        approved: acknowledged turns with a tool that waited for an approval.
        rewound: acknowledged rewinds of one turn.
        forked: acknowledged copies of a conversation.
        compacted: conversations of which a summary was made.
        lost: acknowledged turns that were missing afterwards.
        doubled: turns that were there more than once.
        misordered: conversations with acknowledged turns out of order.
        illegal: conversations that the Messages API would refuse, or with a turn in part.
        effects_lost: schedules of acknowledged turns that are missing.
        effects_doubled: schedules that were made more than once.
        returned: turns that a rewind had removed, and that are there.
        forks_broken: copies without one of the turns that they were made of.
        torn: files that a kill left half written.
        mended: those of them that were whole after the session was opened again.
    """

    kills: int = 0
    acknowledged: int = 0
    resent: int = 0
    given_up: int = 0
    steered: int = 0
    approved: int = 0
    rewound: int = 0
    forked: int = 0
    compacted: int = 0
    lost: int = 0
    doubled: int = 0
    misordered: int = 0
    illegal: int = 0
    effects_lost: int = 0
    effects_doubled: int = 0
    returned: int = 0
    forks_broken: int = 0
    torn: int = 0
    mended: int = 0

    @property
    def harm(self) -> int:
        """How many things happened that must not."""
        return (
            self.lost
            + self.doubled
            + self.misordered
            + self.illegal
            + self.effects_lost
            + self.effects_doubled
            + self.returned
            + self.forks_broken
            + (self.torn - self.mended)
        )


def crash_proof(
    kills: int,
    seed: int,
    directory: Path,
    *,
    store: StoreName = "process",
    turns_a_life: int = TURNS_A_LIFE,
    told: Callable[[CrashCount], None] | None = None,
) -> CrashCount:
    """Kill a working process so often, and return what was counted.

    Args:
        seed: of the moments of the kills and of which turns are given up. The moment is a number
            of acknowledged turns and a time after the last, so no two runs are the same.
        directory: empty; the last sessions are left in it.
        store: files with one of their durabilities, or a throwaway PostgreSQL.
        turns_a_life: acknowledged turns between two kills, on the average.
        told: is called with the count after each kill.

    Raises:
        InvalidScenario: the worker died by itself or fell silent; its log's end is in the message.
        PostgresMissing: there is no PostgreSQL on this machine.
    """
    with ExitStack() as stack:
        server = stack.enter_context(_postgres()) if store == "postgres" else None
        where = store if server is None else server.dsn
        worker = stack.enter_context(_CrashWorker(directory, where))
        proof = _Proof(directory, where, Random(seed))
        for life in range(kills):
            if life % _LIVES_A_SESSION == 0:
                proof.end_sessions()
                proof.begin_sessions(life)
            turns = proof.turns()
            limit = 1 + proof.random.randrange(2 * turns_a_life)
            for session, number in worker.live(life, turns, limit, proof.random.random() * 0.003):
                proof.took(session, number)
            proof.add(kills=1)
            if server is not None and life % _KILLS_A_DATABASE == 0:
                server.kill9()
                server.start()
            proof.look()
            if told is not None:
                told(proof.count)
        proof.end_sessions()
        return proof.count


def _postgres() -> ThrowawayPostgres:
    # Processes are killed, not the machine: what was written survives without a sync, and a restart
    # takes 0.1 s instead of 4.
    return ThrowawayPostgres(settings={"fsync": "off"})


class _CrashWorker:
    """The process that forks, and the one worker at a time that it starts."""

    def __init__(self, directory: Path, where: str) -> None:
        self._child = Child(
            (PYTHON_MODULE, "kode_lab.storms.crash_worker", str(directory), where),
            log=directory / "worker.log",
            is_piped=True,
        )
        self._rest = b""

    def live(
        self, life: int, turns: dict[str, int], limit: int, more_s: float
    ) -> list[tuple[str, int]]:
        """Let it work until so many turns are acknowledged and a moment longer; return them all."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"life": life, "turns": turns}).encode() + b"\n")
        self._child.stdin.flush()
        acknowledged: list[tuple[str, int]] = []
        pid = 0
        while True:
            for line in self._lines():
                word, *rest = line.split()
                if word == "born":
                    pid = int(rest[0])
                elif word == "ack":
                    acknowledged.append((rest[0], int(rest[1])))
                elif rest[0] == str(-signal.SIGKILL):
                    return acknowledged
                else:
                    last = self._child.last_words()
                    raise InvalidScenario(f"the worker of life {life} died by itself: {last}")
            if pid and len(acknowledged) >= limit:
                time.sleep(more_s)
                os.kill(pid, signal.SIGKILL)
                pid = 0

    def _lines(self) -> list[str]:
        """Return the whole lines that came, at least one; a kill can cut the last one off."""
        assert self._child.stdout is not None
        data = b""
        fd = self._child.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while b"\n" not in data:
            if not poll.poll(_SILENCE_S * 1000):
                raise InvalidScenario(f"the worker was silent for {_SILENCE_S:g} s: it is stuck")
            piece = os.read(fd, 65_536)
            if not piece:
                raise InvalidScenario(f"the worker's parent ended: {self._child.last_words()}")
            data = self._rest = self._rest + piece
        whole, _, self._rest = data.rpartition(b"\n")
        return whole.decode().split("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()


class _Proof:
    """What the client knows of the current sessions, and what it has counted."""

    def __init__(self, directory: Path, where: str, random: Random) -> None:
        self.directory = directory
        self.where = where
        self.random = random
        self.count = CrashCount()
        self.acknowledged: dict[str, list[str]] = {}
        self.next: dict[str, int] = {}
        self.removed: set[str] = set()
        # What was acknowledged when a conversation was copied.
        self.forks: dict[SessionKey, list[str]] = {}
        # What was found, so that looking again does not count it again.
        self.lost: set[str] = set()
        self.summarised: set[str] = set()
        self.doubled: set[str] = set()

    def add(self, **more: int) -> None:
        """Count."""
        self.count = self.count._replace(
            **{name: getattr(self.count, name) + value for name, value in more.items()}
        )

    def begin_sessions(self, life: int) -> None:
        """Begin new sessions."""
        self.forks.clear()
        sessions = [f"user-{life}-{number}" for number in range(_SESSIONS)]
        self.acknowledged = {session: [] for session in sessions}
        self.next = dict.fromkeys(sessions, 0)

    def turns(self) -> dict[str, int]:
        """Return the turn with which each session continues: the one on its way, or the next."""
        for session, number in self.next.items():
            if number and self.random.random() < _GIVE_UP:
                self.next[session] = number + 1
                self.add(given_up=1)
            elif number:
                self.add(resent=1)
        return self.next

    def took(self, session: str, number: int) -> None:
        """Note that a turn was acknowledged."""
        told, kind = self.acknowledged[session], kind_of(number)
        told += prompts_of(session, number)
        self.next[session] = number + 1
        self.add(acknowledged=1)
        if kind == "rewind":
            self.removed.add(removed_by(session, number))
            self.add(rewound=1)
        elif kind == "fork":
            self.forks[fork_of(session, number)] = [*told]
            self.add(forked=1)
        elif kind in ("steer", "approve"):
            self.add(**{f"{kind}{'ed' if kind == 'steer' else 'd'}": 1})

    def look(self) -> None:
        """Compare what is stored with what was acknowledged."""
        paths = [path for session in self.next for path in self._paths(session)]
        torn = [path for path in paths if _is_torn(path)]
        for session, messages in asyncio.run(self._messages()).items():
            self._judge(session, messages)
        left = [path for path in torn if _is_torn(path)]
        self.add(torn=len(torn), mended=len(torn) - len(left))

    def end_sessions(self) -> None:
        """Send what was on its way once more, and compare the effects of all turns."""
        if self.next:
            asyncio.run(self._finish())
            self.look()

    async def _finish(self) -> None:
        book = ScheduleBook(self.directory / "book.sqlite")
        async with managing(self.directory, self.where, book) as manager:
            for session, number in list(self.next.items()):
                await take(manager, session, number)
                self.took(session, number)
            for key, told in self.forks.items():
                known = set(told)
                there = _prompts(await manager.history(key))
                self.add(forks_broken=int([one for one in there if one in known] != told))
        for session, prompts in self.acknowledged.items():
            made = Counter(schedule.title for schedule in book.query(session))
            wanted = {title for prompt in prompts for title in titles_of(prompt)}
            self.add(
                effects_lost=len(wanted - made.keys()),
                effects_doubled=sum(times - 1 for times in made.values()),
            )
        book.close()

    async def _messages(self) -> dict[str, list[Message]]:
        """Open the store as the next process would, which repairs it, and read the sessions."""
        store = store_in(self.directory, self.where)
        found = {}
        try:
            for session in self.next:
                lease = await store.hold(key_of(session), queue_limit=_QUEUE)
                stored = await store.load(lease)
                found[session] = stored.messages
                if session not in self.summarised and any(
                    "summary" in turn.facts for turn in stored.finished.values()
                ):
                    self.summarised.add(session)
                    self.add(compacted=1)
                store.release(lease)
        finally:
            await store.aclose()
        return found

    def _judge(self, session: str, messages: list[Message]) -> None:
        told = self.acknowledged[session]
        there = _prompts(messages)
        times = Counter(there)
        lost = {prompt for prompt in told if prompt not in times} - self.lost
        doubled = {prompt for prompt, number in times.items() if number > 1} - self.doubled
        self.lost |= lost
        self.doubled |= doubled
        known = set(told)
        self.add(
            lost=len(lost),
            doubled=len(doubled),
            returned=len(self.removed.intersection(there)),
            misordered=int([p for p in there if p in known] != told),
            illegal=int(not _is_legal(messages)),
        )

    def _paths(self, session: str) -> tuple[Path, ...]:
        key = key_of(session)
        part = key.instance_part
        directory = self.directory / "store" / key.user_part / part / part / "runtime"
        return directory / "messages.json", directory / "turns.jsonl"


def _prompts(messages: Sequence[Message]) -> list[str]:
    prompts = (m for m in messages if m["role"] == "user" and m["content"][0]["type"] == "text")
    return [text_of(message) for message in prompts]


def _is_legal(messages: list[Message]) -> bool:
    """Whether the Messages API takes the conversation, and it reads as question and answer."""
    body = {"model": "m", "max_tokens": 1, "messages": [*messages, user("next")]}
    roles = [message["role"] for message in messages]
    alternate = ["user", "assistant"] * (len(roles) // 2)
    return problem_of(body, "2023-06-01") is None and roles == alternate


def _is_torn(path: Path) -> bool:
    """Whether a write to this file was cut off: it, or one of its lines, is no JSON."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    texts = [data] if path.suffix == ".json" else data.split(b"\n")[:-1]
    try:
        for text in texts:
            orjson.loads(text)
    except orjson.JSONDecodeError:
        return True
    return not data.endswith(b"\n")
