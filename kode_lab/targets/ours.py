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
from kode_lab.message import Message, text_of
from kode_lab.schedule_assistant import ScheduleBook
from kode_lab.sessions import SessionManager
from kode_lab.sessions.agent import Strategy
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
        return Answer("reply", reply.text, config=reply.config_version)

    async def history(self, key: SessionKey) -> History:
        """Return what the store has."""
        return history_of(await self._manager.history(key))

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return what the schedule book says."""
        if self._book is None:
            return ()
        return await asyncio.to_thread(book_effects, self._book, user_id)


class ServerTarget:
    """``kode-lab serve`` as a child process that can be killed and comes back."""

    def __init__(self, words: Sequence[str], data: Path, log: Path, *, strategy: str = "") -> None:
        """Set it up; nothing is started before ``start``.

        Args:
            words: of ``kode-lab serve``, after the port and the data directory.
            data: where its sessions rest.
            log: is appended what it writes.
        """
        self.declaration = _OURS._replace(strategy=strategy, client="HTTP, JSON")
        self.url = ""
        self._words = ("kode_lab", "serve", "--port", "0", "--data", str(data), *words)
        self._data = data
        self._log = log
        self._strategy = {"strategy": strategy} if strategy else {}
        self._child: Child | None = None
        self._client: Any = None

    async def start(self, model_url: str = "") -> None:
        """Start it and wait until it serves.

        Raises:
            KodeLabError: it does not come up.
        """
        import aiohttp  # noqa: PLC0415 - here and below: in process nobody pays for it

        if self._client is None:
            self._client = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
            )
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
        """Kill it: what it acknowledged is saved."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        await self.kill()

    async def kill(self) -> None:
        """Kill it as ``kill -9`` does, and wait for its end."""
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Start it again on the same data, at a new port."""
        await self.start()

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn over HTTP."""
        import aiohttp  # noqa: PLC0415

        body = key.to_json() | {"message": prompt, "turnId": turn_id} | self._strategy
        try:
            async with self._client.post(f"{self.url}/v1/turns", json=body) as response:
                said = await response.text()
                if response.status != 200:
                    retry_after = response.headers.get("retry-after")
                    return refused_or_unknown(response.status, said, retry_after)
        except aiohttp.ClientConnectorError as error:
            return Answer("refused", error=f"{type(error).__name__}: no server listens there")
        except (aiohttp.ClientError, OSError) as error:
            return Answer("unknown", error=f"{type(error).__name__}: the connection broke")
        fields = json.loads(said)
        return Answer("reply", fields["text"], config=fields["configVersion"])

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
        with closing(ScheduleBook(self._data / "+schedules.sqlite")) as book:
            return await asyncio.to_thread(book_effects, book, user_id)


def history_of(messages: Iterable[Message]) -> History:
    """Return what a conversation's prompts say, and those that no final reply follows."""
    prompts: list[str] = []
    unanswered: list[str] = []
    waiting: list[str] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            is_final = isinstance(content, str) or not any(
                block["type"] == "tool_use" for block in content
            )
            waiting = [] if is_final else waiting
        elif isinstance(content, str) or any(block["type"] == "text" for block in content):
            unanswered += waiting
            waiting = [text_of(message)]
            prompts += waiting
    return History(tuple(prompts), tuple(unanswered + waiting))


def book_effects(book: ScheduleBook, user_id: str) -> list[Effect]:
    """Return the user's entries; a title that is a marker's says which turn asked for its entry."""
    return [
        Effect(str(one.id), "create_schedule", (*markers_in(f"#{one.title}"), "")[0], user_id)
        for one in book.query(user_id)
    ]
