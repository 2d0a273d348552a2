"""From what a user types to a target: a TOML file, a function, a command, or a shipped name.

    mine.toml                   a described HTTP service
    agent.py:chat, module:chat  a function (user, session, prompt) that returns the reply
    lines:node target.js        a program that speaks JSON by the line
    langgraph-sqlite            a shipped target, in an environment of its own
    langgraph-sqlite@hold       the same behind kode_lab.hold; @hold:DIRECTORY guards over files
    langgraph-server@reject     a shipped target with a setting of its own

It owns the names and the environments of shipped targets. It starts and asks nothing.
"""

from __future__ import annotations

import ast
import json
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
from kode_lab.targets.target import model_environment

__all__ = ["environment_of", "install", "open_target", "shipped"]

FRAMEWORKS = Path(__file__).parent / "frameworks"
_HOST = Path(__file__).parent / "host.py"
# Where environments of shipped targets are kept.
HOME_VARIABLE = "KODE_LAB_TARGETS"
# Is written once an environment is whole.
_DONE = "installed"


def open_target(
    spec: str, *, model_url: str = "", log: Path | None = None
) -> HttpTarget | LinesTarget:
    """Return the target that ``spec`` names; nothing is started yet.

    Raises:
        InvalidScenario: it names none, or its file is wrong; names line and field.
    """
    name, is_held, store = spec.partition("@hold")
    name, _, setting = name.partition("@")
    env = model_environment(model_url)
    if is_held:
        env["KODE_LAB_HOLD"] = store.removeprefix(":") or "process"
    if name.endswith(".toml") and not is_held:
        return HttpTarget(read_description(Path(name)), log=log)
    if name.startswith("lines:") and not is_held:
        words = shlex.split(name.removeprefix("lines:"))
        title = Path(words[-1]).stem if words else ""
        return LinesTarget(words, name=title, env=env, log=log, is_silent=True)
    if name in shipped():
        return _opened(spec, name, setting, env, log)
    if (":" in name or name.endswith(".py")) and not name.endswith(".toml"):
        command = [sys.executable, str(_HOST), name]
        title = name.rpartition(":")[2] if ":" in name else Path(name).stem
        return LinesTarget(command, name=f"{title}{is_held}{store}", env=env, log=log)
    raise InvalidScenario(
        f"no target {spec!r:.80}: give a TOML file, FILE.py:FUNCTION, 'lines:COMMAND', or one of "
        f"{', '.join(shipped())}; a function and a shipped target may end with @hold"
    )


def _opened(
    spec: str, name: str, setting: str, env: dict[str, str], log: Path | None
) -> HttpTarget | LinesTarget:
    """Return a shipped target: a described service, or a program in its environment."""
    python = environment_of(name) / "bin" / "python"
    if not (environment_of(name) / _DONE).exists():
        raise InvalidScenario(f"{name} is not installed: kode-lab judge {name} --install")
    path, facts = _file_of(name), _facts(name)
    allowed = facts["SETTINGS"]
    if setting not in ("", *allowed) or ("KODE_LAB_HOLD" in env and facts["DESCRIPTION"]):
        with_ = f"@{', @'.join(allowed)}" if allowed else "no setting"
        raise InvalidScenario(f"{spec!r:.80} is not valid: {name} takes {with_}")
    if facts["DESCRIPTION"]:
        described = read_description(path, f'name = "{spec}"\n{facts["DESCRIPTION"]}')
        setting = setting or next(iter(allowed), "")
        return HttpTarget(described, log=log, setting=setting, python=str(python))
    if path.suffix == ".mjs":
        # Node looks for packages beside the file, so it is run from the environment.
        home = environment_of(name)
        for file in (path, _HOST.with_suffix(".mjs")):
            (home / file.name).write_bytes(file.read_bytes())
        node = home / "node_modules" / ".bin" / "node"
        command = [str(node), str(home / "host.mjs"), str(home / path.name)]
        return LinesTarget(command, name=spec, env=env, log=log)
    command = [str(python), "-P", str(_HOST), str(path)]
    return LinesTarget(command, name=spec, env=env, log=log)


def shipped() -> tuple[str, ...]:
    """Return the names of the targets that come with kode_lab."""
    files = (*FRAMEWORKS.glob("*.py"), *FRAMEWORKS.glob("*.mjs"))
    return tuple(sorted(p.stem.replace("_", "-") for p in files if p.stem != "__init__"))


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
    path, required = environment_of(name), _facts(name)["REQUIRES"]
    path.mkdir(parents=True, exist_ok=True)
    if _file_of(name).suffix == ".mjs":
        command = ["npm", "install", "--no-audit", "--no-fund", "--save-exact", *required]
        if not (path / "package.json").exists():
            (path / "package.json").write_text('{"private": true, "type": "module"}\n')
    else:
        if not (path / "bin" / "python").exists():
            venv.create(path, with_pip=True)
        command = [str(path / "bin" / "python"), "-m", "pip", "install", "-q", *required]
    try:
        ended = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    except OSError as error:
        raise InvalidScenario(f"{name} needs {command[0]}: {error.strerror}") from None
    if ended.returncode:
        raise InvalidScenario(f"{name} cannot be installed: {ended.stderr.strip()[-300:]}")
    (path / _DONE).touch()
    return path


def _file_of(name: str) -> Path:
    stem = name.replace("-", "_")
    return next(p for end in ("py", "mjs") if (p := FRAMEWORKS / f"{stem}.{end}").exists())


def _facts(name: str) -> dict[str, Any]:
    """Return a shipped file's constants; it is not imported, for its packages are not here."""
    found: dict[str, Any] = {
        "ENVIRONMENT": re.sub(r"\W", "-", name), "REQUIRES": (), "SETTINGS": (), "DESCRIPTION": "",
    }  # fmt: skip
    text = _file_of(name).read_text("utf-8")
    if _file_of(name).suffix == ".mjs":
        told = dict(re.findall(r"^export const ([A-Z]+) = (.*)$", text, re.MULTILINE))
        return found | {n: json.loads(told[n]) for n in ("ENVIRONMENT", "REQUIRES") if n in told}
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id in found:
            found[target.id] = ast.literal_eval(node.value)
    return found
