"""``make clients``: real clients, unchanged, against the simulated model and through the proxy.

It makes an environment for each group of clients (pinned, in a directory of its own), starts a
simulated model, runs every client's script, and writes a table. A part of the groups can be named:
``python tests/clients/run.py sdks javascript``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from kode_lab.claude import SimulatedClaude
from kode_lab.claude.proxy import RecordingProxy

HERE = Path(__file__).parent
SCRIPT_LIMIT_S = 300
INSTALL_LIMIT_S = 1_200
CLAUDE_CODE = "@anthropic-ai/claude-code@2.1.332"
CLAUDE_CLI = "node_modules/@anthropic-ai/claude-code-linux-x64/claude"


class Group(NamedTuple):
    """Clients that share an environment.

    ``packages`` are pinned; ``scripts`` stand in ``python`` or ``node``; ``is_proxied`` says that
    they are run a second time through the recording proxy.
    """

    kind: str
    packages: tuple[str, ...]
    scripts: tuple[str, ...]
    is_proxied: bool = False


GROUPS = {
    "sdks": Group(
        "python",
        ("anthropic==2.14.0", "openai==3.57.0", "google-genai==3.6.1"),
        ("anthropic_python", "openai_python", "google_genai"),
        is_proxied=True,
    ),
    "claude-code": Group("claude", (CLAUDE_CODE,), ("claude_code",), is_proxied=True),
    "frameworks": Group(
        "python",
        (
            "anthropic==2.14.0",
            "openai==3.57.0",
            "litellm==1.110.2",
            "langchain-anthropic==1.7.10",
            "langchain-openai==1.7.4",
            "langchain-google-genai==4.4.3",
            "langgraph==1.2.24",
            "pydantic-ai-slim[anthropic,openai,google]==2.68.0",
            "openai-agents==0.24.0",
            "agno==3.1.10",
            "claude-agent-sdk==0.2.189",
        ),
        (
            "litellm_python",
            "langchain_python",
            "pydantic_ai_python",
            "openai_agents_python",
            "agno_python",
            "claude_agent_sdk_python",
        ),
    ),
    "strands": Group("python", ("strands-agents[anthropic,openai]==1.62.0",), ("strands_python",)),
    "adk": Group(
        "python",
        ("google-adk==2.13.0", "anthropic==2.14.0", "litellm==1.110.2"),
        ("adk_python",),
    ),
    "javascript": Group(
        "node",
        (
            "@anthropic-ai/sdk@1.14.0",
            "openai@7.59.0",
            "@google/genai@3.3.0",
            "@openai/agents@0.20.0",
            "ai@7.0.173",
            "@ai-sdk/anthropic@4.0.105",
            "@ai-sdk/google@4.0.121",
            "@ai-sdk/openai@4.0.118",
            "zod@4.6.7",
        ),
        ("anthropic_sdk", "openai_sdk", "google_genai", "vercel_ai"),
        is_proxied=True,
    ),
    "mastra": Group(
        "node",
        ("@mastra/core@1.71.0", "@ai-sdk/openai@4.0.118", "zod@4.6.7"),
        ("mastra",),
    ),
}
# Servers of other authors as the far end of the proxy, on ports that they take as an option.
UPSTREAMS = {
    "fakellm 0.3.5": ("fakellm==0.3.5", ("fakellm", "init"), ("fakellm", "serve", "--port")),
    "llm-mock-api 0.1.2": ("llm-mock-api==0.1.2", (), ("llm-mock-api", "start", "-p")),
}


def main() -> int:
    """Run the groups that are named, write the table, and return 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument(
        "--into", type=Path, help="keep the environments here (default: thrown away)"
    )
    parser.add_argument("--table", type=Path, help="write the table to this file")
    options = parser.parse_args()
    named = options.groups or [*GROUPS, "upstreams"]
    unknown = set(named) - {*GROUPS, "upstreams"}
    if unknown:
        parser.error(f"no group {min(unknown)!r}: choose of {', '.join(GROUPS)}, upstreams")
    made = None if options.into else tempfile.mkdtemp(prefix="kode-lab-clients-")
    root = options.into or Path(str(made))
    try:
        rows = asyncio.run(run_groups(named, root.resolve()))
        table = table_of(rows)
        if options.table:
            options.table.write_text(table, "utf-8")
        sys.stdout.write(table)
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    return 1 if any(row["result"] != "passed" for row in rows) or not rows else 0


