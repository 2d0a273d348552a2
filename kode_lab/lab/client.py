"""The one client: asks a turn of a target, or reads a session, and records it as an operation.

It owns when a line of the history is written: the invoke before the request leaves, the completion
after the answer came, whatever happens between. It must never know how a target is reached, what
a session is asked, or who judges.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kode_lab.errors import CallerError, KodeLabError, Refused, Superseded
from kode_lab.history.operation import (
    NO_DETAILS,
    Details,
    Effect,
    Operation,
    Read,
    digest_of,
    markers_in,
)
from kode_lab.key import SessionKey
from kode_lab.targets.target import History, Outcome, Target, Worldly, outcome_of

__all__ = ["Client", "OperationList", "OperationWriter"]


class OperationWriter(Protocol):
    """Where operations go: ``HistoryWriter`` writes a file, ``OperationList`` keeps them."""

    def invoke(
        self,
        key: SessionKey,
        process: str,
        time_ns: int,
        *,
        f: str = "turn",
        marker: str = "",
        turn_id: str = "",
    ) -> None:
        """Note that a request is about to leave."""
        ...

    def complete(
        self,
        process: str,
        time_ns: int,
        type: str,  # noqa: A002 - Jepsen's word for it
        *,
        read: Read | None = None,
        markers: Iterable[str] | None = None,
        error: str = "",
        answered: str = "",
        config: str = "",
        effects: Iterable[Effect] | None = None,
        details: Details = NO_DETAILS,
    ) -> None:
        """Note how the process's open request ended."""
        ...


class Client:
    """Asks one target and writes what it saw to one history; safe for many tasks at once."""

    def __init__(
        self,
        target: Target,
        history: OperationWriter,
        *,
        witness: Callable[[str], Read | None] | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Bind a target to a history.

        Args:
            witness: returns what the model was shown with a marker, where the model is simulated.
            now_ns: the clock of the history.
        """
        self._target = target
        self._history = history
        self._witness = witness
        self._now_ns = now_ns
        self._needs_quote = target.declaration.needs_quote

    async def turn(
        self,
        process: str,
        key: SessionKey,
        marker: str,
        prompt: str,
        *,
        turn_id: str = "",
        timeout_s: float | None = None,
    ) -> Outcome:
        """Ask one turn once and record it; any exception of the target is an unknown outcome.

        Args:
            process: the history's name of the sender; after ``info`` it must not be used again.
            timeout_s: how long to wait for the answer; None waits without limit.
        """
        turn_id = turn_id or marker[1:]
        outcome = Outcome("info", "interrupted")
        self._history.invoke(key, process, self._now_ns(), marker=marker, turn_id=turn_id)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._target.turn(key, prompt, turn_id)
            outcome = outcome_of(marker, answer, needs_quote=self._needs_quote)
        except (Refused, CallerError) as refused:
            outcome = Outcome("fail", _words(refused))
        except TimeoutError as late:
            waited = f"no answer within timeout_s={timeout_s:g}" if timeout_s else _words(late)
            outcome = Outcome("info", waited)
        except Superseded as closed:
            outcome = Outcome("info", _words(closed), is_final=True)
        except Exception as failure:  # noqa: BLE001 - what a broken service does is for the judge
            outcome = Outcome("info", _words(failure))
        finally:
            if self._witness is not None and (seen := self._witness(marker)) is not None:
                # What the model's server received is the stronger witness: no reply can alter it.
                outcome = outcome._replace(read=seen)
            self._history.complete(
                process,
                self._now_ns(),
                outcome.type,
                read=outcome.read,
                error=outcome.error,
                answered=outcome.answered,
                config=outcome.config,
                details=Details(stop_reason=stop) if (stop := outcome.stop_reason) else NO_DETAILS,
            )
        return outcome

    async def read(
        self,
        process: str,
        key: SessionKey,
        *,
        timeout_s: float = 60.0,
        has_effects: bool = False,
    ) -> str:
        """Read a session and record it; return "" or why it could not be read.

        Args:
            has_effects: what the session's own tools say that they did is recorded with it.
        """
        self._history.invoke(key, process, self._now_ns(), f="read")
        markers: list[str] | None = None
        half: tuple[str, ...] = ()
        made: tuple[Effect, ...] | None = None
        error = "interrupted"
        try:
            async with asyncio.timeout(timeout_s):
                told = await self._target.history(key)
            if told is None:
                error = "the session could not be read"
            else:
                history = told if isinstance(told, History) else History(tuple(told))
                markers = [marker for prompt in history.prompts for marker in markers_in(prompt)]
                half = tuple(marker for text in history.unanswered for marker in markers_in(text))
                made = history.made if has_effects else None
                error = ""
        except Exception as failure:  # noqa: BLE001 - as above
            error = _words(failure)
        finally:
            read = None
            if half and markers is not None:
                read = Read(len(markers), digest_of(markers), half=half)
            kind = "info" if error else "ok"
            self._history.complete(
                process,
                self._now_ns(),
                kind,
                read=read,
                markers=markers,
                error=error,
                effects=made,
            )
        return error

    async def effects(self, process: str, key: SessionKey) -> None:
        """Ask what tools did for the key's user and record it, where the target can tell."""
        if not isinstance(self._target, Worldly):
            return
        self._history.invoke(key, process, self._now_ns(), f="effects")
        effects, error = None, "interrupted"
        try:
            effects, error = await self._target.effects(key.user_id), ""
        except KodeLabError as failure:
            error = _words(failure)
        finally:
            kind = "info" if effects is None else "ok"
            self._history.complete(process, self._now_ns(), kind, effects=effects, error=error)


class OperationList:
    """Operations kept in memory, in the order of their completions.

    Attributes:
        done: those that completed.
    """

    def __init__(self) -> None:
        self.done: list[Operation] = []
        self._open: dict[str, Operation] = {}

    def invoke(
        self,
        key: SessionKey,
        process: str,
        time_ns: int,
        *,
        f: str = "turn",
        marker: str = "",
        turn_id: str = "",
    ) -> None:
        """Note that a request is about to leave."""
        self._open[process] = Operation(key, f, process, "info", time_ns, math.inf, marker, turn_id)

    def complete(
        self,
        process: str,
        time_ns: int,
        type: str,  # noqa: A002 - Jepsen's word for it
        *,
        markers: Iterable[str] | None = None,
        effects: Iterable[Effect] | None = None,
        **facts: Any,
    ) -> None:
        """Note how the process's open request ended."""
        self.done.append(
            self._open.pop(process)._replace(
                type=type,
                complete_ns=time_ns,
                markers=None if markers is None else tuple(markers),
                effects=None if effects is None else tuple(effects),
                **facts,
            )
        )


def _words(error: BaseException) -> str:
    said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
