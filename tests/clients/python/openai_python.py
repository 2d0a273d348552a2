"""The OpenAI SDK for Python: Chat Completions, Responses, Conversations."""

import asyncio
import time

import openai
from harness import URL, Session, arm, check, positions, run, witnessed
from pydantic import BaseModel

MODEL = "gpt-5.4"
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="any")
PARAMETERS = {
    "type": "object",
    "properties": {"query": {"type": "string"}, "limit": {"type": ["integer", "null"]}},
    "required": ["query", "limit"],
    "additionalProperties": False,
}
CHAT_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}
TOOL = {"type": "function", "name": "look_up", "parameters": PARAMETERS, "strict": True}


def is_seen(marker):
    """Whether the model was asked for this turn."""
    try:
        return bool(witnessed(marker))
    except OSError:
        return False


class Answer(BaseModel):
    title: str
    stars: int


@check("chat: two turns, streamed with usage")
def _():
    session = Session()
    first, second = session(), session()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": first}]},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages)
    messages += [reply.choices[0].message, {"role": "user", "content": second}]
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage.total_tokens > 0
    assert second in "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    positions(first, second)


@check("chat: parallel tools by name, streamed and not, results sent back")
def _():
    other = {"type": "function", "function": {"name": "count_up", "parameters": PARAMETERS}}
    messages = [{"role": "user", "content": "use tools look_up and count_up"}]
    asked = {"model": MODEL, "tools": [CHAT_TOOL, other]}
    message = client.chat.completions.create(**asked, messages=messages).choices[0].message
    assert [c.function.name for c in message.tool_calls] == ["look_up", "count_up"]
    with client.chat.completions.stream(**asked, messages=messages) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert [c.function.arguments for c in streamed] == [
        c.function.arguments for c in message.tool_calls
    ]
    results = [
        {"role": "tool", "tool_call_id": c.id, "content": "seen"} for c in message.tool_calls
    ]
    final = client.chat.completions.create(**asked, messages=[*messages, message, *results])
    assert "seen; seen" in final.choices[0].message.content


@check("chat: parse, json_object, tool_choice, max_tokens, stop")
def _():
    messages = [{"role": "user", "content": "Rate it."}]
    asked = {"model": MODEL, "messages": messages}
    parsed = client.chat.completions.parse(**asked, response_format=Answer)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    client.chat.completions.create(**asked, response_format={"type": "json_object"})
    forced = client.chat.completions.create(**asked, tools=[CHAT_TOOL], tool_choice="required")
    assert forced.choices[0].finish_reason == "tool_calls"
    cut = client.chat.completions.create(**asked, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    stopped = client.chat.completions.create(**asked, stop=["said"])
    assert stopped.choices[0].message.content.endswith("You ")


@check("responses: previous_response_id, streamed")
def _():
    session = Session()
    first, second, third = session(), session(), session()
    one = client.responses.create(model=MODEL, input=first, instructions="Be brief.")
    two = client.responses.create(model=MODEL, input=second, previous_response_id=one.id)
    with client.responses.stream(model=MODEL, input=third, previous_response_id=two.id) as stream:
        assert third in stream.get_final_response().output_text
    positions(first, second, third)
    assert witnessed(third)["calls"][0]["session"] == one.id
    assert client.responses.retrieve(one.id).output_text == one.output_text
    assert client.responses.input_items.list(one.id).data[0].content[0].text == first
    client.responses.delete(one.id)


@check("responses: a fork of one previous response")
def _():
    session = Session()
    one = client.responses.create(model=MODEL, input=session())
    left, right = session(), session()
    for marker in (left, right):
        client.responses.create(model=MODEL, input=marker, previous_response_id=one.id)
    calls = [witnessed(marker)["calls"][0] for marker in (left, right)]
    assert [call["parent"] for call in calls] == [one.id, one.id]
    assert [call["read"]["position"] for call in calls] == [1, 1]


@check("responses: function calls, reasoning with encrypted content")
def _():
    asked = {
        "model": MODEL,
        "tools": [TOOL],
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }
    items = [{"role": "user", "content": "use tool look_up"}]
    with client.responses.stream(**asked, input=items) as stream:
        reply = stream.get_final_response()
    call = reply.output[-1]
    assert call.name == "look_up"
    items += [item.model_dump(exclude_none=True) for item in reply.output]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "seen"}]
    assert "seen" in client.responses.create(**asked, input=items).output_text


@check("responses: parse, tool_choice, max_output_tokens")
def _():
    assert isinstance(
        client.responses.parse(model=MODEL, input="Rate it.", text_format=Answer).output_parsed,
        Answer,
    )
    asked = {"model": MODEL, "input": "hello"}
    forced = client.responses.create(**asked, tools=[TOOL], tool_choice="required")
    assert forced.output[-1].type == "function_call"
    cut = client.responses.create(**asked, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@check("conversations: items, locked while a response is under way")
async def _():
    session = Session()
    first, second = session(), session()
    conversation = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": f"earlier {first}"}]
    )
    client.responses.create(model=MODEL, input=second, conversation=conversation.id)
    assert witnessed(second)["read"]["position"] == 1
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.role for item in items] == ["user", "user", "assistant"]
    other = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="any", max_retries=0)
    third = session()
    arm(kind="hang", word=third)
    async with other:
        asked = {"model": MODEL, "conversation": conversation.id}
        hanging = asyncio.create_task(other.responses.create(**asked, input=third))
        until = time.monotonic() + 30
        while not is_seen(third) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        try:
            await other.responses.create(**asked, input=session())
        except openai.BadRequestError as error:
            assert error.code == "conversation_locked"
        else:
            raise AssertionError("a locked conversation took a second response")
        finally:
            hanging.cancel()


@check("errors: unknown previous response, context, retries")
def _():
    try:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_none")
    except openai.BadRequestError as error:
        assert error.code == "previous_response_not_found"
    marker = Session()()
    arm(kind="status", status=503, word=marker)
    client.responses.create(model=MODEL, input=marker)
    assert witnessed(marker)["attempts"] == 2
    arm(kind="context_limit", word="too long")
    try:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "too long"}]
        )
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
    assert client.models.retrieve("house-model").id == "house-model"


run("openai", "openai")
