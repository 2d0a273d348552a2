"""``kode-lab init-target``: write the TOML file by which ``kode-lab judge`` knows a service."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["add"]

_LIMIT_BYTES = 20_000_000
_BLANK = """url = "http://127.0.0.1:8000"          # or {port}: a free one is chosen
# start = "node server.js"             # so that it can be started, and killed
# env = { OPENAI_BASE_URL = "{model_url}/v1", ANTHROPIC_BASE_URL = "{model_url}", PORT = "{port}" }

[turn]
path = "/api/chat"
body = { user = "{user}", session = "{session}", message = "{prompt}" }
reply = "$.reply"

[history]                              # leave it out where sessions cannot be read
path = "/api/sessions/{session}/messages?user={user}"
items = "$.messages"

# [declares]
# durable = true                       # sessions survive kill -9
# idempotent = true                    # one {turn_id} sent twice is one turn
"""


def add(commands: Any) -> None:
    """Add the command ``init-target``."""
    command = commands.add_parser(
        "init-target", help="write a target's TOML file: guessed from OpenAPI, or to fill in"
    )
    command.add_argument(
        "openapi", nargs="?", metavar="URL_OR_FILE",
        help="a running service (its /openapi.json is read), or an OpenAPI document as JSON",
    )  # fmt: skip
    command.add_argument("--output", type=Path, default=Path("target.toml"), metavar="FILE")
    command.add_argument("--force", action="store_true", help="replace the file")
    command.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    from kode_lab.errors import InvalidScenario  # noqa: PLC0415 - here and below
    from kode_lab.targets.description import read_description  # noqa: PLC0415
    from kode_lab.targets.guessing import guessed  # noqa: PLC0415

    if options.output.exists() and not options.force:
        raise InvalidScenario(f"{options.output} is there already: --force replaces it")
    text = _BLANK
    if options.openapi is not None:
        document, url = _document(options.openapi)
        text = guessed(document, url)
    options.output.write_text(text, encoding="utf-8")
    read_description(options.output)
    sys.stdout.write(f"{text}\n{options.output}: read it, then: kode-lab judge {options.output}\n")
    return 0


def _document(where: str) -> tuple[dict[str, Any], str]:
    """Return the document and the service's URL."""
    from kode_lab.errors import InvalidScenario  # noqa: PLC0415

    url = "http://127.0.0.1:8000"
    try:
        if where.startswith(("http://", "https://")):
            address = where if where.endswith(".json") else f"{where.rstrip('/')}/openapi.json"
            url = address.rpartition("/")[0]
            import urllib.request  # noqa: PLC0415 - brings in ssl, which no other command needs

            with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - as asked
                said = answer.read(_LIMIT_BYTES)
        else:
            said = Path(where).read_bytes()
        document = json.loads(said)
    except (OSError, ValueError) as error:
        raise InvalidScenario(f"{where}: no OpenAPI document in JSON: {error}") from None
    servers = document.get("servers") or [{}]
    if not where.startswith("http") and str(servers[0].get("url", "")).startswith("http"):
        url = servers[0]["url"].rstrip("/")
    return document, url
