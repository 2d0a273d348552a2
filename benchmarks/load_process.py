"""A load generator in a process of its own, for benches whose subject is a server in this one.

It keeps connections open, sends turns over them as fast as they are answered, and says how long
that took: jobs come as JSON lines on its standard input, seconds go out on its standard output, and
it ends when its input does. It reads no more of an answer than where it ends, so that it is seldom
what is waited for.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["Job", "Load", "generator"]

_LIMIT_S = 300.0
_OPENING_AT_ONCE = 200


class Job(NamedTuple):
    """Turns to take.

    Attributes:
        connections: each is a client, and is kept for later jobs on this port.
        turns: of each connection, one after another.
        sessions_each: how many sessions each client has, turn by turn another one.
    """

    port: int
    connections: int
    turns: int
    is_stream: bool = False
    sessions_each: int = 1


class Load:
    """The generator's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, job: Job) -> float:
        """Do the job, and give the seconds from its first request to its last answer.

        Raises:
            InvalidScenario: an answer was not a turn's, or none came in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        async with asyncio.timeout(_LIMIT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise InvalidScenario("the load generator ended: its error stands above")
        return float(line)


@asynccontextmanager
async def generator() -> AsyncIterator[Load]:
    """Return a running generator."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Load(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


# ---- the process itself


class _Client:
    """One connection: sends its turns, finds the ends of the answers."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._buffer = b""
        self._left = 0
        self._requests: list[bytes] = []
        self._end = b""
        self._done: asyncio.Future[None] | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._has_answer():
            return
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._fail(f"answered {self._buffer[:300]!r}")
            return
        self._buffer = b""
        self._left -= 1
        if self._left:
            self._send()
        elif self._done is not None:
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"connection lost: {error}")

    def eof_received(self) -> None:
        pass

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    def take(self, job: Job) -> asyncio.Future[None]:
        """Send the first turn of the job; what is given is done when the last is answered."""
        self._requests = [self._request(job, number) for number in range(job.sessions_each)]
        self._end = b"0\r\n\r\n" if job.is_stream else b""
        self._left = job.turns
        self._done = asyncio.get_running_loop().create_future()
        self._send()
        return self._done

    def _send(self) -> None:
        self._transport.write(self._requests[self._left % len(self._requests)])

    def _request(self, job: Job, session: int) -> bytes:
        body = json.dumps(
            {
                "userId": f"user-{self._number // 10}",
                "sessionId": f"session-{self._number}-{session}",
                "agentId": "bench",
                "message": "What is planned for tomorrow morning? " * 4,
                **({"stream": True} if job.is_stream else {}),
            }
        ).encode()
        return (
            b"POST /v1/turns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def _has_answer(self) -> bool:
        if self._end and self._buffer.startswith(b"HTTP/1.1 200"):
            return self._buffer.endswith(self._end)
        head, between, body = self._buffer.partition(b"\r\n\r\n")
        at = head.find(b"content-length: ")
        return bool(between) and at > 0 and len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])

    def _fail(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(InvalidScenario(message))


async def _generate() -> None:
    loop = asyncio.get_running_loop()
    pools: dict[int, list[_Client]] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = Job(*json.loads(line))
        pool = pools.setdefault(job.port, [])
        while len(pool) < job.connections:
            count = min(_OPENING_AT_ONCE, job.connections - len(pool))
            clients = [_Client(len(pool) + index) for index in range(count)]
            for client in clients:
                await loop.create_connection(
                    lambda client=client: client,  # type: ignore[misc]
                    "127.0.0.1",
                    job.port,
                )
            pool += clients
        start_s = time.monotonic()
        clients = pool[: job.connections]
        await asyncio.gather(*(client.take(job) for client in clients))
        sys.stdout.write(f"{time.monotonic() - start_s}\n")
        sys.stdout.flush()


def _main() -> None:
    from benchmarks.sampling import on_loop  # noqa: PLC0415 - the process's alone
    from benchmarks.scene import files_limit  # noqa: PLC0415

    files_limit()
    on_loop(_generate())


if __name__ == "__main__":
    _main()
