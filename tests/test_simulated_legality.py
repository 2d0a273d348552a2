"""What the simulated API refuses, and that it answers what is legal."""

from __future__ import annotations

import pytest
from simulated_http import TOOL, answer_to, asked

from kode_lab.claude.legality import problem_of
from kode_lab.message import ToolResult, assistant, tool_results, user

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
        ({"max_tokens": -1}, "max_tokens: Input should be"),
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
