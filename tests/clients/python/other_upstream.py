"""The proxy before a server of other authors: two turns, streamed and not, seen by the proxy."""

import os

import anthropic
import openai
from harness import URL, Session, check, positions
import harness

chat = openai.OpenAI(base_url=f"{URL}/v1", api_key="any")
messages = anthropic.Anthropic(base_url=URL, api_key="any")


@check("proxy: Chat Completions, two turns, streamed")
def _():
    session = Session()
    first, second = session(), session()
    said = [{"role": "user", "content": f"hello {first}"}]
    reply = chat.chat.completions.create(model="gpt-4o", messages=said)
    said += [
        {"role": "assistant", "content": reply.choices[0].message.content or "yes"},
        {"role": "user", "content": f"more {second}"},
    ]
    chunks = list(chat.chat.completions.create(model="gpt-4o", messages=said, stream=True))
    assert chunks
    positions(first, second)


@check("proxy: Messages, two turns, streamed")
def _():
    session = Session()
    first, second = session(), session()
    said = [{"role": "user", "content": f"hello {first}"}]
    asked = {"model": "claude-sonnet-5-5", "max_tokens": 100}
    reply = messages.messages.create(**asked, messages=said)
    said += [
        {"role": "assistant", "content": reply.content[0].text},
        {"role": "user", "content": f"more {second}"},
    ]
    events = list(messages.messages.create(**asked, messages=said, stream=True))
    assert events
    positions(first, second)


harness.metadata.version = lambda _: os.environ["UPSTREAM"].split()[1]
harness.run(os.environ["UPSTREAM"].split()[0], "")
