"""Turns whose script is given: a model that follows it, stand-ins for its tools, and its agents.

It owns what is needed to do somebody else's trace again, with agents and tools that are not here:
the model call that takes its reported time, the tool that waits and gives its reported result. A
prompt without a script goes to the model behind it. It must never know reports or clients.

The model finds its script by the marker of the newest prompt that it is shown, so a backend that
shows it the wrong conversation makes it do the wrong turn, as a real model would.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

from kode_lab.claude.conversation import shown_to
from kode_lab.errors import ModelUnavailable
from kode_lab.history.operation import echo_of
from kode_lab.key import SessionKey
from kode_lab.lab.scenario import Client, TurnScript
from kode_lab.message import Block, Model, Reply, Request, Usage
from kode_lab.schedule_assistant import AGENTS, ScheduleBook
from kode_lab.sessions import SessionManager, Toolbox, TurnEvent
from kode_lab.sessions.agent import Strategy
from kode_lab.targets.ours import ManagerTarget
from kode_lab.targets.target import Answer

__all__ = [
    "ScriptedModel",
    "ScriptedTarget",
    "add_stand_ins",
    "agents_for",
    "scripts_of",
    "tools_of",
]

_LIMITS = "step_limit = 1000\ndeadline_s = 86400\ntool_timeout_s = 86400\nqueue_limit = 1000000\n"


# A streamed answer comes in at most so many pieces.
_PIECES_LIMIT = 64


class ScriptedModel:
    """A ``message.Model`` that follows the scripts given, and asks another model for the rest.

    Args:
        scripts: by marker.
        behind: who answers a prompt without a script.
        speed: by how much everything is faster than the scripts say.
    """

    def __init__(self, scripts: Mapping[str, TurnScript], behind: Model, speed: float) -> None:
        self._scripts = scripts
        self._behind = behind
        self._speed = speed
        self._count = 0

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Return the script's next reply when it is due.

        Raises:
            ModelUnavailable: the script says that the model's service fails here.
        """
        shown = shown_to(request.messages)
        script = self._scripts.get(shown[0]) if shown is not None else None
        if script is None or shown is None:
            return await self._behind(request, on_text)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        at = _calls_so_far(request)
        call = script.calls[min(at, len(script.calls) - 1)]
        is_last = not call.tools
        await _until(began_s + call.first_s / self._speed)
        text = f"Done. {echo_of(*shown)}"
        if is_last and on_text is not None:
            # So many pieces as there are tokens, evenly; the last one comes when it is due.
            count = max(2, min(call.output_tokens, _PIECES_LIMIT, len(text)))
            step_s = (call.took_s - call.first_s) / (count - 1) / self._speed
            for piece in range(count - 1):
                await _until(began_s + call.first_s / self._speed + piece * step_s)
                on_text(text[piece])
            text_left = text[count - 1 :]
        await _until(began_s + call.took_s / self._speed)
        if is_last and script.fails:
            raise ModelUnavailable("503: the script says that the model's service fails here")
        self._count += 1
        content: list[Block] = [
            {
                "type": "tool_use",
                "id": f"toolu_s{self._count}_{place}",
                "name": tool.name,
                "input": {
                    "seconds": tool.took_s / self._speed,
                    "result": tool.result,
                    "fails": tool.is_error,
                },
            }
            for place, tool in enumerate(call.tools)
        ]
        if is_last:
            if on_text is not None:
                on_text(text_left)
            content = [{"type": "text", "text": text}]
        return Reply(
            tuple(content),
            "end_turn" if is_last else "tool_use",
            Usage(call.input_tokens, call.output_tokens),
            request.model,
            f"msg_s{self._count}",
        )


def _calls_so_far(request: Request) -> int:
    count = 0
    for message in reversed(request.messages):
        content = message["content"]
        if message["role"] == "assistant":
            count += 1
        elif isinstance(content, str) or all(b["type"] != "tool_result" for b in content):
            break
    return count


async def _until(due_s: float) -> None:
    await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))


