"""pydantic-ai over four wire formats, with tools and output types."""

from harness import PROMPT, URL, Session, check, positions, run
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

openai = OpenAIProvider(base_url=f"{URL}/v1", api_key="any")
MODELS = {
    "messages": AnthropicModel(
        "claude-sonnet-5-5", provider=AnthropicProvider(api_key="any", base_url=URL)
    ),
    "chat": OpenAIChatModel("gpt-5.4", provider=openai),
    "responses": OpenAIResponsesModel("gpt-5.4", provider=openai),
    "gemini": GoogleModel("gemini-3-flash", provider=GoogleProvider(api_key="any", base_url=URL)),
}


class Answer(BaseModel):
    """A rating."""

    title: str
    stars: int


def tried(name, model):
    @check(f"{name}: two turns, tool, stream")
    async def _():
        session = Session()
        first, second, third = session(), session(), session()
        agent = Agent(model, instructions="Be brief.")

        @agent.tool_plain
        def create_schedule(title: str, start: str) -> str:
            """Create a schedule entry."""
            return f'{{"schedule_id": 7, "title": "{title}", "start": "{start}"}}'

        reply = await agent.run(f"{PROMPT} {first}")
        assert "7" in reply.output
        reply = await agent.run(second, message_history=reply.all_messages())
        async with agent.run_stream(third, message_history=reply.all_messages()) as stream:
            assert third in await stream.get_output()
        positions(first, second, third)

    @check(f"{name}: output_type")
    async def _():
        agent = Agent(model, output_type=Answer)

        @agent.tool_plain
        def look_up(query: str) -> str:
            """Look something up."""
            return f"seen {query}"

        assert isinstance((await agent.run("use tool look_up")).output, Answer)


for name, model in MODELS.items():
    tried(name, model)

run("pydantic-ai", "pydantic-ai-slim")
