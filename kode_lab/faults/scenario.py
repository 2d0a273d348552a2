"""What clients do to a service: the conditions under which faults show, as a value.

Sessions share user names and session names, each turn makes two model calls, clients think a
little, and they wait longer than any queue unless they are told to be in a hurry: under such
conditions faults were found that back-to-back clients never showed. It does nothing by itself.
"""

from __future__ import annotations

from typing import NamedTuple

from kode_lab.history.operation import Operation
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

__all__ = ["AGENT_ID", "KEYS", "Played", "Scenario"]

AGENT_ID = "clerk"
# Two users with the same two names for their sessions.
KEYS = tuple(SessionKey(user, name, AGENT_ID) for user in ("ada", "bob") for name in ("work", "x"))
# Longer than any queue here.
_PATIENT_MS = 60_000.0


class Scenario(NamedTuple):
    """What happens in a play.

    Attributes:
        clients: of each session; the n-th asks process n modulo ``processes``.
        turns: of each client.
        think_ms: the longest that a client thinks between two turns.
        hurried_percent: of turns, whose client has ``hurried_ms`` of patience only.
        is_cancelling: whether a client that leaves cancels its turn; else it goes on, unheard.
        attempts: how often a turn is asked whose outcome is not known, under one turn id.
        deadline_s: what clients tell the service, or None.
        strategy: what each session's last client tells it to do when it is busy, or None.
        failing_percent: of model calls.
        cutting_percent: of final replies, which end at ``max_tokens``.
        tool_ms: the longest that a tool waits before, and after, it acts.
        crash: "", ``kill`` or ``power-cut``, of process 0, once.
        has_full_disk: the disk is full for a while before the crash.
        is_reading: each client also reads the history, now and then.
        is_deleting: the sessions are used, deleted, and used again.
        is_delegating: turns ask a sub-agent in the same session.
        is_streaming: each client keeps the text that it was sent while its turn ran.
        is_forking: at the end each session is copied to another one, which is then used.
        guarantees: what is claimed, or None for what there is evidence of.
        overtaking_limit: how many turns sent after one may stand before it, or None.
    """

    keys: tuple[SessionKey, ...] = KEYS
    clients: int = 2
    turns: int = 3
    think_ms: float = 3.0
    processes: int = 1
    hurried_percent: int = 0
    hurried_ms: float = 20.0
    patient_ms: float = _PATIENT_MS
    is_cancelling: bool = False
    attempts: int = 1
    deadline_s: float | None = None
    strategy: str | None = None
    failing_percent: int = 0
    cutting_percent: int = 0
    tool_ms: float = 4.0
    crash: str = ""
    has_full_disk: bool = False
    is_reading: bool = False
    is_deleting: bool = False
    is_delegating: bool = False
    is_streaming: bool = False
    is_forking: bool = False
    guarantees: tuple[str, ...] | None = None
    overtaking_limit: int | None = None


class Played(NamedTuple):
    """What came of one play.

    Attributes:
        passes: of the loop: the length of the schedule.
    """

    history: tuple[Operation, ...]
    trace: tuple[Span, ...]
    passes: int
