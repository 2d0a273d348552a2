"""Messages have the shape of the Messages API."""

from kode_lab.message import (
    Reply,
    ToolCall,
    ToolResult,
    assistant,
    has_thinking,
    text_of,
    tool_results,
    user,
    without_thinking,
)


def text(words):
    return {"type": "text", "text": words}


def tool_use(call_id, name="look"):
    return {"type": "tool_use", "id": call_id, "name": name, "input": {}}


def test_thinking_is_left_out_of_a_message_and_the_rest_stays_as_it_is():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    plain = assistant("hello")
    assert without_thinking(plain) is plain
    assert not has_thinking(plain)
    mixed = assistant([thought, text("a"), hidden, tool_use("c")])
    assert has_thinking(mixed)
    assert without_thinking(mixed) == assistant([text("a"), tool_use("c")])
    assert len(mixed["content"]) == 4
    assert without_thinking(assistant([thought])) == assistant("(No text.)")
    bare = {"role": "assistant", "content": "as text"}
    assert without_thinking(bare) is bare


def test_a_user_message_is_made_of_text_or_of_blocks():
    assert user("hello") == {"role": "user", "content": [text("hello")]}
    assert user([text("hello")]) == user("hello")


def test_a_reply_of_text_is_one_block():
    assert Reply.of_text("hello") == Reply((text("hello"),), "end_turn")
    assert Reply.of_text("hel", "max_tokens").stop_reason == "max_tokens"


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
