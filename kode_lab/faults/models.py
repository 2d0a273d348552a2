"""Who answers, in this loop: a model that tells what it was shown, and clients of it that err.

``Scribe`` asks for one tool and then gives its final reply, which echoes what it was shown, so each
turn makes two model calls. What wraps it are the faults of a model's *client*: they change no
reply, they give it to somebody else, or twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeAlias

from kode_lab.claude.conversation import shown_to
from kode_lab.errors import ModelUnavailable
from kode_lab.faults.site import Altered, Site
from kode_lab.faults.virtual_time import Delays
from kode_lab.history.operation import ModelCalls, echo_of
from kode_lab.message import Message, Model, Reply, Request, Usage, text_of
from kode_lab.sessions import AgentConfig, AgentShelf

__all__ = [
    "Scribe",
    "caching_replies",
    "mutating",
    "reloading_prompt",
    "retrying_unseen",
    "reusing_connections",
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
                (*known.tool_results, *_answers_in(request.messages[-1])),
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


def _answers_in(message: Message) -> Iterator[tuple[str, str]]:
    """Return of each tool result the call that it was given for, and the one that it names."""
    for block in message["content"]:
        if block["type"] == "tool_result":
            content = block.get("content") or ""
            words = (
                content if isinstance(content, str) else text_of({**message, "content": content})
            )
            _, is_named, call_id = words.partition(" for ")
            if is_named:
                yield block["tool_use_id"], call_id


_OnText: TypeAlias = Callable[[str], None] | None


def reloading_prompt(model: Model, _site: Site, *, every: int = 7) -> Model:
    """Read the system prompt anew for each call, while somebody edits it."""
    calls = count()

    async def ask(request: Request, on_text: _OnText = None) -> Reply:
        system = f"{request.system} (version {next(calls) // every})"
        return await model(request._replace(system=system), on_text)

    return ask


def caching_replies(model: Model, _site: Site) -> Model:
    """Answer what was answered before to the same last message; tool calls are never kept."""
    known: dict[str, Reply] = {}

    async def ask(request: Request, on_text: _OnText = None) -> Reply:
        question = text_of(request.messages[-1])
        if question not in known:
            reply = await model(request, on_text)
            if reply.tool_calls:
                return reply
            known[question] = reply
        return known[question]

    return ask


def reusing_connections(model: Model, site: Site) -> Model:
    """Keep connections open; one whose caller left still has its answer on the way."""
    # Each connection is its answers to come, in the order of the questions.
    idle: list[list[asyncio.Task[Reply]]] = []

    async def ask(request: Request, on_text: _OnText = None) -> Reply:
        connection = idle.pop() if idle else []

        async def answer() -> Reply:
            return await model(request, on_text)

        connection.append(site.spawn(answer()))
        try:
            reply: Reply = await asyncio.shield(connection[0])
            del connection[0]
        finally:
            idle.append(connection)
        return reply

    return ask


def retrying_unseen(model: Model, _site: Site, *, patience_s: float = 0.006) -> Model:
    """Send a request again that takes long, and join what both streams brought."""

    async def ask(request: Request, on_text: _OnText = None) -> Reply:
        first = asyncio.ensure_future(model(request, on_text))
        try:
            done, _ = await asyncio.wait((first,), timeout=patience_s)
            if done:
                return first.result()
            second = await model(request, on_text)
            reply = await first
        finally:
            first.cancel()
        if not reply.tool_calls:
            return reply
        return reply._replace(content=(*reply.content, *second.content))

    return ask


def mutating(agents: AgentShelf, _site: Site) -> Altered:
    """Add a sentence to the system prompt that all sessions share, every 20 ms."""
    began_s = asyncio.get_running_loop().time()

    def current(agent_id: str) -> AgentConfig:
        config = agents.current(agent_id)
        # Not by how often it is asked for, which real time decides.
        said = int((asyncio.get_running_loop().time() - began_s) / 0.02)
        system = config.system + " Be brief." * said
        version = f"{config.version}+{said}" if said else config.version
        kept = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        del kept["tool_specs"]  # made from the tools
        return AgentConfig(**kept | {"system": system, "version": version})

    return Altered(agents, current=current)
