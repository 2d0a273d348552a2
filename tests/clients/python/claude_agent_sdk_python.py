"""claude-agent-sdk, with a tool of its own."""

import os
import tempfile

from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    create_sdk_mcp_server,
    tool,
)
from harness import URL, Session, check, positions, run

home = tempfile.mkdtemp()
ENVIRONMENT = {
    "ANTHROPIC_BASE_URL": URL,
    "ANTHROPIC_API_KEY": "any",
    "HOME": home,
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
used = []


@tool("look_up", "Look something up.", {"query": str})
async def look_up(given):
    used.append(given)
    return {"content": [{"type": "text", "text": "seen"}]}


@check("two turns of one client, a tool of its own")
async def _():
    session = Session()
    first, second = session(), session()
    options = ClaudeAgentOptions(
        mcp_servers={"own": create_sdk_mcp_server("own", tools=[look_up])},
        allowed_tools=["mcp__own__look_up"],
        env=ENVIRONMENT,
        cwd=home,
        cli_path=os.environ.get("CLAUDE_CLI"),
    )
    async with ClaudeSDKClient(options) as client:
        for prompt in (f"use tool look_up {first}", f"hello {second}"):
            await client.query(prompt)
            async for _ in client.receive_response():
                pass
    assert used
    positions(first, second)


run("claude-agent-sdk", "claude-agent-sdk")
