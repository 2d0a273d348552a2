"""A described HTTP service as a target: asked, read back, started, killed, started again.

It owns how a description's requests are sent and what their answers mean. It judges nothing and
writes no history. What a file may say is ``description``'s.
"""

from __future__ import annotations

import asyncio
import html
import json
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from kode_lab.child import Child
from kode_lab.errors import KodeLabError
from kode_lab.history.operation import Effect, markers_in, without_echoes
from kode_lab.key import SessionKey
from kode_lab.targets.description import (
    BookFields,
    Condition,
    Description,
    HistoryFields,
    HttpRequest,
    LaterFields,
    Stream,
)
from kode_lab.targets.target import (
    Answer,
    Declaration,
    History,
    model_environment,
    refused_or_unknown,
)
from kode_lab.targets.template import JsonPath, Template, filled, in_json, in_url, text_in

if TYPE_CHECKING:
    import aiohttp

__all__ = ["HttpTarget", "free_port", "http_client", "stream_events"]

PAGES_LIMIT = 1_000
# Of one answer; a session of a hundred thousand turns fits.
ANSWER_LIMIT_BYTES = 64_000_000
SETUP_ATTEMPTS = 5
_POLL_S = 0.05
_SHOWN_CHARS = 300
# Where elements of a history say who speaks, when the description does not say where.
_ROLE_NAMES = ("role", "type", "sender", "author", "from", "speaker")
_REPLY_ROLES = frozenset({"assistant", "ai", "bot", "model", "agent", "system", "tool", "function"})
_CONTENT_NAMES = (
    *("content", "text", "message", "parts", "body", "prompt", "question", "input"),
    *("run_input", "request", "query", "msg", "human"),
)


class _Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    text: str
    url: str


class _Refused(Exception):
    """A set-up request was refused, so the turn was never sent."""


