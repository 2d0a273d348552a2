"""The recording proxy before three upstreams: ours, one that streams, one that compresses."""

from __future__ import annotations

import asyncio
import gzip
import json
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
from aiohttp import web
from simulated_http import HEADERS, TOOL, asked, http, until

from kode_lab.claude import Fault, SimulatedClaude
from kode_lab.claude.proxy import RecordingProxy
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import marker_of
from kode_lab.key import SessionKey
from kode_lab.message import assistant, user

ADA = SessionKey.of("ada", "agent")
A1, A2, A3 = (marker_of(ADA, number) for number in (1, 2, 3))
BEARER = {"authorization": "Bearer any", "content-type": "application/json"}


def proxied(scenario, *, upstream="", **options):
    async def main():
        async with (
            SimulatedClaude(**options) as simulated,
            RecordingProxy(f"{simulated.base_url}{upstream}") as proxy,
        ):
            return await scenario(proxy, simulated)

    return asyncio.run(main())


@asynccontextmanager
async def serving_app(answer):
    """Run an aiohttp server with this handler for every path."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_the_proxy_answers_as_its_upstream_and_witnesses_the_same():
    async def scenario(proxy, simulated):
        plain = asked(user(A1), tools=[TOOL])
        direct = await http(simulated, "POST", "/v1/messages", plain)
        passed = await http(proxy, "POST", "/v1/messages", plain)
        longer = [user(A1), assistant("hi"), user(A2)]
        streamed = await http(proxy, "POST", "/v1/messages", asked(*longer, stream=True))
        refused = await http(proxy, "POST", "/v1/messages", asked(assistant("x")))
        told = json.loads((await http(proxy, "GET", f"/lab/turns/{quote(A2)}"))[2])
        return direct, passed, streamed, refused, told, simulated.turn(A2), proxy.records()

    direct, passed, streamed, refused, told, seen, records = proxied(scenario)
    assert passed[0] == direct[0] == 200
    same = json.loads(direct[2]), json.loads(passed[2])
    assert same[0]["content"] == same[1]["content"]
    assert streamed[1]["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed[2].endswith(b'data: {"type":"message_stop"}\n\n')
    assert refused[0] == 400
    assert told["read"] == json.loads(json.dumps(seen.to_json()))["read"]
    assert told["read"]["position"] == 1
    assert records[-1].error == "upstream answered 400"
    assert records[0].request_id.startswith("req_sim")


@pytest.mark.parametrize(
    ("path", "bodies", "upstream"),
    [
        (
            "/v1/chat/completions",
            [
                {"model": "m", "messages": [{"role": "user", "content": A1}]},
                {
                    "model": "m",
                    "stream": True,
                    "messages": [
                        {"role": "user", "content": A1},
                        {"role": "assistant", "content": "hi"},
                        {"role": "user", "content": A2},
                    ],
                },
            ],
            "/v1",
        ),
        (
            "/v1beta/models/g:streamGenerateContent?alt=sse",
            [
                {"contents": [{"role": "user", "parts": [{"text": A1}]}]},
                {
                    "contents": [
                        {"role": "user", "parts": [{"text": A1}]},
                        {"role": "model", "parts": [{"text": "hi"}]},
                        {"role": "user", "parts": [{"text": A2}]},
                    ]
                },
            ],
            "",
        ),
    ],
)
def test_the_other_formats_pass_and_are_witnessed(path, bodies, upstream):
    async def scenario(proxy, _):
        statuses = [(await http(proxy, "POST", path, body, BEARER))[0] for body in bodies]
        return statuses, proxy.read(A2)

    statuses, read = proxied(scenario, upstream=upstream)
    assert statuses == [200, 200]
    assert (read.position, read.tail) == (1, (A1,))


def test_what_the_upstream_holds_for_a_client_is_witnessed_too():
    async def scenario(proxy, _):
        async def post(path, body):
            status, _, content = await http(proxy, "POST", path, body, BEARER)
            assert status == 200, content
            return content

        first = json.loads(await post("/v1/responses", {"model": "m", "input": A1}))
        body = {"model": "m", "previous_response_id": first["id"], "input": A2, "stream": True}
        events = await post("/v1/responses", body)
        second = json.loads(events.split(b"data: ", 1)[1].split(b"\n", 1)[0])["response"]["id"]
        await post("/v1/responses", {"model": "m", "previous_response_id": second, "input": A3})
        item = {"type": "message", "role": "user", "content": A1}
        made = json.loads(await post("/v1/conversations", {"items": [item]}))
        await post(f"/v1/conversations/{made['id']}/items", {"items": [item | {"content": A2}]})
        marker = marker_of(ADA, 9)
        asked_ = {"model": "m", "conversation": made["id"], "input": marker}
        await post("/v1/responses", asked_)
        return proxy.turn(A3), proxy.read(marker), first["id"]

    turn, read, root = proxied(scenario)
    assert turn.read.tail == (A1, A2)
    assert turn.calls[0].session == root
    assert read.tail == (A1, A2)


def test_a_thread_of_the_messages_api_is_witnessed_as_a_whole():
    headers = HEADERS | {"anthropic-beta": "message-threads-2026-08-12"}

    async def scenario(proxy, _):
        body = asked(user(A1), thread={"type": "create"})
        _, _, content = await http(proxy, "POST", "/v1/messages", body, headers)
        thread = {"type": "continue", "previous_message_id": json.loads(content)["id"]}
        body = asked(user(A2), thread=thread)
        status, _, _ = await http(proxy, "POST", "/v1/messages", body, headers)
        return status, proxy.read(A2)

    status, read = proxied(scenario)
    assert (status, read.position) == (200, 1)


def test_a_retry_is_seen_as_one_and_a_lost_connection_passes_on():
    async def scenario(proxy, simulated):
        simulated.arm(Fault("status", status=529))
        statuses = [
            (await http(proxy, "POST", "/v1/messages", asked(user(A1))))[0] for _ in range(2)
        ]
        simulated.arm(Fault("cut"))
        _, _, cut = await http(proxy, "POST", "/v1/messages", asked(user(A2), stream=True))
        simulated.arm(Fault("reset"))
        reset = await http(proxy, "POST", "/v1/messages", asked(user(A3)))
        return statuses, proxy.turn(A1), cut, reset[0]

    statuses, turn, cut, reset = proxied(scenario)
    assert statuses == [529, 200]
    assert [(call.attempt, call.status) for call in turn.calls] == [(1, 529), (2, 200)]
    assert b"message_stop" not in cut
    assert reset == 502


def test_pieces_pass_as_they_come_and_a_client_that_leaves_ends_the_upstream():
    async def main():
        second, ended = asyncio.Event(), asyncio.Event()

        async def answer(request):
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"id": "resp_1"}\n\n')
            await second.wait()
            await response.write(b"data: two\n\n")
            try:
                while request.transport is not None:
                    await response.write(b": still here\n\n")
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        async with serving_app(answer) as upstream, RecordingProxy(upstream) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            body = json.dumps({"model": "m", "input": A1, "stream": True}).encode()
            writer.write(
                b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\n"
                b"content-length: %d\r\n\r\n" % len(body) + body
            )
            async with asyncio.timeout(30):
                first = await reader.readuntil(b"resp_1")
                second.set()
                await reader.readuntil(b"data: two")
                writer.close()
                await ended.wait()
                await until(lambda: proxy.statistics().in_flight == 0)
            return first, proxy.read(A1)

    first, read = asyncio.run(main())
    assert b"200 OK" in first
    assert read.position == 0


def test_a_compressed_request_and_reply_pass_as_they_are():
    seen = {}

    async def answer(request):
        seen["headers"] = dict(request.headers)
        seen["body"] = await request.content.read()
        headers = {"content-encoding": "gzip", "x-own": "kept", "set-cookie": "a=b"}
        return web.Response(body=gzip.compress(b'{"id":"resp_1"}'), headers=headers)

    async def main():
        async with serving_app(answer) as upstream, RecordingProxy(upstream) as proxy:
            body = gzip.compress(json.dumps({"model": "m", "input": A1}).encode())
            headers = BEARER | {"content-encoding": "gzip", "x-stainless-lang": "python"}
            told = await http(proxy, "POST", "/v1/responses", body, headers)
            return told, proxy.read(A1)

    (status, told, content), read = asyncio.run(main())
    assert (status, gzip.decompress(content)) == (200, b'{"id":"resp_1"}')
    assert (told["x-own"], told["set-cookie"]) == ("kept", "a=b")
    assert seen["headers"]["Authorization"] == "Bearer any"
    assert seen["headers"]["x-stainless-lang"] == "python"
    assert seen["headers"]["Accept-Encoding"] == "identity"
    assert read.position == 0


def test_a_request_that_cannot_be_read_passes_all_the_same():
    async def answer(request):
        return web.json_response({"got": len(await request.read())})

    async def main():
        async with serving_app(answer) as upstream, RecordingProxy(upstream) as proxy:
            odd = [b"{not json", b'{"messages": [7, {"role": 7}]}', b"[]", b'{"input": {"a": []}}']
            sizes = []
            for body in odd:
                for path in ("/v1/messages", "/v1/chat/completions", "/v1/responses"):
                    told = await http(proxy, "POST", path, body)
                    sizes.append(json.loads(told[2])["got"] == len(body))
            models = await http(proxy, "GET", "/v1/models")
            return sizes, models[0], proxy.records()

    sizes, models, records = asyncio.run(main())
    assert all(sizes)
    assert models == 200
    assert all(call.error.startswith("not read") for call in records if not call.marker)


def test_contents_are_kept_only_where_a_file_is_named_and_keys_never(tmp_path):
    path = tmp_path / "content.jsonl"

    async def main():
        async with SimulatedClaude() as simulated:
            for content in (None, path):
                async with RecordingProxy(simulated.base_url, content=content) as proxy:
                    headers = HEADERS | {"x-api-key": "sk-secret"}
                    await http(proxy, "POST", "/v1/messages", asked(user(A1)), headers)
                    remembered = repr(vars(proxy._records))
        return remembered

    assert "sk-secret" not in asyncio.run(main())
    lines = path.read_text().splitlines()
    assert len(lines) == 1
    assert "sk-secret" not in lines[0]
    line = json.loads(lines[0])
    assert json.loads(line["request"])["messages"][0]["content"][0]["text"] == A1
    assert json.loads(line["reply"])["type"] == "message"


def test_an_upstream_that_is_none_is_refused_and_one_that_is_away_is_a_clear_error():
    with pytest.raises(InvalidScenario, match="is not valid"):
        RecordingProxy("api.example.org")

    async def main():
        async with SimulatedClaude() as simulated:
            gone = simulated.base_url
        async with RecordingProxy(gone) as proxy:
            return await http(proxy, "POST", "/v1/messages", asked(user(A1)))

    status, _, body = asyncio.run(main())
    assert status == 502
    assert "check its address" in json.loads(body)["error"]["message"]


def test_a_page_of_another_origin_may_not_use_the_proxy():
    async def scenario(proxy, _):
        headers = HEADERS | {"origin": "https://example.org"}
        return (await http(proxy, "POST", "/v1/messages", asked(user(A1)), headers))[0]

    assert proxied(scenario) == 403