async def run_groups(named: list[str], root: Path) -> list[dict[str, str]]:
    """Return the results of all checks, a row each."""
    rows: list[dict[str, str]] = []
    async with SimulatedClaude() as simulated:
        for name in named:
            if name == "upstreams":
                rows += await run_upstreams(root / name)
                continue
            group = GROUPS[name]
            sys.stderr.write(f"{name}: installing into {root / name}\n")
            where = await asyncio.to_thread(install, group, root / name)
            cli = await claude_cli(root) if "claude" in " ".join(group.scripts) else ""
            for script in group.scripts:
                sys.stderr.write(f"{name}: {script}\n")
                direct = {"MODEL_URL": simulated.base_url, "CLAUDE_CLI": cli}
                rows += await run_script(group, where, script, direct)
            if group.is_proxied:
                async with RecordingProxy(simulated.base_url) as proxy:
                    through = {
                        "MODEL_URL": proxy.base_url,
                        "FAULTS_URL": simulated.base_url,
                        "CLAUDE_CLI": cli,
                    }
                    for script in group.scripts:
                        sys.stderr.write(f"{name}: {script} through the proxy\n")
                        found = await run_script(group, where, script, through)
                        rows += [row | {"tried": f"proxy: {row['tried']}"} for row in found]
    return rows


def install(group: Group, where: Path) -> Path:
    """Make an environment with the group's packages, unless it is there already."""
    ready = where / ".ready"
    if ready.exists():
        return where
    where.mkdir(parents=True, exist_ok=True)
    if group.kind == "python":
        _install(sys.executable, "-m", "venv", str(where))
        _install(str(where / "bin/pip"), "install", "--quiet", *group.packages)
    else:
        (where / "package.json").write_text('{"private": true}')
        npm = shutil.which("npm") or "npm"
        _install(npm, "install", "--no-audit", "--no-fund", "--silent", *group.packages, cwd=where)
    ready.touch()
    return where


def _install(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, timeout=INSTALL_LIMIT_S)


async def claude_cli(root: Path) -> str:
    """Return the path of Claude Code's program."""
    where = await asyncio.to_thread(install, GROUPS["claude-code"], root / "claude-code")
    return str(where / CLAUDE_CLI)


async def run_script(
    group: Group, where: Path, script: str, environment: dict[str, str]
) -> list[dict[str, str]]:
    """Return what a script printed; one that printed nothing failed as a whole."""
    if group.kind == "node":
        for path in (HERE / "node").glob("*.mjs"):
            shutil.copy(path, where)
        command, cwd = ["node", f"{script}.mjs"], where
    else:
        python = where / "bin/python" if group.kind == "python" else Path(sys.executable)
        command, cwd = [str(python), "-W", "ignore", str(HERE / f"python/{script}.py")], HERE
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), SCRIPT_LIMIT_S)
    except TimeoutError:
        child.kill()
        out = b""
    rows = [json.loads(line) for line in out.splitlines() if line.startswith(b'{"client"')]
    if rows:
        return rows
    said = f"exit status {child.returncode}, nothing printed"
    return [{"client": script, "version": "", "tried": "all", "result": "failed", "note": said}]


async def run_upstreams(where: Path) -> list[dict[str, str]]:
    """Return the results of asking servers of other authors through the proxy."""
    rows = []
    for name, (package, prepare, command) in UPSTREAMS.items():
        group = Group("python", (package, "openai==3.57.0", "anthropic==2.14.0"), ())
        place = await asyncio.to_thread(install, group, where / command[0])
        if prepare and not (place / f"{prepare[0]}.yaml").exists():
            await asyncio.to_thread(
                _install, str(place / "bin" / prepare[0]), *prepare[1:], cwd=place
            )
        rows += await run_upstream(name, place, command)
    return rows


async def run_upstream(name: str, where: Path, command: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the results of one server, which is started and stopped here."""
    import socket  # noqa: PLC0415 - one free port

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = command
    child = await asyncio.create_subprocess_exec(
        str(where / "bin" / program),
        *arguments,
        str(port),
        cwd=where,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            while not await is_listening(port):
                await asyncio.sleep(0.05)
        async with RecordingProxy(f"http://127.0.0.1:{port}") as proxy:
            group = Group("python", (), ())
            asked = {"MODEL_URL": proxy.base_url, "UPSTREAM": name}
            return await run_script(group, where, "other_upstream", asked)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def is_listening(port: int) -> bool:
    """Whether a server accepts connections on this port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def table_of(rows: list[dict[str, str]]) -> str:
    """Return the table as Markdown."""
    passed = sum(row["result"] == "passed" for row in rows)
    lines = [
        "# Clients that ran unchanged against the simulated model",
        "",
        "Made by `make clients`: pinned versions from PyPI and npm, each in an environment of its",
        "own, on Linux x86-64. Each check also asks the simulated model, or the proxy, what it",
        f"witnessed. {passed} of {len(rows)} checks passed.",
        "",
        "| client | version | what was tried | result |",
        "|---|---|---|---|",
    ]
    for row in rows:
        note = f": {row['note']}".replace("|", "\\|").replace("\n", " ") if row["note"] else ""
        cells = (row["client"], row["version"], row["tried"], row["result"] + note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
