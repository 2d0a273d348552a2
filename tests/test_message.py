"""Messages have the shape of the Messages API, and a broken-off conversation is made legal."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from kode_lab.message import (
    Reply,
    ToolCall,
    ToolResult,
    assistant,
    seal,
    text_of,
    tool_calls_of,
    tool_results,
    user,
)


def text(words):
    return {"type": "text", "text": words}


def tool_use(call_id, name="look"):
    return {"type": "tool_use", "id": call_id, "name": name, "input": {}}


def illegalities(messages):
    """What the Messages API would refuse, and where no next prompt could follow."""
    found = []
    for at, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[at % 2]:
            found.append(f"message {at} is out of turn")
        asked = {call.id for call in tool_calls_of(messages[at - 1]["content"])} if at else set()
        answered = [b["tool_use_id"] for b in message["content"] if b["type"] == "tool_result"]
        if sorted(answered) != sorted(asked):
            found.append(f"message {at} answers {answered}, asked were {sorted(asked)}")
    if messages and (messages[-1]["role"] == "user" or tool_calls_of(messages[-1]["content"])):
        found.append("the last word is not the assistant's")
    return found


@st.composite
def broken_off(draw):
    """A legal conversation, cut after any of its messages."""
    messages, serial = [], iter(range(10_000))
    for _ in range(draw(st.integers(0, 3))):
        messages.append(user(draw(st.text())))
        for _ in range(draw(st.integers(0, 3))):
            ids = [f"call_{next(serial)}" for _ in range(draw(st.integers(1, 3)))]
            blocks = [text("let me look")] if draw(st.booleans()) else []
            messages.append(assistant([*blocks, *map(tool_use, ids)]))
            messages.append(tool_results(ToolResult(call_id, "seen") for call_id in ids))
        messages.append(assistant(draw(st.text(min_size=1))))
    return messages[: draw(st.integers(0, len(messages)))]


@given(broken_off())
def test_a_sealed_conversation_is_legal_and_keeps_what_was_said(messages):
    before = copy.deepcopy(messages)
    sealed = [*messages, *seal(messages, "the turn was broken off")]
    assert illegalities(sealed) == []
    assert messages == before
    assert sealed[: len(before)] == before


@given(broken_off())
def test_sealing_twice_adds_nothing(messages):
    sealed = [*messages, *seal(messages, "broken off")]
    assert seal(sealed, "broken off") == []


def test_each_open_tool_call_is_answered_by_an_error_that_gives_the_reason():
    messages = [user("both?"), assistant([tool_use("a"), tool_use("b")])]
    answer, last = seal(messages, "the process died")
    assert [(b["tool_use_id"], b["is_error"], b["content"]) for b in answer["content"]] == [
        ("a", True, "the process died"),
        ("b", True, "the process died"),
    ]
    assert last == assistant("the process died")


def test_the_checker_of_this_test_sees_each_illegality():
    assert illegalities([assistant("hello")])
    assert illegalities([user("a"), user("b"), assistant("c")])
    assert illegalities([user("a"), assistant([tool_use("x")])])
    assert illegalities([user("a"), assistant([tool_use("x")]), user("b"), assistant("c")])
    stray = tool_results([ToolResult("y", "")])
    assert illegalities([user("a"), assistant("b"), stray, assistant("c")])


def test_a_reply_tells_its_text_and_its_tool_calls_in_order():
    reply = Reply((text("I "), tool_use("a", "one"), text("see"), tool_use("b", "two")), "tool_use")
    assert reply.text == "I see"
    assert reply.tool_calls == (ToolCall("a", "one", {}), ToolCall("b", "two", {}))


def test_the_text_of_a_message_includes_that_of_its_tool_results():
    assert text_of(user("hello")) == "hello"
    assert text_of({"role": "user", "content": "plain"}) == "plain"
    nested = {"type": "tool_result", "tool_use_id": "a", "content": [text("inner")]}
    bare = {"type": "tool_result", "tool_use_id": "b"}
    assert text_of({"role": "user", "content": [nested, bare, text("outer")]}) == "inner\n\nouter"
    assert text_of(tool_results([ToolResult("a", "x"), ToolResult("b", "y")])) == "x\ny"


def test_building_a_message_takes_a_copy_of_the_blocks_list():
    blocks = [text("a")]
    message = assistant(blocks)
    blocks.append(text("b"))
    assert message["content"] == [text("a")]
