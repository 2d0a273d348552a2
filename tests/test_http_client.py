"""Our own transport of model calls, held to the SDK: request for request and error for error."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from simulated_http import ask

from kode_lab.claude import Claude
from kode_lab.errors import ModelGarbage, ModelUnavailable, TurnFailed

REPLY = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "grüße"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 2},
}
STARTED = {**REPLY, "content": [], "stop_reason": None}
EVENTS = [
    {"type": "message_start", "message": STARTED},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in ("grü", "ße")
    ),
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


def body(value):
    return json.dumps(value, ensure_ascii=False).encode()


STREAM = b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), body(e)) for e in EVENTS)


def answer(content, status="200 OK", **headers):
    lines = {"content-length": str(len(content)), "request-id": "req_7", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content


def chunked(pieces, **headers):
    lines = {"transfer-encoding": "chunked", "content-type": "text/event-stream", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + b"".join(chunks) + b"0\r\n\r\n"


class Service:
    """A server that answers with prepared bytes, and keeps what it was sent."""

    def __init__(self, *answers, sliced=0, is_closing=True):
        self.answers, self.sliced, self.is_closing = list(answers), sliced, is_closing
        self.requests, self.connections = [], 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")[:-2]
                fields = (line.split(": ", 1) for line in lines)
                headers = {name.lower(): value for name, value in fields}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((first, headers, content))
                data = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                is_cut = data.endswith(b"short")
                step = self.sliced or len(data)
                for start in range(0, len(data), step):
                    writer.write(data[start : start + step])
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.is_closing or is_cut:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def outcome(service_answer, on_text=None, **options):
    """Return the reply, or the error, of one call."""

    async def scenario():
        async with Service(service_answer, **options) as service, Claude(service.url) as claude:
            try:
                return await claude(ask(), on_text)
            except TurnFailed as error:
                told = str(error).replace(service.url, "URL")
                return type(error), told

    return asyncio.run(scenario())


def through_sdk(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-way: sdk")


@pytest.mark.parametrize(
    ("fields", "on_text"), [({}, None), ({}, lambda _: None), ({"temperature": 0.5}, None)]
)
def test_a_request_is_the_one_that_the_sdk_sends(monkeypatch, fields, on_text):
    async def sent():
        data = answer(body(REPLY)) if on_text is None else chunked([STREAM])
        async with Service(data) as service, Claude(f"{service.url}/p", "key") as claude:
            await claude(ask(**fields), on_text)
            first, headers, content = service.requests[0]
            return first, headers, content

    ours = asyncio.run(sent())
    through_sdk(monkeypatch)
    sdks = asyncio.run(sent())
    assert sdks[1].pop("x-way") == "sdk"
    # Compression costs more than it saves on one machine; the others are of the connection, and
    # a time-out that the SDK does not know by its own way of asking.
    for headers in (ours[1], sdks[1]):
        for name in ("accept-encoding", "connection", "x-stainless-timeout", "host"):
            headers.pop(name, None)
    assert ours == sdks


ERRORS = [
    answer(body({"error": {"type": "invalid_request_error", "message": "no"}}), "400 Bad"),
    answer(body({"error": {"type": "api_error", "message": "no"}}), "500 X", retry_after="7"),
    answer(b"", "529 X", retry_after_ms="1500"),
    answer(b"<html>", "502 Bad Gateway"),
    answer(body([1]), "429 X", x_should_retry="false", retry_after="never"),
    answer(b"not json"),
    answer(body({"type": "message"})),
    b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort",
]


def test_an_error_is_the_one_that_the_sdk_leads_to(monkeypatch):
    import anthropic  # noqa: PLC0415 - seconds of CPU, for this test alone

    async def errors():
        found = []
        async with Service(*ERRORS, is_closing=False) as service, Claude(service.url) as claude:
            for _ in ERRORS:
                with pytest.raises(TurnFailed) as raised:
                    await claude(ask())
                found.append((raised.value, str(raised.value).replace(service.url, "URL")))
        return found

    ours = asyncio.run(errors())
    through_sdk(monkeypatch)
    sdks = asyncio.run(errors())
    for (error, told), (reference, expected), data in zip(ours, sdks, ERRORS, strict=True):
        assert type(error) is type(reference)
        if "broke off" not in told:  # that in other words
            assert told == expected
            assert vars(error) == vars(reference)
        if int(data[9:12]) >= 400:
            assert type(error.__cause__) is type(reference.__cause__)
            assert isinstance(error.__cause__, anthropic.APIStatusError)


@pytest.mark.parametrize("sliced", [0, 1, 7])
@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_is_read_however_its_bytes_arrive(sliced, coding, end):
    data = STREAM.replace(b"\n", end)
    headers = {"content_encoding": coding} if coding else {}
    data = gzip.compress(data) if coding else data
    pieces = []
    reply = outcome(
        chunked([data[at : at + 50] for at in range(0, len(data), 50)], **headers),
        pieces.append,
        sliced=sliced,
    )
    assert reply.text == "".join(pieces) == "grüße"


@pytest.mark.parametrize("at", range(0, len(STREAM), 97))
def test_a_stream_that_is_cut_anywhere_is_no_reply(at):
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    kind, told = outcome(head + b"%x\r\n" % len(STREAM) + STREAM[:at], lambda _: None)
    assert kind is ModelUnavailable
    assert "send again" in told


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", ModelUnavailable),
        (b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
         ModelUnavailable),
        (b"", ModelUnavailable),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000, ModelUnavailable),
        (answer(b"x", content_encoding="br"), ModelUnavailable),
        (answer(b"x", content_encoding="gzip"), ModelUnavailable),
        (b"HTTP/1.1 200 OK\r\n\r\n" + body(REPLY), None),  # ends with the connection
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(body(REPLY)), None),
        (answer(b"\xff\xfe"), ModelGarbage),
    ],
)  # fmt: skip
def test_anything_a_service_answers_is_a_reply_or_one_of_our_errors(data, kind):
    found = outcome(data)
    assert found.text == "grüße" if kind is None else found[0] is kind


def test_connections_are_used_again_and_one_that_closed_meanwhile_is_not():
    async def scenario():
        whole = answer(body(REPLY))
        closing = answer(body(REPLY), connection="close")
        async with (
            Service(whole, closing, whole, is_closing=False) as service,
            Claude(service.url) as claude,
        ):
            for _ in range(4):
                await claude(ask())
            return service.connections

    assert asyncio.run(scenario()) == 2


def test_a_redirect_is_followed_as_the_sdk_follows_it():
    async def scenario():
        away = answer(b"", "307 Temporary Redirect", location="/elsewhere")
        service = Service(away, away, answer(body(REPLY)), is_closing=False)
        async with service, Claude(service.url, "key") as claude:
            reply = await claude(ask())
            return reply.text, [(r[0], r[1]["authorization"]) for r in service.requests]

    text, requests = asyncio.run(scenario())
    first = ("POST /v1/messages HTTP/1.1", "Bearer key")
    assert text == "grüße"
    assert requests == [first, first, ("POST /elsewhere HTTP/1.1", "Bearer key")]
