"""No body breaks a wire format: it is refused with a reason, or answered."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from kode_lab.claude.api import SimulatedApi
from kode_lab.claude.fault import FaultPlan
from kode_lab.claude.profile import Profile
from kode_lab.claude.records import Records

ODD = [None, True, 0, -1, 1.5, "", "x", "use tool t", [], {}, [[]], [None], [1], {"type": "text"}]
WORDS = {
    "role": ["user", "assistant", "system", "tool", "model", "developer"],
    "type": [
        "text",
        "tool_use",
        "tool_result",
        "thinking",
        "function",
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "item_reference",
        "custom",
        "json_schema",
        "object",
        "tool_addition",
    ],
}
NAMES = [
    *WORDS,
    "content",
    "text",
    "id",
    "name",
    "input",
    "output",
    "tool_use_id",
    "call_id",
    "tool_calls",
    "tool_call_id",
    "function",
    "arguments",
    "parts",
    "functionCall",
    "functionResponse",
    "response",
    "args",
    "thoughtSignature",
    "summary",
    "encrypted_content",
    "tool",
    "schema",
    "parameters",
    "properties",
    "format",
]
FIELDS = {
    "messages": [
        "tools",
        "tool_choice",
        "system",
        "thinking",
        "output_config",
        "metadata",
        "stop_sequences",
    ],
    "chat": [
        "tools",
        "tool_choice",
        "response_format",
        "stop",
        "metadata",
        "max_tokens",
        "stream_options",
    ],
    "responses": [
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "instructions",
        "conversation",
        "include",
    ],
    "gemini": ["tools", "toolConfig", "generationConfig", "systemInstruction", "safetySettings"],
}
LISTS = {"messages": "messages", "chat": "messages", "responses": "input", "gemini": "contents"}


def value(draw, depth=0):
    """Return an odd value, or a structure of the names that the formats look at."""
    if depth > 3 or draw.random() < 0.4:
        return draw.choice(ODD)
    if draw.random() < 0.3:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    names = draw.sample(NAMES, draw.randint(1, 6))
    return {
        name: draw.choice(WORDS[name])
        if name in WORDS and draw.random() < 0.8
        else value(draw, depth + 1)
        for name in names
    }


PATHS = {
    "messages": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/m:generateContent",
}
HEADERS = [
    (b"host", b"localhost"),
    (b"authorization", b"Bearer any"),
    (b"anthropic-version", b"2026-10-21"),
]
EXAMPLES = 600


@pytest.mark.parametrize("name", list(PATHS))
def test_no_body_breaks_a_format_and_what_it_lets_pass_is_answered(name):
    draw = random.Random(name)
    api = SimulatedApi(Profile(), FaultPlan(), Records(), salt="s")
    statuses = [asyncio.run(status_of(api, name, body_of(name, draw))) for _ in range(EXAMPLES)]
    assert set(statuses) <= {200, 400, 404}
    assert statuses.count(200) > EXAMPLES / 20
    assert statuses.count(400) > EXAMPLES / 20


async def status_of(api, name, body):
    """Return the status of the answer to a body, straight from the application."""
    data, sent = json.dumps(body).encode(), []

    async def receive():
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATHS[name],
        "query_string": b"",
        "headers": HEADERS,
    }
    await api(scope, receive, send)
    assert sent[0]["status"] == 200 or b"error" in sent[1]["body"]
    return sent[0]["status"]


def body_of(name, draw):
    body = {field: value(draw) for field in draw.sample(FIELDS[name], draw.randint(0, 3))}
    plain = {"role": "user", "content": "use tool t"}
    if name == "gemini":
        plain = {"role": "user", "parts": [{"text": "use tool t"}]}
    else:
        body["model"] = "m"
    if name == "messages":
        body["max_tokens"] = 9
    choice = draw.random()
    if choice < 0.5:
        body[LISTS[name]] = [plain]
    elif choice < 0.9:
        body[LISTS[name]] = [plain, *(value(draw) for _ in range(draw.randint(1, 3)))]
    else:
        body[LISTS[name]] = value(draw)
    return body
