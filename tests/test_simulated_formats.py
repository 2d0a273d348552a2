"""Chat Completions, Responses and Gemini on the wire, and what all four formats have in common."""

from __future__ import annotations

import asyncio
import gzip
import json

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_http import HEADERS, http, serving, until

from kode_lab.claude import Fault
from kode_lab.claude.schemas import fitting
from kode_lab.history.operation import marker_of
from kode_lab.key import SessionKey

# A busy machine must not fail a test.
SURE = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))

ADA = SessionKey.of("ada", "agent")
A1, A2, A3 = (marker_of(ADA, number) for number in (1, 2, 3))
BEARER = {"authorization": "Bearer any"}
GOOGLE = {"x-goog-api-key": "any"}
SCHEMA = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "maxLength": 8},
        "limit": {"type": "integer", "minimum": 3},
    },
    "required": ["query", "limit"],
    "additionalProperties": False,
}


class Wire:
    """How one format says the same things."""

    def __init__(self, name, path, headers, stream_path=None):
        self.name, self.path, self.headers = name, path, headers
        self.stream_path = stream_path or path

    def body(self, *turns, tools=(), stream=False, **fields):
        """Return a request: ``turns`` alternate between a user's texts and replies."""
        roles = [("user", "assistant")[n % 2] for n in range(len(turns))]
        if self.name == "gemini":
            names = {"user": "user", "assistant": "model"}
            contents = [
                {"role": names[role], "parts": [{"text": text}]}
                for role, text in zip(roles, turns, strict=True)
            ]
            declared = [{"name": name, "parametersJsonSchema": SCHEMA} for name in tools]
            offered = {"tools": [{"functionDeclarations": declared}]} if tools else {}
            return {"contents": contents, **offered, **fields}
        said = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
        function = [{"name": name, "parameters": SCHEMA} for name in tools]
        if self.name == "messages":
            tools_ = [{"name": name, "input_schema": SCHEMA} for name in tools]
            body = {"model": "m", "max_tokens": 500, "messages": said, "tools": tools_}
        elif self.name == "chat":
            tools_ = [{"type": "function", "function": one} for one in function]
            body = {"model": "m", "messages": said} | ({"tools": tools_} if tools else {})
        else:
            tools_ = [{"type": "function", **one} for one in function]
            body = {"model": "m", "input": said, "tools": tools_}
        return body | {"stream": stream} | fields

    def text(self, body):
        """Return the text of a whole reply."""
        if self.name == "messages":
            return "".join(b["text"] for b in body["content"] if b["type"] == "text")
        if self.name == "chat":
            return body["choices"][0]["message"]["content"]
        if self.name == "gemini":
            parts = body["candidates"][0]["content"]["parts"]
            return "".join(part.get("text", "") for part in parts)
        return "".join(part["text"] for item in body["output"] for part in item.get("content", ()))

    def calls(self, body):
        """Return the tool calls of a whole reply: names and arguments."""
        if self.name == "messages":
            return [(b["name"], b["input"]) for b in body["content"] if b["type"] == "tool_use"]
        if self.name == "chat":
            calls = body["choices"][0]["message"].get("tool_calls", ())
            made = [c["function"] for c in calls]
            return [(c["name"], json.loads(c["arguments"])) for c in made]
        if self.name == "gemini":
            parts = body["candidates"][0]["content"]["parts"]
            made = [part["functionCall"] for part in parts if "functionCall" in part]
            return [(c["name"], c["args"]) for c in made]
        made = [item for item in body["output"] if item["type"] == "function_call"]
        return [(c["name"], json.loads(c["arguments"])) for c in made]

    async def ask(self, simulated, body, *, stream=False):
        """Return status, headers and parsed body, or the raw bytes of a stream."""
        path = self.stream_path if stream else self.path
        status, told, content = await http(simulated, "POST", path, body, self.headers)
        is_json = "json" in told.get("content-type", "")
        return status, told, json.loads(content) if is_json else content


