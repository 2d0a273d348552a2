"""Bench of the model client: ours against the SDK's default, a thousand calls in flight.

Both ask the simulated Messages API, which runs in a process of its own, so that the CPU of this one
is the client's. The calls are made by as many tasks as are in flight, each waiting for its reply:
the simulated model takes a second, so all of them are under way together.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.bench import Row, row
from benchmarks.sampling import cpu_us, interleaved, on_loop, share
from kode_lab.claude import Claude
from kode_lab.errors import InvalidScenario
from kode_lab.message import Request, user

__all__ = ["client"]

_IN_FLIGHT = 1_000
_MODEL, _ANSWER_TOKENS, _PROMPT = "claude-sonnet-5-5", 256, "What is planned for tomorrow morning?"
# The server's whole program. It ends when its standard input does, so it cannot outlive the bench.
_SERVER = """
import asyncio, json, sys
from kode_lab.claude import Profile, SimulatedClaude

async def main():
    async with SimulatedClaude(Profile(ttft_s=float(sys.argv[1]))) as claude:
        print(json.dumps(claude.base_url), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def client(effort: float) -> list[Row]:
    """Return the CPU of a call through our client and through the SDK's default one."""
    with _server(latency_s=min(1.0, effort)) as base_url:
        return on_loop(_client(base_url, effort))


async def _client(base_url: str, effort: float) -> list[Row]:
    import anthropic  # noqa: PLC0415 - seconds of CPU that only this bench pays

    in_flight = share(_IN_FLIGHT, effort, least=20)
    request = Request(_MODEL, "", [user(_PROMPT)], max_tokens=_ANSWER_TOKENS)

    def wave(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
        async def work() -> None:
            await asyncio.gather(*(call() for _ in range(in_flight)))

        return lambda: cpu_us(work, in_flight)

    async with (
        Claude(base_url, concurrency=in_flight) as ours,
        anthropic.AsyncAnthropic(base_url=base_url, api_key="simulated", max_retries=0) as theirs,
    ):

        def their_call() -> Awaitable[object]:
            return theirs.messages.create(
                model=_MODEL,
                max_tokens=_ANSWER_TOKENS,
                messages=[{"role": "user", "content": _PROMPT}],
            )

        spent_us = await interleaved(
            {"ours": wave(lambda: ours(request)), "theirs": wave(their_call)},
            share(3, effort, least=1),
        )
    return [
        row(
            f"client: CPU a call, {in_flight:,} in flight, against AsyncAnthropic as it comes",
            spent_us["ours"],
            "us",
            baseline=spent_us["theirs"],
            bar="ratio <= 0.25",
        )
    ]


@contextlib.contextmanager
def _server(latency_s: float) -> Iterator[str]:
    """Return the address of a simulated API in a process of its own."""
    with subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-c", _SERVER, str(latency_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise InvalidScenario("the simulated API did not start: its error stands above")
        try:
            yield str(json.loads(line))
        finally:
            child.stdin.close()
