"""The Google Gen AI SDK for Python."""

from google import genai
from google.genai import errors, types
from harness import URL, Session, arm, check, positions, run, witnessed
from pydantic import BaseModel

MODEL = "gemini-3-flash"
client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=URL))


class Answer(BaseModel):
    title: str
    stars: int


def look_up(query: str) -> str:
    """Look something up."""
    return f"seen {query[:5]}"


@check("chat of two turns, streamed and not")
def _():
    session = Session()
    first, second, third = session(), session(), session()
    chat = client.chats.create(model=MODEL)
    assert first in chat.send_message(first).text
    pieces = [chunk.text or "" for chunk in chat.send_message_stream(second)]
    assert second in "".join(pieces)
    chat.send_message(third)
    positions(first, second, third)


@check("automatic function calling")
def _():
    reply = client.models.generate_content(
        model=MODEL,
        contents="use tool look_up",
        config=types.GenerateContentConfig(tools=[look_up]),
    )
    assert "seen" in reply.text


@check("parametersJsonSchema, mode ANY, thoughts with a signature sent back")
def _():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    declared = types.FunctionDeclaration(name="count_up", parameters_json_schema=schema)
    calling = types.FunctionCallingConfig(mode="ANY", allowed_function_names=["count_up"])
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(function_calling_config=calling),
        thinking_config=types.ThinkingConfig(include_thoughts=True),
    )
    contents = [types.Content(role="user", parts=[types.Part(text="hello")])]
    reply = client.models.generate_content(model=MODEL, contents=contents, config=config)
    call = reply.function_calls[0]
    assert isinstance(call.args["n"], int)
    answer = types.Part.from_function_response(name=call.name, response={"result": "seen"})
    contents += [reply.candidates[0].content, types.Content(role="user", parts=[answer])]
    client.models.generate_content(model=MODEL, contents=contents, config=config)


@check("response_schema, max_output_tokens, system_instruction")
def _():
    config = types.GenerateContentConfig(
        response_mime_type="application/json",
        response_schema=Answer,
        system_instruction="Be brief.",
    )
    reply = client.models.generate_content(model=MODEL, contents="Rate it.", config=config)
    assert isinstance(reply.parsed, Answer)
    cut = client.models.generate_content(
        model=MODEL,
        contents="hello",
        config=types.GenerateContentConfig(max_output_tokens=2),
    )
    assert cut.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


@check("errors, count_tokens, models, async")
async def _():
    marker = Session()()
    arm(kind="status", status=429, word=marker, retry_after_s=1)
    try:
        client.models.generate_content(model=MODEL, contents=marker)
    except errors.ClientError as error:
        assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    else:
        assert witnessed(marker)["attempts"] == 2
    assert client.models.count_tokens(model=MODEL, contents="hello").total_tokens > 0
    assert client.models.get(model="house").name == "models/house"
    other = Session()()
    reply = await client.aio.models.generate_content(model=MODEL, contents=other)
    assert other in reply.text


run("google-genai", "google-genai")
