"""Every exception of kode_lab, in one tree whose roots say whose fault it is.

    KodeLabError
    ├── CallerError            the call was wrong; nothing was accepted, nothing changed
    │   ├── InvalidKey             an id is empty, too long, or not text
    │   ├── InvalidPrompt          a prompt or turn id is empty, too long, or not text
    │   ├── InvalidConfig          a configuration file is malformed (the old version goes on)
    │   ├── UnknownAgent           no configuration file of that name
    │   ├── UnknownTool            a configuration names an unregistered tool
    │   ├── InvalidTool            a function cannot be made a tool
    │   ├── UnknownCall            no tool call of that id waits for an approval
    │   ├── AlreadyAnswered        the approval has another answer, which counts
    │   ├── InvalidRecord          a trace, history or report line cannot be read
    │   ├── InvalidSchedule        a schedule cannot be made, found or changed as asked
    │   ├── InvalidScenario        a scenario, option or profile makes no sense
    │   ├── MissingApiKey          the real API was asked for without a key
    │   ├── PostgresMissing        there is no PostgreSQL server here to start
    │   └── PortOccupied           somebody else listens there
    ├── Refused                the session cannot take this turn now; it was not accepted
    │   ├── SessionBusy            strategy "reject", and a turn is running
    │   ├── WaitingRoomFull        strategy "enqueue", and the queue is at its limit
    │   ├── SelfDeadlock           a tool asks in a session that waits for this tool
    │   └── Draining               the manager is closing
    ├── TurnFailed             accepted, but ended without a reply; sent again, it goes on
    │   ├── DeadlineExceeded       the turn's time was up
    │   ├── StepLimitReached       the model kept asking for tools
    │   ├── TurnPending            a tool waits for an approval; the turn rests in its journal
    │   ├── Superseded             a later turn interrupted it or rolled it back
    │   ├── ModelRefused           the model's service said the request is wrong
    │   ├── ModelUnavailable       the model's service could not answer
    │   └── ModelGarbage           it answered something that is not a reply
    └── StoreError             the session's storage cannot be used
        ├── StoreUnwritable        no permission, no space, an I/O error
        ├── StoreUnreachable       the database does not answer
        ├── TurnsMissing           the database was set back: saved turns are gone
        ├── SessionDamaged         what is stored cannot be read and was left untouched
        ├── NewerFormat            written by a newer kode_lab
        ├── WrongOwner             the directory belongs to another user's session
        ├── ForeignHost            another host works in this directory
        ├── StoreMoved             the directory or its lock files were moved or removed in use
        └── StaleLease             the holder was overtaken; its write was refused

Each message says what, which key or limit, and what to do.
Idea: h11's two roots, httpx's drawn tree.
"""

from __future__ import annotations

__all__ = [
    "AlreadyAnswered",
    "CallerError",
    "DeadlineExceeded",
    "Draining",
    "ForeignHost",
    "InvalidConfig",
    "InvalidKey",
    "InvalidPrompt",
    "InvalidRecord",
    "InvalidScenario",
    "InvalidSchedule",
    "InvalidTool",
    "KodeLabError",
    "MissingApiKey",
    "ModelGarbage",
    "ModelRefused",
    "ModelUnavailable",
    "NewerFormat",
    "PortOccupied",
    "PostgresMissing",
    "Refused",
    "SelfDeadlock",
    "SessionBusy",
    "SessionDamaged",
    "StaleLease",
    "StepLimitReached",
    "StoreError",
    "StoreMoved",
    "StoreUnreachable",
    "StoreUnwritable",
    "Superseded",
    "TurnFailed",
    "TurnPending",
    "TurnsMissing",
    "UnknownAgent",
    "UnknownCall",
    "UnknownTool",
    "WaitingRoomFull",
    "WrongOwner",
]


class KodeLabError(Exception):
    """The root: catch it to catch everything that kode_lab raises on purpose."""


class CallerError(KodeLabError):
    """The call was wrong; nothing was accepted and nothing changed."""


class InvalidKey(CallerError, ValueError):
    """A user, session or agent id cannot be used."""


class InvalidPrompt(CallerError, ValueError):
    """A prompt, turn id or strategy cannot be used."""


