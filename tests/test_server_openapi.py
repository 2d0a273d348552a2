"""The OpenAPI document is true: Schemathesis tries every operation, rightly and wrongly."""

import json
import subprocess
import sys

import pytest
from house import run
from served import patient, served, serving

# Its own list of statuses that refuse a wrong request lacks the two for "too long".
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431]
"""
EXAMPLES = 12


def test_schemathesis_finds_no_difference_between_the_document_and_the_server(tmp_path):
    pytest.importorskip("schemathesis.cli", reason="Schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)

    async def refusals(child):
        async with patient() as client:
            return await child.get(client, "/v1/statistics")

    with serving(tmp_path) as child:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(tmp_path / "schemathesis.toml"), "--no-color"),
                *("run", f"{child.url}/openapi.json", "--checks", "all"),
                *("--max-examples", str(EXAMPLES), "--generation-deterministic"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
        )
        # Its reports repeat requests of thousands of characters.
        said = "\n".join(line[:300] for line in ended.stdout.splitlines()[-60:])
        assert ended.returncode == 0, said + ended.stderr[-2000:]
        told = run(refusals(child))
    # It did try: right turns were taken, and wrong ones were refused.
    assert told["outcomes"].get("ok", 0) > 0, told
    assert sum(told["refusals"].values()) > 20, told
    assert "InternalError" not in told["refusals"]
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_the_document_names_every_path_that_the_server_answers(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            _, document, _ = await house.ask("GET", "/openapi.json")
            app = house.http._app
            assert set(document["paths"]) == {route.path for route in app.routes}
            for route in app.routes:
                methods = {method.lower() for method in route.methods} - {"head"}
                assert set(document["paths"][route.path]) == methods
            # Every schema that is pointed at is there.
            text = json.dumps(document)
            for name in document["components"]["schemas"]:
                assert f"#/components/schemas/{name}" in text

    run(scenario())
