"""OpenAI Agents for Python: Responses (default) and Chat Completions, sessions, conversations."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from harness import PROMPT, URL, Session, check, positions, run
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Answer(BaseModel):
    title: str
    stars: int


@function_tool
def create_schedule(title: str, start: str) -> str:
    """Create a schedule entry."""
    return f'{{"schedule_id": 7, "title": "{title}", "start": "{start}"}}'


def client():
    return AsyncOpenAI(base_url=f"{URL}/v1", api_key="any")


def responses():
    return OpenAIResponsesModel("gpt-5.4", client())


def chat():
    return OpenAIChatCompletionsModel("gpt-5.4", client())


def tried(name, made):
    @check(f"{name}: SQLite session, tool, streamed")
    async def _():
        markers = Session()
        first, second, third = markers(), markers(), markers()
        agent = Agent(name="a", instructions="Be brief.", model=made(), tools=[create_schedule])
        session = SQLiteSession(first)
        reply = await Runner.run(agent, f"{PROMPT} {first}", session=session)
        assert "7" in reply.final_output
        await Runner.run(agent, second, session=session)
        streamed = Runner.run_streamed(agent, third, session=session)
        async for _ in streamed.stream_events():
            pass
        assert third in streamed.final_output
        positions(first, second, third)

    @check(f"{name}: output_type, tool_choice required")
    async def _():
        agent = Agent(
            name="a",
            model=made(),
            tools=[create_schedule],
            output_type=Answer,
            model_settings=ModelSettings(tool_choice="required"),
        )
        assert isinstance((await Runner.run(agent, "Rate it.")).final_output, Answer)


tried("responses", responses)
tried("chat", chat)


@check("responses: previous_response_id and a conversation session")
async def _():
    markers = Session()
    first, second = markers(), markers()
    agent = Agent(name="a", model=responses(), tools=[create_schedule])
    reply = await Runner.run(agent, first)
    await Runner.run(agent, second, previous_response_id=reply.last_response_id)
    positions(first, second)
    markers = Session()
    first, second = markers(), markers()
    session = OpenAIConversationsSession(openai_client=client())
    for marker in (first, second):
        await Runner.run(agent, marker, session=session)
    positions(first, second)


run("OpenAI Agents (Python)", "openai-agents")