class InvalidConfig(CallerError):
    """A configuration file is malformed. Where an older version was loaded, it goes on."""


class UnknownAgent(CallerError, LookupError):
    """No configuration file of that name."""


class UnknownTool(CallerError, LookupError):
    """A configuration names a tool that is not registered."""


class InvalidTool(CallerError, TypeError):
    """A function cannot be made a tool, or its name is taken."""


class UnknownCall(CallerError, LookupError):
    """No tool call of that id waits for an approval in this session."""


class AlreadyAnswered(CallerError):
    """The approval was answered before, with other words; the first answer counts."""


class InvalidRecord(CallerError, ValueError):
    """A recorded line cannot be read.

    Attributes:
        line: the 1-based number of the line, or None when it is not about one line.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class InvalidSchedule(CallerError, ValueError):
    """A schedule cannot be made, found or changed as asked; nothing was changed."""


class InvalidScenario(CallerError, ValueError):
    """A scenario, option or latency profile makes no sense."""


class MissingApiKey(CallerError):
    """The real API was asked for, and there is no key."""


class PostgresMissing(CallerError):
    """There is no PostgreSQL server on this machine that could be started as asked."""


class PortOccupied(CallerError, OSError):
    """Somebody else listens on that port."""


class Refused(KodeLabError):
    """The session cannot take this turn now. It was not accepted: sending it again is safe."""


class SessionBusy(Refused):
    """A turn is running, and the strategy is ``reject``."""


class WaitingRoomFull(Refused):
    """As many turns wait for this session as its limit allows."""


class SelfDeadlock(Refused):
    """A tool asks in a session that waits, directly or through others, for this very tool."""


class Draining(Refused):
    """The manager is closing and takes no new turns."""


class TurnFailed(KodeLabError):
    """The turn was accepted but ended without a reply; the conversation does not show it yet.

    Its steps are kept: the same ``turn_id`` goes on from them, any other turn closes it first.
    """


class DeadlineExceeded(TurnFailed, TimeoutError):
    """The turn's time was up."""


class StepLimitReached(TurnFailed):
    """The model asked for tools more often than the agent's step limit allows."""


class TurnPending(TurnFailed):
    """A tool waits for an approval. The turn rests in its journal until ``approve`` is called.

    Attributes:
        questions: what each call asks, by the id of the call.
    """

    def __init__(self, message: str, *, questions: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.questions = questions or {}


class Superseded(TurnFailed):
    """A later turn of the same session interrupted this one or rolled it back.

    Attributes:
        into: the id of the running turn that this prompt was given to, or "".
    """

    def __init__(self, message: str = "", *, into: str = "") -> None:
        super().__init__(message)
        self.into = into


class ModelRefused(TurnFailed):
    """The model's service refused the request (4xx): sending it again will not help."""


class ModelUnavailable(TurnFailed):
    """The model's service could not answer (429, 5xx, no connection, time-out).

    Attributes:
        retry_after_s: how long the service asks to wait, or None.
        is_retryable: whether the service leaves it open to send the request again.
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, is_retryable: bool = True
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_retryable = is_retryable


class ModelGarbage(TurnFailed):
    """The model's service answered something that is not a reply."""


class StoreError(KodeLabError):
    """The session's storage cannot be used."""


class StoreUnwritable(StoreError):
    """No permission, no space, or an I/O error; what was acknowledged is still there."""


class StoreUnreachable(StoreError):
    """The database does not answer; whether the last step was saved is not known."""


class TurnsMissing(StoreError):
    """The database was set back to an earlier state: turns that it had saved are gone.

    Raised once; the session goes on from what is left.
    """


class SessionDamaged(StoreError):
    """What is stored cannot be read. It was left as it is, for a person to look at."""


class NewerFormat(StoreError):
    """The files were written by a newer version of kode_lab."""


class WrongOwner(StoreError):
    """The directory belongs to another session; none of its messages were shown."""


class ForeignHost(StoreError):
    """Another host works in this directory; file locks do not reach across hosts."""


class StoreMoved(StoreError):
    """The store's directory or its lock files were moved, removed or replaced while in use."""


class StaleLease(StoreError):
    """The holder was overtaken: somebody held the session after it. Its write was refused."""
