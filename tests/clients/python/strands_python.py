"""Strands over two wire formats, with a tool and structured output."""

from harness import PROMPT, URL, Session, check, positions, run
from pydantic import BaseModel
from strands import Agent, tool
from strands.models.anthropic import AnthropicModel
from strands.models.openai import OpenAIModel

MODELS = {
    "messages": lambda: AnthropicModel(
        client_args={"api_key": "any", "base_url": URL},
        model_id="claude-sonnet-5-5",
        max_tokens=500,
    ),
    "chat": lambda: OpenAIModel(
        client_args={"api_key": "any", "base_url": f"{URL}/v1"}, model_id="gpt-5.4"
    ),
}


class Answer(BaseModel):
    """A rating."""

    title: str
    stars: int


@tool
def create_schedule(title: str, start: str) -> str:
    """Create a schedule entry.

    Args:
        title: what it is about.
        start: when it begins.
    """
    return f'{{"schedule_id": 7, "title": "{title}", "start": "{start}"}}'


def tried(name, made):
    @check(f"{name}: two turns, tool, structured output")
    def _():
        session = Session()
        first, second = session(), session()
        agent = Agent(model=made(), tools=[create_schedule], callback_handler=None)
        assert "7" in str(agent(f"{PROMPT} {first}"))
        agent(second)
        positions(first, second)
        answer = agent("Rate it.", structured_output_model=Answer).structured_output
        assert isinstance(answer, Answer)


for name, made in MODELS.items():
    tried(name, made)

run("Strands", "strands-agents")
