"""A recording proxy: passes requests to a real model, and witnesses what the model is shown.

It changes nothing but what belongs to one connection (hop-by-hop headers, the host, and the content
coding of replies, which it asks to be plain). A stream passes as it comes. Of every request for a
reply it keeps what ``records`` keeps: markers, numbers and hashes. Contents are kept only where a
file is named for them, and keys never.

It must never refuse what the upstream might accept: the formats only read here.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import orjson

from kode_lab.claude.api import answer_lab, fingerprint_of, formats, noted, routed
from kode_lab.claude.exchange import Exchange
from kode_lab.claude.formats.responses import ResponsesFormat
from kode_lab.claude.formats.seam import ApiError, GenerationRequest, WireFormat
from kode_lab.claude.records import READS_LIMIT, ModelCall, Records, Witness
from kode_lab.claude.simulated import LIMITS, serve_until_signal
from kode_lab.errors import InvalidScenario
from kode_lab.http import DropConnection, HttpServer, Receive, Scope, Send, check_local_access

if TYPE_CHECKING:
    from argparse import Namespace
    from types import TracebackType

    import aiohttp

__all__ = ["RecordingProxy", "run_proxy"]

# They belong to one connection and are not passed on (RFC 9110, section 7.6.1).
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_SENT = _HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"origin"}
_NOT_ANSWERED = _HOP_BY_HOP | {b"date", b"x-content-type-options"}
_CONNECT_S = 10.0
# Longer than any model thinks between two pieces of a reply.
_SILENCE_S = 900.0
# The reply's id stands in its first lines.
_ID = re.compile(rb'"id"\s*:\s*"([^"]{1,200})"')
_ID_WITHIN_BYTES = 8_192
# Addresses that were parsed before.
_URLS_LIMIT = 1_000
_KEPT_LIMIT_BYTES = 8_000_000


class RecordingProxy(Witness):
    """A proxy before one upstream: ``async with RecordingProxy(url) as proxy: proxy.base_url``."""

    def __init__(
        self,
        upstream: str,
        port: int = 0,
        *,
        content: Path | None = None,
        reads_limit: int = READS_LIMIT,
    ) -> None:
        """Set it up; nothing is opened before ``async with``.

        Args:
            upstream: the address of the model API, with or without its ``/v1``.
            port: 0 is any free one.
            content: a JSON-Lines file to which requests and replies are appended, without
                headers; None keeps no content.
            reads_limit: how many turns are remembered; older ones are forgotten.

        Raises:
            InvalidScenario: the upstream is no address.
        """
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidScenario(
                f"upstream {upstream!r} is not valid: give a URL such as https://api.anthropic.com"
            )
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/")
        self._content = content
        self._urls: dict[tuple[bytes, bytes], Any] = {}
        self._records = Records(reads_limit)
        self._formats = formats(is_strict=False)
        self._server = HttpServer(self._serve, port=port, limits=LIMITS)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            PortOccupied: another process listens on the port.
            InvalidScenario: the port is not valid, or may not be used.
        """
        import aiohttp  # noqa: PLC0415 - a third of a second that the simulator need not pay

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
            ),
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        )
        try:
            await self._server.__aenter__()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once: clients that still wait for an answer lose their connection."""
        await self._server.__aexit__(kind, error, traceback)
        if self._session is not None:
            await self._session.close()

    @property
    def base_url(self) -> str:
        """The address that takes the upstream's place."""
        return self._server.base_url

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        exchange = Exchange("", self._formats[0], scope, receive, send)
        speaks, operation = routed(self._formats, method, path, exchange.headers)
        exchange.format = speaks
        refusal = check_local_access(scope["headers"])
        if refusal is not None:
            await exchange.refuse(ApiError(refusal.status, refusal.message))
            return
        query = scope["query_string"].decode("latin-1")
        if path.startswith("/lab/"):
            await answer_lab(exchange, method, path, query, self._records, None)
            return
        data = await exchange.data(is_raw=True)
        if isinstance(data, ApiError):
            await exchange.refuse(data)
            return
        call: ModelCall | None = None
        request: GenerationRequest | None = None
        if operation == "generate":
            call = self._records.arrive("")
            request = self._witness(call, speaks, exchange, data, path, query)
        try:
            await self._pass(exchange, scope, receive, send, data, request, call)
        finally:
            if call is not None:
                self._records.leave(call, exchange.status)

    def _witness(
        self,
        call: ModelCall,
        speaks: WireFormat,
        exchange: Exchange,
        data: bytes,
        path: str,
        query: str,
    ) -> GenerationRequest | None:
        """Note what a request shows the model; one that cannot be read passes all the same."""
        call.format = speaks.name
        plain = exchange.decoded(data)
        try:
            request = (
                plain
                if isinstance(plain, ApiError)
                else speaks.receive(plain, exchange.headers, path, query)
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            call.error = f"not read: {type(error).__name__}: {error}"[:200]
            return None
        if isinstance(request, ApiError):
            call.error = f"not read: {request.message}"[:200]
            return None
        noted(call, speaks.name, request)
        call.fingerprint = fingerprint_of(call, data)
        self._records.show(call)
        return request

    async def _pass(
        self,
        exchange: Exchange,
        scope: Scope,
        receive: Receive,
        send: Send,
        data: bytes,
        request: GenerationRequest | None,
        call: ModelCall | None,
    ) -> None:
        """Send the request to the upstream, and its answer to the client, piece by piece."""
        import aiohttp  # noqa: PLC0415 - loaded when the proxy was opened

        assert self._session is not None, "the proxy is open"
        passing = asyncio.current_task()
        assert passing is not None, "an application runs in a task"
        watching = asyncio.get_running_loop().create_task(_leave(receive))
        watching.add_done_callback(lambda task: None if task.cancelled() else passing.cancel())
        try:
            async with self._session.request(
                scope["method"],
                self._url(scope),
                headers=self._headers(scope["headers"]),
                data=data or None,
                allow_redirects=False,
            ) as answer:
                await self._answer(exchange, scope, send, answer, data, request, call)
        except asyncio.CancelledError:
            if not watching.done() or watching.cancelled():
                raise
            raise DropConnection from None  # the client has left, and so has the upstream's reader
        except (aiohttp.ClientError, TimeoutError) as error:
            if exchange.status:
                raise DropConnection from None
            await exchange.refuse(
                ApiError(
                    502,
                    f"the upstream {self._origin} did not answer: {type(error).__name__}: {error}; "
                    "check its address and the network",
                )
            )
        finally:
            watching.cancel()

    async def _answer(
        self,
        exchange: Exchange,
        scope: Scope,
        send: Send,
        answer: aiohttp.ClientResponse,
        data: bytes,
        request: GenerationRequest | None,
        call: ModelCall | None,
    ) -> None:
        headers = [
            (name.lower(), value)
            for name, value in answer.raw_headers
            if name.lower() not in _NOT_ANSWERED
        ]
        kept: list[bytes] | None = [] if self._content is not None and call is not None else None
        begun = b""
        if answer.content_length is not None and answer.content_length <= _ID_WITHIN_BYTES:
            # Short and whole: one message instead of two.
            begun = await answer.read()
            exchange.status = answer.status
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": begun, "more_body": False})
            if kept is not None:
                kept.append(begun)
        else:
            exchange.status = answer.status
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            size_bytes = 0
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                size_bytes += len(piece)
                if len(begun) < _ID_WITHIN_BYTES:
                    begun += piece
                if kept is not None and size_bytes <= _KEPT_LIMIT_BYTES:
                    kept.append(piece)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._learn(exchange, scope, data, request, begun)
        if call is not None:
            call.request_id = _request_id(headers)
            if answer.status >= 400:
                call.error = f"upstream answered {answer.status}"
            if kept is not None:
                self._keep(call, exchange, data, b"".join(kept))

    def _learn(
        self,
        exchange: Exchange,
        scope: Scope,
        data: bytes,
        request: GenerationRequest | None,
        begun: bytes,
    ) -> None:
        """Remember what the upstream now holds for the client."""
        if exchange.status != 200:
            return
        speaks = exchange.format
        found = _ID.search(begun, 0, _ID_WITHIN_BYTES)
        if request is not None:
            if found is not None:
                speaks.learn(request, found[1].decode("latin-1"))
        elif isinstance(speaks, ResponsesFormat) and scope["method"] == "POST":
            named = scope["path"].partition("/conversations")[2].strip("/")
            if not named and found is not None and scope["path"].endswith("/conversations"):
                speaks.learn_items(found[1].decode("latin-1"), data)
            elif named.endswith("/items"):
                speaks.learn_items(named.removesuffix("/items"), data)

    def _keep(self, call: ModelCall, exchange: Exchange, data: bytes, reply: bytes) -> None:
        """Append one call with its contents to the file that was named for them."""
        assert self._content is not None, "asked for"
        plain = exchange.decoded(data)
        line = {
            **call.to_json(),
            "status": exchange.status,
            "request": b"".decode()
            if isinstance(plain, ApiError)
            else plain.decode(errors="replace"),
            "reply": reply.decode(errors="replace"),
        }
        with self._content.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")

    def _url(self, scope: Scope) -> Any:
        target = scope["raw_path"], scope["query_string"]
        url = self._urls.get(target)
        if url is None:
            if len(self._urls) >= _URLS_LIMIT:
                self._urls.clear()
            url = self._urls[target] = self._upstream_url(*target)
        return url

    def _upstream_url(self, raw_path: bytes, raw_query: bytes) -> Any:
        import yarl  # noqa: PLC0415 - comes with aiohttp

        path, query = raw_path.decode("latin-1"), raw_query.decode("latin-1")
        prefix = self._prefix
        # An upstream is often named with the version that the client's path has, too.
        last = prefix.rpartition("/")[2]
        if last and path.startswith(f"/{last}/"):
            prefix = prefix[: -len(last) - 1]
        url = f"{self._origin}{prefix}{path}"
        return yarl.URL(f"{url}?{query}" if query else url, encoded=True)

    def _headers(self, headers: Any) -> list[tuple[str, str]]:
        passed = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if name not in _NOT_SENT
        ]
        # Plain, so that a stream need not wait for a block of its compression.
        return [*passed, ("accept-encoding", "identity")]


async def _leave(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    names = (b"request-id", b"x-request-id")
    return next((v.decode("latin-1") for n, v in headers if n in names), "")


def run_proxy(args: Namespace) -> int:
    """Serve until interrupted or terminated: ``kode-lab proxy``.

    Args:
        args: ``upstream``, ``port`` (0 is any), ``content`` (a file or None).

    Raises:
        PortOccupied: another process listens on the port.
        InvalidScenario: the upstream or the port cannot be used.
    """
    proxy = RecordingProxy(args.upstream, args.port, content=args.content)

    async def serve() -> None:
        async with proxy:
            kept = f"contents go to {args.content}" if args.content else "no contents are kept"
            await serve_until_signal(
                f"recording proxy on {proxy.base_url} before {args.upstream}; {kept}; "
                f"what was witnessed: {proxy.base_url}/lab/calls; Ctrl-C ends it\n"
            )

    asyncio.run(serve())
    return 0
