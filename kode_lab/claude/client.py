"""The client of the Messages API that all agents of a process share: ``anthropic.AsyncAnthropic``.

It owns the connection pool, the time-outs, the retries and the translation of the SDK's errors.
It takes a ``Request`` and returns a ``Reply``, and must not know sessions, tools or stores.

A client per session would cost 29 ms and 876 kB. The SDK's own retries are off, because they are
invisible; ours are reported to ``on_attempt``. Bodies are written and read here as JSON: the SDK
takes 12 ms of CPU a call for a conversation of 1,001 messages, its ``post`` with ready bytes 1.5;
and content blocks are kept as they arrived, so that what is stored is what was said.

Measured at 1,000 calls in flight: the SDK's default transport takes 3.4 to 8.8 ms of CPU a call,
the aiohttp one 0.8 to 1.0; the default pool looks through all its connections for every request.

Source: anthropic 2.12, read: it is built on httpx2, sends its key as ``Authorization: Bearer`` and
API version 2026-10-21, which knows no temperature.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

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
# The last API version that accepts a temperature.
_VERSION_WITH_TEMPERATURE = "2023-06-01"
# We drop idle connections before the server does: a POST that meets a closing connection fails,
# and aiohttp does not repeat it.
_KEEPALIVE_S = 15.0
_CONNECT_S = 10.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


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
        self._client: anthropic.AsyncAnthropic | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._url = ""
        self._calls = self._attempts = self._in_flight = self._peak = 0

    async def __aenter__(self) -> Self:
        # Seconds of CPU the first time; the loop goes on meanwhile.
        anthropic = await asyncio.to_thread(_sdk)
        self._loop = asyncio.get_running_loop()
        self._client = anthropic.AsyncAnthropic(
            api_key=self._api_key,
            base_url=self.base_url,
            max_retries=0,
            open_telemetry=False,
            timeout=_timeout(self._timeout_s),
            http_client=_transport(self.base_url, self._concurrency, self._timeout_s),
        )
        # Complete, so that the SDK does not build it for each call.
        self._url = f"{str(self._client.base_url).rstrip('/')}/v1/messages"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

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
        client = self._opened()
        timeout_s = min(self._timeout_s, request.timeout_s or self._timeout_s)
        self._calls += 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        try:
            left_s = timeout_s if request.time_left_s is None else request.time_left_s
            end_s = asyncio.get_running_loop().time() + min(timeout_s, left_s)
            async with asyncio.timeout(timeout_s):
                return await self._persist(client, request, on_text, end_s)
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
        client = self._opened()
        anthropic = _sdk()

        async def ask() -> None:
            try:
                await client.models.list(limit=1)
            except anthropic.APIError as error:
                raise failure_of(error, self._where) from error

        await asyncio.gather(*(ask() for _ in range(min(connections, self._concurrency))))

    def statistics(self) -> Statistics:
        """Return the counts of calls, of attempts, and of calls under way now and at most."""
        return Statistics(self._calls, self._attempts, self._in_flight, self._peak)

    def _opened(self) -> anthropic.AsyncAnthropic:
        if self._client is None:
            raise CallerError("this Claude is not open: call it inside `async with Claude(...)`")
        if self._loop is not asyncio.get_running_loop():
            raise CallerError(
                "this Claude was opened on another event loop: open one in the loop that uses it"
            )
        return self._client

    @property
    def _where(self) -> str:
        return self.base_url or "the Messages API"

    async def _persist(
        self,
        client: anthropic.AsyncAnthropic,
        request: Request,
        on_text: Callable[[str], None] | None,
        end_s: float,
    ) -> Reply:
        """Ask, and ask again where that may help, fits into the time, and repeats no text."""
        body = _body_of(request, is_stream=on_text is not None)
        options = _options_of(request)
        for number in range(self._retries + 1):
            assembly = None if on_text is None else Assembly(on_text)
            start_ns = time.monotonic_ns()
            self._attempts += 1
            try:
                reply = await self._ask(client, body, options, assembly)
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

    async def _ask(
        self,
        client: anthropic.AsyncAnthropic,
        body: bytes,
        options: Any,
        assembly: Assembly | None,
    ) -> Reply:
        """Send one request and return its reply."""
        anthropic = _sdk()
        import httpx2  # noqa: PLC0415 - comes with anthropic, loaded with it

        request_id = "unknown"
        try:
            response = await client.post(
                self._url,
                cast_to=httpx2.Response,
                content=body,
                options=options,
                stream=assembly is not None,
                stream_cls=anthropic.AsyncStream[Any],
            )
            request_id = response.headers.get("request-id", request_id)
            if assembly is None:
                return reply_of(orjson.loads(response.content))
            try:
                async for event in anthropic.AsyncStream.raw_events(response):
                    if event.event == "error":
                        raise streamed_failure_of(event.data, request_id, self._where)
                    if event.event is not None:
                        assembly.take(orjson.loads(event.data))
            finally:
                await response.aclose()
        except anthropic.APIError as error:
            raise failure_of(error, self._where) from error
        except httpx2.HTTPError as error:
            raise ModelUnavailable(
                f"the answer from {self._where} broke off (request {request_id}): {error!r}; "
                "send again"
            ) from error
        except (orjson.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelGarbage(
                f"{self._where} answered something that is not JSON (request {request_id}): "
                f"{error}; check which service listens at that address"
            ) from None
        except ModelGarbage as error:
            raise ModelGarbage(
                f"{self._where} answered something that is not a reply (request {request_id}): "
                f"{error}"
            ) from None
        if not assembly.is_complete:
            raise ModelUnavailable(
                f"the stream from {self._where} ended before message_stop (request {request_id}); "
                "send again"
            )
        return assembly.reply()

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


def _body_of(request: Request, *, is_stream: bool) -> bytes:
    """Return the JSON of ``POST /v1/messages``."""
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
        fields["tools"] = request.tools
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


def _options_of(request: Request) -> dict[str, Any]:
    if request.temperature is None:
        return {}
    return {"headers": {"anthropic-version": _VERSION_WITH_TEMPERATURE}}


def _plain(value: Any) -> Any:
    """Return read-only mappings and other sequences as the dicts and lists that orjson writes."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def _sdk() -> Any:
    """Import the ``anthropic`` module when it is first needed."""
    import anthropic  # noqa: PLC0415 - costs seconds of CPU

    return anthropic


def _transport(base_url: str | None, concurrency: int, timeout_s: float) -> Any:
    """Return an HTTP client over aiohttp for ``concurrency`` requests at once."""
    import httpx2  # noqa: PLC0415 - comes with anthropic

    limits = httpx2.Limits(
        max_connections=concurrency,
        max_keepalive_connections=concurrency,
        keepalive_expiry=_KEEPALIVE_S,
    )
    # A proxy from the environment cannot reach the loopback of this machine.
    is_loopback = base_url is not None and urlsplit(base_url).hostname in _LOOPBACK
    return _sdk().DefaultAioHttpClient(
        limits=limits, timeout=_timeout(timeout_s), trust_env=not is_loopback
    )


def _timeout(timeout_s: float) -> Any:
    """Return the SDK's time-outs: each phase may take the whole time, connecting less."""
    import httpx2  # noqa: PLC0415 - comes with anthropic

    return httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
