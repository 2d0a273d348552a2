"""``make machines``: load from several machines, whose clocks are minutes and a day apart.

Each machine is a network namespace with a time namespace in it, so its monotonic clock is really
another. The master and the service run in the first one; Locust workers in two others reach them
over virtual cables. It needs Linux, ``ip``, ``unshare`` and root. It writes a table of what the
judge said, and ends with 1 unless each run ended as it must.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.lab.provenance import commit_name, machine
from kode_lab.load.services import Service
from kode_lab.targets.http_target import free_port

ROOT = Path(__file__).parents[2]
HERE = "10.77.{}.1"
AHEAD_S = (600, 86_400)
FOR_S, USERS, LIMIT_S = 8, 8, 240
# Lines of a worker's history before it is killed.
ENOUGH = 10


class Case(NamedTuple):
    """One run, and the exit status that it must have."""

    what: str
    status: int
    fault: str = ""
    kills: bool = False


CASES = (
    Case("a service that keeps its promises", 0),
    Case("a service without a lock", 1, "no-lock"),
    Case("a worker killed with kill -9", 3, kills=True),
)


def _ip(words: str, *, is_checked: bool = True) -> None:
    subprocess.run(["ip", *words.split()], check=is_checked, capture_output=not is_checked)


@contextmanager
def namespaces() -> Iterator[None]:
    """Make a machine for each worker: a namespace with a cable to this one."""
    names = [f"kodelab{number}" for number in range(len(AHEAD_S))]
    try:
        for number, name in enumerate(names):
            _ip(f"netns add {name}")
            _ip(f"link add kl{number}a type veth peer name kl{number}b")
            _ip(f"link set kl{number}b netns {name}")
            _ip(f"addr add {HERE.format(number)}/24 dev kl{number}a")
            _ip(f"link set kl{number}a up")
            _ip(f"-n {name} addr add 10.77.{number}.2/24 dev kl{number}b")
            _ip(f"-n {name} link set kl{number}b up")
            _ip(f"-n {name} link set lo up")
        yield
    finally:
        for name in names:
            _ip(f"netns del {name}", is_checked=False)


@contextmanager
def reachable(url: str) -> Iterator[int]:
    """Pass connections from the other machines on to a service on this one's loopback.

    The service refuses requests for another host than its own, so the host is renamed on the way
    (the names have the same length).
    """
    port, there = free_port(), int(url.rpartition(":")[2])
    loop, renamed = asyncio.new_event_loop(), re.compile(rb"(?i)host: 10\.77\.\d\.1:")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(renamed.sub(b"Host: 127.0.0.1:", data))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_connection("127.0.0.1", there)
        await asyncio.gather(copy(reader, its_writer), copy(its_reader, writer))

    hosts = [HERE.format(number) for number in range(len(AHEAD_S))]
    server = loop.run_until_complete(asyncio.start_server(pass_on, hosts, port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def run(case: Case, scratch: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Do one run; return the master's exit status, its figures, and the verdict."""
    with ExitStack() as stack:
        words = ["serve-fault", case.fault] if case.fault else ["serve", "--in-process"]
        (scratch / "profile.toml").write_text("ttft_s = 0.02\njitter = 0.5\n")
        words += ["--profile", str(scratch / "profile.toml"), "--data", str(scratch / "data")]
        service = Service(words, scratch / "server.log")
        stack.callback(service.close)
        port, bus = stack.enter_context(reachable(service.url)), str(free_port())
        locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests/hot_session.py")]
        run_dir = scratch / "run"
        options = ["--run-dir", str(run_dir), "-u", str(USERS), "-r", "50", "-t", f"{FOR_S}s"]
        log = stack.enter_context((scratch / "locust.log").open("wb"))

        def start(words: list[str]) -> subprocess.Popen[bytes]:
            child = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT)
            stack.callback(child.kill)
            return child

        expected = ["--expect-workers", str(len(AHEAD_S)), "--enable-rebalancing"]
        master = start(
            [*locust, "--master", "--headless", "--master-bind-port", bus, *expected, *options,
             "--host", f"http://{HERE.format(0)}:{port}", "--patience", "20"]
        )  # fmt: skip
        workers = []
        for number, ahead_s in enumerate(AHEAD_S):
            place = HERE.format(number)
            clock = ["unshare", "--time", "--monotonic", str(ahead_s), "--boottime", str(ahead_s)]
            entered = ["ip", "netns", "exec", f"kodelab{number}", *clock, "--fork", "--kill-child"]
            joined = ["--worker", "--master-host", place, "--master-port", bus]
            workers.append(start([*entered, *locust, *joined, "--host", f"http://{place}:{port}"]))
        if case.kills:
            told, due_s = run_dir / "history-2.jsonl", time.monotonic() + LIMIT_S / 2
            while not told.exists() or told.read_bytes().count(b"\n") < ENOUGH:
                assert time.monotonic() < due_s, "the second worker told nothing"
                time.sleep(0.1)
            workers[1].kill()
        status = master.wait(LIMIT_S)
    read = (json.loads((run_dir / name).read_bytes()) for name in ("load.json", "verdict.json"))
    return (status, *read)


def main() -> int:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, help="also write it there")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("make machines needs root: it makes network and time namespaces")
    what = ("run", "exit status", "verdict", "turns", "clocks within", "too close to order")
    heads = (*what, "turns of a dead worker")
    setting = f"`hot_session`, {USERS} users, {FOR_S} s."
    lines = [
        f"`make machines`, commit {commit_name()}; {machine()}", "",
        "Two Locust workers, each with a network and a monotonic clock of its own, ahead of the",
        f"master's by {' and '.join(f'{ahead_s:,} s' for ahead_s in AHEAD_S)}; {setting}", "",
        f"| {' | '.join(heads)} |", "|---" * len(heads) + "|",
    ]  # fmt: skip
    is_right = True
    with namespaces():
        for case in CASES:
            with tempfile.TemporaryDirectory(prefix="kode-lab-machines-") as scratch:
                status, figures, verdict = run(case, Path(scratch))
            clocks = figures["generator"]["machines"]
            ahead = [round(one["ahead_s"]) for one in clocks["workers"].values()]
            counts = ", ".join(f"{n} {name}" for name, n in verdict["counts"].items() if n)
            is_right &= status == case.status and sorted(ahead) == sorted(AHEAD_S)
            told = f"{verdict['headline'].partition('.')[0]}{f' ({counts})' if counts else ''}"
            lines.append(
                f"| {case.what} | {status}{'' if status == case.status else ' (WRONG)'} | {told} | "
                f"{figures['turns']} | {clocks['bound_ns'] / 1e6:.2f} ms | "
                f"{clocks['undecided']} of {clocks['followed']} | {clocks['unheard']} |"
            )
            sys.stderr.write(lines[-1] + "\n")
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
