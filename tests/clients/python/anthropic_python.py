"""The Anthropic SDK for Python."""

import anthropic
from anthropic import beta_tool
from harness import PROMPT, URL, Session, arm, check, positions, run, witnessed
from pydantic import BaseModel

MODEL = "claude-sonnet-5-5"
client = anthropic.Anthropic(base_url=URL, api_key="any")
TOOL = {
    "name": "look_up",
    "description": "Look something up.",
    "input_schema": {
        "type": "object",
        "properties": {"query": {"type": "string"}, "limit": {"type": "integer", "minimum": 1}},
        "required": ["query", "limit"],
    },
}


def said(message):
    return "".join(block.text for block in message.content if block.type == "text")


@check("two turns, sync and async")
async def _():
    session = Session()
    first, second = session(), session()
    messages = [{"role": "user", "content": f"hello {first}"}]
    reply = client.messages.create(model=MODEL, max_tokens=200, messages=messages)
    messages += [
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": f"and {second}"},
    ]
    other = anthropic.AsyncAnthropic(base_url=URL, api_key="any")
    await other.messages.create(model=MODEL, max_tokens=200, messages=messages)
    positions(first, second)


@check("stream")
def _():
    marker = Session()()
    with client.messages.stream(
        model=MODEL, max_tokens=200, messages=[{"role": "user", "content": marker}]
    ) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().stop_reason == "end_turn"
    assert marker in text


@check("tool by name, streamed and not")
def _():
    asked = [{"role": "user", "content": "Please use tool look_up for this."}]
    reply = client.messages.create(model=MODEL, max_tokens=300, messages=asked, tools=[TOOL])
    assert reply.content[-1].name == "look_up"
    assert reply.content[-1].input["limit"] >= 1
    with client.messages.stream(
        model=MODEL, max_tokens=300, messages=asked, tools=[TOOL]
    ) as stream:
        assert stream.get_final_message().content[-1].input == reply.content[-1].input


@check("tool_choice: any, tool, none")
def _():
    asked = {"model": MODEL, "max_tokens": 300, "tools": [TOOL]}
    asked["messages"] = [{"role": "user", "content": "hello"}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "look_up"}):
        reply = client.messages.create(**asked, tool_choice=choice)
        assert reply.stop_reason == "tool_use"
    assert client.messages.create(**asked, tool_choice={"type": "none"}).stop_reason == "end_turn"


@check("parse into a pydantic model")
def _():
    class Answer(BaseModel):
        title: str
        stars: int

    reply = client.messages.parse(
        model=MODEL,
        max_tokens=300,
        messages=[{"role": "user", "content": "Rate it."}],
        output_format=Answer,
    )
    assert isinstance(reply.parsed_output, Answer)


@beta_tool
def create_schedule(title: str, start: str) -> str:
    """Create a schedule.

    Args:
        title: what it is about.
        start: when it begins.
    """
    return f'{{"schedule_id": 7, "title": "{title}", "start": "{start}"}}'


@check("tool runner (threads)")
def _():
    marker = Session()()
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=300,
        tools=[create_schedule],
        messages=[{"role": "user", "content": f"{PROMPT} {marker}"}],
    )
    assert "7" in said(runner.until_done())
    turn = witnessed(marker)
    assert [call["call"] for call in turn["calls"]] == [0, 1]


@check("thread helper: create, continue, lost, streamed")
def _():
    session = Session()
    markers = [session() for _ in range(4)]
    thread = client.beta.messages.thread(model=MODEL, max_tokens=200, system="Be brief.")
    for marker in markers[:2]:
        thread.send({"role": "user", "content": marker})
    with thread.stream({"role": "user", "content": markers[2]}) as stream:
        stream.until_done()
    thread.send({"role": "user", "content": markers[3]})
    positions(*markers)


