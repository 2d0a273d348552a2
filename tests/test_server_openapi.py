"""The OpenAPI document is true: Schemathesis tries every operation, rightly and wrongly."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from house import run
from served import patient, served, serving

from kode_lab import errors
from kode_lab.server.refusal import problem_of

# Its own list of statuses that refuse a wrong request lacks the two for "too long".
CONFIGURATION = """
[phases.coverage]
unexpected-methods = ["PUT"]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431]

# Only a turn that exists can be returned to, and only one conversation be copied to a session.
[[operations]]
include-operation-id = ["rewind", "fork"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]
"""
# A turnId names one prompt: if the message varies, the id has to vary, too.
HOOKS = """
import itertools, schemathesis
numbers = itertools.count()

@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if isinstance(body, dict) and "message" in body:
        if isinstance(body.get("turnId"), str) and 0 < len(body["turnId"]) <= 200:
            body["turnId"] = f"t{next(numbers)}"
"""


def test_schemathesis_finds_no_difference_between_the_document_and_the_server(tmp_path):
    pytest.importorskip("schemathesis.cli", reason="Schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    (tmp_path / "own_hooks.py").write_text(HOOKS)

    async def refusals(child):
        async with patient() as client:
            return await child.get(client, "/v1/statistics")

    with serving(tmp_path) as child:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(tmp_path / "schemathesis.toml"), "--no-color"),
                *("run", f"{child.url}/openapi.json", "--checks", "all"),
                # What the document itself suggests and its limits: no random search.
                *("--phases", "examples,coverage", "--generation-deterministic"),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "own_hooks", "PYTHONPATH": str(tmp_path)},
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
            app = house.app
            assert {
                (method.upper(), path)
                for path, operations in document["paths"].items()
                for method in operations
            } == {(route.method, route.path) for route in app.routes}
            # Every schema that is pointed at is there.
            text = json.dumps(document)
            for name in document["components"]["schemas"]:
                assert f"#/components/schemas/{name}" in text

    run(scenario())


def test_the_page_about_the_server_has_the_statuses_that_the_code_has():
    page = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")
    told = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1].isdigit():
            for kind in re.findall(r"`(\w+)`", cells[0]):
                told[kind] = (int(cells[1]), cells[2])
    for kind, (status, certainty) in told.items():
        assert certainty == (
            "definite" if 400 <= status < 500 and status != 410 else "indeterminate"
        )
        error = getattr(errors, kind, None)
        if error is not None:
            assert problem_of(error("why")).status == status, kind
    # Every error that ends a turn or refuses it is in the table.
    for error in vars(errors).values():
        is_one = isinstance(error, type) and issubclass(
            error, errors.Refused | errors.TurnFailed | errors.StoreError
        )
        if is_one and not error.__subclasses__():
            assert error.__name__ in told
