"""The one client: asks a turn of a target, or reads a session, and records it as an operation.

It owns when a line of the history is written: the invoke before the request leaves, the completion
after the answer came, whatever happens between. It must never know how a target is reached, what
a session is asked, or who judges.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kode_lab.claude.records import WitnessedTurn
from kode_lab.errors import CallerError, Refused, Superseded
from kode_lab.history.operation import (
    NO_DETAILS,
    Details,
    Effect,
    HistoryWriter,
    ModelCalls,
    Operation,
    Read,
    digest_of,
    markers_in,
)
from kode_lab.key import SessionKey
from kode_lab.targets.target import Declaration, History, Outcome, Target, Worldly, outcome_of

__all__ = ["Client", "OperationList", "Witness"]

Witness = Callable[[str], Read | WitnessedTurn | None]


class Client:
    """Asks one target and writes what it saw to one history; safe for many tasks at once.

    Attributes:
        least_shown: a turn that was shown at least so many earlier ones may have been shown only
            the latest ones: the service declares a window or that it summarises old turns, or a
            session showed it.
        tool_calls: how many calls of the declared tool the model saw succeed.
        offered: names of tools that the service offered its model.
        is_learning: completions are kept back until ``release``, so that what they show of the
            service's window is known before they are written.
    """

    def __init__(
        self,
        target: Target,
        history: HistoryWriter | OperationList,
        *,
        witness: Witness | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Bind a target to a history.

        Args:
            witness: returns what the model was shown with a marker, where the model is simulated.
            now_ns: the clock of the history.
        """
        self._target = target
        self._declares = target.declaration
        self._history = history
        self._witness = witness
        self._now_ns = now_ns
        window = self._declares.window
        # A window of six messages is shown as two turns and the new one: half is not held against.
        least = max(1, window // 2 - 1) if window else 1
        self.least_shown: float = least if window or self._declares.compacts else math.inf
        self.tool_calls = 0
        self.offered: set[str] = set()
        self.is_learning = False
        self._kept: list[tuple[str, int, Outcome, dict[str, Any]]] = []
        # Of turns that were asked: a reply names others that it answers by their ids.
        self._markers: dict[str, str] = {}

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
        self._markers[turn_id] = marker
        merged, into = list[str](), ""
        self._history.invoke(key, process, self._now_ns(), marker=marker, turn_id=turn_id)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._target.turn(key, prompt, turn_id)
            merged = [self._markers.get(one, one) for one in answer.steered]
            into = self._markers.get(answer.into, answer.into)
            outcome = outcome_of(
                marker, answer, needs_quote=self._declares.needs_quote, together=(*merged, into)
            )
        except (Refused, CallerError) as refused:
            outcome = Outcome("fail", _words(refused))
        except TimeoutError as late:
            waited = f"no answer within timeout_s={timeout_s:g}" if timeout_s else _words(late)
            outcome = Outcome("info", waited)
        except Superseded as closed:
            into = self._markers.get(closed.into, closed.into)
            outcome = Outcome("info", _words(closed), is_final=True)
        except Exception as failure:  # noqa: BLE001 - what a broken service does is for the judge
            outcome = Outcome("info", _words(failure))
        finally:
            seen = self._witness(marker) if self._witness is not None else None
            facts: dict[str, Any] = {}
            if outcome.type == "info" and self._was_interrupted(marker, outcome.answered, seen):
                outcome = outcome._replace(answered="")
            if isinstance(seen, WitnessedTurn):
                facts = _witnessed(seen, self._declares, has_config=bool(outcome.config))
                if self._declares.tool:
                    self.tool_calls += len(facts["details"].tools or ())
                    self.offered.update(*(call.offered for call in seen.calls))
                seen = seen.read
            if seen is not None:
                # What the model's server received is the stronger witness: no reply can alter it.
                outcome = outcome._replace(read=seen)
            if outcome.stop_reason or outcome.tools is not None or merged or into:
                details = facts.get("details", NO_DETAILS)
                tools = details.tools if outcome.tools is None else outcome.tools
                facts["details"] = details._replace(
                    stop_reason=outcome.stop_reason,
                    tools=tools,
                    merged=(marker, *merged) if merged else (),
                    into=into,
                )
            ended = (process, self._now_ns(), outcome, facts)
            self._kept.append(ended) if self.is_learning else self._complete(*ended)
        return outcome

    def _was_interrupted(
        self, marker: str, answered: str, seen: Read | WitnessedTurn | None
    ) -> bool:
        """Whether the answer to an interrupted turn shows an older reply of the same session.

        Services that let a later turn interrupt one answer the first with the session as it is.
        """
        is_own = answered.partition("-")[0] == marker.partition("-")[0]
        is_cut = isinstance(seen, WitnessedTurn) and all(c.status != 200 for c in seen.calls)
        return is_own and (is_cut or self._declares.strategy in ("interrupt", "rollback"))

    def release(self) -> None:
        """Write the completions that were kept back."""
        self.is_learning = False
        for ended in self._kept:
            self._complete(*ended)
        self._kept.clear()

    def _complete(
        self, process: str, time_ns: int, outcome: Outcome, facts: Mapping[str, Any]
    ) -> None:
        read = outcome.read
        if read is not None and read.position >= self.least_shown:
            read = read._replace(is_suffix=True)
        self._history.complete(
            process,
            time_ns,
            outcome.type,
            read=read,
            error=outcome.error,
            answered=outcome.answered,
            config=outcome.config,
            **facts,
        )

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
        facts: dict[str, Any] = {}
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
                facts = {"markers": markers, "is_suffix": history.is_suffix}
                if half:
                    facts["read"] = Read(len(markers), digest_of(markers), half=half)
                if has_effects:
                    facts["effects"] = history.made
                error = ""
        except Exception as failure:  # noqa: BLE001 - as above
            error = _words(failure)
        finally:
            kind = "info" if error else "ok"
            self._history.complete(process, self._now_ns(), kind, error=error, **facts)
        return error

    async def effects(self, process: str, key: SessionKey) -> str:
        """Ask what tools did for the key's user and record it; return "" or why it is not known."""
        if not isinstance(self._target, Worldly):
            return "the target cannot tell what tools did"
        self._history.invoke(key, process, self._now_ns(), f="effects")
        effects, error = None, "interrupted"
        try:
            effects, error = await self._target.effects(key.user_id), ""
        except Exception as failure:  # noqa: BLE001 - as above
            error = _words(failure)
        finally:
            kind = "info" if effects is None else "ok"
            self._history.complete(process, self._now_ns(), kind, effects=effects, error=error)
        return error


def _witnessed(turn: WitnessedTurn, declares: Declaration, *, has_config: bool) -> dict[str, Any]:
    """Return what the model's side knows of a turn: when it was asked, and what its tools did.

    Args:
        has_config: the service tells its configuration, and so promises one for each turn.
    """
    model = turn.model or ModelCalls()
    model = model if has_config else model._replace(configs=())
    if not declares.tool:
        return {"details": Details(model=model)}
    shown = [
        [r for r in call.results if r.tool.rpartition("__")[2] == declares.tool and not r.is_error]
        for call in turn.calls
    ]
    results = list(dict.fromkeys(result for one in shown for result in one))
    # A result that names other turns and not its own was given to the wrong call.
    crossed = [r.markers[0] for r in results if r.markers and turn.marker not in r.markers]
    given = (*model.tool_results, *((turn.marker, other) for other in crossed))
    tools = (declares.tool,) * max(map(len, shown), default=0) or None
    details = Details(tools=tools, model=model._replace(tool_results=given))
    made = [Effect(result.id, declares.tool, turn.marker) for result in results if result.id]
    return {"details": details} | ({"effects": made} if made and not declares.has_book else {})


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
