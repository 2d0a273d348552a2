"""Claude Code as a command: ``-p``, ``--continue``, ``--resume``, a tool."""

import json
import os
import subprocess
import tempfile
from importlib import metadata

import harness
from harness import URL, Session, check, positions, witnessed

home = tempfile.mkdtemp()
ENVIRONMENT = {
    **os.environ,
    "ANTHROPIC_BASE_URL": URL,
    "ANTHROPIC_API_KEY": "any",
    "HOME": home,
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
CLI = os.environ["CLAUDE_CLI"]


def claude(*arguments):
    ended = subprocess.run(
        [CLI, "-p", "--output-format", "json", *arguments],
        env=ENVIRONMENT,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stdout[-300:] + ended.stderr[-300:]
    return json.loads(ended.stdout)


@check("-p, --continue, --resume")
def _():
    session = Session()
    first, second, third = session(), session(), session()
    one = claude(f"hello {first}")
    assert first in one["result"]
    claude("--continue", f"more {second}")
    claude("--resume", one["session_id"], f"and {third}")
    positions(first, second, third)
    assert witnessed(third)["calls"][0]["session"]


@check("a tool of the command line")
def _():
    marker = Session()()
    answer = claude("--allowedTools", "Read", "--", f"use tool Read {marker}")
    assert "Read" in answer["result"] or "tools answered" in answer["result"], answer["result"]
    assert len(witnessed(marker)["calls"]) >= 2


version = subprocess.run(
    [CLI, "--version"], capture_output=True, text=True, timeout=60, check=True, env=ENVIRONMENT
).stdout.split()[0]
metadata.version = lambda _: version
harness.run("Claude Code", "")
