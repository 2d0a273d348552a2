"""Agents in memory between their turns: one for each session key, bounded by count, bytes and age.

A resident may be used if and only if no other lease of its session was issued since: its fence is
the predecessor of the new lease's fence. While a turn uses an agent it is not in here, so it cannot
be evicted under a turn. Idle ones are evicted as turns end; the store has all that they know.

Source: measured in the SDK behind the report: a perfect lock with cached agents and no such check
lost 50 to 87 per cent of the acknowledged turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kode_lab.errors import Superseded
from kode_lab.key import SessionKey
from kode_lab.message import Block, Message, Reply, tool_calls_of
from kode_lab.sessions.conversation import Conversation, encode
from kode_lab.sessions.open_turn import OUTCOME_UNKNOWN, Finished, OpenTurn
from kode_lab.sessions.store import Lease, Stored
from kode_lab.sessions.ticket import TurnReply

__all__ = ["Agent", "Residents", "UnknownCall"]

# The agent itself, its containers while they are empty, and its place among the residents.
_AGENT_BYTES = 700
_NONE: Mapping[str, Any] = {}


class UnknownCall(NamedTuple):
    """A call whose turn was ended before its result was known.

    Attributes:
        at: index of the message that says so.
        turn_id: its turn.
        what: the tool's name and input, as JSON with sorted names.
    """

    at: int
    turn_id: str
    call_id: str
    what: str

    @staticmethod
    def what_of(name: str, given: Any) -> str:
        """Return the tool's name and input in a form that can be compared."""
        return json.dumps([name, given], sort_keys=True)


class Agent:
    """The instance of one session: its own conversation and state.

    Attributes:
        fence: of the last lease under which it was used.
        conversation: all that was said.
        finished: how each turn in the conversation ended, by turn id.
        open: a turn left unfinished, or None.
        thinking: the turns that hold a model's thinking, by that model.
        summary: the newest summary of older turns, or None.
        steered: the turns that prompts were given to while they ran, by the ids of the prompts.
        sealed: the turns in the conversation that were ended from outside.
    """

    __slots__ = (
        "_call_ids",
        "_turns_bytes",
        "conversation",
        "fence",
        "finished",
        "idle_since_s",
        "kept_bytes",
        "key",
        "open",
        "sealed",
        "steered",
        "summary",
        "thinking",
    )

    def __init__(self, lease: Lease, stored: Stored) -> None:
        self.key = lease.key
        self.fence = lease.fence
        self.conversation = Conversation(stored.messages)
        self.finished = stored.finished
        self.open = stored.open
        if self.open is not None:  # which calls its holder had started is not in the journal
            self.open.begun = {call.id for call in self.open.calls}
        self.idle_since_s = 0.0
        self.kept_bytes = 0
        self._call_ids: set[str] | None = None
        self.thinking: dict[str, list[Finished]] = {}
        self.summary: dict[str, Any] | None = None
        self.steered: Mapping[str, Finished] = _NONE  # shared: most sessions never need one
        self.sealed: tuple[Finished, ...] = ()
        for finished in self.finished.values():
            self._index_facts(finished)
        self._turns_bytes = sum(map(_bytes_of, stored.finished.values()))

    def catch_up(self, lease: Lease, news: Stored) -> None:
        """Add what others did since this agent was used."""
        self.fence, self.open, self._call_ids = lease.fence, news.open, None
        if self.open is not None:
            self.open.begun = {call.id for call in self.open.calls}
        self.conversation.extend(map(encode, news.messages))
        self.finished.update(news.finished)
        for finished in news.finished.values():
            self._index_facts(finished)
            self._turns_bytes += _bytes_of(finished)

    @property
    def call_ids(self) -> set[str]:
        """The ids of all tool calls in the conversation; collected when they are first needed."""
        if self._call_ids is None:
            self._call_ids = _call_ids(self.conversation.messages())
        return self._call_ids

    @property
    def size_bytes(self) -> int:
        """The memory that the agent takes."""
        total = _AGENT_BYTES + self.conversation.size_bytes + self._turns_bytes
        total += sys.getsizeof(self.finished)
        if self._call_ids:
            total += sys.getsizeof(self._call_ids) + 80 * len(self._call_ids)
        if self.open is not None:
            total += 5 * sum(map(len, self.open.encoded))  # decoded objects, too
        return total

    def took(self, turn: OpenTurn, finished: Finished) -> None:
        """Add a turn that the store has appended."""
        self.conversation.extend(turn.encoded)
        if self._call_ids is not None:
            self._call_ids |= _call_ids(turn.messages)
        self.finished[finished.turn_id] = finished
        self._index_facts(finished)
        self._turns_bytes += _bytes_of(finished)
        self.open = None

    def turn(self, turn_id: str) -> Finished | None:
        """Return the turn of that id, or that to which a prompt of that id was given."""
        found = self.finished.get(turn_id)
        return self.steered.get(turn_id) if found is None and self.steered else found

    def prompt(self, finished: Finished, turn_id: str) -> list[Block] | str:
        """Return what was said under that id: the turn's prompt, or one that it was given."""
        at, start, end = finished.facts.get("steered", {}).get(turn_id, (0, 0, None))
        first = finished.first + at
        content: list[Block] | str = self.conversation.messages(first, first + 1)[0]["content"]
        return content[start:end]

    def reply(self, finished: Finished, turn_id: str, *, is_replay: bool) -> TurnReply:
        """Return the reply of a turn that is in the conversation.

        One that just ended and one that ended long ago are read the same way, so a turn that is
        sent again returns what it returned the first time.

        Raises:
            Superseded: it was interrupted, stopped or rewound: there is no reply.
        """
        if finished.is_rewound:
            raise Superseded(
                f"{self.key}: turn {turn_id!r} was removed by a rewind, and its tools may "
                "have acted: send it with a new turnId"
            )
        if finished.is_sealed:
            raise Superseded(
                f"{self.key}: turn {turn_id!r} was interrupted and closed; "
                "what it did stays in the conversation: send it with a new turnId",
                into="" if turn_id == finished.turn_id else finished.turn_id,
            )
        facts = finished.facts
        stop_reason, steered = facts.get("stop_reason", "end_turn"), tuple(facts.get("steered", ()))
        messages = self.conversation.messages(finished.first + 1, finished.last + 1)
        calls = [
            call
            for message in messages
            if message["role"] == "assistant" and isinstance(message["content"], list)
            for call in tool_calls_of(message["content"])
        ]
        text = Reply(tuple(messages[-1]["content"]), stop_reason).text
        is_own = turn_id == finished.turn_id
        return TurnReply(
            turn_id,
            text,
            tuple(calls),
            finished.usage,
            finished.version,
            is_replay,
            stop_reason,
            steered if is_own else (),
            "" if is_own else finished.turn_id,
        )

    def unknown_calls(self, *, has_settled: bool = False) -> list[UnknownCall]:
        """Return the calls of sealed turns whose outcome is not known.

        One is settled by a result of a later call with the same input: left out unless asked for.
        """
        found: list[UnknownCall] = []
        if not self.sealed:
            return found
        whats: dict[str, str] = {}
        first = self.sealed[0].first
        for at, message in enumerate(self.conversation.messages(first), first):
            for block in message["content"] if isinstance(message["content"], list) else ():
                if block["type"] == "tool_use":
                    whats[block["id"]] = UnknownCall.what_of(block["name"], block["input"])
                elif block["type"] == "tool_result" and block["tool_use_id"] in whats:
                    call_id = block["tool_use_id"]
                    if block.get("content") == OUTCOME_UNKNOWN:
                        turn_id = next(
                            (t.turn_id for t in self.sealed if t.first <= at <= t.last), ""
                        )
                        found.append(UnknownCall(at, turn_id, call_id, whats[call_id]))
                    elif not block.get("is_error") and not has_settled:
                        found = [one for one in found if one.what != whats[call_id]]
        return found

    def _index_facts(self, finished: Finished) -> None:
        facts = finished.facts
        if finished.is_sealed and not finished.is_rewound:
            self.sealed += (finished,)
        if not facts or finished.is_rewound:
            return
        if "steered" in facts:
            self.steered = {**self.steered, **dict.fromkeys(facts["steered"], finished)}
        if "thinking_by" in facts:
            self.thinking.setdefault(facts["thinking_by"], []).append(finished)
        self.summary = facts.get("summary", self.summary)