class HttpTarget:
    """A service that a description describes."""

    def __init__(
        self,
        description: Description,
        *,
        log: Path | None = None,
        setting: str = "",
        python: str = sys.executable,
    ) -> None:
        """Set it up; nothing is started or asked yet.

        Args:
            log: where the output of a started service goes; None is a temporary file.
            setting: what ``{setting}`` stands for.
            python: what ``{python}`` stands for: the interpreter of the service's environment.
        """
        self.declaration: Declaration = description.declaration
        if self.declaration.strategy == "{setting}":
            self.declaration = self.declaration._replace(strategy=setting)
        self._it = description
        self._log = log
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._child: Child | None = None
        self._client: aiohttp.ClientSession | None = None
        here = description.file.parent.resolve()
        self._directory = here / description.cwd
        self._surroundings: dict[str, str] = {
            "port": "", "model_url": "", "model_host": "", "data": "", "here": str(here),
            "setting": setting, "python": python,
        }  # fmt: skip
        self._users: dict[str, asyncio.Future[dict[str, str]]] = {}
        self._sessions: dict[SessionKey, asyncio.Future[dict[str, str]]] = {}
        self._cookies: dict[str, dict[str, str]] = {}
        self._base = ""

    @property
    def can_start(self) -> bool:
        """Whether the description says how the service is started, and so killed."""
        return bool(self._it.start or (self._it.kill and self._it.restart))

    # ---- life

    async def start(self, model_url: str = "") -> None:
        """Start the service where the description says how, and wait until it answers.

        Raises:
            KodeLabError: it ended, or did not answer in time.
        """
        if self._client is None:
            self._client = http_client()
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="kode-lab-target-")
            data = Path(self._scratch.name) / "data"
            data.mkdir()
            self._surroundings |= {
                "port": str(free_port()),
                "model_url": model_url,
                "model_host": model_url.partition("://")[2],
                "data": str(data),
            }
        self._base = self._it.url.fill(self._surroundings).rstrip("/")
        if self._it.start:
            await self._begin()

    @property
    def surroundings(self) -> dict[str, str]:
        """What another process needs to ask the same started service (``attach``)."""
        return dict(self._surroundings)

    def attach(self, surroundings: Mapping[str, str]) -> HttpTarget:
        """Ask a service that another ``HttpTarget`` started, with connections and log-ins anew."""
        self._surroundings = dict(surroundings)
        self._base = self._it.url.fill(self._surroundings).rstrip("/")
        self._client = http_client()
        return self

    async def opened(self, key: SessionKey) -> dict[str, str] | None:
        """Open a session where that needs a request, and return what was captured."""
        if self._it.setup.session is None:
            return None
        await self._values(key)
        return self._sessions[key].result()

    def adopt(self, key: SessionKey, captured: dict[str, str] | None) -> None:
        """Know a session that another ``HttpTarget`` opened."""
        if captured is not None and key not in self._sessions:
            self._sessions[key] = asyncio.get_running_loop().create_future()
            self._sessions[key].set_result(captured)

    async def _begin(self) -> None:
        assert self._scratch is not None
        words = [word.fill(self._surroundings) for word in self._it.start]
        env = model_environment(self._surroundings["model_url"])
        env |= {name: value.fill(self._surroundings) for name, value in self._it.env.items()}
        log = self._log or Path(self._scratch.name) / "service.log"
        try:
            self._child = Child(words, log=log, env=env, cwd=self._directory)
        except OSError as error:
            raise KodeLabError(f"start = {' '.join(words)!r:.80}: {error.strerror}") from None
        await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        due_s = time.monotonic() + self._it.ready_s
        while time.monotonic() < due_s:
            if self._child is not None and not self._child.is_running:
                raise KodeLabError(
                    f"the service ended with status {self._child.status} before it answered; its "
                    f"last words: {self._child.last_words()}"
                )
            if await self._is_ready():
                return
            await asyncio.sleep(_POLL_S)
        said = "" if self._child is None else f"; its last words: {self._child.last_words()}"
        raise KodeLabError(
            f"the service did not answer at {self._base} within ready_s={self._it.ready_s:g}{said}"
        )

    async def _is_ready(self) -> bool:
        """Any answer below 500 of the readiness URL; without one, an open port."""
        import aiohttp  # noqa: PLC0415

        assert self._client is not None
        try:
            if self._it.ready is None:
                parts = urlsplit(self._base)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                _, writer = await asyncio.open_connection(parts.hostname, port)
                writer.close()
                return True
            url = urljoin(f"{self._base}/", self._it.ready.fill(self._surroundings))
            patience = aiohttp.ClientTimeout(total=2.0)
            async with self._client.get(url, allow_redirects=False, timeout=patience) as response:
                return response.status < 500
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def stop(self) -> None:
        """End everything that was started."""
        try:
            if self._child is not None:
                await self._child.stopped(5.0)
        finally:
            if self._client is not None:
                await self._client.close()
                self._client = None
            if self._scratch is not None:
                self._scratch.cleanup()
                self._scratch = None

    async def kill(self) -> None:
        """Kill the service's process group, or run the description's ``kill``."""
        if self._it.kill:
            await self._run(self._it.kill)
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Start it again on the same data and port; log in anew, and as told open sessions anew."""
        self._users.clear()
        self._cookies.clear()
        if self._it.setup.session is not None and self._it.setup.session.again_after_restart:
            self._sessions.clear()
        if self._it.restart:
            await self._run(self._it.restart)
            await self._wait_until_ready()
        elif self._it.start:
            await self._begin()

    async def _run(self, command: tuple[Any, ...]) -> None:
        words = [word.fill(self._surroundings) for word in command]
        child = Child(words, cwd=self._directory, log=self._log)
        if not await child.ended(60.0):
            child.kill()
            raise KodeLabError(f"{' '.join(words)!r:.80} did not end within 60 s")
        child.kill()

    def lost(self) -> str:
        """Return how the service ended if it ended by itself, or ""."""
        if self._child is None or self._child.is_running:
            return ""
        return f"it ended by itself with status {self._child.status}: {self._child.last_words()}"

    # ---- asking

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn."""
        import aiohttp  # noqa: PLC0415

        is_sent = False
        try:
            values = await self._values(key)
            values |= {
                "prompt": prompt,
                "turn_id": turn_id,
                "turn_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, turn_id)),
            }
            is_sent = True
            answer = await self._turn(values)
        except _Refused as refused:
            answer = Answer("refused", error=str(refused))
        except aiohttp.ClientConnectorError as error:
            error_name = type(error).__name__
            answer = Answer("refused", error=f"{error_name}: nothing listens at {self._base}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            kind = "unknown" if is_sent else "refused"
            answer = Answer(kind, error=f"{type(error).__name__}: the connection broke")
        return answer

    async def _turn(self, values: dict[str, str]) -> Answer:
        it = self._it.turn
        if it.stream is not None:
            async with self._open(it, values) as raw:
                if raw.status == 200:
                    return await self._streamed(raw, it.stream)
                response = await _whole(raw)
        else:
            response = await self._send(it, values)
        body = _json_or_text(response.text)
        for rule in it.rules:
            if response.status in (rule.status or (response.status,)) and _holds(rule, body):
                if rule.outcome == "ok":
                    break
                kind = "refused" if rule.outcome == "fail" else "unknown"
                return Answer(kind, response.text, f"{response.status} {_shown(response.text)}")
        else:
            if not 200 <= response.status < 300:
                said = response.text or _where(it, values)
                retry_after = response.headers.get("retry-after")
                definite = frozenset(it.definite)
                return refused_or_unknown(response.status, said, retry_after, definite)
        values |= _captured(it, response, body)
        if it.later is not None:
            return await self._fetched(it.later, values)
        return self._reply(body, response.text)

    def _reply(self, body: Any, text: str) -> Answer:
        it = self._it.turn
        config = "" if it.config is None else str(it.config.first(body) or "")
        if it.reply is not None:
            found = it.reply.all(body)
            if not found:
                # Its markers, if it has any, are evidence all the same.
                return Answer("unknown", text, it.reply.missing(body), config)
            text = "\n".join(map(text_in, found))
        if it.reply_pattern is not None:
            match = it.reply_pattern.search(text)
            if match is None:
                pattern = it.reply_pattern.pattern
                error = f"reply_pattern {pattern!r} finds nothing in {_shown(text)}"
                return Answer("unknown", text, error)
            text = html.unescape(match[1] if match.re.groups else match[0])
        return Answer("reply", text, config=config)

    async def _streamed(self, raw: aiohttp.ClientResponse, how: Stream) -> Answer:
        """Read a stream to its end; one that ends without its last event was cut."""
        pieces: list[str] = []
        pieces_ns: list[int] = []
        whole: list[str] = []
        is_done = how.done is None
        async for event, data in stream_events(raw, is_sse=how.format == "sse"):
            value = _json_or_text(data)
            if how.failed is not None and _holds(how.failed, value, event):
                return Answer("unknown", error=f"the stream reports a failure: {_shown(data)}")
            if how.done is not None and _holds(how.done, value, event):
                is_done = True
            if how.counts is None or _holds(how.counts, value, event):
                pieces_ns.append(time.monotonic_ns())
                whole.append(data)
                if how.text is None:
                    pieces.append(data)
                else:
                    pieces += map(text_in, how.text.all(value))
        text = "".join(pieces)
        if not is_done:
            return Answer("unknown", error=f"the stream was cut after {_shown(text) or 'nothing'}")
        if how.text is not None and not text:
            return Answer("unknown", error=how.text.missing("\n".join(whole) or "an empty stream"))
        if self._it.turn.reply_pattern is not None:
            return self._reply({}, text)
        return Answer("reply", text, pieces_ns=tuple(pieces_ns))

    async def _fetched(self, later: LaterFields, values: dict[str, str]) -> Answer:
        """Poll until the reply is there."""
        due_s = time.monotonic() + later.patience_s
        seen = "nothing"
        while time.monotonic() < due_s:
            response = await self._send(later, values)
            body = _json_or_text(response.text)
            seen = f"{response.status} {_shown(response.text)}"
            if 200 <= response.status < 300 and response.status != 202:
                if later.find is not None:
                    body = next(
                        (
                            one
                            for one in later.find.all(body)
                            if values["turn_id"] in json.dumps(one)
                        ),
                        None,
                    )
                if body is not None and later.failed is not None and _holds(later.failed, body):
                    return Answer("unknown", error=f"the service reports a failure: {seen}")
                if body is not None and (later.until is None or _holds(later.until, body)):
                    return self._reply(body, response.text)
            await asyncio.sleep(later.every_s)
        return Answer("unknown", error=f"no reply within patience_s={later.patience_s:g}: {seen}")

    async def history(self, key: SessionKey) -> History | None:
        """Read a session through all its pages; None when one of them cannot be read."""
        reading = self._it.history
        if reading is None:
            return None
        values = await self._values(key)
        prompts: list[str] = []
        page, seen = "", set()
        for _ in range(PAGES_LIMIT):
            following = reading.next
            page_name = following.query if following is not None else ""
            response = await self._send(reading, values, page, page_name)
            if response.status in reading.empty and not page:
                return History(())
            if not 200 <= response.status < 300:
                raise KodeLabError(f"{response.status} {_shown(response.text)}")
            body = _json_or_text(response.text)
            prompts += _prompts(reading, body, response.text)
            named = None if following is None else following.path.first(body)
            if named in (None, "", False):
                is_suffix = reading.only_latest or self.declaration.compacts
                return History(tuple(prompts), is_suffix=is_suffix)
            if named is True or str(named) in seen:
                raise KodeLabError(f"the next page is {named!r:.60} again: no end is found")
            page = str(named)
            seen.add(page)
        raise KodeLabError(f"more than PAGES_LIMIT={PAGES_LIMIT} pages")

    async def effects(self, user_id: str) -> list[Effect]:
        """Return what the book that the description names says of this user, or of everybody."""
        book = self._it.effects
        if book is None or not book.is_book:
            raise KodeLabError("[effects] names no book (path, url or file)")
        values = await self._values(SessionKey(user_id, "-", "-"), is_opened=False)
        if book.file is None:
            response = await self._send(book, values)
            if not 200 <= response.status < 300:
                raise KodeLabError(f"effects: {response.status} {_shown(response.text)}")
            text = response.text
        else:
            path = self._directory / book.file.fill(values)
            text = path.read_text("utf-8") if path.exists() else "[]"
        body = _json_or_text(text)
        if isinstance(body, str):  # a JSON value a line
            body = [_json_or_text(line) for line in body.splitlines() if line.strip()]
        return [_effect(book, item) for item in _elements(book.items, body)]

    # ---- requests

    async def _values(self, key: SessionKey, *, is_opened: bool = True) -> dict[str, str]:
        """Return what is known of a session, set up once for its user and once for itself."""
        has_user = "user" in self.declaration.parts
        session = key.session_id if has_user else f"{key.user_id}.{key.session_id}"
        values = {
            **self._surroundings,
            "user": key.user_id,
            "session": session,
            "agent": key.agent_id,
            "key": f"{key.user_id}.{key.session_id}",
            "session_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, key.lock_name)),
            "user_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, key.user_id)),
        }
        if self._it.setup.user is not None:
            values |= await self._once(self._users, key.user_id, self._it.setup.user, values)
        if self._it.setup.session is not None and is_opened:
            values |= await self._once(self._sessions, key, self._it.setup.session, values)
        return values

    async def _once(
        self, made: dict[Any, asyncio.Future[dict[str, str]]], name: Any, request: HttpRequest,
        values: dict[str, str],
    ) -> dict[str, str]:  # fmt: skip
        """Send a set-up request once, however many turns wait for it."""
        if name not in made:
            made[name] = asyncio.ensure_future(self._set_up(request, dict(values)))
        try:
            return await asyncio.shield(made[name])
        except BaseException:
            if made.get(name) is not None and made[name].done():
                del made[name]
            raise

    async def _set_up(self, request: HttpRequest, values: dict[str, str]) -> dict[str, str]:
        response = await self._send(request, values)
        if not 200 <= response.status < 400:
            where = _where(request, values)
            raise _Refused(f"set-up {where}: {response.status} {_shown(response.text)}")
        if response.cookies:
            self._cookies.setdefault(values["user"], {}).update(response.cookies)
        captured = _captured(request, response, _json_or_text(response.text))
        for capture in request.capture:
            if capture not in captured:
                raise _Refused(
                    f"set-up {_where(request, values)}: no {capture} in {_shown(response.text)}"
                )
        return captured

    def _open(
        self, request: HttpRequest, values: dict[str, str], page: str = "", page_name: str = ""
    ) -> Any:
        assert self._client is not None
        url = request.address.fill(values)
        if "://" not in url[:9]:  # an absolute one was captured whole, and is escaped already
            url = request.address.fill(values, in_url)
        if page and not page_name:
            url = page
        url = url if "://" in url[:9] else urljoin(f"{self._base}/", url.lstrip("/"))
        if page and page_name:
            bare, _, query = url.partition("?")
            pairs = [
                pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != page_name
            ]
            url = f"{bare}?{urlencode([*pairs, (page_name, page)])}"
        from yarl import URL  # noqa: PLC0415 - comes with aiohttp

        headers = {name: value.fill(values) for name, value in request.headers.items()}
        if cookies := self._cookies.get(values["user"]):
            headers.setdefault("Cookie", "; ".join(f"{n}={v}" for n, v in cookies.items()))
        body: dict[str, Any] = {}
        if isinstance(request.body, Template):
            body["data"] = request.body.fill(values, in_json if request.is_json_text else str)
            kind = "application/json" if request.is_json_text else "text/plain; charset=utf-8"
            headers.setdefault("Content-Type", kind)
        elif request.body is not None:
            body["json"] = filled(request.body, values)
        elif request.form is not None:
            body["data"] = urlencode(filled(request.form, values))
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        return self._client.request(
            request.verb, URL(url, encoded=True), headers=headers, allow_redirects=False, **body
        )

    async def _send(
        self, request: HttpRequest, values: dict[str, str], page: str = "", page_name: str = ""
    ) -> _Response:
        async with self._open(request, values, page, page_name) as raw:
            return await _whole(raw)


def http_client() -> aiohttp.ClientSession:
    """Return a client without a limit of connections, without cookies of its own."""
    import aiohttp  # noqa: PLC0415 - reading a description costs none of it

    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=1 << 18,
    )