GEMINI = "/v1beta/models/m:generateContent"
WIRES = [
    Wire("messages", "/v1/messages", HEADERS),
    Wire("chat", "/v1/chat/completions", BEARER),
    Wire("responses", "/v1/responses", BEARER),
    Wire("gemini", GEMINI, GOOGLE, "/v1beta/models/m:streamGenerateContent?alt=sse"),
]
all_formats = pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)


@all_formats
def test_the_script_and_the_witness_are_the_same_in_every_format(wire):
    async def scenario(simulated):
        _, _, first = await wire.ask(simulated, wire.body(A1))
        body = wire.body(A1, wire.text(first), f"hello {A2}", stream=True)
        status, told, stream = await wire.ask(simulated, body, stream=True)
        return first, status, told, stream, simulated.turn(A2)

    first, status, told, stream, turn = serving(scenario)
    assert f"[{A1} read 0" in wire.text(first)
    assert status == 200
    assert told["content-type"].startswith("text/event-stream")
    assert stream.count(b"data: ") > 5
    assert (turn.read.position, turn.read.tail) == (1, (A1,))
    assert turn.calls[0].format == wire.name
    assert turn.calls[0].replies == 1


@all_formats
def test_tools_of_any_name_are_called_when_the_prompt_asks_with_arguments_that_fit(wire):
    async def scenario(simulated):
        asked = "Please use tools look_up and count-9, then use them again"
        body = wire.body(asked, tools=["look_up", "count-9", "other"])
        _, _, reply = await wire.ask(simulated, body)
        _, _, chat = await wire.ask(simulated, wire.body("hello", tools=["look_up", "other"]))
        _, _, none = await wire.ask(simulated, wire.body("use tool missing", tools=["other"]))
        return wire.calls(reply), wire.calls(chat), wire.calls(none)

    calls, chat, none = serving(scenario)
    assert [name for name, _ in calls] == ["look_up", "count-9"]
    for _, arguments in calls:
        jsonschema.validate(arguments, SCHEMA)
    assert chat == none == []


@all_formats
def test_a_forced_tool_and_a_demanded_shape_are_obeyed(wire):
    forced = {
        "messages": {"tool_choice": {"type": "tool", "name": "other"}},
        "chat": {"tool_choice": {"type": "function", "function": {"name": "other"}}},
        "responses": {"tool_choice": {"type": "function", "name": "other"}},
        "gemini": {
            "toolConfig": {
                "functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["other"]}
            }
        },
    }[wire.name]
    shape = {"type": "json_schema", "schema": SCHEMA}
    shaped = {
        "messages": {"output_config": {"format": shape}},
        "chat": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            }
        },
        "responses": {"text": {"format": shape | {"name": "x"}}},
        "gemini": {
            "generationConfig": {
                "responseMimeType": "application/json",
                "responseJsonSchema": SCHEMA,
            }
        },
    }[wire.name]

    async def scenario(simulated):
        body = wire.body("hello", tools=["look_up", "other"], **forced)
        _, _, reply = await wire.ask(simulated, body)
        _, _, answer = await wire.ask(simulated, wire.body(f"rate it {A1}", **shaped))
        return wire.calls(reply), wire.text(answer)

    calls, answer = serving(scenario)
    assert [name for name, _ in calls] == ["other"]
    jsonschema.validate(json.loads(answer), SCHEMA)


@all_formats
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
def test_each_error_has_the_shape_of_its_format(wire, status):
    async def scenario(simulated):
        simulated.arm(Fault("status", status=status, retry_after_s=2))
        return await wire.ask(simulated, wire.body("hello"))

    got, told, body = serving(scenario)
    assert got == status
    assert told["retry-after"] == "2"
    error = body["error"]
    assert error["message"]
    if wire.name == "messages":
        assert set(body) == {"type", "error", "request_id"}
    elif wire.name == "gemini":
        assert error["code"] == status
        assert error["status"].isupper()
    else:
        assert set(error) == {"message", "type", "param", "code"}


