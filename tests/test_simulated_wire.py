"""The simulated API byte for byte, for a client that knows only HTTP."""

from __future__ import annotations

import json

import pytest
from simulated_http import MODEL, TOOL, answer_to, asked, http, serving

from kode_lab.claude import Fault
from kode_lab.message import user


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
    status, _, body = answer_to(b" " * (32 * 1024 * 1024 + 1))
    assert (status, body["error"]["type"]) == (413, "request_too_large")


def test_any_model_name_is_known_and_an_unknown_path_is_not_found():
    status, _, body = answer_to(asked(user("hello")) | {"model": "gateway/house-model:7b"})
    assert (status, body["model"]) == (200, "gateway/house-model:7b")
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
        assert (await get("/v1/models/gateway/house-model"))[1]["id"] == "gateway/house-model"
        assert (await get("/v1/models?limit=none"))[0] == 400

    serving(scenario)
