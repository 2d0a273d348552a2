"""The HTTP server by itself: what surrounds a body is bounded, and so is every wait."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import httptools
import pytest
from house import run, until

from kode_lab.http import (
    ConnectionLimits,
    DropConnection,
    HttpServer,
    check_local_access,
    read_body,
)

LIMITS = ConnectionLimits(
    head_limit_bytes=20_000,
    body_limit_bytes=100_000,
    stall_timeout_s=0.1,
    discard_limit_bytes=200_000,
)
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope, receive, send):
    """Answer by the path: /echo the body's length, /big much, /early before the body, /drop."""
    path = scope["path"]
    if path == "/drop":
        raise DropConnection
    if path == "/broken":
        raise RuntimeError("on purpose")
    if path == "/half":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise DropConnection
    body = b"" if path == "/early" else await read_body(receive)
    if body is None:
        return
    said = b"x" * 4_000_000 if path == "/big" else b"%d" % len(body)
    status = 204 if path == "/empty" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"" if status == 204 else said})


@asynccontextmanager
async def connected(limits=LIMITS):
    async with HttpServer(app, limits=limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        yield server, reader, writer
        writer.transport.abort()


async def answer_of(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
    return int(head.split()[1]), await reader.readexactly(length)


TRAILERS = {
    "one trailer": b"0\r\nX: " + b"x" * 600_000,
    "many trailers": b"0\r\n" + b"X: yyyyyyyy\r\n" * 50_000,
    "an extension": b"1;" + b"x" * 600_000,
    "extensions of small chunks": b"1;x=yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\nz\r\n" * 20_000,
}


@pytest.mark.parametrize("rest", TRAILERS.values(), ids=list(TRAILERS))
def test_what_surrounds_a_chunked_body_is_bounded_as_the_head_is(rest):
    async def scenario():
        async with connected() as (server, reader, writer):
            writer.write(CHUNKED + b"2\r\n{}\r\n" + rest)
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["error"]["type"]) == (431, "HeadTooLarge")
            await until(lambda: not server.connections)

    run(scenario())


@pytest.mark.parametrize("rest", TRAILERS.values(), ids=list(TRAILERS))
def test_it_is_bounded_after_an_early_answer_too(rest):
    async def scenario():
        async with connected() as (server, reader, writer):
            writer.write(CHUNKED.replace(b"/echo", b"/early") + b"2\r\n{}\r\n" + rest)
            assert (await answer_of(reader))[0] in (200, 431)
            await until(lambda: not server.connections)

    run(scenario())


def test_ordinary_trailers_and_extensions_are_accepted_and_the_connection_goes_on():
    async def scenario():
        async with connected() as (_, reader, writer):
            chunks = b"2;name=value\r\n{}\r\n" * 3 + b"0\r\nChecksum: 12\r\nMore: x\r\n\r\n"
            writer.write((CHUNKED + chunks) * 2 + GET % b"echo")
            assert [await answer_of(reader) for _ in range(3)] == [
                (200, b"6"),
                (200, b"6"),
                (200, b"0"),
            ]

    run(scenario())


def test_a_body_of_single_bytes_is_a_body_and_not_framing():
    async def scenario():
        async with connected() as (_, reader, writer):
            writer.write(CHUNKED + b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n")
            assert await answer_of(reader) == (200, b"30000")

    run(scenario())


def test_a_body_that_is_not_read_is_discarded_only_up_to_a_limit():
    async def scenario():
        async with connected() as (server, reader, writer):
            length = b"Content-Length: 90000000\r\n\r\n"
            writer.write(
                GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\n") % b"echo" + length
            )
            assert (await answer_of(reader))[0] == 413
            with suppress(ConnectionError):
                while server.connections:
                    writer.write(b"x" * 65_536)
                    await writer.drain()
                    await asyncio.sleep(0)
            assert not server.connections

    run(scenario())


def test_a_client_that_sends_ahead_and_does_not_read_is_dropped_without_a_word_in_the_log(caplog):
    async def scenario():
        async with connected() as (server, _, writer):
            writer.transport.pause_reading()
            writer.write(GET % b"big" * 2_000)
            await until(lambda: server.connections)
            await until(lambda: not server.connections)
        assert caplog.records == []

    run(scenario())


def test_requests_sent_ahead_without_end_are_read_only_as_they_are_answered():
    async def scenario():
        async with connected() as (server, reader, writer):
            writer.write(GET % b"echo" * 4_000)
            for _ in range(4_000):
                assert await answer_of(reader) == (200, b"0")
            assert len(server.connections) == 1

    run(scenario())


def test_a_dropped_connection_sends_what_was_answered_so_far():
    async def scenario():
        async with connected() as (_, reader, writer):
            writer.write(GET % b"half")
            assert (await reader.read()).endswith(b"4\r\nhalf\r\n")
        async with connected() as (_, reader, writer):
            writer.write(GET % b"drop")
            assert await reader.read() == b""

    run(scenario())


def test_a_defect_of_the_application_is_a_500_and_a_line_in_the_log(caplog):
    async def scenario():
        async with connected() as (_, reader, writer):
            writer.write(GET % b"broken")
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["error"]["type"]) == (500, "InternalError")
            assert await reader.read() == b""

    run(scenario())
    assert "GET /broken" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status", "is_kept"),
    [
        (GET % b"echo", 200, True),
        (GET % b"empty", 204, True),
        (b"HEAD /echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, True),
        (b"GET /echo HTTP/1.0\r\nHost: localhost\r\n\r\n", 200, False),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP", 200, False),
        (
            b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            200,
            False,
        ),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, False),
        (b"GET http://localhost/echo?x HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, True),
        (GET % b"echo" + b"NONSENSE\r\n\r\n", 200, False),
    ],
)
def test_each_kind_of_request_leaves_the_connection_open_or_closed(request_, status, is_kept):
    async def scenario():
        async with connected() as (_, reader, writer):
            writer.write(request_)
            head = await reader.readuntil(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            if is_kept:
                writer.write(GET % b"half")
                assert b"half" in await reader.read()
            else:
                with suppress(ConnectionResetError):
                    await reader.read()

    run(scenario())


def test_a_body_is_asked_for_only_if_it_will_be_read():
    async def scenario():
        async with connected() as (_, reader, writer):
            expecting = (
                b"POST /echo HTTP/1.1\r\nHost: a\r\n"
                b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            )
            writer.write(expecting % 2)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"{}")
            assert await answer_of(reader) == (200, b"2")
            writer.write(expecting % 900_000)
            assert (await answer_of(reader))[0] == 413
            assert await reader.read() == b""

    run(scenario())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, None),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, None),
        ({"host": "LOCALHOST", "origin": "http://localhost"}, None),
        ({}, 400),
        ({"host": "example.org"}, 421),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:3000"}, 403),
        ({"host": "localhost", "origin": "http://localhost.example.org"}, 403),
    ],
)
def test_only_this_machine_and_its_own_pages_get_in_without_a_token(headers, status):
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    refusal = check_local_access(raw)
    assert (refusal and refusal.status) == status
    named = check_local_access(raw, any_host=True)
    assert (named is None) == ("host" in headers)


def test_the_parser_refuses_the_ambiguous_requests_that_this_server_relies_on_it_to_refuse():
    """Fails first if a new httptools becomes lenient: then the server must check these itself."""
    for head in (
        b"Content-Length: 2\r\nContent-Length: 2",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Content-Length: +2",
        b"Some : thing",
    ):
        with pytest.raises(httptools.HttpParserError):
            httptools.HttpRequestParser(object()).feed_data(
                b"POST / HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n{}"
            )
