"""The simulated Claude without its HTTP: the same script and latencies as a function in this loop.

For load on the system alone: a call costs microseconds where a client and a server cost
milliseconds. It refuses nothing and never fails: what is legal and what goes wrong is decided by
the simulated API. Conversations stay legal, because ids are unique.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import date
from typing import Any

import orjson

from kode_lab.claude import script
from kode_lab.claude.conversation import conversation_of
from kode_lab.claude.formats.seam import GenerationRequest, ToolOffer, pieces_of
from kode_lab.claude.profile import Profile
from kode_lab.history.operation import echo_of
from kode_lab.message import Reply, Request, Usage

__all__ = ["InProcessClaude"]


class InProcessClaude:
    """A ``message.Model``: ``await claude(request)``."""

    def __init__(self, profile: Profile | None = None, *, today: date | None = None) -> None:
        """Set it up.

        Args:
            profile: how long it takes; None takes no time.
            today: what "today" means; None is the calendar's.
        """
        self._profile = profile or Profile()
        self._today = today
        self._salt = os.urandom(4).hex()
        self._count = 0

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Return the scripted reply when it is due; with ``on_text``, in pieces before."""
        start_s = asyncio.get_running_loop().time()
        self._count += 1
        suffix = f"{self._salt}{self._count:08d}"
        conversation = conversation_of(request.messages)
        offers = [ToolOffer(tool["name"], tool.get("input_schema")) for tool in request.tools]
        wanted = GenerationRequest(request.model, conversation, {}, tools=offers)
        plan = script.plan_of(wanted, self._today or date.today())  # noqa: DTZ011 - on the wall
        text = plan.text
        if conversation.marker and not plan.calls:
            text = f"{text}\n{echo_of(conversation.marker, conversation.read())}"
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        for index, (name, arguments) in enumerate(plan.calls):
            call_id = f"toolu_{suffix}{index:02d}"
            content.append(
                {"type": "tool_use", "name": name, "input": dict(arguments), "id": call_id}
            )
        pieces = pieces_of(text)
        latency = self._profile.latency(plan.intent, plan.prompt, plan.call, len(pieces))
        await _until(start_s + latency.first_s)
        if on_text is not None:
            pace_s = (latency.total_s - latency.first_s) / max(1, len(pieces) - 1)
            for index, piece in enumerate(pieces):
                await _until(start_s + latency.first_s + pace_s * index)
                on_text(piece)
        await _until(start_s + latency.total_s)
        tokens = Usage(len(orjson.dumps(tuple(request.messages))) // 4, max(1, len(pieces)))
        stop_reason = "tool_use" if plan.calls else "end_turn"
        return Reply(tuple(content), stop_reason, tokens, request.model, f"msg_{suffix}")


async def _until(due_s: float) -> None:
    """Wait until then; where nothing is left to wait, let others run once."""
    await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
