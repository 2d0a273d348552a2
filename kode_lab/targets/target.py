"""What can be asked and judged: a target, what it answers, and what it declares about itself.

This page is the whole promise between kode_lab and a service under test. It also holds the one
table of HTTP answers that are definite refusals, and the one rule of what an answer proves. It must
never know how a target is reached, and imports no framework.

A target needs ``turn`` and ``history``, which may return None. Everything else is optional and
looked up by name: ``effects``, ``start`` and ``stop``, ``kill`` and ``restart``. What a target
cannot do is reported as not judged; it is never held against it.

Idea: a Jepsen client (invoke, then ok, fail or info) and its database (setup, kill, start).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kode_lab.history.operation import Effect, Read, echo_in, markers_in
from kode_lab.key import SessionKey

__all__ = [
    "DEFAULT_PROMISES",
    "DEFINITE",
    "TRY_AGAIN",
    "Answer",
    "Declaration",
    "History",
    "Killable",
    "Outcome",
    "Startable",
    "Target",
    "Worldly",
    "model_environment",
    "outcome_of",
    "refused_or_unknown",
]

# HTTP answers that say: nothing was accepted. Every other error leaves open what happened.
DEFINITE = frozenset({400, 401, 403, 404, 405, 409, 411, 413, 414, 415, 421, 422, 423, 429, 431})
# Of all answers, those after which the same request may be accepted later.
TRY_AGAIN = frozenset({408, 409, 423, 425, 429})


# What a service is taken to promise when it says nothing. That sessions survive a crash has to be
# promised: many services keep them in memory, and say so.
DEFAULT_PROMISES = ("apart", "kept", "whole", "ordered", "service")


class Answer(NamedTuple):
    """What came back from one request for a turn.

    Attributes:
        kind: ``reply``, ``refused`` (it was definitely not accepted) or ``unknown``.
        text: the reply, as the service's user would read it.
        error: why there is no reply.
        config: the version of the agent's configuration, where the service tells it.
        read: what the model was shown, where the target itself knows it.
        is_final: sending the same turn again gives the same answer.
        retry_after_s: how long the service asked to wait, or 0.
        pieces_ns: when the pieces of a streamed reply came (monotonic nanoseconds).
        stop_reason: why the reply ended, if the service says so and it is not ``end_turn``.
        tools: the names of the turn's tool calls that changed the world, each with one effect in
            what ``effects`` returns; None if the service does not tell.
        steered: the ids of turns whose prompts this one was given while it ran.
        into: the id of the running turn that this prompt was given to, whose reply this is.
    """

    kind: str
    text: str = ""
    error: str = ""
    config: str = ""
    read: Read | None = None
    is_final: bool = False
    retry_after_s: float = 0.0
    pieces_ns: tuple[int, ...] = ()
    stop_reason: str = ""
    tools: tuple[str, ...] | None = None
    steered: tuple[str, ...] = ()
    into: str = ""


class History(NamedTuple):
    """A session as the service tells it.

    Attributes:
        prompts: what the user said, in order, each as one text.
        unanswered: those of them that no reply follows, where the target can tell.
        made: what the session's own tools say that they did, or None where it is not told.
        listed: what the session's tools were shown of the world, or None when that is not whole.
        is_suffix: these are only the latest prompts, as the service declares.
    """

    prompts: tuple[str, ...]
    unanswered: tuple[str, ...] = ()
    made: tuple[Effect, ...] | None = None
    listed: tuple[Effect, ...] | None = None
    is_suffix: bool = False


class Declaration(NamedTuple):
    """What a target says about itself. What it does not promise is not held against it.

    Attributes:
        name: how reports call it.
        version: of the software under test, "" if unknown.
        parts: which parts of a session key it tells apart: ``user``, ``session``, ``agent``.
        promises: names of the guarantees that it promises; the judge claims only these.
        is_idempotent: the same turn id sent again is the same turn.
        has_history: its sessions can be read.
        window: the model is shown only so many of the latest turns; 0 is all of them.
        compacts: old turns may be summarised.
        strategy: what a second turn of a busy session does, where the service has a choice.
        tool: the tool whose effects are judged: each call of it acts once; "" is none.
        has_book: its ``effects`` can be read; else the ids in the tool's results tell them.
        needs_quote: a reply counts only if it quotes the marker of its prompt. False is for
            services whose acknowledgement is proved otherwise.
        client: how it is reached, for the report ("HTTP, JSON").
        processes: how many processes may serve the same sessions at once.
        is_heavy: a turn takes seconds of CPU, so that few are asked at once.
        notes: what a reader of the report must know.
    """

    name: str
    version: str = ""
    parts: tuple[str, ...] = ("user", "session")
    promises: tuple[str, ...] = DEFAULT_PROMISES
    is_idempotent: bool = False
    has_history: bool = True
    window: int = 0
    compacts: bool = False
    strategy: str = ""
    tool: str = ""
    has_book: bool = False
    needs_quote: bool = True
    client: str = ""
    processes: int = 1
    is_heavy: bool = False
    notes: str = ""


class Target(Protocol):
    """Something that can be asked a turn of a session."""

    @property
    def declaration(self) -> Declaration:
        """What it says about itself."""
        ...

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn; an exception means that the outcome is unknown."""
        ...

    async def history(self, key: SessionKey) -> History | Sequence[str] | None:
        """Return what the user said in this session, in order; None when it cannot be read now."""
        ...


