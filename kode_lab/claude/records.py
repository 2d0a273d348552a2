"""What the model was shown, and when: the evidence that a judge reads, and figures for a reader.

Every request is one ``ModelCall``. Calls with the same newest marker make a ``WitnessedTurn``: one
turn can reach the model many times (a call after each tool result, a retry of the client, a side
request such as a title), so a turn is counted by its marker and never by its requests.

Bounded: the oldest turns are forgotten first, a turn keeps a limited number of calls, and how many
were forgotten is counted. No content is kept, only markers, numbers and hashes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol

from kode_lab.history.operation import ModelCalls, Read

__all__ = [
    "CALLS_PER_TURN_LIMIT",
    "OFFERED_LIMIT",
    "READS_LIMIT",
    "RECORDS_LIMIT",
    "ModelCall",
    "Records",
    "ShownResult",
    "Statistics",
    "Witness",
    "WitnessedTurn",
]

# Turns, and twice as many calls: about 900 bytes a turn of two calls, 180 MB at the limit.
READS_LIMIT = 200_000
RECORDS_LIMIT = 10_000
CALLS_PER_TURN_LIMIT = 32
OFFERED_LIMIT = 16


class ShownResult(NamedTuple):
    """What a tool's result showed the model, without its content.

    Attributes:
        id: of what the tool made: the one value of ``id`` or ``..._id`` in its JSON, or "".
        markers: of the turns that it names.
    """

    tool: str
    id: str
    markers: tuple[str, ...]
    is_error: bool


@dataclass(slots=True, eq=False)
class ModelCall:
    """One request to a model, from its arrival to its last byte.

    Attributes:
        number: counts the requests from 1, in the order of arrival.
        format: the wire format: ``messages``, ``chat``, ``responses`` or ``gemini``.
        marker: the newest marker in a prompt of the conversation, or "" (also when the request was
            refused before it could be read).
        call: which model call of its turn this is, from 0: the replies since the prompt.
        attempt: 1 for the first request with this content, 2 for its first repetition, ...
        read: what the model was shown of the session, or None without a marker.
        replies: how many replies with an echo it was shown.
        replies_digest: the digest of the markers that they echo, in order.
        mentions: markers that stood outside prompts and replies (system text, reminders, tool
            results), each once.
        session: what the request itself names as its conversation, or "": the id of a
            conversation, of the first response of a thread, or what the client set as session.
        parent: the earlier response that the request continues, or "".
        tools: how many tools were offered; side requests of clients offer none.
        offered: their names, at most ``OFFERED_LIMIT``.
        results: what the turn's tool results showed, in order.
        status: 200, an error's status, or 0 while it is open or when the connection was lost.
        latency_s: what the profile asked for, after scaling.
        arrived_ns: monotonic nanoseconds.
        answered_ns: monotonic nanoseconds after the last byte was handed over; 0 while it is open.
        error: why it was refused, or the kind of fault that hit it.
        intent: what the script took the turn for.
        stop_reason: why the reply that was sent ended, in the words of the Messages API, or "".
        config: the hash of the system text, where the format has one of its own, or "".
    """

    number: int
    request_id: str
    arrived_ns: int
    format: str = ""
    marker: str = ""
    call: int = 0
    attempt: int = 1
    read: Read | None = None
    replies: int = 0
    replies_digest: int = 0
    mentions: tuple[str, ...] = ()
    session: str = ""
    parent: str = ""
    tools: int = 0
    offered: tuple[str, ...] = ()
    results: tuple[ShownResult, ...] = ()
    is_stream: bool = False
    status: int = 0
    latency_s: float = 0.0
    answered_ns: int = 0
    error: str = ""
    intent: str = ""
    stop_reason: str = ""
    config: str = ""
    fingerprint: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the call as ``GET /lab/calls`` writes it."""
        read = self.read
        return {
            "number": self.number,
            "requestId": self.request_id,
            "format": self.format,
            "marker": self.marker,
            "call": self.call,
            "attempt": self.attempt,
            "read": None if read is None else read_fields(read),
            "replies": {"count": self.replies, "digest": f"{self.replies_digest:016x}"},
            "mentions": list(self.mentions),
            "session": self.session,
            "parent": self.parent,
            "tools": self.tools,
            "offered": list(self.offered),
            "results": [result._asdict() for result in self.results],
            "isStream": self.is_stream,
            "status": self.status,
            "error": self.error,
            "arrivedNs": self.arrived_ns,
            "answeredNs": self.answered_ns,
        }