async def _whole(raw: aiohttp.ClientResponse) -> _Response:
    body = await raw.content.read(-1)
    if len(body) > ANSWER_LIMIT_BYTES:
        raise KodeLabError(f"an answer is longer than ANSWER_LIMIT_BYTES={ANSWER_LIMIT_BYTES}")
    headers = {name.lower(): value for name, value in raw.headers.items()}
    cookies = {name: morsel.value for name, morsel in raw.cookies.items()}
    return _Response(raw.status, headers, cookies, body.decode("utf-8", "replace"), str(raw.url))


async def stream_events(
    raw: aiohttp.ClientResponse, *, is_sse: bool
) -> AsyncIterator[tuple[str, str]]:
    """Yield each event of a stream: its name and its data."""
    event = ""
    data: list[str] = []
    async for line_bytes in raw.content:
        line = line_bytes.decode("utf-8", "replace").rstrip("\r\n")
        if not is_sse:
            if line.strip():
                yield "", line
        elif not line:
            if data:
                yield event, "\n".join(data)
            event, data = "", []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("event:"):
            event = line[6:].strip()
    if is_sse and data:
        yield event, "\n".join(data)


def _prompts(reading: HistoryFields, body: Any, text: str) -> Iterator[str]:
    """Yield what the user said in one page of a history; replies are left out."""
    if reading.items is None:
        pattern = reading.pattern
        for match in pattern.finditer(text) if pattern is not None else ():
            yield without_echoes(html.unescape(match[1] if match.re.groups else match[0]))
        return
    for item in _elements(reading.items, body):
        if not _is_users(reading, item):
            continue
        if reading.text is not None:
            said = "\n".join(map(text_in, reading.text.all(item)))
        elif isinstance(item, dict):
            said = next((text_in(item[name]) for name in _CONTENT_NAMES if name in item), "")
        else:
            said = text_in(item)
        if reading.pattern is not None:
            part = reading.pattern.search(said)
            said = "" if part is None else part[1] if part.re.groups else part[0]
        yield without_echoes(said)