@all_formats
def test_faults_strike_every_format_alike(wire):
    async def scenario(simulated):
        async def ask(kind, *, stream=False, **fields):
            simulated.arm(Fault(kind, **fields))
            tools = ["look_up"] if kind in ("tool_input", "call_ids", "tool_loop") else []
            prompt = "use tool look_up" if tools else "hello"
            body = wire.body(prompt, tools=tools, stream=stream)
            return await wire.ask(simulated, body, stream=stream)

        whole = {
            kind: await ask(kind) for kind in ("garbage", "call_ids", "tool_loop", "tool_input")
        }
        limit = await ask("context_limit")
        streams = [
            (await ask(kind, stream=True, after_events=2))[2]
            for kind in ("cut", "end_early", "error_event", "slow")
        ]
        return whole, limit, streams

    whole, limit, (cut, early, failed, whole_stream) = serving(scenario)
    assert whole["garbage"][2].startswith(b"<html>")
    assert "call_0" in json.dumps(whole["call_ids"][2])
    assert wire.calls(whole["tool_loop"][2])[0][0] == "look_up"
    cut_off = json.dumps(whole["tool_input"][2])
    assert any(
        word in cut_off
        for word in ("max_tokens", "length", "incomplete", "MALFORMED_FUNCTION_CALL")
    )
    assert limit[0] == 400
    assert len(cut) < len(whole_stream)
    assert len(early) < len(whole_stream)
    assert b"error" in failed


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("seconds", {"retry-after"}),
        ("date", {"retry-after"}),
        ("milliseconds", {"retry-after-ms"}),
        ("both", {"retry-after", "retry-after-ms"}),
        ("unreadable", {"retry-after"}),
    ],
)
def test_retry_after_comes_in_all_its_forms(form, names):
    async def scenario(simulated):
        simulated.arm(Fault("status", status=429, retry_after_s=1.5, retry_form=form))
        return (await WIRES[0].ask(simulated, WIRES[0].body("hello")))[1]

    told = serving(scenario)
    assert {name for name in told if name.startswith("retry-after")} == names
    assert told.get("retry-after-ms", "1500") == "1500"
    if form == "date":
        assert told["retry-after"].endswith("GMT")


@all_formats
def test_a_context_limit_is_enforced_and_a_key_is_asked_for(wire):
    async def scenario(simulated):
        short, long = wire.body("hello"), wire.body("hello " * 400)
        statuses = [(await wire.ask(simulated, body))[0] for body in (short, long)]
        refused = await http(
            simulated, "POST", wire.path, short, {"anthropic-version": "2023-06-01"}
        )
        return statuses, refused[0]

    statuses, keyless = serving(scenario, context_limit_tokens=300)
    assert statuses == [200, 400]
    assert keyless in (401, 403)


@all_formats
def test_a_compressed_body_is_read_and_a_long_reply_is_compressed(wire):
    async def scenario(simulated):
        body = gzip.compress(json.dumps(wire.body(f"hello {A1}")).encode())
        headers = wire.headers | {"content-encoding": "gzip", "accept-encoding": "gzip"}
        status, _, _ = await http(simulated, "POST", wire.path, body, headers)
        bomb = gzip.compress(b" " * 40_000_000)
        large, _, _ = await http(simulated, "POST", wire.path, bomb, headers)
        broken, _, _ = await http(simulated, "POST", wire.path, body[:-9], headers)
        fields = {f"field{number}": {"type": "string", "minLength": 300} for number in range(8)}
        schema = {"type": "object", "properties": fields, "required": list(fields)}
        asked = {"model": "m", "max_tokens": 9_000, "messages": [{"role": "user", "content": "x"}]}
        asked["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        headers = HEADERS | {"accept-encoding": "gzip"}
        _, told, content = await http(simulated, "POST", "/v1/messages", asked, headers)
        return status, large, broken, told["content-encoding"], gzip.decompress(content)

    status, large, broken, encoding, content = serving(scenario)
    assert (status, large, broken, encoding) == (200, 413, 400, "gzip")
    assert len(json.loads(content)["content"][0]["text"]) > 2_000


def test_pages_of_other_origins_and_foreign_hosts_are_refused():
    async def scenario(simulated):
        body = WIRES[0].body("hello")
        headers = HEADERS | {"origin": "https://example.org"}
        return (await http(simulated, "POST", "/v1/messages", body, headers))[0]

    assert serving(scenario) == 403


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v1/messages/batches", "batches"),
        ("/v1/files", "files"),
        ("/v1/embeddings", "embeddings"),
        ("/v1beta/models/m:embedContent", "embedContent"),
    ],
)
def test_what_is_not_simulated_is_one_clear_error(path, word):
    async def scenario(simulated):
        return await http(simulated, "POST", path, {}, HEADERS)

    status, _, body = serving(scenario)
    assert status == 404
    assert f"'{word}' is not simulated" in json.loads(body)["error"]["message"]


