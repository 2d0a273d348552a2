"""Bench of several checkouts in one run: a turn over HTTP, CPU of the server and all its children.

``python -m benchmarks.side_by_side old=DIRECTORY new=.`` starts ``kode-lab serve --simulated`` of
each checkout, asks one after the other in rounds (so that what else the machine does strikes all of
them alike), and prints medians and their ratio to the first. The load generator is not counted; the
server's client of the model and the simulated model are.

Options: ``--rounds``, ``--turns`` of a round, ``--connections``, ``--stream``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["main"]

_ANSWER_LIMIT_S = 60
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> None:
    """Measure the checkouts that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="+", metavar="NAME=DIRECTORY")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turns", type=int, default=320)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--stream", action="store_true")
    asyncio.run(_measure(parser.parse_args()))


async def _measure(options: argparse.Namespace) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="side-by-side-"))
    servers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for named in options.checkouts:
            name, _, directory = named.partition("=")
            servers[name] = _started(directory, scratch / name)
        costs_us: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(options.rounds + 1):
            for name, (server, port) in servers.items():
                before_s = _cpu_s(server.pid)
                await _round(port, number, options)
                if number:  # the first one warms up
                    spent_s = _cpu_s(server.pid) - before_s
                    costs_us[name].append(spent_s / options.turns * 1e6)
        first = statistics.median(next(iter(costs_us.values())))
        for name, costs in costs_us.items():
            median = statistics.median(costs)
            sys.stdout.write(
                f"{name:12} {median:6.0f} us of CPU a turn ({min(costs):.0f} to {max(costs):.0f}), "
                f"{median / first:.2f} of {next(iter(costs_us))}\n"
            )
    finally:
        for server, _ in servers.values():
            server.terminate()
            server.wait(_ANSWER_LIMIT_S)
        shutil.rmtree(scratch)


def _started(directory: str, data: Path) -> tuple[subprocess.Popen[bytes], int]:
    checkout = Path(directory).resolve()
    command = ("serve", "--simulated", "--port", "0", "--data", str(data))
    server = subprocess.Popen(  # noqa: S603 - our own program
        (sys.executable, "-m", "kode_lab", *command),
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    found = re.search(rb"127\.0\.0\.1:(\d+)", server.stdout.readline())
    assert found is not None, f"the server of {checkout} did not start"
    return server, int(found[1])


async def _round(port: int, number: int, options: argparse.Namespace) -> None:
    """Take turns of as many sessions as there are connections, each after the other."""

    async def session(place: int) -> None:
        connection = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(options.turns // options.connections):
            fields = {
                "userId": "u",
                "agentId": "schedule-assistant",
                "sessionId": f"s{number}-{place}",
                "message": f"hello number {turn}",
                "stream": options.stream,
            }
            async with asyncio.timeout(_ANSWER_LIMIT_S):
                await _turn(connection, json.dumps(fields).encode())
        connection[1].close()

    await asyncio.gather(*map(session, range(options.connections)))


async def _turn(connection: _Connection, body: bytes) -> None:
    reader, writer = connection
    writer.write(
        b"POST /v1/turns HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = re.search(rb"content-length: (\d+)", head)
    if length is not None:
        await reader.readexactly(int(length[1]))
        return
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


def _cpu_s(pid: int) -> float:
    """Return what a process and its children have spent, from Linux's schedstat."""
    threads = Path(f"/proc/{pid}/task")
    spent_ns = sum(
        int((thread / "schedstat").read_text().split()[0]) for thread in threads.iterdir()
    )
    children = (threads / str(pid) / "children").read_text().split()
    return spent_ns / 1e9 + sum(_cpu_s(int(child)) for child in children)


if __name__ == "__main__":
    main()
