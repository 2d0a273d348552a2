"""The SDKs of three model APIs, unchanged, against the simulated model; more in `make clients`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from kode_lab.claude import SimulatedClaude

SCRIPTS = Path(__file__).parent / "clients" / "python"


@pytest.mark.parametrize("script", ["anthropic_python", "openai_python", "google_genai"])
def test_an_unchanged_sdk_takes_the_simulated_model_for_the_real_one(script):
    async def main():
        async with SimulatedClaude() as simulated:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "ignore", str(SCRIPTS / f"{script}.py")),
                env={**os.environ, "MODEL_URL": simulated.base_url},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            out, _ = await asyncio.wait_for(child.communicate(), 240)
            return out

    rows = [json.loads(line) for line in asyncio.run(main()).splitlines()]
    assert len(rows) >= 5
    assert [row for row in rows if row["result"] != "passed"] == []