@runtime_checkable
class Startable(Protocol):
    """A target that is set up before it is asked."""

    async def start(self, model_url: str) -> None:
        """Begin; the service's model client is to use ``model_url`` (an origin)."""
        ...

    async def stop(self) -> None:
        """End, and leave no process behind."""
        ...


@runtime_checkable
class Killable(Protocol):
    """A target whose service can be killed and started again."""

    async def kill(self) -> None:
        """Kill it as ``kill -9`` does."""
        ...

    async def restart(self) -> None:
        """Start it again on what it had saved, and wait until it answers."""
        ...


@runtime_checkable
class Worldly(Protocol):
    """A target whose tools' effects can be seen."""

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return all that tools did for this user."""
        ...


class Outcome(NamedTuple):
    """What an answer proves about one attempt at a turn.

    Attributes:
        type: ``ok``, ``fail`` (it definitely did not happen) or ``info`` (unknown).
        error: why it is not ``ok``.
        read: what the turn was shown, where that was seen.
        answered: the marker of the prompt that the reply answers, or "".
        config: the version of the agent's configuration, or "".
        is_final: sending the turn again is useless.
        retry_after_s: how long the service asked to wait, or 0.
        text: the reply.
        pieces_ns: when the pieces of a streamed reply came (monotonic nanoseconds).
        stop_reason: why the reply ended, if that was said and it is not ``end_turn``.
        tools: the names of its tool calls that changed the world, or None if that was not told.
    """

    type: str
    error: str = ""
    read: Read | None = None
    answered: str = ""
    config: str = ""
    is_final: bool = False
    retry_after_s: float = 0.0
    text: str = ""
    pieces_ns: tuple[int, ...] = ()
    stop_reason: str = ""
    tools: tuple[str, ...] | None = None


def outcome_of(
    marker: str, answer: Answer, *, needs_quote: bool = True, together: Collection[str] = ()
) -> Outcome:
    """Return what an answer proves: ``ok`` only for a reply that quotes its own marker.

    ``together`` are the markers of other prompts that the service says the reply answers, too.
    A reply that quotes only other markers is not acknowledged, but it is kept as evidence: it
    answers somebody else's prompt.
    """
    text = answer.text
    echo = echo_in(text)
    if answer.kind != "reply":
        kind = "fail" if answer.kind == "refused" else "info"
        other = echo[0] if echo is not None and echo[0] != marker else ""
        return Outcome(
            kind,
            answer.error,
            answered=other,
            is_final=answer.is_final,
            retry_after_s=answer.retry_after_s,
        )
    if echo is not None:
        answered, read = echo
    else:
        quoted = markers_in(text)
        answered = marker if marker in quoted else (quoted or [""])[-1]
        read = None
    is_own = answered == marker or bool(answered and answered in together)
    if is_own or not (needs_quote or answered):
        seen = answer.read or (read if answered == marker else None)
        pieces_ns = answer.pieces_ns
        return Outcome(
            "ok",
            "",
            seen,
            answered,
            answer.config,
            text=text,
            pieces_ns=pieces_ns,
            stop_reason=answer.stop_reason,
            tools=answer.tools,
        )
    why = f"the reply answers {answered}" if answered else "the reply does not quote its marker"
    shown = " ".join(text.split())
    if not answered:
        why += f": {shown[:120]!r}" if shown else " (it is empty)"
    return Outcome("info", why, answer.read, answered, answer.config, text=text)


def refused_or_unknown(
    status: int, said: str, retry_after: Any = None, definite: frozenset[int] = DEFINITE
) -> Answer:
    """Return the answer that an HTTP status other than success stands for.

    Args:
        status: of the response.
        said: what the service said about it, for a reader.
        retry_after: the header of that name, in seconds; anything else counts as 0.
        definite: the statuses that say nothing was accepted.
    """
    try:
        seconds = max(0.0, float(retry_after or 0))
    except ValueError:
        seconds = 0.0
    kind = "refused" if status in definite else "unknown"
    error = f"{status} {' '.join(said.split())[:200]}".strip()
    is_final = 400 <= status < 500 and status not in TRY_AGAIN
    return Answer(kind, error=error, is_final=is_final, retry_after_s=seconds)


def model_environment(model_url: str) -> dict[str, str]:
    """Return the variables that point common model clients at the simulated model."""
    if not model_url:
        return {}
    return {
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "simulated",
        "OPENAI_BASE_URL": f"{model_url}/v1",
        "OPENAI_API_BASE": f"{model_url}/v1",
        "OPENAI_API_KEY": "simulated",
        "GOOGLE_GEMINI_BASE_URL": model_url,
        "GOOGLE_API_KEY": "simulated",
        "GEMINI_API_KEY": "simulated",
        # A framework's own reports to the outside would be measured, and delay its end by 30 s.
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "AGNO_TELEMETRY": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "MASTRA_TELEMETRY_DISABLED": "1",
        "DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