def scripts_of(clients: Iterable[Client]) -> dict[str, TurnScript]:
    """Return the scripts of all turns that have one, by marker."""
    return {
        ask.marker: ask.script
        for client in clients
        for ask in client.asks
        if ask.script is not None
    }


def tools_of(clients: Iterable[Client]) -> tuple[str, ...]:
    """Return the names of all tools in the scripts of these clients' turns."""
    calls = (call for script in scripts_of(clients).values() for call in script.calls)
    return tuple(dict.fromkeys(tool.name for call in calls for tool in call.tools))


def add_stand_ins(toolbox: Toolbox, names: Iterable[str]) -> None:
    """Register a stand-in for each of these tools that the toolbox lacks."""

    async def stand_in(seconds: float = 0.0, result: str = "done", fails: bool = False) -> str:
        """Wait, and return the result that the script gives."""
        await asyncio.sleep(seconds)
        if fails:
            raise RuntimeError(result)
        return result

    for name in names:
        if toolbox.get(name) is None:
            stand_in.__name__ = name
            toolbox.tool(stand_in)


def agents_for(
    keys: Iterable[SessionKey], tools: Iterable[str], directory: Path, *, model: str = ""
) -> Path:
    """Write the configuration of every agent that is asked, and return its directory.

    Ours is copied; any other one gets the stand-ins for its tools and no limits of its own.

    Args:
        model: instead of the one in our agent's file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    listed = json.dumps(list(tools))
    for agent_id in dict.fromkeys(key.agent_id for key in keys):
        ours = AGENTS / f"{agent_id}.toml"
        is_ours = "/" not in agent_id and ours.is_file()
        text = ours.read_text("utf-8") if is_ours else f'model = "scripted"\n{_LIMITS}'
        lines = text.splitlines()
        if not is_ours:
            lines.append(f"tools = {listed}")
        elif tools:
            # A replayed trace may use any tool, take longer and ask more often than ours allows.
            names = ("tools =", *(line.split(" ")[0] + " =" for line in _LIMITS.splitlines()))
            kept = [line for line in lines if not line.startswith(names)]
            own = next(line for line in lines if line.startswith("tools ="))
            every = [*json.loads(own.partition("=")[2]), *tools]
            lines = [*kept, *_LIMITS.splitlines()]
            lines.append(f"tools = {json.dumps(list(dict.fromkeys(every)))}")
        if model:
            lines = [
                f"model = {json.dumps(model)}" if line.startswith("model =") else line
                for line in lines
            ]
        (directory / f"{agent_id}.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return directory


class ScriptedTarget:
    """Our manager behind a gateway that refuses some turns, and notes when pieces of text come."""

    def __init__(
        self,
        manager: SessionManager,
        book: ScheduleBook | None,
        *,
        strategy: str,
        refused: frozenset[str],
        is_streamed: bool,
    ) -> None:
        ours = ManagerTarget(manager, book, strategy=strategy)
        self.declaration = ours.declaration
        self.history, self.effects = ours.history, ours.effects
        self._ours = ours
        self._manager = manager
        self._strategy = cast("Strategy | None", strategy or None)  # the manager checks it
        self._refused = refused
        self._is_streamed = is_streamed

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn, or refuse it as the scenario says."""
        # As a request in a socket would: the other clients can send before this turn is worked on.
        await asyncio.sleep(0)
        if turn_id in self._refused:
            return Answer("refused", error="Refused: 429: the scenario's gateway refuses this turn")
        if not self._is_streamed:
            return await self._ours.turn(key, prompt, turn_id)

        pieces_ns: list[int] = []

        def watch(event: TurnEvent) -> None:
            if event.kind == "text":
                pieces_ns.append(time.monotonic_ns())

        reply = await self._manager.turn(
            key, prompt, turn_id=turn_id, strategy=self._strategy, on_event=watch
        )
        return Answer("reply", reply.text, config=reply.config_version, pieces_ns=tuple(pieces_ns))
