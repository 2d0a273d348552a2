"""``make traces``: traces of real frameworks and instrumentations, audited against their stores.

It makes an environment for each group (pinned, in a directory of its own), starts a simulated
model, runs a correct and a broken service with each instrumentation, audits the traces, and
compares the lost turns with those that the service's own store lacks. ``--table FILE`` writes the
result between the two marks of a page. A part can be named: ``python tests/traces/run.py openai``.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kode_lab.audit import audit
from kode_lab.claude import SimulatedClaude

HERE = Path(__file__).parent
LIMIT_S = 120
INSTALL_LIMIT_S = 1_200
MARKS = ("<!-- traces -->", "<!-- /traces -->")
OTEL = (
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-exporter-otlp-proto-http==1.45.2",
    "openai==3.57.0",
    "anthropic==2.14.0",
)
GROUPS = {
    "openai": (
        (
            *OTEL,
            "openinference-instrumentation-openai==0.1.66",
            "opentelemetry-instrumentation-openai==0.62.4",
            "langsmith==0.15.1",
            "langfuse==5.0.4",
        ),
        (
            "openai_openinference",
            "openai_openinference-rootless",
            "openai_printed",
            "openai_openllmetry",
            "openai_langfuse",
            "openai_langsmith",
            "openai_sdk-json",
        ),
    ),
    "openai-v2": (
        (
            *OTEL,
            "opentelemetry-instrumentation-openai-v2==2.4b0",
            "opentelemetry-util-genai==0.4b0",
            "httpx==0.28.1",  # it imports what neither it nor openai requires
        ),
        ("openai_otel-v2", "openai_otel-v2-latest"),
    ),
    "anthropic": (
        (
            *OTEL,
            "openinference-instrumentation-anthropic==3.1.0",
            "opentelemetry-instrumentation-anthropic==0.62.4",
        ),
        ("anthropic_openinference", "anthropic_openllmetry", "anthropic_sdk-json"),
    ),
    "litellm": ((*OTEL, "litellm==1.110.2"), ("litellm_own-json",)),
    "langgraph": (
        (
            *OTEL,
            "langgraph==1.2.24",
            "langchain==1.5.2",
            "langchain-openai==1.7.4",
            "openinference-instrumentation-langchain==0.1.80",
        ),
        ("langgraph_openinference",),
    ),
}


def installed(packages, directory):
    """Return the interpreter of a new environment with these packages."""
    subprocess.run([sys.executable, "-m", "venv", directory], check=True, timeout=LIMIT_S)
    python = directory / "bin" / "python"
    pip = [python, "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *packages], check=True, timeout=INSTALL_LIMIT_S)
    return python


def row_of(name, directory):
    """Return a line of the table, and whether all is as it should be."""
    verdicts = {mode: audit(directory / f"{name}-{mode}.jsonl") for mode in ("correct", "broken")}
    truth = json.loads((directory / f"{name}-broken.truth.json").read_text())
    found = {}
    for one in verdicts["broken"].findings:
        proof = "proved" if one.is_proved else "suspect"
        found[one.name, proof] = found.get((one.name, proof), 0) + 1
    tree = verdicts["broken"].tree
    lost = {
        tree.start_of(tree.item_of[one.turns[0].asks[-1]])
        for one in verdicts["broken"].findings
        if one.name == "lost update"
    }
    told = ", ".join(f"{times} {kind} {proof}" for (kind, proof), times in found.items())
    agrees = lost == set(truth["lost"])
    correct = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}[verdicts["correct"].status]
    is_right = agrees and correct == "PASS"
    loop, instrumentation = name.split("_")
    row = (
        f"| {loop} | {instrumentation} | {correct} | {told or 'nothing'} | "
        f"{len(lost & set(truth['lost']))} of {len(truth['lost'])} |"
    )
    return row, is_right


async def run(groups, directory):
    """Run the services of some groups; return the rows, and whether all agree."""
    rows, is_right = [], True
    async with SimulatedClaude() as model:
        for group in groups:
            packages, names = GROUPS[group]
            python = await asyncio.to_thread(installed, packages, directory / group)
            for name in names:
                for mode in ("correct", "broken"):
                    asked = [HERE / "service.py", name, mode, model.base_url, directory]
                    service = await asyncio.create_subprocess_exec(
                        python, "-W", "ignore", *map(str, asked)
                    )
                    async with asyncio.timeout(LIMIT_S):
                        if await service.wait():
                            raise SystemExit(f"{name} {mode} ended with {service.returncode}")
                row, agrees = row_of(name, directory)
                is_right = is_right and agrees
                print(row if agrees else f"{row} DISAGREES", flush=True)
                rows.append(row)
    return rows, is_right


def main():
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--table", type=Path, help="the page that gets the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows, is_right = asyncio.run(run(options.groups or GROUPS, Path(directory)))
    head = (
        "| loop or framework | instrumentation | correct service | broken service | lost turns "
        "found, of those its store lacks |\n|---|---|---|---|---|"
    )
    if options.table is not None:
        before, rest = options.table.read_text().split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        table = "\n".join((MARKS[0], head, *rows, MARKS[1]))
        options.table.write_text(f"{before}{table}{after}")
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
