"""LiteLLM over three wire formats and Responses."""

import litellm
from harness import URL, Session, check, positions, run

litellm.telemetry = False
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
        },
    },
}
ROUTES = {
    "messages": {"model": "anthropic/claude-sonnet-5-5", "api_base": URL},
    "chat": {"model": "openai/gpt-5.4", "api_base": f"{URL}/v1"},
    "gemini": {"model": "gemini/gemini-3-flash", "api_base": f"{URL}/v1beta/models/gemini-3-flash"},
}


def tried(name, route):
    asked = {**route, "api_key": "any", "max_tokens": 300}

    @check(f"{name}: two turns, stream, tool")
    def _():
        session = Session()
        first, second = session(), session()
        messages = [{"role": "user", "content": first}]
        reply = litellm.completion(**asked, messages=messages).choices[0].message
        messages += [
            {"role": "assistant", "content": reply.content},
            {"role": "user", "content": second},
        ]
        chunks = litellm.completion(**asked, messages=messages, stream=True)
        assert second in "".join(c.choices[0].delta.content or "" for c in chunks)
        positions(first, second)
        used = litellm.completion(
            **asked, messages=[{"role": "user", "content": "use tool look_up"}], tools=[TOOL]
        )
        assert used.choices[0].message.tool_calls[0].function.name == "look_up"


for name, route in ROUTES.items():
    tried(name, route)


@check("responses")
def _():
    marker = Session()()
    reply = litellm.responses(
        model="openai/gpt-5.4", input=marker, api_base=f"{URL}/v1", api_key="any"
    )
    assert marker in reply.output[-1].content[0].text


run("LiteLLM", "litellm")
