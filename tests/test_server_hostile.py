"""Hostile requests over raw sockets: each gets one clear 4xx, and nothing of the server moves."""

import asyncio
import json
import re
from contextlib import suppress

import pytest
from house import assert_idle, prompts, run, until
from served import served, turn_request

from kode_lab.http import ConnectionLimits

LIMITS = ConnectionLimits(
    head_limit_bytes=20_000,
    body_limit_bytes=100_000,
    head_timeout_s=0.2,
    body_timeout_s=0.2,
    stall_timeout_s=0.2,
    keepalive_s=0.2,
)


def turn(**fields):
    """A turn's body with these fields instead of the right ones; None leaves one out."""
    body = {"userId": "ada", "agentId": "clerk", "message": "hello"} | fields
    return json.dumps({name: value for name, value in body.items() if value is not ...}).encode()


def post(body, *headers):
    return turn_request(body, *headers)


def head(method, path, *headers, host=b"localhost"):
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"Host: " + host, *headers, b"", b""])


def chunked(*chunks, headers=()):
    lines = [b"POST /v1/turns HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", *headers, b"", *chunks])


RIGHT = turn()
S = b"/v1/sessions/ada/"
BODIES = [
    ("nothing", b"", 400),
    ("spaces", b"   ", 400),
    ("no JSON", b"hello", 400),
    ("a form", b"userId=ada&agentId=clerk&message=hello", 400),
    ("half an object", RIGHT[:-1], 400),
    ("half a string", RIGHT[:20], 400),
    ("two objects", RIGHT + RIGHT, 400),
    ("something after it", RIGHT + b"x", 400),
    ("a NUL after it", RIGHT + b"\0", 400),
    ("a byte order mark", b"\xef\xbb\xbf" + RIGHT, 400),
    ("UTF-16", RIGHT.decode().encode("utf-16"), 400),
    ("UTF-32", RIGHT.decode().encode("utf-32"), 400),
    ("Latin-1", turn(message="caf?").replace(b"?", b"\xe9"), 400),
    ("overlong UTF-8", RIGHT.replace(b"hello", b"\xc0\xaf"), 400),
    ("a surrogate in UTF-8", RIGHT.replace(b"hello", b"\xed\xa0\x80"), 400),
    ("UTF-8 cut short", RIGHT.replace(b"hello", b"\xf0\x9f\x98"), 400),
    ("a raw line break in a text", RIGHT.replace(b"hello", b"a\nb"), 400),
    ("a raw NUL in a text", RIGHT.replace(b"hello", b"a\0b"), 400),
    ("single quotes", RIGHT.replace(b'"', b"'"), 400),
    ("a comment", b"/* hi */" + RIGHT, 400),
    ("a comma at the end", RIGHT[:-1] + b",}", 400),
    ("a key without quotes", RIGHT.replace(b'"message"', b"message"), 400),
    ("a broken escape", RIGHT.replace(b"hello", rb"\x41"), 400),
    ("a broken unicode escape", RIGHT.replace(b"hello", rb"\u12"), 400),
    ("arrays 40,000 deep", b"[" * 40_000, 400),
    ("objects 10,000 deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    ("a deep field", RIGHT[:-1] + b',"turnId":' + b"[" * 9_000 + b"]" * 9_000 + b"}", 400),
    ("a number of 50,000 digits", RIGHT[:-1] + b',"deadlineS":' + b"9" * 50_000 + b"}", 400),
    ("an array", b"[]", 422),
    ("a text", b'"hello"', 422),
    ("a number", b"12", 422),
    ("null", b"null", 422),
    ("an empty object", b"{}", 422),
    ("an array of turns", b"[" + RIGHT + b"]", 422),
    ("no user", turn(userId=...), 422),
    ("no agent", turn(agentId=...), 422),
    ("no message", turn(message=...), 422),
    ("user null", turn(userId=None), 422),
    ("user a number", turn(userId=7), 422),
    ("user true", turn(userId=True), 422),
    ("user a list", turn(userId=["ada"]), 422),
    ("user an object", turn(userId={"$ne": ""}), 422),
    ("user empty", turn(userId=""), 422),
    ("user too long", turn(userId="u" * 10_001), 422),
    ("user half a surrogate pair", RIGHT.replace(b"ada", rb"\ud800"), 422),
    ("user a surrogate pair reversed", RIGHT.replace(b"ada", rb"\udc00\ud800"), 422),
    ("session null", turn(sessionId=None), 422),
    ("session a number", turn(sessionId=0), 422),
    ("session empty", turn(sessionId=""), 422),
    ("session too long", turn(sessionId="s" * 10_001), 422),
    ("session half a surrogate pair", RIGHT[:-1] + rb',"sessionId":"\udfff"}', 422),
    ("agent empty", turn(agentId=""), 422),
    ("agent a number", turn(agentId=1.5), 422),
    ("no such agent", turn(agentId="stranger"), 404),
    ("agent a path up", turn(agentId="../agents/clerk"), 404),
    ("agent an absolute path", turn(agentId="/etc/passwd"), 404),
    ("agent with its ending", turn(agentId="clerk.toml"), 404),
    ("agent in capitals", turn(agentId="CLERK"), 404),
    ("agent with a NUL", turn(agentId="clerk\0"), 404),
    ("agent with a line break", turn(agentId="clerk\n"), 404),
    ("agent two dots", turn(agentId=".."), 404),
    ("message empty", turn(message=""), 422),
    ("message only space", turn(message=" \n\t\u3000"), 422),
    ("message a number", turn(message=42), 422),
    ("message an object", turn(message={"role": "user"}), 422),
    ("message a list", turn(message=["a", "b"]), 422),
    ("message half a surrogate pair", RIGHT.replace(b"hello", rb"a\ud83d"), 422),
    ("turn id empty", turn(turnId=""), 422),
    ("turn id a number", turn(turnId=1), 422),
    ("turn id null", turn(turnId=None), 422),
    ("turn id too long", turn(turnId="t" * 90_000), 422),
    ("turn id half a surrogate pair", RIGHT[:-1] + rb',"turnId":"\ud800"}', 422),
    ("strategy unknown", turn(strategy="Enqueue"), 422),
    ("strategy a list", turn(strategy=["reject"]), 422),
    ("strategy null", turn(strategy=None), 422),
    ("stream a text", turn(stream="true"), 422),
    ("stream a number", turn(stream=1), 422),
    ("policy unknown", turn(onDisconnect="cancel"), 422),
    ("policy a number", turn(onDisconnect=0), 422),
    ("deadline zero", turn(deadlineS=0), 422),
    ("deadline negative", turn(deadlineS=-5), 422),
    ("deadline a text", turn(deadlineS="10"), 422),
    ("deadline true", turn(deadlineS=True), 422),
    ("deadline infinite", RIGHT[:-1] + b',"deadlineS":1e999}', 422),
    ("deadline not a number", RIGHT[:-1] + b',"deadlineS":NaN}', 422),
    ("deadline a year", turn(deadlineS=31_536_000), 422),
    ("a field that is none", turn(user="ada"), 422),
    ("a field with another case", turn(SessionId="x"), 422),
    ("prototype pollution", RIGHT[:-1] + b',"__proto__":{"userId":"bob"}}', 422),
    ("the user twice", RIGHT[:-1] + b',"userId":"bob"}', 422),
    ("the same user twice", RIGHT[:-1] + b',"userId":"ada"}', 422),
    ("the user twice, once escaped", RIGHT[:-1] + rb',"\u0075serId":"bob"}', 422),
    ("a field twice inside", turn(message=...)[:-1] + b',"message":{"a":1,"a":2}}', 422),
    ("a body too long", turn(message="m" * 100_000), 413),
]
HEADS = [
    ("no content type", head(b"POST", b"/v1/turns", b"Content-Length: 2") + b"{}", 415),
    ("text", post(RIGHT).replace(b"application/json", b"text/plain"), 415),
    ("a form's type", post(RIGHT).replace(b"application/json", b"multipart/form-data"), 415),
    ("nearly JSON", post(RIGHT).replace(b"application/json", b"application/jsonp"), 415),
    ("no HTTP", b"hello\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 60, 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("HTTP/9", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
    ("an unknown method", head(b"BREW", b"/v1/turns"), 400),
    ("a method in small letters", head(b"post", b"/v1/turns"), 400),
    ("no host", b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    ("two hosts", head(b"GET", b"/healthz", b"Host: localhost"), 400),
    ("another host", head(b"GET", b"/healthz", host=b"evil.example"), 421),
    ("a host that begins well", head(b"GET", b"/healthz", host=b"localhost.evil.example"), 421),
    ("a host with a user", head(b"GET", b"/healthz", host=b"localhost@evil.example"), 421),
    ("an absolute address", head(b"GET", b"http://evil.example/x", host=b"evil.example"), 421),
    ("two lengths", post(RIGHT, b"Content-Length: 5"), 400),
    ("two equal lengths", post(RIGHT, b"Content-Length: %d" % len(RIGHT)), 400),
    ("a length and chunks", post(RIGHT, b"Transfer-Encoding: chunked"), 400),
    ("a length that is none", head(b"POST", b"/v1/turns", b"Content-Length: x"), 400),
    ("a negative length", head(b"POST", b"/v1/turns", b"Content-Length: -1"), 400),
    ("a length with a sign", head(b"POST", b"/v1/turns", b"Content-Length: +5"), 400),
    ("an endless length", head(b"POST", b"/v1/turns", b"Content-Length: " + b"9" * 30), 400),
    (
        "a length of a terabyte",
        head(
            b"POST",
            b"/v1/turns",
            b"Content-Type: application/json",
            b"Content-Length: 1" + b"0" * 12,
        ),
        413,
    ),
    ("chunks in another coding", chunked(b"", headers=[b"Transfer-Encoding: gzip"]), 400),
    ("a chunk without a size", chunked(b"zz", b"{}", b"0", b"", b""), 400),
    ("a chunk of negative size", chunked(b"-2", b"{}", b"0", b"", b""), 400),
    ("an endless chunk", chunked(b"F" * 40, b"{}"), 400),
    ("chunks too many", chunked(*[b"2710\r\n" + b" " * 10_000] * 11, b"0", b"", b""), 413),
    ("a header without a colon", head(b"GET", b"/healthz", b"Nonsense"), 400),
    ("a space before the colon", head(b"GET", b"/healthz", b"Some : thing"), 400),
    ("a NUL in a header", head(b"GET", b"/healthz", b"X: a\0b"), 400),
    ("a line break alone in a header", head(b"GET", b"/healthz", b"X: a\rInjected: b"), 400),
    ("a header too long", head(b"GET", b"/healthz", b"X: " + b"x" * 30_000), 431),
    ("an address too long", head(b"GET", b"/healthz?" + b"x" * 30_000), 431),
    ("headers too many", head(b"GET", b"/healthz", *[b"X: yyyyyyyy"] * 3_000), 431),
    ("a header that never ends", b"GET / HTTP/1.1\r\nX: " + b"x" * 600_000, 431),
    ("a path that is none", head(b"GET", b"/v2/turns"), 404),
    ("a path with a slash more", head(b"POST", b"/v1/turns/", b"Content-Length: 0"), 404),
    ("a path with two slashes", head(b"POST", b"//v1/turns", b"Content-Length: 0"), 404),
    ("a path up", head(b"GET", b"/v1/sessions/../../../etc/passwd"), 404),
    ("a path up, encoded", head(b"GET", b"/%2e%2e/%2e%2e/etc/passwd"), 404),
    ("a file", head(b"GET", b"/page.html"), 404),
    ("a session without its agent", head(b"GET", S + b"s1"), 404),
    ("a session with empty ids", head(b"GET", b"/v1/sessions///messages"), 404),
    ("an id of broken UTF-8", head(b"GET", S + b"%ff/clerk/messages"), 400),
    ("an id of overlong UTF-8", head(b"GET", S + b"%c0%af/clerk/messages"), 400),
    ("an id of a surrogate", head(b"GET", S + b"%ed%a0%80/clerk/state"), 400),
    ("an id with a bare %", head(b"GET", S + b"100%/clerk/messages"), 400),
    ("an id with half an escape", head(b"DELETE", S + b"%e/clerk"), 400),
    ("an id with Latin-1 in it", head(b"GET", S + b"caf\xe9/clerk/messages"), 400),
    ("an id too long", head(b"GET", S + b"x" * 10_001 + b"/clerk/messages"), 422),
    ("a wrong method for turns", head(b"GET", b"/v1/turns"), 405),
    ("a wrong method for a history", head(b"DELETE", S + b"s1/clerk/messages"), 405),
    ("a wrong method for health", head(b"POST", b"/healthz", b"Content-Length: 0"), 405),
    ("a browser's question", head(b"OPTIONS", b"/v1/turns", b"Origin: http://localhost"), 405),
    ("a page of another origin", head(b"GET", b"/healthz", b"Origin: http://evil.example"), 403),
    ("a page of another port", head(b"GET", b"/healthz", b"Origin: http://localhost:3000"), 403),
    ("a page of no origin", head(b"GET", b"/healthz", b"Origin: null"), 403),
    ("a trace of the request", head(b"TRACE", b"/"), 405),
    ("a tunnel", b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", 400),
    (
        "another protocol",
        head(b"POST", b"/v1/turns", b"Connection: Upgrade", b"Upgrade: websocket"),
        415,
    ),
]
REQUESTS = [(name, post(body), status) for name, body, status in BODIES] + HEADS


async def answer_to(house, request, *, then=b""):
    """Send the bytes; give the answer's status, headers and body; None where there is none."""
    reader, writer = await house.connect()
    try:
        writer.write(request + then)
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), headers, body
    finally:
        writer.transport.abort()


def assert_says_one_sentence(name, body, tmp_path):
    told = json.loads(body)
    assert list(told) == ["error"], name
    error = told["error"]
    assert {"type", "message", "status"} <= set(error) <= {"type", "message", "status", "turnId"}
    message = error["message"]
    assert 10 < len(message) < 400, (name, message)
    assert "\n" not in message, name
    for secret in (str(tmp_path), "/work", "Traceback", "kode_lab.", ".py", "site-packages"):
        assert secret not in message, (name, message)
    assert not re.search(r"0x[0-9a-f]{6,}", message), (name, message)


def test_the_list_has_more_than_a_hundred_different_requests():
    names = [name for name, _, _ in REQUESTS]
    assert len(set(names)) == len(names) > 130
    # All bytes but for their dates are different requests, too.
    assert len({request for _, request, _ in REQUESTS}) == len(REQUESTS)


def test_each_hostile_request_gets_its_4xx_in_one_shape_and_no_session_moves(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            wrong = []
            for name, request, status in REQUESTS:
                found = await answer_to(house, request)
                if found is None or found[0] != status:
                    wrong.append((name, status, found))
                else:
                    assert_says_one_sentence(name, found[2], tmp_path)
            assert not wrong, "\n".join(map(str, wrong))
            assert "InternalError" not in house.live_state.refusals
            assert set(house.live_state.outcomes) <= {"UnknownAgent", "InvalidPrompt", "InvalidKey"}
            # None of them left a trace on the disk, and the house still works.
            assert not [path for path in (tmp_path / "store").iterdir() if path.name[0] != "+"]
            assert (await house.post("hello"))[0] == 200
            assert_idle(house.manager)
            await until(lambda: len(house.connections) <= 1)

    run(scenario())


def test_a_connection_goes_on_after_a_refusal_that_left_its_body_unread(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            reader, writer = await house.connect()
            long = post(turn(message="m" * 150_000))
            writer.write(long + post(turn(sessionId="after")))
            statuses = []
            for _ in range(2):
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                statuses.append(int(lines.split()[1]))
                length = re.search(r"content-length: (\d+)", lines)[1]
                await reader.readexactly(int(length))
            assert statuses == [413, 200]
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("name", "request_", "status"),
    [
        ("nothing at all", b"", None),
        ("half a line", b"POST /v1/tu", 408),
        ("half a head", post(RIGHT)[:50], 408),
        ("half a body", post(RIGHT)[:-5], 408),
        ("no body", post(RIGHT)[: -len(RIGHT)], 408),
        ("half a chunk", chunked(b"20", b"{"), 408),
        ("chunks without an end", chunked(b"2", b"{}"), 408),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_client_that_stops_in_the_middle_of_a_request_is_told_and_let_go(
    tmp_path, name, request_, status
):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            found = await answer_to(house, request_)
            assert (found and found[0]) == status, name
            if found:
                assert_says_one_sentence(name, found[2], tmp_path)
            await until(lambda: not house.connections)
            assert house.live_state.outcomes == {}
            assert (await house.post("hello"))[0] == 200

    run(scenario())


def test_a_byte_now_and_then_buys_no_time(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            reader, writer = await house.connect()
            answer = asyncio.create_task(reader.read())
            for byte in b"POST /v1/turns HTTP/1.1\r\nX: " + b"x" * 200:
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait({answer}, timeout=0.01)
                if done:
                    break
            # A byte that crosses the answer on its way makes the system reset the connection, and
            # may take the answer with it.
            with suppress(ConnectionResetError):
                assert b" 408 " in await answer
            assert answer.done()
            writer.transport.abort()

    run(scenario())


def test_a_body_cut_by_its_sender_is_no_turn(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            for length in (1, len(RIGHT) // 2, len(RIGHT) - 1):
                _, writer = await house.connect()
                writer.write(post(RIGHT)[: -len(RIGHT)] + RIGHT[:length])
                await until(lambda: house.connections)
                writer.close()
                await until(lambda: not house.connections)
            assert house.live_state.outcomes == {}
            assert await house.history() == []

    run(scenario())


def test_a_client_that_does_not_read_its_answer_is_let_go(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            for _ in range(12):  # a history of several megabytes
                assert (await house.post("m" * 90_000))[0] == 200
            before = set(house.connections)
            _, writer = await house.connect()
            writer.transport.pause_reading()
            await until(lambda: house.connections - before)
            (deaf,) = house.connections - before
            for _ in range(8):
                writer.write(head(b"GET", b"/v1/sessions/ada/s1/clerk/messages"))
            await until(lambda: deaf not in house.connections)
            assert (await house.post("after"))[0] == 200
            writer.transport.abort()

    run(scenario())


def test_connections_beyond_the_limit_are_told_to_come_again(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=ConnectionLimits(connections_limit=3)) as house:
            held = [await house.connect() for _ in range(3)]
            await until(lambda: len(house.connections) == 3)
            found = await answer_to(house, head(b"GET", b"/healthz"))
            assert found is not None
            status, headers, body = found
            assert (status, headers["retry-after"]) == (503, "1")
            assert_says_one_sentence("too many", body, tmp_path)
            held.pop()[1].close()
            await until(lambda: len(house.connections) == 2)
            assert (await answer_to(house, head(b"GET", b"/healthz")))[0] == 200
            for _, writer in held:
                writer.close()

    run(scenario())


def test_requests_in_one_write_are_answered_one_by_one_in_order(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            reader, writer = await house.connect()
            writer.write(b"".join(post(turn(message=f"p{n}", turnId=f"t{n}")) for n in range(5)))
            told = []
            for _ in range(5):
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = re.search(r"content-length: (\d+)", lines)[1]
                told.append(json.loads(await reader.readexactly(int(length)))["turnId"])
            assert told == [f"t{number}" for number in range(5)]
            assert prompts(await house.history(session="clerk")) == [f"p{n}" for n in range(5)]
            writer.close()

    run(scenario())