# ---- Chat Completions


def chat(*messages, **fields):
    return {"model": "m", "messages": list(messages), **fields}


CHAT_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "t", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (chat(), "too short"),
        ({"model": "m"}, "Missing required parameter: 'messages'"),
        (chat({"role": "user", "content": "x"}, CHAT_CALL), "did not have response messages: c1"),
        (chat({"role": "tool", "tool_call_id": "c1", "content": "x"}), "must be a response"),
        (chat({"role": "robot", "content": "x"}), "Invalid value"),
        (chat({"role": "user", "content": "x"}, tool_choice="required"), "only allowed when"),
        (chat({"role": "user", "content": "x"}, stream_options={}), "only allowed when 'stream'"),
        (chat({"role": "user", "content": "x"}, n=200), "'n'"),
        (chat({"role": "user", "content": "x"}, colour="blue"), "Unknown parameter: 'colour'"),
        (chat({"role": "user", "content": "x"}, logprobs=True), "not simulated"),
    ],
)
def test_an_illegal_chat_is_refused_with_the_reason(body, sentence):
    status, _, told = serving(lambda s: WIRES[1].ask(s, body))
    assert status == 400
    assert sentence in told["error"]["message"]


@pytest.mark.parametrize("content", [None, "", "absent"])
def test_an_assistant_that_calls_tools_may_say_nothing(content):
    call = {**CHAT_CALL, "content": content}
    if content == "absent":
        del call["content"]
    done = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done"}]}
    body = chat({"role": "system", "content": "x"}, {"role": "user", "content": A1}, call, done)

    async def scenario(simulated):
        return (await WIRES[1].ask(simulated, body))[0], simulated.turn(A1).calls[0].call

    assert serving(scenario) == (200, 1)


def test_a_chat_stream_ends_with_its_usage_and_done():
    body = chat({"role": "user", "content": "hi"}, stream=True)
    body["stream_options"] = {"include_usage": True}
    _, _, stream = serving(lambda s: WIRES[1].ask(s, body))
    events = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event]
    assert events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0


# ---- Responses


