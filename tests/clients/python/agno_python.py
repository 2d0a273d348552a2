"""Agno over three wire formats, with history and a tool."""

from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.anthropic import Claude
from agno.models.openai import OpenAIChat, OpenAIResponses
from harness import PROMPT, URL, Session, check, positions, run


def create_schedule(title: str, start: str) -> str:
    """Create a schedule entry.

    Args:
        title: what it is about.
        start: when it begins.
    """
    return f'{{"schedule_id": 7, "title": "{title}", "start": "{start}"}}'


MODELS = {
    "messages": lambda: Claude(
        id="claude-sonnet-5-5", api_key="any", client_params={"base_url": URL}
    ),
    "chat": lambda: OpenAIChat(id="gpt-5.4", api_key="any", base_url=f"{URL}/v1"),
    "responses": lambda: OpenAIResponses(id="gpt-5.4", api_key="any", base_url=f"{URL}/v1"),
}


def tried(name, made):
    @check(f"{name}: two turns with history, tool")
    def _():
        session = Session()
        first, second = session(), session()
        agent = Agent(
            model=made(),
            db=InMemoryDb(),
            tools=[create_schedule],
            add_history_to_context=True,
            session_id=first,
            telemetry=False,
        )
        assert "7" in agent.run(f"{PROMPT} {first}").content
        assert second in agent.run(second).content
        positions(first, second)


for name, made in MODELS.items():
    tried(name, made)

run("Agno", "agno")