@check("thinking, streamed, and its signature sent back")
def _():
    asked = {"model": MODEL, "max_tokens": 2000, "thinking": {"type": "adaptive"}}
    messages = [{"role": "user", "content": "hello"}]
    with client.messages.stream(**asked, messages=messages) as stream:
        reply = stream.get_final_message()
    assert reply.content[0].type == "thinking"
    messages += [
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": "more"},
    ]
    client.messages.create(**asked, messages=messages)
    broken = [{**reply.content[0].model_dump(), "signature": "x"}]
    messages[1] = {"role": "assistant", "content": [*broken, {"type": "text", "text": "a"}]}
    try:
        client.messages.create(**asked, messages=messages)
    except anthropic.BadRequestError as error:
        assert "signature" in str(error)
    else:
        raise AssertionError("a broken signature was accepted")


@check("context_management: edits applied and counted")
def _():
    betas = ["context-management-2025-06-27"]
    tool = {"name": "lookup", "input_schema": {"type": "object"}}
    messages = [{"role": "user", "content": "begin"}]
    for number in range(6):
        call = {"type": "tool_use", "id": f"toolu_{number}", "name": "lookup", "input": {}}
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "long " * 100}
        messages += [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
    edit = {
        "type": "clear_tool_uses_20250919",
        "trigger": {"type": "tool_uses", "value": 5},
        "keep": {"type": "tool_uses", "value": 2},
    }
    asked = {"model": MODEL, "messages": messages, "tools": [tool], "betas": betas}
    asked["context_management"] = {"edits": [edit]}
    reply = client.beta.messages.create(**asked, max_tokens=100)
    (applied,) = reply.context_management.applied_edits
    assert (applied.type, applied.cleared_tool_uses) == (edit["type"], 4)
    counted = client.beta.messages.count_tokens(**asked)
    original = counted.context_management.original_input_tokens
    assert original - counted.input_tokens == applied.cleared_input_tokens > 0
    with client.beta.messages.stream(**asked, max_tokens=100) as stream:
        streamed = stream.get_final_message()
    assert streamed.context_management.applied_edits[0].cleared_tool_uses == 4


@check("mcp_servers: a tool used and answered within the reply, streamed and not")
def _():
    asked = {
        "model": MODEL,
        "max_tokens": 300,
        "messages": [{"role": "user", "content": "use tool search"}],
        "betas": ["mcp-client-2025-11-20"],
        "mcp_servers": [{"type": "url", "url": "https://example.org", "name": "wiki"}],
        "tools": [{"type": "mcp_toolset", "mcp_server_name": "wiki"}],
    }
    with client.beta.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for reply in (client.beta.messages.create(**asked), streamed):
        use, result, text = reply.content
        assert (use.type, use.name, use.server_name) == ("mcp_tool_use", "search", "wiki")
        assert result.type == "mcp_tool_result"
        assert result.tool_use_id == use.id
        assert text.type == "text"


@check("thread: a changed field is thread_fingerprint_mismatch")
def _():
    asked = {"model": MODEL, "max_tokens": 100, "betas": ["message-threads-2026-08-12"]}
    messages = [{"role": "user", "content": "hello"}]
    first = client.beta.messages.create(
        **asked, messages=messages, system="Be brief.", thread={"type": "create"}
    )
    again = {"type": "continue", "previous_message_id": first.id}
    config = {"effort": "low"}
    try:
        client.beta.messages.create(**asked, messages=messages, thread=again, output_config=config)
    except anthropic.types.ThreadFingerprintMismatchError as error:
        assert "output_config" in str(error)
    else:
        raise AssertionError("a changed field was accepted")
    client.beta.messages.create(**asked, messages=messages, thread=again, system="Be brief.")


@check("count_tokens, models")
def _():
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    assert client.messages.count_tokens(**asked).input_tokens > 0
    assert client.models.retrieve("house/model").id == "house/model"
    assert len(list(client.models.list())) >= 3


@check("retry after 429 is one turn with two attempts")
def _():
    marker = Session()()
    arm(kind="status", status=429, word=marker, retry_after_s=0.01, retry_form="milliseconds")
    client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": marker}]
    )
    turn = witnessed(marker)
    assert (turn["requests"], turn["attempts"]) == (2, 2)


run("anthropic", "anthropic")
