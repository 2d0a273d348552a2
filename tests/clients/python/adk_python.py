"""Google ADK, over Gemini (its default) and two others."""

import os

from harness import PROMPT, URL, Session, check, positions, run, witnessed

os.environ["GOOGLE_API_KEY"] = "any"
os.environ["GOOGLE_GEMINI_BASE_URL"] = URL
os.environ["ANTHROPIC_API_KEY"] = "any"
os.environ["ANTHROPIC_BASE_URL"] = URL

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.models.anthropic_llm import AnthropicLlm
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types
from pydantic import BaseModel


class Answer(BaseModel):
    title: str
    stars: int


def create_schedule(title: str, start: str) -> dict:
    """Create a schedule entry."""
    return {"schedule_id": 7, "title": title, "start": start}


MODELS = {
    "gemini": lambda: "gemini-3-flash",
    "messages": lambda: AnthropicLlm(model="claude-sonnet-5-5"),
    "chat (LiteLLM)": lambda: LiteLlm(model="openai/gpt-5.4", api_base=f"{URL}/v1", api_key="any"),
}


async def ask(runner, session_id, prompt, **config):
    content = types.Content(role="user", parts=[types.Part(text=prompt)])
    text = ""
    async for event in runner.run_async(
        user_id="u", session_id=session_id, new_message=content, run_config=RunConfig(**config)
    ):
        if event.is_final_response() and event.content:
            text += "".join(part.text or "" for part in event.content.parts)
    return text


def tried(name, made):
    @check(f"{name}: three turns, tool, streamed")
    async def _():
        session = Session()
        first, second, third = session(), session(), session()
        agent = LlmAgent(name="a", model=made(), tools=[create_schedule])
        runner = InMemoryRunner(agent, app_name="app")
        await runner.session_service.create_session(app_name="app", user_id="u", session_id="s")
        assert "7" in await ask(runner, "s", f"{PROMPT} {first}")
        assert second in await ask(runner, "s", second)
        await ask(runner, "s", third, streaming_mode=StreamingMode.SSE)
        assert witnessed(third)["calls"][0]["isStream"]
        positions(first, second, third)

    @check(f"{name}: output_schema")
    async def _():
        agent = LlmAgent(name="a", model=made(), output_schema=Answer)
        runner = InMemoryRunner(agent, app_name="app")
        await runner.session_service.create_session(app_name="app", user_id="u", session_id="s")
        Answer.model_validate_json(await ask(runner, "s", "Rate it."))


for name, made in MODELS.items():
    tried(name, made)

run("Google ADK", "google-adk")
