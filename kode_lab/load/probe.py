"""The last questions of a run: every session is asked for one more turn, and then read.

A lock that leaked, or a session that was damaged, shows only here; and without the authoritative
read nobody could tell whether an acknowledged turn was kept. The probes are recorded like all
turns, but are no load: Locust's figures do not count them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import gevent
from gevent.pool import Pool
from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook

from kode_lab.history.operation import QUIET, Effect, Read, digest_of, markers_in
from kode_lab.key import SessionKey
from kode_lab.load.recorder import Outcome, Recorder

__all__ = ["Told", "ask_world", "messages_of", "probe", "told_by"]

PROBES_AT_ONCE = 16
ATTEMPTS_LIMIT = 20
_PAUSE_S = 0.25


class Told:
    """What a session's saved conversation says.

    Attributes:
        markers: of its prompts, in order.
        half: of prompts that no final reply follows.
        results: what tools gave, by the prompt's marker: the tool's name and its JSON.
    """

    def __init__(self) -> None:
        self.markers: list[str] = []
        self.half: list[str] = []
        self.results: list[tuple[str, str, Any]] = []


def probe(environment: Any, recorder: Recorder, keys: Iterable[SessionKey]) -> None:
    """Declare all faults over; take one turn of each session, and read it."""
    user = environment.user_classes[0](environment)
    user.client = FastHttpSession(
        user.host,
        EventHook(),
        None,
        network_timeout=user.network_timeout,
        connection_timeout=user.connection_timeout,
        concurrency=PROBES_AT_ONCE,
        max_retries=0,
    )
    user.on_start()
    user.attempts_limit = ATTEMPTS_LIMIT
    recorder.fault(QUIET)
    pool = Pool(PROBES_AT_ONCE)
    asked = list(keys)
    for key in asked:
        pool.spawn(_ask, user, recorder, key)
    pool.join()
    ask_world(user, recorder, asked)


def _ask(user: Any, recorder: Recorder, key: SessionKey) -> None:
    user.turn(key, time.monotonic_ns())
    for _ in range(ATTEMPTS_LIMIT):
        process = recorder.invoke(key, f="read")
        messages = messages_of(user.client, key)
        if messages is None:
            recorder.complete(process, Outcome("info", "the session could not be read"))
            gevent.sleep(_PAUSE_S)
            continue
        told = told_by(messages)
        read = None
        if told.half:
            read = Read(len(told.markers), digest_of(told.markers), half=tuple(told.half))
        effects = user.effects_of(key, told)
        recorder.complete(process, Outcome("ok", read=read, effects=effects), told.markers)
        return


def messages_of(client: Any, key: SessionKey) -> list[dict[str, Any]] | None:
    """Return a session's saved conversation, or None when it cannot be had now."""
    ids = "/".join(quote(part, safe="") for part in (key.user_id, key.session_id, key.agent_id))
    response = client.get(f"/v1/sessions/{ids}/messages", name="read")
    if response.status_code != 200:
        return None
    try:
        messages: list[dict[str, Any]] = json.loads(response.content)["messages"]
    except (TypeError, ValueError, KeyError):
        return None
    return messages


def told_by(messages: Iterable[dict[str, Any]]) -> Told:
    """Return what the messages of a conversation say, echoes of the model left aside."""
    told = Told()
    unanswered: list[str] = []
    asked: dict[str, str] = {}
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] == "assistant":
            calls = {b["id"]: b["name"] for b in blocks if b["type"] == "tool_use"}
            asked |= calls
            unanswered = unanswered if calls else []
            continue
        marker = told.markers[-1] if told.markers else ""
        for block in blocks:
            if block["type"] == "text":
                told.half += unanswered
                unanswered = markers_in(block["text"])
                told.markers += unanswered
            elif block["type"] == "tool_result":
                result = _json_of(block)
                told.results.append((marker, asked.get(block["tool_use_id"], ""), result))
    told.half += unanswered
    return told


def ask_world(user: Any, recorder: Recorder, keys: list[SessionKey]) -> None:
    """Let each of the run's users ask what tools did for it, where a scenario has tools act."""
    pool = Pool(PROBES_AT_ONCE)
    for key in user.world_of(keys):
        pool.spawn(_ask_effects, user, recorder, key)
    pool.join()


def _ask_effects(user: Any, recorder: Recorder, key: SessionKey) -> None:
    process = recorder.invoke(key, f="effects")
    effects: tuple[Effect, ...] | None = user.effects_told(key)
    if effects is None:
        recorder.complete(process, Outcome("info", "nobody told what tools did"))
    else:
        recorder.complete(process, Outcome("ok", effects=effects))


def _json_of(block: dict[str, Any]) -> Any:
    content = block.get("content", "")
    text = content if isinstance(content, str) else "".join(b.get("text", "") for b in content)
    try:
        return json.loads(text)
    except ValueError:
        return None