@dataclass(slots=True, eq=False)
class WitnessedTurn:
    """All that the model was asked for one turn.

    Attributes:
        marker: the turn's.
        calls: its requests in the order of arrival, at most ``CALLS_PER_TURN_LIMIT``.
        requests: how many there were.
        attempts: the highest number of times that one content came: 1 without any retry.
    """

    marker: str
    calls: list[ModelCall] = field(default_factory=list)
    requests: int = 0
    attempts: int = 0

    @property
    def read(self) -> Read:
        """What the first request of the turn was shown, side requests without tools aside."""
        first = self.calls[0]
        if not first.tools:
            # A client asks for a title or a summary with the same prompt and nothing before it.
            first = next((c for c in self.calls if c.tools and c.call == 0), first)
        read = first.read
        assert read is not None, "a call with a marker has a read"
        return read

    @property
    def model(self) -> ModelCalls | None:
        """What a history records of these requests; None while none of them was answered.

        Side requests count only if there is nothing else. Configurations are told only of requests
        that follow each other: an agent that the turn asked in its turn has its own.
        """
        calls = [call for call in self.calls if call.tools] or self.calls
        answered = [call for call in calls if call.status == 200 and call.answered_ns]
        if not answered:
            return None
        configs = tuple(call.config for call in answered if call.config)
        is_one = [call.call for call in answered] == list(range(len(configs)))
        return ModelCalls(
            tuple((call.arrived_ns, call.answered_ns) for call in calls if call.answered_ns),
            answered[-1].stop_reason,
            configs if is_one else (),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the turn as ``GET /lab/turns/<marker>`` writes it."""
        return {
            "marker": self.marker,
            "requests": self.requests,
            "attempts": self.attempts,
            "read": read_fields(self.read),
            "calls": [call.to_json() for call in self.calls],
        }


class Statistics(NamedTuple):
    """What a simulated model or a proxy has done so far."""

    requests: int
    in_flight: int
    peak_in_flight: int
    refused: int
    faults: int
    reads: int
    reads_forgotten: int


class Records:
    """The memory of one simulated model or one proxy."""

    def __init__(self, reads_limit: int = READS_LIMIT) -> None:
        self._limit = reads_limit
        self._turns: dict[str, WitnessedTurn] = {}
        self._forgotten = self._kept = 0
        self._recent: deque[ModelCall] = deque(maxlen=max(RECORDS_LIMIT, reads_limit))
        self._requests = self._in_flight = self._peak = self._refused = self._faults = 0

    def arrive(self, request_id: str) -> ModelCall:
        """Return the record of a request that has come."""
        self._requests += 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        call = ModelCall(self._requests, request_id, time.monotonic_ns())
        self._recent.append(call)
        return call

    def show(self, call: ModelCall) -> None:
        """File a call, whose fields say what the model is shown, under its marker."""
        marker, read = call.marker, call.read
        if not marker or read is None:
            return
        turn = self._turns.get(marker)
        if turn is None:
            while self._turns and (
                len(self._turns) >= self._limit or self._kept >= 2 * self._limit
            ):
                oldest = self._turns.pop(next(iter(self._turns)))
                self._kept -= len(oldest.calls)
                self._forgotten += 1
            turn = self._turns[marker] = WitnessedTurn(marker)
            call.read = read._replace(tail=tuple(self._known(name) for name in read.tail))
        elif turn.calls[0].read == read:
            call.read = turn.calls[0].read  # one object for all calls that were shown the same
        # The same text comes as a new string with every request; keep the first.
        call.marker = turn.marker
        same = [one.attempt for one in turn.calls if one.fingerprint == call.fingerprint]
        call.attempt = 1 + max(same, default=0)
        turn.requests += 1
        turn.attempts = max(turn.attempts, call.attempt)
        if len(turn.calls) < CALLS_PER_TURN_LIMIT:
            turn.calls.append(call)
            self._kept += 1

    def leave(self, call: ModelCall, status: int, *, is_fault: bool = False) -> None:
        """Note how a request that had come was answered."""
        call.status, call.answered_ns = status, time.monotonic_ns()
        self._in_flight -= 1
        self._faults += is_fault
        self._refused += 400 <= status < 500 and not is_fault

    def turn(self, marker: str) -> WitnessedTurn | None:
        """Return all requests whose newest marker is this one, or None."""
        return self._turns.get(marker)

    def turns(self) -> tuple[WitnessedTurn, ...]:
        """Return all turns that are remembered, by the arrival of their first request."""
        return tuple(self._turns.values())

    def read(self, marker: str) -> Read | None:
        """Return what the first request with this newest marker was shown, or None."""
        turn = self._turns.get(marker)
        return None if turn is None else turn.read

    def recent(self) -> tuple[ModelCall, ...]:
        """Return the latest calls, oldest first."""
        return tuple(self._recent)

    def calls_after(self, number: int, limit: int) -> Iterator[ModelCall]:
        """Yield remembered calls with a higher number, oldest first, at most ``limit``."""
        first = self._recent[0].number if self._recent else 0
        return islice(self._recent, max(0, number + 1 - first), max(0, number + 1 - first) + limit)

    def statistics(self) -> Statistics:
        """Return the counts so far."""
        return Statistics(
            self._requests,
            self._in_flight,
            self._peak,
            self._refused,
            self._faults,
            len(self._turns),
            self._forgotten,
        )

    def _known(self, marker: str) -> str:
        turn = self._turns.get(marker)
        return marker if turn is None else turn.marker


class Witness(Protocol):
    """What a server that witnesses answers in Python; it has its ``_records``."""

    _records: Records

    def read(self, marker: str) -> Read | None:
        """Return what the first request with this newest marker was shown, or None."""
        return self._records.read(marker)

    def turn(self, marker: str) -> WitnessedTurn | None:
        """Return all requests whose newest marker is this one, or None."""
        return self._records.turn(marker)

    def turns(self) -> tuple[WitnessedTurn, ...]:
        """Return all turns that are remembered, by the arrival of their first request."""
        return self._records.turns()

    def records(self) -> tuple[ModelCall, ...]:
        """Return the latest requests as they were answered, oldest first."""
        return self._records.recent()

    def statistics(self) -> Statistics:
        """Return the counts so far."""
        return self._records.statistics()


def read_fields(read: Read) -> dict[str, Any]:
    """Return what was shown, as JSON fields; the digest is sixteen hexadecimal digits."""
    return {**read._asdict(), "digest": f"{read.digest:016x}"}
