"""The simulated API byte for byte, for a client that knows only HTTP; its faults; its memory."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from datetime import date
from urllib.parse import quote

import pytest

from kode_lab.claude import Fault, Plan, Profile, SimulatedClaude, report_profile
from kode_lab.claude.legality import problem_of
from kode_lab.errors import InvalidScenario, PortOccupied
from kode_lab.key import SessionKey
from kode_lab.message import ToolResult, assistant, tool_results, user
from kode_lab.operation import Read, digest_of, echo_in, marker_of

HEADERS = {"x-api-key": "any", "anthropic-version": "2023-06-01"}
MODEL = "claude-sonnet-5-5"
TODAY = date(2026, 3, 2)
TOOL = {"name": "create_schedule", "input_schema": {"type": "object"}}


def asked(*messages, **fields):
    return {"model": MODEL, "max_tokens": 1024, "messages": list(messages), **fields}


async def http(simulated, method, path, body=None, headers=None):
    """One request over a fresh connection; gives status, headers and the raw body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close"]
    lines += [
        f"{name}: {value}" for name, value in (HEADERS if headers is None else headers).items()
    ]
    lines.append(f"content-length: {len(content)}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    raw = await reader.read()
    writer.close()
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    told = dict(field.split(": ", 1) for field in fields)
    if told.get("transfer-encoding") == "chunked":
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        rest = whole
    return int(first.split()[1]), told, rest


def serving(scenario, **options):
    async def main():
        async with SimulatedClaude(**{"today": TODAY, "salt": "t", **options}) as simulated:
            return await scenario(simulated)

    return asyncio.run(main())


async def until(holds):
    """Let everything run until this holds of the server's state; it tells nobody by itself."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


def answer_to(body, path="/v1/messages", headers=None, **options):
    """Give the status, the headers and the parsed body of one request to a fresh server."""
    status, told, content = serving(
        lambda simulated: http(simulated, "POST", path, body, headers), **options
    )
    return status, told, json.loads(content)


def events_in(stream: bytes):
    pairs = [event.split(b"\n") for event in stream.split(b"\n\n") if event]
    assert all(len(pair) == 2 for pair in pairs)
    return [
        (name.removeprefix(b"event: ").decode(), json.loads(data.removeprefix(b"data: ")))
        for name, data in pairs
    ]


def test_a_plain_reply_has_every_documented_field():
    status, told, message = answer_to(asked(user("hello")))
    assert status == 200
    assert told["content-type"] == "application/json"
    assert told["request-id"] == "req_simt00000001"
    usage = message.pop("usage")
    assert message == {
        "id": "msg_simt00000001",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [
            {
                "type": "text",
                "text": "You said: hello. I was shown 0 earlier prompts of this conversation.",
            }
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0


def test_a_stream_is_these_bytes():
    body = asked(user("hello"), stream=True, max_tokens=2)
    status, told, stream = serving(lambda s: http(s, "POST", "/v1/messages", body))
    assert status == 200
    assert told["content-type"] == "text/event-stream; charset=utf-8"
    usage = (
        '{"input_tokens":22,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,'
        '"output_tokens":1,"service_tier":"standard"}'
    )
    assert stream.decode() == (
        "event: message_start\n"
        'data: {"type":"message_start","message":{"id":"msg_simt00000001","type":"message",'
        f'"role":"assistant","model":"{MODEL}","content":[],"stop_reason":null,'
        f'"stop_sequence":null,"usage":{usage}}}}}\n\n'
        "event: content_block_start\n"
        'data: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        "event: ping\n"
        'data: {"type":"ping"}\n\n'
        "event: content_block_delta\n"
        'data: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"You"}}\n\n'
        "event: content_block_delta\n"
        'data: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":" said:"}}\n\n'
        "event: content_block_stop\n"
        'data: {"type":"content_block_stop","index":0}\n\n'
        "event: message_delta\n"
        'data: {"type":"message_delta","delta":{"stop_reason":"max_tokens",'
        '"stop_sequence":null},"usage":{"output_tokens":2}}\n\n'
        "event: message_stop\n"
        'data: {"type":"message_stop"}\n\n'
    )


def test_a_streamed_tool_call_begins_empty_and_its_input_comes_as_json_in_pieces():
    body = asked(user("create lunch and dinner"), tools=[TOOL], stream=True)
    _, _, stream = serving(lambda s: http(s, "POST", "/v1/messages", body))
    events = events_in(stream)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]
    blocks = [data for name, data in events if name == "content_block_start"]
    assert [data["index"] for data in blocks] == [0, 1, 2]
    assert [data["content_block"]["type"] for data in blocks] == ["text", "tool_use", "tool_use"]
    assert blocks[1]["content_block"]["input"] == {}
    for index, title in ((1, "lunch"), (2, "dinner")):
        deltas = [
            data["delta"]
            for name, data in events
            if name == "content_block_delta" and data["index"] == index
        ]
        assert deltas[0] == {"type": "input_json_delta", "partial_json": ""}
        assert len(deltas) > 2
        assert json.loads("".join(d["partial_json"] for d in deltas))["title"] == title
    stops = [data["index"] for name, data in events if name == "content_block_stop"]
    assert stops == [0, 1, 2]
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"


def test_a_stop_sequence_ends_the_text_before_it():
    _, _, message = answer_to(asked(user("hello"), stop_sequences=["shown", "I was"]))
    assert message["content"][0]["text"] == "You said: hello. "
    assert message["stop_reason"] == "stop_sequence"
    assert message["stop_sequence"] == "I was"


@pytest.mark.parametrize("reason", ["refusal", "pause_turn", "model_context_window_exceeded"])
def test_other_stop_reasons_can_be_asked_for(reason):
    fault = Fault("stop_reason", stop_reason=reason)
    _, _, message = answer_to(asked(user("hello")), faults=[fault])
    assert message["stop_reason"] == reason


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": "right"}, 400, "invalid_request_error"),
        ({"x-api-key": "right", "anthropic-version": "1999-01-01"}, 400, "invalid_request_error"),
        ({"x-api-key": "wrong", "anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        (
            {"authorization": "Basic x", "anthropic-version": "2023-06-01"},
            401,
            "authentication_error",
        ),
    ],
)
def test_wrong_headers_are_refused_in_the_documented_shape(headers, status, kind):
    got, told, body = answer_to(asked(user("hello")), headers=headers, api_key="right")
    assert got == status
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    assert body["request_id"] == told["request-id"]


@pytest.mark.parametrize("headers", [{"x-api-key": "right"}, {"authorization": "Bearer right"}])
def test_either_header_may_carry_the_key(headers):
    for version in ("2023-06-01", "2026-10-21"):
        headers = {**headers, "anthropic-version": version}
        assert answer_to(asked(user("hello")), headers=headers, api_key="right")[0] == 200


def test_a_body_that_is_not_json_or_too_large_is_refused():
    status, _, body = answer_to(b"{not json")
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    status, told, body = answer_to(b" " * (32 * 1024 * 1024 + 1))
    assert (status, body["error"]["type"]) == (413, "request_too_large")
    assert told["connection"] == "close"


def test_an_unknown_model_or_path_is_not_found():
    status, _, body = answer_to(asked(user("hello")) | {"model": "gpt-4"})
    assert (status, body["error"]) == (404, {"type": "not_found_error", "message": "model: gpt-4"})
    assert answer_to({}, path="/v1/nothing")[0] == 404
    assert serving(lambda s: http(s, "GET", "/v1/messages"))[0] == 405


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 529])
def test_each_error_can_be_asked_for_with_its_header_and_body(status):
    fault = Fault("status", status=status, retry_after_s=3)
    got, told, body = answer_to(asked(user("hello")), faults=[fault])
    assert got == status
    assert told["retry-after"] == "3"
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}


def test_tokens_are_counted_without_a_limit_of_tokens():
    body = {"model": MODEL, "messages": [user("hello")]}
    status, _, counted = answer_to(body, path="/v1/messages/count_tokens")
    assert status == 200
    assert counted == {"input_tokens": 22}
    longer = {"model": MODEL, "messages": [user("hello " * 100)]}
    assert answer_to(longer, path="/v1/messages/count_tokens")[2]["input_tokens"] > 100
    assert answer_to({"model": MODEL}, path="/v1/messages/count_tokens")[0] == 400


def test_models_are_listed_in_pages_and_one_by_one():
    async def scenario(simulated):
        async def get(path):
            status, _, body = await http(simulated, "GET", path)
            return status, json.loads(body)

        _, all_ = await get("/v1/models")
        ids = [model["id"] for model in all_["data"]]
        assert MODEL in ids
        assert all_["has_more"] is False
        _, first = await get("/v1/models?limit=1")
        assert first["has_more"] is True
        _, rest = await get(f"/v1/models?after_id={first['last_id']}")
        assert [model["id"] for model in first["data"] + rest["data"]] == ids
        assert await get(f"/v1/models/{ids[0]}") == (200, all_["data"][0])
        assert (await get("/v1/models/gpt-4"))[0] == 404
        assert (await get("/v1/models?limit=none"))[0] == 400

    serving(scenario)


CALL = {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {}}
DONE = tool_results([ToolResult("toolu_1", "done")])
LEGAL = {
    "one prompt": [user("a")],
    "text instead of blocks": [{"role": "user", "content": "a"}],
    "two prompts in a row": [user("a"), user("b")],
    "a whole tool turn": [user("a"), assistant([CALL]), DONE, assistant("b"), user("c")],
    "text after the results": [
        user("a"),
        assistant([CALL]),
        {"role": "user", "content": [*DONE["content"], {"type": "text", "text": "b"}]},
    ],
}
ILLEGAL = {
    "at least one message": [],
    'first message must use the "user" role': [assistant("a"), user("b")],
    "must end with a user message": [user("a"), assistant("b")],
    "without `tool_result` blocks immediately after: toolu_1": [
        user("a"),
        assistant([CALL]),
        user("b"),
    ],
    "messages.1: `tool_use` ids were found without": [user("a"), assistant([CALL])],
    "unexpected `tool_use_id`": [user("a"), DONE],
    "messages.4.content.0: unexpected": [
        user("a"),
        assistant([CALL]),
        DONE,
        assistant("b"),
        DONE,
    ],
    "ids must be unique": [
        user("a"),
        assistant([CALL]),
        DONE,
        assistant([CALL]),
        DONE,
        user("b"),
    ],
    "a single `tool_result`": [
        user("a"),
        assistant([CALL]),
        {"role": "user", "content": DONE["content"] * 2},
    ],
    "must come first": [
        user("a"),
        assistant([CALL]),
        {"role": "user", "content": [{"type": "text", "text": "b"}, *DONE["content"]]},
    ],
    "non-empty content": [{"role": "user", "content": []}],
    "messages.1: all messages must have": [user("a"), {"role": "user", "content": ""}],
    "non-whitespace": [user("  ")],
    "only be in `assistant` messages": [{"role": "user", "content": [CALL]}],
    "only be in `user` messages": [user("a"), assistant(DONE["content"]), user("b")],
    "messages.0.role": [{"role": "tool", "content": "a"}],
    "messages.0.id: Extra inputs": [{"role": "user", "content": "a", "id": "x"}],
    "messages.0.content: Input should be": [{"role": "user", "content": 7}],
    "tool_use.input: Field required": [user("a"), assistant([{**CALL, "input": "x"}]), DONE],
    "messages.0.content.0: Input should be a content block": [{"role": "user", "content": ["a"]}],
    "messages.0: Input should be an object": ["a"],
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_conversation_is_answered(name):
    assert answer_to(asked(*LEGAL[name]))[0] == 200


@pytest.mark.parametrize("sentence", ILLEGAL)
def test_an_illegal_conversation_is_refused_with_the_reason(sentence):
    status, _, body = answer_to(asked(*ILLEGAL[sentence]))
    assert status == 400
    assert sentence in body["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be"),
        ({"max_tokens": True}, "max_tokens: Input should be"),
        ({"stream": "yes"}, "stream: Input"),
        ({"stop_sequences": [" "]}, "stop_sequences"),
        ({"system": 7}, "system: Input"),
        ({"tools": [{"name": "two words", "input_schema": {"type": "object"}}]}, "tools.0.name"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema"),
        ({"tools": [TOOL, TOOL]}, "names must be unique"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"temperature": 2}, "temperature: range"),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"model": ""}, "model: Input"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(fields, sentence):
    status, _, body = answer_to(asked(user("a")) | fields)
    assert status == 400
    assert sentence in body["error"]["message"]


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens"])
def test_a_missing_parameter_is_refused_by_its_name(name):
    body = asked(user("a"))
    del body[name]
    assert problem_of(body, "2026-10-21").message == f"{name}: Field required"


def test_the_newer_api_version_knows_no_temperature():
    body = asked(user("a"), temperature=1.0)
    assert problem_of(body, "2023-06-01") is None
    assert "temperature" in problem_of(body, "2026-10-21").message


def test_what_was_shown_is_remembered_for_the_first_request_of_each_prompt():
    ada, bob = SessionKey.of("ada", "agent"), SessionKey.of("bob", "agent")
    a1, a2, b1 = marker_of(ada, 1), marker_of(ada, 2), marker_of(bob, 1)

    async def scenario(simulated):
        first = [user(f"hello {a1}")]
        await http(simulated, "POST", "/v1/messages", asked(*first))
        second = [*first, assistant(f"as {b1} said"), user(f"and {b1}"), user(f"hello {a2}")]
        _, _, body = await http(simulated, "POST", "/v1/messages", asked(*second))
        # Later requests of the same prompt change nothing.
        await http(simulated, "POST", "/v1/messages", asked(user(f"hello {a2}")))
        over_http = await http(simulated, "GET", f"/lab/reads/{quote(a2)}", headers={})
        assert (await http(simulated, "GET", "/lab/reads/m0-0", headers={}))[0] == 404
        return simulated, json.loads(body), json.loads(over_http[2])

    simulated, body, over_http = serving(scenario)
    read = Read(1, digest_of([a1]), (a1,), (b1,))
    assert simulated.read(a1) == Read(0, 0)
    assert simulated.read(a2) == read
    assert simulated.read(b1) is None
    assert echo_in(body["content"][0]["text"]) == (a2, read)
    assert over_http == {
        "position": 1,
        "digest": f"{read.digest:016x}",
        "tail": [a1],
        "foreign": [b1],
        "half": [],
    }


def test_a_refused_request_showed_the_model_nothing():
    marker = marker_of(SessionKey.of("ada", "agent"), 1)

    async def scenario(simulated):
        await http(simulated, "POST", "/v1/messages", asked(user(marker), assistant("x")))
        return simulated

    simulated = serving(scenario)
    assert simulated.read(marker) is None
    assert simulated.statistics().refused == 1
    assert "end with a user message" in simulated.records()[0].error


def test_only_a_limited_number_of_reads_is_kept_and_the_loss_is_told():
    key = SessionKey.of("ada", "agent")

    async def scenario(simulated):
        for number in range(5):
            body = asked(user(marker_of(key, number)))
            await http(simulated, "POST", "/v1/messages", body)
        return simulated

    simulated = serving(scenario, reads_limit=3)
    kept = [number for number in range(5) if simulated.read(marker_of(key, number))]
    assert kept == [2, 3, 4]
    assert simulated.statistics().reads == 3
    assert simulated.statistics().reads_forgotten == 2


def test_ids_are_the_same_again_only_where_a_salt_is_given():
    def ids(**options):
        return answer_to(asked(user("create x"), tools=[TOOL]), **options)[2]["content"][1]["id"]

    assert ids(salt="a") == ids(salt="a")
    assert len({ids(salt=None) for _ in range(3)}) == 3


def test_the_same_seed_draws_the_same_latencies_in_any_order():
    profile = Profile(ttft_s=1.0, token_s=0.01, jitter=0.5, seed=3)
    prompts = [f"prompt {number}" for number in range(20)]
    drawn = {prompt: profile.latency("chat", prompt, 0, 10) for prompt in prompts}
    again = {prompt: profile.latency("chat", prompt, 0, 10) for prompt in reversed(prompts)}
    assert drawn == again
    assert len(set(drawn.values())) == 20
    assert profile.latency("chat", "prompt 1", 0, 10) != profile.latency("chat", "prompt 1", 1, 10)
    other = Profile(ttft_s=1.0, token_s=0.01, jitter=0.5, seed=4)
    assert other.latency("chat", "prompt 1", 0, 10) != drawn["prompt 1"]


def test_the_report_profile_takes_the_reported_seconds_in_the_reported_number_of_calls():
    plans = {plan.name: plan for plan in report_profile().plans}
    assert sum(plans["query"].calls_s) == pytest.approx(16.73)
    assert len(plans["query"].calls_s) == 9
    assert sum(plans["create"].calls_s) == pytest.approx(2.19)
    assert len(plans["create"].calls_s) == 2


def test_a_plan_is_chosen_by_intent_and_words_and_scaled_by_speed():
    profile = Profile(
        speed=10.0,
        plans=(
            Plan("study", "create", (4.0,), ("study",)),
            Plan("any", "create", (2.0, 1.0)),
        ),
    )
    assert profile.latency("create", "Create STUDY time", 0, 5).total_s == pytest.approx(0.4)
    assert profile.latency("create", "create lunch", 1, 5).total_s == pytest.approx(0.1)
    assert profile.latency("create", "create lunch", 2, 5).total_s == 0
    assert profile.latency("query", "query study", 0, 5).total_s == 0


def test_a_fault_strikes_as_often_and_where_it_was_told_to():
    async def scenario(simulated):
        async def status(prompt):
            return (await http(simulated, "POST", "/v1/messages", asked(user(prompt))))[0]

        return [await status(prompt) for prompt in ("a", "bad b", "c", "bad d", "bad e")]

    faults = [Fault("status", status=529, word="bad", times=2)]
    assert serving(scenario, faults=faults) == [200, 529, 200, 529, 200]


def test_a_share_of_faults_is_drawn_by_the_seed():
    async def scenario(simulated):
        return [
            (await http(simulated, "POST", "/v1/messages", asked(user("a"))))[0] for _ in range(40)
        ]

    faults = [Fault("status", share=0.5, times=None)]
    drawn = serving(scenario, faults=faults, seed=1)
    assert drawn == serving(scenario, faults=faults, seed=1)
    assert drawn != serving(scenario, faults=faults, seed=2)
    assert 5 < drawn.count(500) < 35


def test_faults_can_be_armed_and_disarmed_over_http():
    async def scenario(simulated):
        async def status(method, path, body=None):
            return (await http(simulated, method, path, body, headers=None))[0]

        prompt = asked(user("a"))
        armed = await status("POST", "/lab/faults", {"kind": "status", "times": None})
        struck = await status("POST", "/v1/messages", prompt)
        await status("DELETE", "/lab/faults")
        healed = await status("POST", "/v1/messages", prompt)
        wrong = await status("POST", "/lab/faults", {"kind": "unheard of"})
        _, _, told = await http(simulated, "GET", "/lab/statistics")
        return armed, struck, healed, wrong, json.loads(told)

    *statuses, told = serving(scenario)
    assert statuses == [200, 500, 200, 400]
    assert told["requests"] == 2
    assert told["faults"] == 1
    assert told["in_flight"] == 0


def test_a_tool_loop_asks_for_a_tool_whatever_is_said():
    async def scenario(simulated):
        messages = [user("hello")]
        for _ in range(5):
            body = asked(*messages, tools=[TOOL])
            _, _, content = await http(simulated, "POST", "/v1/messages", body)
            message = json.loads(content)
            assert message["stop_reason"] == "tool_use"
            call_id = message["content"][0]["id"]
            messages += [
                assistant(message["content"]),
                tool_results([ToolResult(call_id, "done")]),
            ]

    serving(scenario, faults=[Fault("tool_loop", times=None)])


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "x"},
        {"kind": "status", "status": 200},
        {"kind": "cut", "share": 2},
        {"kind": "slow", "delay_s": -1},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fields):
    with pytest.raises(InvalidScenario):
        Fault(**fields)


@pytest.mark.parametrize("fields", [{"speed": 0}, {"ttft_s": -1}, {"jitter": float("nan")}])
def test_a_profile_that_makes_no_sense_is_refused(fields):
    with pytest.raises(InvalidScenario):
        Profile(**fields)


def test_an_occupied_port_is_named_with_what_to_do():
    async def scenario(simulated):
        with pytest.raises(PortOccupied, match=f"port {simulated.port}.*another port"):
            async with SimulatedClaude(port=simulated.port):
                pass

    serving(scenario)


def test_a_port_that_is_none_is_refused():
    async def scenario():
        async with SimulatedClaude(port=65_536):
            pass

    with pytest.raises(InvalidScenario, match="65536"):
        asyncio.run(scenario())


def test_a_port_is_free_again_at_once_even_if_a_call_was_under_way():
    async def scenario():
        async with SimulatedClaude(faults=[Fault("hang")]) as simulated:
            _, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
            body = json.dumps(asked(user("hello"))).encode()
            head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            keys = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
            writer.write(f"{head}{keys}\r\n".encode() + body)
            await until(lambda: simulated.statistics().in_flight == 1)
        assert simulated.statistics().in_flight == 0
        async with SimulatedClaude(port=simulated.port) as again:
            assert (await http(again, "POST", "/v1/messages", asked(user("hi"))))[0] == 200
        writer.close()

    asyncio.run(scenario())


PROGRAM = """
import sys
from argparse import Namespace
from kode_lab.claude import run_simulated
from kode_lab.errors import KodeLabError
try:
    code = run_simulated(Namespace(port=int(sys.argv[1]), speed=10.0, profile="instant"))
except KodeLabError as error:
    sys.exit(f"{type(error).__name__}: {error}")
sys.exit(code)
"""


def test_as_a_command_it_says_where_it_listens_serves_and_ends_on_a_signal():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "0"], stdout=subprocess.PIPE, text=True
    ) as running:
        line = running.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /lab/statistics HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == 0


def test_as_a_command_it_refuses_an_occupied_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert told.returncode == 1
    assert "PortOccupied" in told.stderr
