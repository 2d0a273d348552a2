"""Who answers, in this loop: a model that tells what it was shown, and clients of it that err.

``Scribe`` asks for one tool and then gives its final reply, which echoes what it was shown, so each
turn makes two model calls. What wraps it are the faults of a model's *client*: they change no
reply, they give it to somebody else, or twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from kode_lab.claude.conversation import shown_to
from kode_lab.errors import ModelUnavailable
from kode_lab.faults.site import Site
from kode_lab.faults.virtual_time import Delays
from kode_lab.history.operation import echo_of
from kode_lab.message import Model, Reply, Request, Usage, text_of

__all__ = ["CachedReplies", "HiddenRetry", "ReusedConnections", "Scribe"]

_ANSWER_MS = 10.0
_USAGE = Usage(10, 5)


class Scribe:
    """A model: a note (or a delegation) of what the prompt says, then the echo.

    Attributes:
        failing_percent: how many calls of a hundred fail; may change.
    """

    def __init__(self, delays: Delays, *, failing_percent: int = 0) -> None:
        self._delays = delays
        self.failing_percent = failing_percent
        self._ids = count(1)

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Answer, after a while."""
        await asyncio.sleep(self._delays.take_s(_ANSWER_MS))
        if self._delays.is_chosen(self.failing_percent):
            raise ModelUnavailable("the model is overloaded: try again")
        last = request.messages[-1]
        if last["content"][0]["type"] == "text":
            prompt = text_of(last)
            name = "delegate" if "delegate" in prompt else "note"
            call_id = f"toolu_{next(self._ids):06d}"
            block = {"type": "tool_use", "id": call_id, "name": name, "input": {"text": prompt}}
            return Reply((block,), "tool_use", _USAGE)
        shown = shown_to(request.messages)
        text = "Done." if shown is None else f"Done. {echo_of(*shown)}"
        if on_text is not None:
            on_text(text)
        return Reply(({"type": "text", "text": text},), "end_turn", _USAGE)


class CachedReplies:
    """Answers what it answered before to the same last message."""

    def __init__(self, inner: Model) -> None:
        self._inner = inner
        self._known: dict[str, Reply] = {}

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Answer from memory where it can; replies with tool calls are never kept."""
        question = text_of(request.messages[-1])
        if question not in self._known:
            reply = await self._inner(request, on_text)
            if reply.tool_calls:
                return reply
            self._known[question] = reply
        return self._known[question]


class ReusedConnections:
    """Keeps connections open; one whose caller left still has its answer on the way."""

    def __init__(self, inner: Model, site: Site) -> None:
        self._inner = inner
        self._site = site
        # Each connection is its answers to come, in the order of the questions.
        self._idle: list[list[asyncio.Task[Reply]]] = []

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Send it down an idle connection, and take the next answer that comes out."""
        connection = self._idle.pop() if self._idle else []
        connection.append(self._site.spawn(_awaited(self._inner(request, on_text))))
        try:
            reply: Reply = await asyncio.shield(connection[0])
            del connection[0]
        finally:
            self._idle.append(connection)
        return reply


async def _awaited(reply: Any) -> Reply:
    given: Reply = await reply
    return given


class HiddenRetry:
    """Sends a request again that takes long, and joins what both streams brought."""

    def __init__(self, inner: Model, patience_s: float) -> None:
        self._inner = inner
        self._patience_s = patience_s

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Return all blocks of all attempts."""
        first = asyncio.ensure_future(self._inner(request, on_text))
        try:
            done, _ = await asyncio.wait((first,), timeout=self._patience_s)
            if done:
                return first.result()
            second = await self._inner(request, on_text)
            reply = await first
        finally:
            first.cancel()
        if not reply.tool_calls:
            return reply
        return reply._replace(content=(*reply.content, *second.content))
