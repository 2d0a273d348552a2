"""Runs one Python file as a target: JSON objects by the line on standard input and output.

    python host.py FILE_OR_MODULE[:FUNCTION]

It owns the protocol's other end (``lines`` has this one) and is a script of the standard library
alone, because it runs in the environment of a framework, where kode_lab is not installed. The file
has an async function ``turn(user, session, prompt)`` that returns the reply's text and may have
``history(user, session)`` (a list of what the user said, or None), ``effects(user)`` (what the
declared tool did for the user: tables with an ``id``), ``setup()`` (called once) and a dictionary
``DECLARES`` (fields of ``Declaration``). ``Refused`` in the file's namespace, where it has one, is
the exception for a turn that was definitely not accepted. With ``KODE_LAB_HOLD`` set, turns run
behind ``kode_lab.hold`` with that store.

    -> {"id": 1, "op": "turn", "user": "ada", "session": "x", "prompt": "...", "turn_id": "..."}
    <- {"id": 1, "reply": "..."}    or {"id": 1, "refused": "..."} or {"id": 1, "error": "..."}
    -> {"id": 2, "op": "history", "user": "ada", "session": "x"}
    <- {"id": 2, "prompts": ["..."]}      or {"id": 2, "prompts": null}
    -> {"id": 3, "op": "effects", "user": "ada"}
    <- {"id": 3, "effects": [{"id": 7, "text": "... with the turn's marker"}]}
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__: list[str] = []


def _loaded(name: str) -> Any:
    """Return the module of a path or dotted name."""
    if not name.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"target_{Path(name).stem}", name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def _called(function: Any, *words: Any) -> Any:
    """Call it: a blocking function gets a thread."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    ):
        return await function(*words)
    answer = await asyncio.to_thread(function, *words)
    return await answer if inspect.isawaitable(answer) else answer


def _held(turn: Any, store: str) -> Any:
    """Return ``turn`` behind ``kode_lab.hold``: one turn of a session at a time."""
    # Last, so that the environment's own packages come first.
    sys.path.append(str(Path(__file__).parents[2]))
    from kode_lab.sessions.guard import hold  # noqa: PLC0415 - only where it is asked for

    async def held(user: str, session: str, prompt: str) -> Any:
        async with hold(user, session, store=None if store == "process" else store):
            return await _called(turn, user, session, prompt)

    return held


async def _answer(module: Any, turn: Any, asked: dict[str, Any]) -> dict[str, Any]:
    refused = getattr(module, "Refused", ())
    session = asked["user"], asked["session"]
    try:
        if asked["op"] == "history":
            history = getattr(module, "history", None)
            told = None if history is None else await _called(history, *session)
            return {"prompts": told if told is None else [str(one) for one in told]}
        if asked["op"] == "effects":
            return {"effects": await _called(module.effects, asked["user"])}
        words: tuple[Any, ...] = (*session, asked["prompt"])
        if "turn_id" in inspect.signature(turn).parameters:
            words = (*words, asked["turn_id"])
        reply = await _called(turn, *words)
    except refused as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001 - it is the other side's to judge
        return {"error": f"{type(error).__name__}: {error}"}
    return {"reply": reply if isinstance(reply, str) else json.dumps(reply, default=str)}


async def _serve(name: str, output: Any) -> None:
    place, _, function = name.rpartition(":") if ":" in name[2:] else (name, "", "")
    module = _loaded(place)
    turn = getattr(module, function or "turn")
    if store := os.environ.get("KODE_LAB_HOLD"):
        turn = _held(turn, store)
    if (setup := getattr(module, "setup", None)) is not None:
        await _called(setup)

    def say(answer: dict[str, Any]) -> None:
        output.write(json.dumps(answer).encode() + b"\n")
        output.flush()

    async def take(asked: dict[str, Any]) -> None:
        say({"id": asked["id"], **await _answer(module, turn, asked)})

    declares = dict(getattr(module, "DECLARES", {}))
    declares.setdefault("has_history", hasattr(module, "history"))
    declares.setdefault("has_book", hasattr(module, "effects"))
    say({"ready": declares})
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = set()
    while line := await reader.readline():
        task = loop.create_task(take(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    # What the target prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asyncio.run(_serve(sys.argv[1], answers))
