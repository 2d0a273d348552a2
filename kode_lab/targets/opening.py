"""From what a user types to a target: a TOML file, a function, a command, or a shipped name.

    mine.toml                   a described HTTP service
    agent.py:chat, module:chat  a function (user, session, prompt) that returns the reply
    lines:node target.js        a program that speaks JSON by the line
    langgraph-sqlite            a shipped target, in an environment of its own

It owns the names and the environments of shipped targets. It starts and asks nothing.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from kode_lab.errors import InvalidScenario
from kode_lab.targets.description import read_description
from kode_lab.targets.http_target import HttpTarget
from kode_lab.targets.lines import LinesTarget

__all__ = ["environment_of", "install", "model_environment", "open_target", "shipped"]

FRAMEWORKS = Path(__file__).parent / "frameworks"
_HOST = Path(__file__).parent / "host.py"
# Where environments of shipped targets are kept.
HOME_VARIABLE = "KODE_LAB_TARGETS"


def open_target(
    spec: str, *, model_url: str = "", log: Path | None = None
) -> HttpTarget | LinesTarget:
    """Return the target that ``spec`` names; nothing is started yet.

    Raises:
        InvalidScenario: it names none, or its file is wrong; names line and field.
    """
    if spec.endswith(".toml"):
        return HttpTarget(read_description(Path(spec)), log=log)
    if spec.startswith("lines:"):
        words = shlex.split(spec.removeprefix("lines:"))
        return LinesTarget(
            words,
            name=Path(words[-1]).stem,
            env=model_environment(model_url),
            log=log,
            is_silent=True,
        )
    if spec in shipped():
        return _framework(spec, model_url, log)
    if ":" in spec or spec.endswith(".py"):
        command = [sys.executable, str(_HOST), spec]
        name = spec.rpartition(":")[2] if ":" in spec else Path(spec).stem
        return LinesTarget(command, name=name, env=model_environment(model_url), log=log)
    raise InvalidScenario(
        f"no target {spec!r:.80}: give a TOML file, FILE.py:FUNCTION, 'lines:COMMAND', or one of "
        f"{', '.join(shipped())}"
    )


def shipped() -> tuple[str, ...]:
    """Return the names of the targets that come with kode_lab."""
    return tuple(
        sorted(p.stem.replace("_", "-") for p in FRAMEWORKS.glob("*.py") if p.stem != "__init__")
    )


def model_environment(model_url: str) -> dict[str, str]:
    """Return the variables that point common model clients at the simulated model."""
    if not model_url:
        return {}
    return {
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "simulated",
        "OPENAI_BASE_URL": f"{model_url}/v1",
        "OPENAI_API_BASE": f"{model_url}/v1",
        "OPENAI_API_KEY": "simulated",
        "GOOGLE_GEMINI_BASE_URL": model_url,
        "GOOGLE_API_KEY": "simulated",
        "GEMINI_API_KEY": "simulated",
        # A framework's own reports to the outside would be measured, and delay its end by 30 s.
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "AGNO_TELEMETRY": "false",
        "MASTRA_TELEMETRY_DISABLED": "1",
        "DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def environment_of(name: str) -> Path:
    """Return the directory of a shipped target's environment, whether or not it is there."""
    home = os.environ.get(HOME_VARIABLE)
    root = Path(home) if home else Path.home() / ".cache" / "kode-lab" / "targets"
    return root / str(_facts(name)["ENVIRONMENT"])


def install(name: str) -> Path:
    """Make a shipped target's environment, with its packages at their pinned versions.

    Raises:
        InvalidScenario: a package could not be installed.
    """
    path = environment_of(name)
    if not (path / "bin" / "python").exists():
        venv.create(path, with_pip=True)
    command = [
        str(path / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        *_facts(name)["REQUIRES"],
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if ended.returncode:
        raise InvalidScenario(f"{name} cannot be installed: {ended.stderr.strip()[-300:]}")
    return path


def _framework(name: str, model_url: str, log: Path | None) -> LinesTarget:
    path = FRAMEWORKS / f"{name.replace('-', '_')}.py"
    python = environment_of(name) / "bin" / "python"
    if not python.exists():
        raise InvalidScenario(f"{name} is not installed: kode-lab judge {name} --install")
    command = [str(python), "-P", str(_HOST), str(path)]
    return LinesTarget(command, name=name, env=model_environment(model_url), log=log)


def _facts(name: str) -> dict[str, Any]:
    """Return a shipped file's constants; it is not imported, for its packages are not here."""
    path = FRAMEWORKS / f"{name.replace('-', '_')}.py"
    found: dict[str, Any] = {"ENVIRONMENT": re.sub(r"\W", "-", name), "REQUIRES": ()}
    for node in ast.parse(path.read_text("utf-8")).body:
        name_node = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and getattr(name_node, "id", "") in found:
            found[name_node.id] = ast.literal_eval(node.value)  # type: ignore[union-attr]
    return found
