"""Our own sessions as two ordinary targets: the manager in this process, the server over HTTP.

The server is ``kode-lab serve`` with its model inside, so that ``kill -9`` takes everything with it
that a real crash would take. Neither target writes a history or knows what is asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.errors import KodeLabError
from kode_lab.history.operation import Effect, markers_in
from kode_lab.key import SessionKey
from kode_lab.message import Message
from kode_lab.schedule_assistant import ScheduleBook
from kode_lab.sessions import SessionManager
from kode_lab.sessions.agent import Strategy
from kode_lab.targets.http_target import http_client, stream_events
from kode_lab.targets.target import Answer, Declaration, History, refused_or_unknown

__all__ = ["ManagerTarget", "ServerTarget", "book_effects", "history_of"]

# Starting Python and loading the server takes about a second; a noisy machine some more.
START_LIMIT_S = 30.0
_URL = re.compile(rb"http://127\.0\.0\.1:\d+")
_PROMISES = ("apart", "kept", "whole", "ordered", "durable", "tools", "service")
_OURS = Declaration(
    "kode_lab",
    parts=("user", "session", "agent"),
    promises=_PROMISES,
    is_idempotent=True,
    # A turn is acknowledged once it is saved, whatever a real model says in it.
    needs_quote=False,
)


class ManagerTarget:
    """Our session manager, in this loop."""

    def __init__(
        self, manager: SessionManager, book: ScheduleBook | None = None, *, strategy: str = ""
    ) -> None:
        """Bind it.

        Args:
            book: where the schedule assistant's tools write, to tell what they did.
            strategy: what a second turn of a busy session does; "" leaves it to the agent's file.
        """
        self.declaration = _OURS._replace(strategy=strategy, client="in process")
        self._manager = manager
        self._book = book
        self._strategy = cast("Strategy | None", strategy or None)  # the manager checks it

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn; the manager's own errors say whether it was refused."""
        reply = await self._manager.turn(key, prompt, turn_id=turn_id, strategy=self._strategy)
        return Answer(
            "reply",
            reply.text,
            config=reply.config_version,
            stop_reason=_unusual(reply.stop_reason),
            steered=reply.steered,
            into=reply.into,
        )

    async def history(self, key: SessionKey) -> History:
        """Return what the store has."""
        return history_of(await self._manager.history(key))

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return what the schedule book says."""
        if self._book is None:
            return ()
        return await asyncio.to_thread(book_effects, self._book, user_id)


class ServerTarget:
    """A kode_lab server over HTTP: one that is there already, or a child that can be killed.

    Attributes:
        url: where it listens.
    """

    def __init__(
        self,
        words: Sequence[str] = (),
        data: Path | None = None,
        log: Path | None = None,
        *,
        url: str = "",
        strategy: str = "",
        is_streaming: bool = False,
    ) -> None:
        """Set it up; nothing is started before ``start``.

        Args:
            words: of ``kode-lab serve``, after the port and the data directory.
            data: where the sessions of a child rest.
            log: is appended what a child writes.
            url: of a server that is there already; nothing is started then.
            strategy: what a second turn of a busy session does; "" leaves it to the server.
            is_streaming: replies are asked for as events.
        """
        self.declaration = _OURS._replace(strategy=strategy, client="HTTP, JSON")
        self.url = url
        self._words = ("kode_lab", "serve", "--port", "0", "--data", str(data), *words)
        self._data = data
        self._log = log
        self._strategy = {"strategy": strategy} if strategy else {}
        self._is_streaming = is_streaming
        self._child: Child | None = None
        self._client: Any = None

    async def start(self, model_url: str = "") -> None:
        """Open the connections, and start the child where there is no server.

        Raises:
            KodeLabError: it does not come up.
        """
        if self._client is None:
            self._client = http_client()
        if self._data is None:
            return
        assert self._log is not None
        words = self._words if not model_url else (*self._words, "--model-url", model_url)
        said_before = self._log.stat().st_size if self._log.exists() else 0
        self._child = Child((PYTHON_MODULE, *words), log=self._log)
        due_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < due_s and self._child.is_running:
            with self._log.open("rb") as log:
                log.seek(said_before)
                if found := _URL.search(log.read()):
                    self.url = found[0].decode()
                    return
            await asyncio.sleep(0.02)
        await self.stop()
        raise KodeLabError(f"the server did not start: {self._child.last_words()}")

    async def stop(self) -> None:
        """Close the connections and kill the child: what it acknowledged is saved."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        await self.kill()

    async def kill(self) -> None:
        """Kill the child as ``kill -9`` does, and wait for its end."""
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Start it again on the same data, at a new port."""
        await self.start()

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn over HTTP."""
        import aiohttp  # noqa: PLC0415 - not needed in process

        body = key.to_json() | {"message": prompt, "turnId": turn_id} | self._strategy
        headers = {"Accept": "text/event-stream"} if self._is_streaming else None
        try:
            async with self._client.post(f"{self.url}/v1/turns", json=body, headers=headers) as raw:
                if raw.status == 200 and self._is_streaming:
                    return await _streamed(raw)
                said = await raw.text()
                if raw.status != 200:
                    return _refusal(raw.status, said, raw.headers.get("retry-after"))
        except aiohttp.ClientConnectorError as error:
            return Answer("refused", error=f"{type(error).__name__}: no server listens there")
        except (aiohttp.ClientError, OSError) as error:
            return Answer("unknown", error=f"{type(error).__name__}: the connection broke")
        return _reply(json.loads(said))

    async def history(self, key: SessionKey) -> History | None:
        """Read the session over HTTP."""
        names = "/".join(quote(part, safe="") for part in key)
        async with self._client.get(f"{self.url}/v1/sessions/{names}/messages") as response:
            if response.status == 404:
                return History(())
            if response.status != 200:
                return None
            return history_of((await response.json())["messages"])

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return what the schedule book on the disk says."""
        if self._data is None:
            raise KodeLabError("the schedule book of a server elsewhere cannot be read")
        with closing(ScheduleBook(self._data / "+schedules.sqlite")) as book:
            return await asyncio.to_thread(book_effects, book, user_id)


def _reply(fields: Any, pieces_ns: Sequence[int] = ()) -> Answer:
    return Answer(
        "reply",
        fields["text"],
        config=fields.get("configVersion", ""),
        pieces_ns=tuple(pieces_ns),
        stop_reason=_unusual(fields.get("stopReason", "")),
        steered=tuple(fields.get("steered", ())),
        into=fields.get("into", ""),
    )


def _unusual(stop_reason: str) -> str:
    return "" if stop_reason == "end_turn" else stop_reason


async def _streamed(raw: Any) -> Answer:
    """Read a turn's events to the last one; a stream that ends before it was cut."""
    pieces_ns: list[int] = []
    async for kind, data in stream_events(raw, is_sse=True):
        if kind == "text":
            pieces_ns.append(time.monotonic_ns())
        elif kind == "done":
            return _reply(json.loads(data), pieces_ns)
        elif kind == "error":
            error = json.loads(data)["error"]
            return refused_or_unknown(error["status"], error["type"])
    return Answer("unknown", error="the stream was cut: it has no last event")