def _bytes_of(turn: Finished) -> int:
    """Return the memory of what is known of one turn, in steps of 16 bytes as CPython lays it out.

    That is its record, its usage, its id, and its numbers where they are not small ones.
    """
    numbers = (turn.first, turn.last, *turn.usage)
    own = sys.getsizeof(turn) + sys.getsizeof(turn.turn_id) + sys.getsizeof(turn.usage) + 24
    facts = 400 + len(turn.facts.get("summary", {}).get("text", "")) if turn.facts else 0
    return own + 32 * sum(number > 256 for number in numbers) + facts


def _call_ids(messages: Iterable[Message]) -> set[str]:
    return {
        call.id
        for message in messages
        if message["role"] == "assistant" and isinstance(message["content"], list)
        for call in tool_calls_of(message["content"])
    }


class Residents:
    """The idle agents, the longest idle first.

    Args:
        limit: how many there may be.
        limit_bytes: how much memory they may take together.
        idle_limit_s: how long one may be idle.
    """

    __slots__ = ("_agents", "_idle_limit_s", "_limit", "_limit_bytes", "size_bytes")

    def __init__(self, *, limit: int, limit_bytes: int, idle_limit_s: float) -> None:
        self._agents: OrderedDict[SessionKey, Agent] = OrderedDict()
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._idle_limit_s = idle_limit_s
        self.size_bytes = 0

    def outdated(self, lease: Lease) -> Agent | None:
        """Return the session's agent if others held the session since, else None."""
        agent = self._agents.get(lease.key)
        return None if agent is None or agent.fence == lease.fence - 1 else agent

    def take(self, lease: Lease) -> Agent | None:
        """Return the session's agent if it may be used under this lease, else forget it."""
        agent = self._pop(lease.key)
        if agent is None or agent.fence != lease.fence - 1:
            return None
        agent.fence = lease.fence
        return agent

    def keep(self, agent: Agent) -> None:
        """Take the agent back after a turn, and evict the longest idle until the limits hold."""
        now_s = agent.idle_since_s = time.monotonic()
        agents = self._agents
        self._pop(agent.key)
        agents[agent.key] = agent
        agent.kept_bytes = agent.size_bytes
        self.size_bytes += agent.kept_bytes
        while agents:
            oldest = next(iter(agents.values()))
            if (
                len(agents) <= self._limit
                and self.size_bytes <= self._limit_bytes
                and now_s - oldest.idle_since_s <= self._idle_limit_s
            ):
                return
            self._pop(oldest.key)

    def drop(self, key: SessionKey) -> None:
        """Forget the session's agent, if it is here."""
        self._pop(key)

    def __len__(self) -> int:
        return len(self._agents)

    def _pop(self, key: SessionKey) -> Agent | None:
        agent = self._agents.pop(key, None)
        if agent is not None:
            self.size_bytes -= agent.kept_bytes
        return agent
