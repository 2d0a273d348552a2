"""Who answers, in this loop: a model that tells what it was shown, and clients of it that err.

``Scribe`` asks for one tool and then gives its final reply, which echoes what it was shown, so each
turn makes two model calls. What wraps it are the faults of a model's *client*: they change no
reply, they give it to somebody else, or twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Callable
from itertools import count
from typing import Any

from kode_lab.claude.conversation import shown_to
from kode_lab.errors import ModelUnavailable
from kode_lab.faults.site import Site
from kode_lab.faults.virtual_time import Delays
from kode_lab.history.operation import ModelCalls, echo_of
from kode_lab.message import Model, Reply, Request, Usage, text_of
from kode_lab.sessions import AgentConfig, AgentShelf

__all__ = [
    "CachedReplies",
    "HiddenRetry",
    "Mutated",
    "ReloadedPrompt",
    "ReusedConnections",
    "Scribe",
]

_ANSWER_MS = 10.0
_USAGE = Usage(10, 5)


class Scribe:
    """A model: a note (or a delegation) of what the prompt says, then the echo.

    Attributes:
        failing_percent: how many calls of a hundred fail; may change.
        recorded: by the marker of its prompt, what the calls of a turn were like.
    """

    def __init__(
        self,
        delays: Delays,
        *,
        now_ns: Callable[[], int],
        failing_percent: int = 0,
        cutting_percent: int = 0,
    ) -> None:
        """Bind it to a clock.

        Args:
            cutting_percent: how many final replies of a hundred end at ``max_tokens``.
        """
        self._delays = delays
        self._now_ns = now_ns
        self.failing_percent = failing_percent
        self._cutting_percent = cutting_percent
        self._ids = count(1)
        self.recorded: dict[str, ModelCalls] = {}

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Answer, after a while."""
        began_ns = self._now_ns()
        reply = await self._reply(request, on_text)
        shown = shown_to(request.messages)
        if shown is not None:
            known = self.recorded.get(shown[0], ModelCalls())
            version = f"{zlib.crc32(request.system.encode()):08x}"
            self.recorded[shown[0]] = ModelCalls(
                (*known.calls, (began_ns, self._now_ns())),
                reply.stop_reason,
                (*known.configs, version),
            )
        return reply

    async def _reply(self, request: Request, on_text: Callable[[str], None] | None) -> Reply:
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
        is_cut = self._cutting_percent and self._delays.is_chosen(self._cutting_percent)
        stop_reason = "max_tokens" if is_cut else "end_turn"
        return Reply(({"type": "text", "text": text},), stop_reason, _USAGE)


class ReloadedPrompt:
    """Reads the system prompt anew for each call, while somebody edits it."""

    def __init__(self, inner: Model, every: int) -> None:
        self._inner = inner
        self._every = every
        self._calls = count()

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Ask with the prompt as it is now."""
        version = next(self._calls) // self._every
        return await self._inner(
            request._replace(system=f"{request.system} (version {version})"), on_text
        )


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


_EVERY_S = 0.02


class Mutated:
    """Adds a sentence to the shared system prompt of all sessions now and then."""

    def __init__(self, inner: AgentShelf, _site: Site) -> None:
        self._inner = inner
        self._began_s = asyncio.get_running_loop().time()

    def current(self, agent_id: str) -> AgentConfig:
        """Return what the configuration has become."""
        config = self._inner.current(agent_id)
        # Not by how often it is asked for, which real time decides.
        said = int((asyncio.get_running_loop().time() - self._began_s) / _EVERY_S)
        system = config.system + " Be brief." * said
        version = f"{config.version}+{said}" if said else config.version
        kept = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        del kept["tool_specs"]  # made from the tools
        return AgentConfig(**kept | {"system": system, "version": version})
