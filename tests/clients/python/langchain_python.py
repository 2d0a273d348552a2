"""LangChain and LangGraph, over four formats."""

from harness import PROMPT, URL, Session, check, positions, run
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel

MODELS = {
    "messages": ChatAnthropic(
        model="claude-sonnet-5-5", base_url=URL, api_key="any", max_tokens=500
    ),
    "chat": ChatOpenAI(model="gpt-5.4", base_url=f"{URL}/v1", api_key="any"),
    "responses": ChatOpenAI(
        model="gpt-5.4", base_url=f"{URL}/v1", api_key="any", use_responses_api=True
    ),
    "gemini": ChatGoogleGenerativeAI(model="gemini-3-flash", base_url=URL, api_key="any"),
}


class Answer(BaseModel):
    """A rating."""

    title: str
    stars: int


@tool
def create_schedule(title: str, start: str) -> str:
    """Create a schedule entry."""
    return f'{{"schedule_id": 7, "title": "{title}", "start": "{start}"}}'


def tried(name, model):
    @check(f"{name}: agent with memory, two turns, tool")
    def _():
        session = Session()
        first, second = session(), session()
        agent = create_react_agent(model, [create_schedule], checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": first}}
        reply = agent.invoke({"messages": [("user", f"{PROMPT} {first}")]}, config)
        assert "7" in reply["messages"][-1].text
        agent.invoke({"messages": [("user", second)]}, config)
        positions(first, second)

    @check(f"{name}: stream, with_structured_output")
    def _():
        marker = Session()()
        text = "".join(chunk.text for chunk in model.stream([HumanMessage(marker)]))
        assert marker in text
        assert isinstance(model.with_structured_output(Answer).invoke("Rate it."), Answer)


for name, model in MODELS.items():
    tried(name, model)

run("LangChain, LangGraph", "langgraph")