def _effect(book: BookFields, item: Any) -> Effect:
    marker = (*markers_in(json.dumps(item)), "")[0]
    number = book.id.first(item)
    if number is None:
        raise KodeLabError(f"effects: {book.id.missing(item)}")
    return Effect(str(number), book.tool, marker)


def _elements(path: JsonPath, body: Any) -> list[Any]:
    found = path.all(body)
    if not found:
        raise KodeLabError(path.missing(body))
    if len(found) == 1 and (found[0] is None or isinstance(found[0], list)):
        return found[0] or []
    return found


def _is_users(reading: HistoryFields, item: Any) -> bool:
    if reading.role is not None:
        return str(reading.role.first(item)) in reading.user_role
    if isinstance(item, dict):
        for name in _ROLE_NAMES:
            if isinstance(item.get(name), str):
                return item[name].lower() not in _REPLY_ROLES
    return True


def _holds(condition: Condition, value: Any, event: str = "") -> bool:
    if condition.event and condition.event != event:
        return False
    if condition.data and (not isinstance(value, str) or value.strip() != condition.data):
        return False
    if condition.path is not None:
        found = condition.path.all(value)
        allowed = condition.allowed
        if not found or (allowed and not any(one in allowed for one in found)):
            return False
        if condition.pattern is not None:
            return any(condition.pattern.search(text_in(one)) for one in found)
    elif condition.pattern is not None:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return condition.pattern.search(shown) is not None
    return True


def _captured(request: HttpRequest, response: _Response, body: Any) -> dict[str, str]:
    found = {}
    for name, capture in request.capture.items():
        value: Any
        if capture.place == "header":
            value = response.headers.get(capture.name.lower())
            if value and capture.name.lower() == "location":
                value = urljoin(response.url, value)
        elif capture.place == "cookie":
            value = response.cookies.get(capture.name)
        else:
            value = capture.path.first(body)
        if value is not None:
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _where(request: HttpRequest, values: Mapping[str, str]) -> str:
    return f"{request.verb} {request.address.fill(values, in_url)}"


def _shown(text: str) -> str:
    said = " ".join(text.split())
    return said if len(said) <= _SHOWN_CHARS else f"{said[:_SHOWN_CHARS]}..."


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
