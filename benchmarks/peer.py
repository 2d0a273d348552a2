"""One side of the comparison with other frameworks: takes turns, and prints what one costs.

It runs in the framework's own environment, so it imports nothing of kode_lab but where kode_lab is
the side. Every side has the same job: a session that is kept on disk, a model that answers at once
with the same text, one turn after another. A turn before the tenth is not counted.

    python benchmarks/peer.py SIDE DIRECTORY

Source: each framework's own documentation of sessions on files or SQLite.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

PROMPT = "Please note an hour for the quarterly review tomorrow morning, if nothing is planned."
ANSWER = "It is noted: tomorrow at nine, one hour, and nothing else was planned for the morning."
_WARM, _TURNS, _ROUNDS = 10, 40, 3

Turn = Callable[[str], Awaitable[object]]


async def kode_lab(directory: Path, stack: AsyncExitStack) -> Turn:
    """Return a turn of kode_lab's manager over a directory."""
    from kode_lab import Reply, SessionKey, SessionManager  # noqa: PLC0415 - one side a process
    from kode_lab.sessions import AgentConfig  # noqa: PLC0415

    reply = Reply.of_text(ANSWER)

    async def model(_request: object, _on_text: object = None) -> Reply:
        return reply

    agents = [AgentConfig("bench", model="bench")]
    manager = SessionManager(store=directory / "store", agents=agents, model=model)
    await stack.enter_async_context(manager)
    key = SessionKey.of("ada", "bench", "s1")
    return lambda prompt: manager.turn(key, prompt)


async def openai_agents(directory: Path, _stack: AsyncExitStack) -> Turn:
    """Return a turn of the OpenAI Agents SDK over its ``SQLiteSession``."""
    import agents  # noqa: PLC0415
    from agents.items import ModelResponse  # noqa: PLC0415
    from agents.usage import Usage  # noqa: PLC0415
    from openai.types.responses import (  # noqa: PLC0415
        ResponseOutputMessage,
        ResponseOutputText,
    )

    class Stub(agents.Model):  # type: ignore[misc]
        async def get_response(self, *_: object, **__: object) -> Any:
            text = ResponseOutputText(text=ANSWER, type="output_text", annotations=[])
            message = ResponseOutputMessage(
                id="m", content=[text], role="assistant", status="completed", type="message"
            )
            return ModelResponse(output=[message], usage=Usage(), response_id=None)

        def stream_response(self, *_: object, **__: object) -> Any:
            raise NotImplementedError

    agents.set_tracing_disabled(disabled=True)
    agent = agents.Agent(name="assistant", instructions="Be brief.", model=Stub())
    session = agents.SQLiteSession("ada-s1", directory / "sessions.sqlite")
    return lambda prompt: agents.Runner.run(agent, prompt, session=session)


async def langgraph(directory: Path, stack: AsyncExitStack) -> Turn:
    """Return a turn of a graph of one node over ``AsyncSqliteSaver``."""
    from langchain_core.messages import AIMessage  # noqa: PLC0415
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415
    from langgraph.graph import START, MessagesState, StateGraph  # noqa: PLC0415

    async def node(_state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage(ANSWER)]}

    saver = AsyncSqliteSaver.from_conn_string(str(directory / "graph.sqlite"))
    builder = StateGraph(MessagesState)
    builder.add_node("model", node)
    builder.add_edge(START, "model")
    graph = builder.compile(checkpointer=await stack.enter_async_context(saver))
    config = {"configurable": {"thread_id": "ada-s1"}}
    return lambda prompt: graph.ainvoke({"messages": [("user", prompt)]}, config)


async def strands(directory: Path, _stack: AsyncExitStack) -> Turn:
    """Return a turn of a Strands agent that stays in memory, over ``FileSessionManager``."""
    from strands import Agent  # noqa: PLC0415
    from strands.models import Model  # noqa: PLC0415
    from strands.session.file_session_manager import FileSessionManager  # noqa: PLC0415

    class Stub(Model):  # type: ignore[misc]
        def update_config(self, **_: object) -> None:
            pass

        def get_config(self) -> dict[str, Any]:
            return {"model_id": "stub"}

        def structured_output(self, *_: object, **__: object) -> Any:
            raise NotImplementedError

        async def stream(self, *_: object, **__: object) -> Any:
            yield {"messageStart": {"role": "assistant"}}
            yield {"contentBlockDelta": {"delta": {"text": ANSWER}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "end_turn"}}

    keeper = FileSessionManager(session_id="ada-s1", storage_dir=str(directory))
    agent = Agent(model=Stub(), session_manager=keeper, callback_handler=None)
    return agent.invoke_async


async def bare_append(directory: Path, _stack: AsyncExitStack) -> Turn:
    """Return the writing of the same bytes to two open files: what no store can go below."""
    first, second = (os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in "ab")
    at = 0

    async def turn(prompt: str) -> None:
        nonlocal at
        data = (prompt + ANSWER).encode()
        os.pwrite(first, data, at)
        os.pwrite(second, data, at)
        at += len(data)

    return turn


SIDES = {each.__name__: each for each in (bare_append, kode_lab, openai_agents, langgraph, strands)}


async def _main() -> None:
    name, directory = sys.argv[1], Path(sys.argv[2])
    async with AsyncExitStack() as stack:
        turn = await SIDES[name](directory, stack)
        for _ in range(_WARM):
            await turn(PROMPT)
        best_us = float("inf")
        for _ in range(_ROUNDS):
            start_s = time.process_time()
            for _ in range(_TURNS):
                await turn(PROMPT)
            best_us = min(best_us, (time.process_time() - start_s) / _TURNS * 1e6)
    sys.stdout.write(f"{best_us}\n")


if __name__ == "__main__":
    asyncio.run(_main())
