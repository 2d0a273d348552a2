"""The one client for all agents of a process: ``anthropic.AsyncAnthropic``, opened in its loop.

It owns the connection pool, the time-outs, the retries and the translation of the SDK's errors.
It must never know sessions, tools or stores: it gets a ``Request`` and gives a ``Reply``.

Why so: a client per session costs 29 ms and 876 kB; the default transport costs several times the
CPU of the aiohttp one under load; a retry inside the SDK is a second request that nobody sees, so
the SDK's are off and ours are told to ``on_attempt``. Bodies are written and read here as JSON: the
SDK walks a conversation of 1,001 messages in 12 ms of CPU a call, its ``post`` with ready bytes
takes 1.5; and content blocks are kept as they came over the wire, so what is stored is what was
said.

Source: anthropic 2.12, read: it is built on httpx2, sends its key as ``Authorization: Bearer`` and
API version 2026-10-21, which knows no temperature.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from kode_lab.claude.failure import failure_of, streamed_failure_of
from kode_lab.claude.reply import Assembly, reply_of
from kode_lab.claude.transport import sdk, timeout, transport
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
# First and longest pause before a retry without ``retry-after``: the SDK's own figures.
_PAUSE_S = 0.5
_PAUSE_LIMIT_S = 8.0
# The last API version that accepts a temperature.
_VERSION_WITH_TEMPERATURE = "2023-06-01"


class Attempt(NamedTuple):
    """One request that left for the model's service, as ``on_attempt`` is told of it.

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
    """What a client has done so far."""

    calls: int
    attempts: int
    in_flight: int
    peak_in_flight: int


class Claude:
    """The model behind ``message.Model``: ``async with Claude() as claude: await claude(request)``.

    Attributes:
        base_url: whom it asks, or None for the SDK's own default.
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
        seed: int = 0,
    ) -> None:
        """Set it up; nothing is imported or opened before ``async with``.

        Args:
            base_url: a simulated API, a proxy; None is the real API, which needs a key.
            api_key: None is ``ANTHROPIC_API_KEY``, which is sent to the real API only.
            concurrency: how many calls may be under way; further ones wait within their time-out.
            timeout_s: how long one call may take in all, its waiting and its retries included.
            retries: how often an unavailable service is asked again, at most ``RETRIES_LIMIT``.
            on_attempt: is told of every request that was sent; called in the event loop.
            seed: of the pauses before retries.

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
            # A key from the environment is a secret of the real API: nobody else is shown it.
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
        anthropic = await asyncio.to_thread(sdk)
        self._loop = asyncio.get_running_loop()
        self._client = anthropic.AsyncAnthropic(
            api_key=self._api_key,
            base_url=self.base_url,
            max_retries=0,
            open_telemetry=False,
            timeout=timeout(self._timeout_s),
            http_client=transport(self.base_url, self._concurrency, self._timeout_s),
        )
        # Whole, so that the SDK need not put it together for each call.
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
            async with asyncio.timeout(timeout_s):
                return await self._persist(client, request, on_text)
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
        anthropic = sdk()

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
    ) -> Reply:
        """Try, and try again where it may help and nothing was said yet."""
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
                pause_s = None if is_last else self._pause_s(number, error.retry_after_s)
                self._tell(Attempt(number, start_ns, time.monotonic_ns(), str(error), pause_s))
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            except BaseException as error:
                end_ns = time.monotonic_ns()
                self._tell(
                    Attempt(number, start_ns, end_ns, str(error) or type(error).__name__, None)
                )
                raise
            else:
                self._tell(Attempt(number, start_ns, time.monotonic_ns(), "", None))
                return reply
        raise AssertionError("every pass of the loop returns, raises or goes on")

    async def _ask(
        self,
        client: anthropic.AsyncAnthropic,
        body: bytes,
        options: Any,
        assembly: Assembly | None,
    ) -> Reply:
        """Send one request and give its reply."""
        anthropic = sdk()
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
                f"{error}; look at what stands at that address"
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

    def _pause_s(self, number: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return retry_after_s
        return min(_PAUSE_LIMIT_S, _PAUSE_S * 2.0**number) * self._random.uniform(0.75, 1.0)

    def _tell(self, attempt: Attempt) -> None:
        if self._on_attempt is not None:
            self._on_attempt(attempt)


def _body_of(request: Request, *, is_stream: bool) -> bytes:
    """The JSON of ``POST /v1/messages``."""
    fields: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": _messages_of(request),
    }
    if request.system:
        fields["system"] = request.system
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
    to_json = getattr(request.messages, "to_json", None)
    return request.messages if to_json is None else orjson.Fragment(to_json())


def _options_of(request: Request) -> dict[str, Any]:
    if request.temperature is None:
        return {}
    return {"headers": {"anthropic-version": _VERSION_WITH_TEMPERATURE}}


def _plain(value: Any) -> Any:
    """Read-only mappings and other sequences, as the dicts and lists that orjson can write."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")