def test_a_stream_of_responses_has_numbered_events_in_their_order():
    body = {"model": "m", "input": "use tool look_up", "stream": True}
    body["tools"] = [{"type": "function", "name": "look_up", "parameters": SCHEMA}]
    _, _, stream = serving(lambda s: WIRES[2].ask(s, body))
    events = [json.loads(e.split(b"data: ")[1]) for e in stream.split(b"\n\n") if e]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[:3] == ["created", "in_progress", "output_item.added"]
    assert names[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    deltas = [e["delta"] for e in events if e["type"].endswith("arguments.delta")]
    assert json.loads("".join(deltas)) == json.loads(
        events[-1]["response"]["output"][0]["arguments"]
    )


def test_a_function_call_may_come_back_without_its_id_and_items_without_a_type():
    output = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    call = {"type": "function_call", "call_id": "c1", "name": "t", "arguments": "{}"}
    user = {"role": "user", "content": [{"type": "input_text", "text": A1}]}
    developer = {"role": "developer", "content": "be brief"}

    async def scenario(simulated):
        statuses = []
        for items in ([developer, user, call, output], [user, call], [user, output]):
            status, _, told = await WIRES[2].ask(simulated, {"model": "m", "input": items})
            statuses.append((status, told.get("error") and told["error"]["message"]))
        return statuses, simulated.turn(A1).calls[0].call

    (legal, unanswered, unasked), call_number = serving(scenario)
    assert legal == (200, None)
    assert "No tool output found for function call c1" in unanswered[1]
    assert "No tool call found for function call output with call_id c1" in unasked[1]
    assert call_number == 1


def test_a_conversation_is_locked_while_a_response_is_under_way_and_free_after_it():
    async def scenario(simulated):
        async def post(path, body):
            status, _, content = await http(simulated, "POST", path, body, BEARER)
            return status, json.loads(content)

        _, made = await post("/v1/conversations", {"items": [{"role": "user", "content": A1}]})
        body = {"model": "m", "conversation": {"id": made["id"]}}
        simulated.arm(Fault("hang", word=A2))
        hanging = asyncio.create_task(post("/v1/responses", body | {"input": A2}))
        await until(lambda: simulated.turn(A2) is not None)
        locked = await post("/v1/responses", body | {"input": "x"})
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        await until(lambda: simulated.statistics().in_flight == 0)
        simulated.arm(Fault("status", status=500, word=A3))
        failed = await post("/v1/responses", body | {"input": A3})
        after = await post("/v1/responses", body | {"input": A3})
        path = f"/v1/conversations/{made['id']}/items?order=asc"
        listed = json.loads((await http(simulated, "GET", path, headers=BEARER))[2])
        return locked, failed[0], after[0], listed["data"], simulated.turn(A3)

    locked, failed, after, items, turn = serving(scenario)
    assert locked[0] == 400
    assert locked[1]["error"]["code"] == "conversation_locked"
    assert (failed, after) == (500, 200)
    # Neither the response that hung nor the one that failed left anything behind.
    assert [item["content"][0]["text"] for item in items[:2]] == [A1, A3]
    assert (turn.read.position, turn.attempts) == (1, 2)


def test_responses_can_be_asked_for_again_and_deleted_and_unknown_ones_are_errors():
    async def scenario(simulated):
        async def ask(method, path, body=None):
            status, _, content = await http(simulated, method, path, body, BEARER)
            return status, json.loads(content)

        _, first = await ask("POST", "/v1/responses", {"model": "m", "input": A1})
        got = await ask("GET", f"/v1/responses/{first['id']}")
        items = await ask("GET", f"/v1/responses/{first['id']}/input_items")
        unkept = await ask("POST", "/v1/responses", {"model": "m", "input": A1, "store": False})
        lost = {"model": "m", "input": A2, "previous_response_id": unkept[1]["id"]}
        unknown = await ask("POST", "/v1/responses", lost)
        gone = await ask("DELETE", f"/v1/responses/{first['id']}")
        missing = await ask("GET", f"/v1/responses/{first['id']}")
        both = {"model": "m", "input": "x", "previous_response_id": "a", "conversation": "b"}
        exclusive = await ask("POST", "/v1/responses", both)
        count = await ask("POST", "/v1/responses/input_tokens", {"model": "m", "input": "x"})
        return first, got, items, unknown, gone, missing, exclusive, count

    first, got, items, unknown, gone, missing, exclusive, count = serving(scenario)
    assert got == (200, first)
    assert items[1]["data"][0]["content"][0]["text"] == A1
    assert unknown[1]["error"]["code"] == "previous_response_not_found"
    assert gone[1]["deleted"] is True
    assert missing[0] == 404
    assert exclusive[1]["error"]["code"] == "mutually_exclusive_parameters"
    assert count[1]["input_tokens"] > 0


# ---- Gemini


def test_function_responses_are_paired_by_name_where_ids_are_stripped():
    call = {"functionCall": {"name": "t", "args": {}}}
    done = {"functionResponse": {"name": "t", "response": {"result": "done"}}}
    user = {"role": "user", "parts": [{"text": A1}]}
    cases = [
        ([user, {"role": "model", "parts": [call]}, {"role": "user", "parts": [done]}], 200),
        ([user, {"role": "model", "parts": [call, call]}, {"role": "user", "parts": [done]}], 400),
        ([user, {"role": "model", "parts": [call]}], 400),
        ([user, {"role": "user", "parts": [done]}], 400),
    ]

    async def scenario(simulated):
        return [(await WIRES[3].ask(simulated, {"contents": contents}))[0] for contents, _ in cases]

    assert serving(scenario) == [status for _, status in cases]


def test_a_thought_signature_is_checked_when_it_comes_back():
    config = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
    user = {"role": "user", "parts": [{"text": "hello"}]}

    async def scenario(simulated):
        _, _, first = await WIRES[3].ask(simulated, {"contents": [user], **config})
        content = first["candidates"][0]["content"]
        signed = next(part for part in content["parts"] if "thoughtSignature" in part)
        statuses = []
        for signature in (signed["thoughtSignature"], "AAAA", "skip_thought_signature_validator"):
            signed["thoughtSignature"] = signature
            body = {"contents": [user, content, user]}
            statuses.append((await WIRES[3].ask(simulated, body))[0])
        return statuses

    assert serving(scenario) == [200, 400, 200]


# ---- threads of the Messages API


def test_a_thread_is_continued_once_and_a_lost_one_is_not_found():
    headers = HEADERS | {"anthropic-beta": "message-threads-2026-08-12"}

    async def scenario(simulated):
        async def ask(prompt, thread, **fields):
            body = {"model": "m", "max_tokens": 99, "thread": thread, **fields}
            body["messages"] = [{"role": "user", "content": prompt}]
            status, _, content = await http(simulated, "POST", "/v1/messages", body, headers)
            told = json.loads(content)
            error = told.get("error", {})
            return status, told.get("id") or error["message"], error.get("details", {})

        _, first, _ = await ask(A1, {"type": "create"}, system="Be brief.")
        again = {"type": "continue", "previous_message_id": first}
        changed = await ask(A2, again, system="Be long.", model="another")
        simulated.arm(Fault("cut", word=A2))
        await http(simulated, "POST", "/v1/messages", b"{}", headers)
        second = await ask(A3, again)
        return (
            changed,
            second,
            await ask(A3, again),
            await ask(A3, {"type": "continue", "previous_message_id": "msg_none"}),
            await http(
                simulated,
                "POST",
                "/v1/messages",
                {"model": "m", "max_tokens": 9, "thread": {"type": "create"}, "messages": []},
                HEADERS,
            ),
            simulated.turn(A3),
        )

    changed, second, already, lost, unasked, turn = serving(scenario)
    assert changed[0::2] == (400, {"error_code": "thread_fingerprint_mismatch"})
    assert "differing field(s): system, model" in changed[1]
    assert second[0] == 200
    assert already[0::2] == (400, {"error_code": "thread_already_continued"})
    assert lost[0::2] == (404, {"error_code": "thread_not_found"})
    assert b"thread: Extra inputs are not permitted" in unasked[2]
    assert turn.read.position == 1
    assert turn.calls[0].session.startswith("msg_")


# ---- schemas

TEXTS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 3, "maxLength": 5},
        {"type": "string", "format": "date"},
        {"type": "string", "enum": ["a", "b"]},
        {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,}$"},
        {"type": ["string", "null"]},
        {"const": 7},
        {"type": "integer", "minimum": 3, "exclusiveMaximum": 5},
        {"type": "integer", "multipleOf": 6, "minimum": 7},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        {"type": "boolean"},
        {"type": "null"},
    ]
)
SCHEMAS = st.recursive(
    TEXTS,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(
            lambda p: {
                "type": "object",
                "properties": p,
                "required": list(p)[:2],
                "additionalProperties": False,
            }
        ),
        inner.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
        inner.map(lambda one: {"allOf": [one]}),
    ),
    max_leaves=6,
)


@settings(SURE, max_examples=50)
@given(SCHEMAS, st.booleans(), st.text(max_size=6))
def test_a_value_is_made_that_fits_any_schema(schema, is_full, text):
    value = fitting(schema, {"a": 3, "b": "b"}, text=text, is_full=is_full)
    jsonschema.validate(value, schema)


def test_a_schema_that_refers_to_itself_and_the_spelling_of_gemini_are_understood():
    node = {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["value", "next"],
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    jsonschema.validate(fitting(schema, {}, is_full=True), schema)
    gemini = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}, "required": ["n"]}
    assert isinstance(fitting(gemini, {})["n"], int)