def _refusal(status: int, said: str, retry_after: str | None) -> Answer:
    try:
        kind = json.loads(said)["error"]["type"]
    except (TypeError, ValueError, KeyError):
        if status in (404, 405):
            error = (
                f"{status} to POST /v1/turns: this is not a kode_lab server; "
                "see docs/judge-your-service.md"
            )
            return Answer("refused", error=error, is_final=True)
        kind = said
    return refused_or_unknown(status, kind, retry_after)


def history_of(messages: Iterable[Message]) -> History:
    """Return what a conversation's prompts say, those that no final reply follows, and its tools'.

    ``made`` are the schedules that its tools made, ``listed`` those that they were shown.
    """
    prompts: list[str] = []
    unanswered: list[str] = []
    waiting: list[str] = []
    names: dict[str, str] = {}
    made: list[Effect] = []
    listed: list[Effect] | None = []
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] == "assistant":
            calls = {block["id"]: block["name"] for block in blocks if block["type"] == "tool_use"}
            names |= calls
            waiting = waiting if calls else []
            continue
        if any(block["type"] == "text" for block in blocks):
            unanswered += waiting
            waiting = ["\n".join(block["text"] for block in blocks if block["type"] == "text")]
            prompts += waiting
        for block in blocks:
            if block["type"] == "tool_result":
                name, result = names.get(block["tool_use_id"], ""), _result(block)
                if name == "create_schedule" and "schedule_id" in result:
                    made.append(_effect(result["schedule_id"], result.get("title", "")))
                elif name == "query_schedules":
                    is_whole = "schedules" in result and "note" not in result
                    shown = result["schedules"] if is_whole else ()
                    listed = None if listed is None or not is_whole else listed
                    if listed is not None:
                        listed += [_effect(one["schedule_id"], one["title"]) for one in shown]
    return History(
        tuple(prompts),
        tuple(unanswered + waiting),
        tuple(made) or None,
        None if listed is None else tuple(listed),
    )


def _result(block: Any) -> dict[str, Any]:
    content = block.get("content", "")
    text = content if isinstance(content, str) else "".join(b.get("text", "") for b in content)
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _effect(number: Any, title: str, user_id: str = "") -> Effect:
    """Return an entry; a title that is a marker's says which turn asked for it."""
    marker = (*markers_in(f"#{str(title).removeprefix('plan ')}"), "")[0]
    return Effect(str(number), "create_schedule", marker, user_id)


def book_effects(book: ScheduleBook, user_id: str) -> list[Effect]:
    """Return the user's entries in the schedule book."""
    return [_effect(one.id, one.title, user_id) for one in book.query(user_id)]
