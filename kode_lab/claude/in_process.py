"""The simulated Claude without its HTTP: the same script and latencies as a function in this loop.

For load on the system alone: a call costs microseconds where a client and a server cost
milliseconds. It refuses nothing and fails never; what is legal and what goes wrong is the simulated
API's affair. Conversations stay legal, because ids are unique.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import date
from typing import Any

import orjson

from kode_lab.claude import script, wire
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
        shown = script.shown_to(request.messages)
        body: dict[str, Any] = {"messages": request.messages, "tools": request.tools}
        plan = script.plan_of(body, self._today or date.today())  # noqa: DTZ011 - on the wall
        text = plan.text
        if shown is not None and not plan.calls:
            text = f"{text}\n{echo_of(*shown)}"
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        for index, call in enumerate(plan.calls):
            content.append({**call, "id": f"toolu_{suffix}{index:02d}"})
        pieces = wire.pieces_of(text)
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
