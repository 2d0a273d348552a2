"""The client of the Messages API that all agents of a process share.

It owns the connections, the time-outs, the retries and the translation of errors. It takes a
``Request`` and returns a ``Reply``, and must not know sessions, tools or stores.

Requests are those of ``anthropic.AsyncAnthropic``, header by header, and go out through
``http.client``: a call costs a tenth of the SDK's CPU, and content blocks are kept as they arrived,
so that what is stored is what was said. The SDK itself is imported, and asked, where the way is not
plain: through a proxy, with headers from the environment, after a redirect. Its retries are off,
because they are invisible; ours are reported to ``on_attempt``.

Source: anthropic 2.14, read: it sends its key as ``Authorization: Bearer`` and API version
2026-10-21, which knows no temperature.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import platform
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

import orjson

from kode_lab.claude.failure import failure_of, streamed_failure_of
from kode_lab.claude.reply import Assembly, reply_of
from kode_lab.errors import (
    CallerError,
    InvalidScenario,
    MissingApiKey,
    ModelGarbage,
    ModelRefused,
    ModelUnavailable,
)
from kode_lab.http.client import (
    BrokenResponse,
    HttpClient,
    NoResponse,
    Response,
    Unreachable,
    events_in,
)
from kode_lab.message import Reply, Request

if TYPE_CHECKING:
    from types import TracebackType

    import anthropic

__all__ = ["RETRIES_LIMIT", "Attempt", "Claude", "Statistics"]

RETRIES_LIMIT = 10
# A retry waits at least as long as the service asks, and never less than this.
_PAUSE_FLOOR_S = 0.1
# On top comes a random part up to this, doubled with each retry ("full jitter"), or up to what the
# service asked if that is more, so that sessions refused together do not return together. The
# first and the longest are the SDK's own figures.
_SPREAD_S = 0.5
_SPREAD_LIMIT_S = 8.0
# Where a prefix for the service's prompt cache ends: after the system prompt (tools come before
# it), and after the last message. All before stays byte-equal from one request to the next.
_CACHE_MARK = {"type": "ephemeral"}
_VERSION = "2026-10-21"
# The last API version that accepts a temperature.
_VERSION_WITH_TEMPERATURE = "2023-06-01"
_REAL_API = "https://api.anthropic.com"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Tools of so many agents are kept as JSON.
_TOOLS_KEPT_LIMIT = 64


class Attempt(NamedTuple):
    """One request that was sent to the model's service; the argument of ``on_attempt``.

    Attributes:
        number: 0 for the first try, 1 for the first retry, ...
        start_ns: monotonic nanoseconds.
        end_ns: monotonic nanoseconds.
        error: why it failed, or "".
        pause_s: how long until the next attempt, or None when this was the last.
    """

    number: int
    start_ns: int
    end_ns: int
    error: str
    pause_s: float | None


class Statistics(NamedTuple):
    """The counts of a client."""

    calls: int
    attempts: int
    in_flight: int
    peak_in_flight: int


class Claude:
    """The model behind ``message.Model``: ``async with Claude() as claude: await claude(request)``.

    Attributes:
        base_url: the service that it asks, or None for the SDK's own default.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 128,
        timeout_s: float = 600.0,
        retries: int = 0,
        on_attempt: Callable[[Attempt], None] | None = None,
        seed: int | None = None,
    ) -> None:
        """Set it up; nothing is imported or opened before ``async with``.

        Args:
            base_url: a simulated API, a proxy; None is the real API, which needs a key.
            api_key: None is ``ANTHROPIC_API_KEY``, which is sent to the real API only.
            concurrency: how many calls may be under way; further ones wait within their time-out.
            timeout_s: how long one call may take in all, its waiting and its retries included.
            retries: how often an unavailable service is asked again, at most ``RETRIES_LIMIT``.
            on_attempt: called in the event loop with each request that was sent.
            seed: of the pauses before retries; None is a different one for each client.

        Raises:
            MissingApiKey: neither a base_url nor a key.
            InvalidScenario: a limit makes no sense.
        """
        if concurrency < 1 or not timeout_s > 0 or not 0 <= retries <= RETRIES_LIMIT:
            raise InvalidScenario(
                f"concurrency={concurrency} must be at least 1, timeout_s={timeout_s} positive, "
                f"retries={retries} from 0 to RETRIES_LIMIT={RETRIES_LIMIT}"
            )
        if api_key is None:
            # A key from the environment is a secret of the real API: it is sent only there.
            api_key = "simulated" if base_url else os.environ.get("ANTHROPIC_API_KEY")
        if not api_key:
            raise MissingApiKey(
                "the real Messages API needs a key: set ANTHROPIC_API_KEY, "
                "or use the simulated Claude"
            )
        self.base_url = base_url
        self._api_key = api_key
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._retries = retries
        self._on_attempt = on_attempt
        self._random = random.Random(seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: HttpClient | None = None
        self._sdk: anthropic.AsyncAnthropic | None = None
        self._address = base_url or os.environ.get("ANTHROPIC_BASE_URL") or _REAL_API
        self._tools: dict[int, tuple[Any, orjson.Fragment]] = {}
        self._calls = self._attempts = self._in_flight = self._peak = 0
        self._is_open = False
        parts = urlsplit(self._address)
        self._path = f"{parts.path.rstrip('/')}/v1"
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        lines = {**_headers_of_sdk(timeout_s), "authorization": f"Bearer {api_key}"}
        if any(ord(sign) < 32 or ord(sign) > 126 for sign in f"{self._address}{api_key}"):
            raise InvalidScenario("the address and the key may hold printable ASCII only")
        coding = "identity" if parts.hostname in _LOOPBACK else "gzip, deflate"
        lines |= {"host": f"{host}{port}", "accept-encoding": coding}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        parts = urlsplit(self._address)
        if _is_plain(parts):
            is_secure = parts.scheme == "https"
            self._http = HttpClient(
                parts.hostname or "",
                parts.port or (443 if is_secure else 80),
                is_secure=is_secure,
                concurrency=self._concurrency,
            )
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        http, self._http = self._http, None
        if http is not None:
            http.close()
        sdk, self._sdk = self._sdk, None
        if sdk is not None:
            await sdk.close()

    async def __call__(
        self, request: Request, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Return the reply; with ``on_text``, stream it and call that with each piece of text.

        Raises:
            ModelRefused: the service says the request is wrong.
            ModelUnavailable: it could not answer, or not within the time-out.
            ModelGarbage: what it answered is not a reply.
            CallerError: not inside ``async with``, or on another event loop.
        """
        self._check_open()
        timeout_s = min(self._timeout_s, request.timeout_s or self._timeout_s)
        self._calls += 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        try:
            left_s = timeout_s if request.time_left_s is None else request.time_left_s
            end_s = asyncio.get_running_loop().time() + min(timeout_s, left_s)
            async with asyncio.timeout(timeout_s):
                return await self._persist(request, on_text, end_s)
        except TimeoutError:
            raise ModelUnavailable(
                f"no whole answer within timeout_s={timeout_s:g} from {self._where}: "
                "allow more time, or send again"
            ) from None
        finally:
            self._in_flight -= 1

    async def warm_up(self, connections: int = 1) -> None:
        """Open connections and load what the first call would load, so that it is as fast as any.

        It asks for the list of models, which is free, ``connections`` times at once.

        Raises:
            ModelRefused, ModelUnavailable: as a call would.
        """
        self._check_open()

        async def ask() -> None:
            answer = await self._answer("GET", "/models?limit=1", b"")
            try:
                await self._checked(answer)
            finally:
                await answer.aclose()

        await asyncio.gather(*(ask() for _ in range(min(connections, self._concurrency))))

    def statistics(self) -> Statistics:
        """Return the counts of calls, of attempts, and of calls under way now and at most."""
        return Statistics(self._calls, self._attempts, self._in_flight, self._peak)

    def _check_open(self) -> None:
        if not self._is_open:
            raise CallerError("this Claude is not open: call it inside `async with Claude(...)`")
        if self._loop is not asyncio.get_running_loop():
            raise CallerError(
                "this Claude was opened on another event loop: open one in the loop that uses it"
            )

    @property
    def _where(self) -> str:
        return self.base_url or "the Messages API"

    async def _persist(
        self, request: Request, on_text: Callable[[str], None] | None, end_s: float
    ) -> Reply:
        """Ask, and ask again where that may help, fits into the time, and repeats no text."""
        tools = self._tools_of(request.tools)
        body = _body_of(request, is_stream=on_text is not None, tools=tools)
        version = _VERSION if request.temperature is None else _VERSION_WITH_TEMPERATURE
        for number in range(self._retries + 1):
            assembly = None if on_text is None else Assembly(on_text)
            start_ns = time.monotonic_ns()
            self._attempts += 1
            try:
                reply = await self._ask(body, version, assembly)
            except ModelUnavailable as error:
                is_last = number == self._retries or (assembly is not None and assembly.has_text)
                left_s = end_s - asyncio.get_running_loop().time()
                pause_s = self._pause_s(number, error.retry_after_s, left_s)
                if is_last or not error.is_retryable:
                    pause_s = None
                self._tell(Attempt(number, start_ns, time.monotonic_ns(), str(error), pause_s))
                if pause_s is not None:
                    await asyncio.sleep(pause_s)
                elif is_last or not error.is_retryable or error.retry_after_s is None:
                    raise
                else:
                    raise ModelUnavailable(
                        f"{error}; it asks to wait {error.retry_after_s:g} s, and "
                        f"{max(left_s, 0.0):.3g} s are left",
                        retry_after_s=error.retry_after_s,
                    ) from error
            except BaseException as error:
                end_ns = time.monotonic_ns()
                self._tell(
                    Attempt(number, start_ns, end_ns, str(error) or type(error).__name__, None)
                )
                raise
            else:
                self._tell(Attempt(number, start_ns, time.monotonic_ns(), "", None))
                return reply
        raise AssertionError("every pass of the loop returns, raises or continues")

    async def _ask(self, body: bytes, version: str, assembly: Assembly | None) -> Reply:
        """Send one request and return its reply."""
        answer = await self._answer("POST", "/messages", body, version, is_stream=bool(assembly))
        request_id = answer.headers.get("request-id", "unknown")
        try:
            data = await self._checked(answer, is_stream=assembly is not None)
            if assembly is None:
                return reply_of(orjson.loads(data))
            async for name, event in events_in(answer):
                if name == "error":
                    raise streamed_failure_of(event, request_id, self._where)
                if name:
                    assembly.take(orjson.loads(event))
        except BrokenResponse as error:
            raise ModelUnavailable(
                f"the answer from {self._where} broke off (request {request_id}): {error}; "
                "send again"
            ) from error
        except orjson.JSONDecodeError as error:
            raise ModelGarbage(
                f"{self._where} answered something that is not JSON (request {request_id}): "
                f"{error}; check which service listens at that address"
            ) from None
        except ModelGarbage as error:
            raise ModelGarbage(
                f"{self._where} answered something that is not a reply (request {request_id}): "
                f"{error}"
            ) from None
        finally:
            await answer.aclose()
        if not assembly.is_complete:
            raise ModelUnavailable(
                f"the stream from {self._where} ended before message_stop (request {request_id}); "
                "send again"
            )
        return assembly.reply()

    async def _answer(
        self,
        method: str,
        path: str,
        body: bytes,
        version: str = _VERSION,
        *,
        is_stream: bool = False,
    ) -> Response | _SdkResponse:
        """Return the answer to one request, once its head is here; close it.

        Raises:
            ModelUnavailable: there is none.
        """
        try:
            if self._http is None:
                return await self._asked_by_sdk(method, path, body, version, is_stream=is_stream)
            length = f"content-length: {len(body)}\r\n" if method == "POST" else ""
            head = (
                f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}"
                f"anthropic-version: {version}\r\n{length}\r\n"
            )
            answer = await self._http.send(head.encode("ascii") + body)
        except (Unreachable, NoResponse, BrokenResponse) as error:
            raise ModelUnavailable(
                f"no answer from {self._where}: {error}; "
                "check the address and the network, then send again"
            ) from error
        if 300 <= answer.status < 400:
            await answer.aclose()
            return await self._asked_by_sdk(method, path, body, version, is_stream=is_stream)
        return answer

    async def _checked(self, answer: Response | _SdkResponse, *, is_stream: bool = False) -> bytes:
        """Return the body of an answer that is not an error; of a stream nothing yet."""
        if is_stream and answer.status < 400:
            return b""
        data = await answer.read()
        if answer.status < 400:
            return data
        failure = failure_of(answer.status, answer.headers, data, self._where)
        # A program that uses the SDK gets the SDK's own error as the cause.
        raise failure from (
            await self._sdk_error(answer, data) if "anthropic" in sys.modules else None
        )

    async def _sdk_client(self) -> anthropic.AsyncAnthropic:
        if self._sdk is None:
            # Seconds of CPU the first time; the loop goes on meanwhile.
            await asyncio.to_thread(_sdk)
            self._sdk = _sdk().AsyncAnthropic(
                api_key=self._api_key,
                base_url=self._address,
                max_retries=0,
                open_telemetry=False,
                timeout=self._timeout_s,
            )
        return self._sdk

    async def _asked_by_sdk(
        self, method: str, path: str, body: bytes, version: str, *, is_stream: bool
    ) -> _SdkResponse:
        import httpx2  # noqa: PLC0415 - comes with anthropic

        client = await self._sdk_client()
        options: Any = {"headers": {"anthropic-version": version}}
        url = f"{self._address.rstrip('/')}/v1{path}"
        try:
            if method == "GET":
                response = await client.get(url, cast_to=httpx2.Response, options=options)
            else:
                response = await client.post(
                    url,
                    cast_to=httpx2.Response,
                    content=body,
                    options=options,
                    stream=is_stream,
                    stream_cls=_sdk().AsyncStream[Any],
                )
        except _sdk().APIStatusError as error:
            response = error.response
        except _sdk().APIError as error:
            cause = error.__cause__ or error
            raise NoResponse(f"{type(cause).__name__}: {cause}") from error
        return _SdkResponse(response)

    async def _sdk_error(self, answer: Response | _SdkResponse, data: bytes) -> Exception:
        import httpx2  # noqa: PLC0415 - comes with anthropic

        request = httpx2.Request("POST", f"{self._address.rstrip('/')}/v1/messages")
        headers = {n: v for n, v in answer.headers.items() if n != "content-encoding"}
        response = httpx2.Response(answer.status, headers=headers, content=data, request=request)
        error: Exception = (await self._sdk_client())._make_status_error_from_response(response)  # noqa: SLF001
        return error

    def _tools_of(self, tools: Any) -> Any:
        """Return tools as they are written; those of an agent's configuration are written once."""
        known = self._tools.get(id(tools))
        if known is not None:
            return known[1]
        if not isinstance(tools, tuple) or not all(type(t) is MappingProxyType for t in tools):
            return tools
        if len(self._tools) >= _TOOLS_KEPT_LIMIT:
            self._tools.clear()
        written = orjson.Fragment(orjson.dumps(tools, default=_plain))
        self._tools[id(tools)] = tools, written  # kept, so that its id is no other's
        return written

    def _pause_s(self, number: int, asked_s: float | None, left_s: float) -> float | None:
        """Return how long to wait before the next attempt; None if that does not fit."""
        least_s = max(_PAUSE_FLOOR_S, asked_s or 0.0)
        if least_s >= left_s:
            return None
        spread_s = min(_SPREAD_LIMIT_S, max(_SPREAD_S * 2.0**number, asked_s or 0.0))
        return least_s + self._random.uniform(0.0, min(spread_s, (left_s - least_s) / 2))

    def _tell(self, attempt: Attempt) -> None:
        if self._on_attempt is not None:
            self._on_attempt(attempt)


class _SdkResponse:
    """An answer that came through the SDK, read as one of ``http.client`` is."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status = int(response.status_code)
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        import httpx2  # noqa: PLC0415 - comes with anthropic

        try:
            async for piece in self._response.aiter_bytes():
                yield piece
        except httpx2.HTTPError as error:
            raise BrokenResponse(repr(error)) from error

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._response.aclose()


def _is_plain(parts: SplitResult) -> bool:
    """Whether requests to an address can be written without the SDK."""
    is_local = parts.hostname in _LOOPBACK  # a proxy cannot reach the loopback of this machine
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and not (parts.username or parts.query or parts.fragment)
        and not os.environ.get("ANTHROPIC_CUSTOM_HEADERS")
        and (is_local or not {"http", "https", "all"} & getproxies().keys())
    )


@cache
def _headers_of_sdk(timeout_s: float) -> dict[str, str]:
    """Return the headers that the SDK sends with each request."""
    version = metadata.version("anthropic")
    machine = platform.machine().lower()
    system = platform.system()
    return {
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": f"AsyncAnthropic/Python {version}",
        "x-stainless-lang": "python",
        "x-stainless-package-version": version,
        "x-stainless-os": {"Darwin": "MacOS"}.get(system, system),
        "x-stainless-arch": {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(
            machine, machine
        ),
        "x-stainless-runtime": platform.python_implementation(),
        "x-stainless-runtime-version": platform.python_version(),
        "x-stainless-async": "async:asyncio",
        "x-stainless-retry-count": "0",
        "x-stainless-read-timeout": str(float(timeout_s)),
    }


def _body_of(request: Request, *, is_stream: bool, tools: Any = None) -> bytes:
    """Return the JSON of ``POST /v1/messages``; ``tools`` may be written already."""
    fields: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": _messages_of(request),
    }
    if request.system:
        fields["system"] = request.system
        if request.cache:
            fields["system"] = [
                {"type": "text", "text": request.system, "cache_control": _CACHE_MARK}
            ]
    if request.tools:
        fields["tools"] = request.tools if tools is None else tools
    if request.temperature is not None:
        fields["temperature"] = request.temperature
    if is_stream:
        fields["stream"] = True
    try:
        return orjson.dumps(fields, default=_plain)
    except TypeError as error:
        raise ModelRefused(
            f"the conversation cannot be written as JSON: {error}; correct its text"
        ) from None


def _messages_of(request: Request) -> Any:
    """Return the messages as orjson writes them: as they are, if they are JSON already."""
    messages = request.messages
    to_json = getattr(messages, "to_json", None)
    if request.cache and messages:
        if to_json is None:  # else the messages are the request's own
            messages = [*messages[:-1], copy.deepcopy(messages[-1])]
        content = messages[-1]["content"]
        if isinstance(content, list) and content:
            content[-1]["cache_control"] = _CACHE_MARK
    return messages if to_json is None else orjson.Fragment(to_json())


def _plain(value: Any) -> Any:
    """Return read-only mappings and other sequences as the dicts and lists that orjson writes."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def _sdk() -> Any:
    """Import the ``anthropic`` module when it is first needed.

    Its 3,600 modules take 1.5 s of CPU, of which a fifth is the collector's: it is off meanwhile.
    """
    was_on = gc.isenabled() and "anthropic" not in sys.modules
    if was_on:
        gc.disable()
    try:
        import anthropic  # noqa: PLC0415
    finally:
        if was_on:
            gc.enable()
    return anthropic
