"""For tests: a simulated API, plain HTTP to it, and the real client opened on it."""

from __future__ import annotations

import asyncio
import json
from datetime import date

import pytest

from kode_lab.claude import Claude, Fault, SimulatedClaude
from kode_lab.message import Request, user

HEADERS = {"x-api-key": "any", "anthropic-version": "2023-06-01"}

MODEL = "claude-sonnet-5-5"

TODAY = date(2026, 3, 2)

TOOL = {"name": "create_schedule", "input_schema": {"type": "object"}}


def asked(*messages, **fields):
    return {"model": MODEL, "max_tokens": 1024, "messages": list(messages), **fields}


async def http(simulated, method, path, body=None, headers=None):
    """One request over a fresh connection; gives status, headers and the raw body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [
        f"{name}: {value}" for name, value in (HEADERS if headers is None else headers).items()
    ]
    lines.append(f"content-length: {len(content)}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    try:
        raw = await reader.read()
    finally:
        writer.close()
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    told = dict(field.split(": ", 1) for field in fields)
    if told.get("transfer-encoding") == "chunked":
        whole = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        rest = whole
    return int(first.split()[1]), told, rest


def serving(scenario, **options):
    async def main():
        async with SimulatedClaude(**{"today": TODAY, "salt": "t", **options}) as simulated:
            return await scenario(simulated)

    return asyncio.run(main())


async def until(holds):
    """Let everything run until this holds of the server's state; it sends no event by itself."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


def answer_to(body, path="/v1/messages", headers=None, **options):
    """Return the status, the headers and the parsed body of one request to a fresh server."""
    status, told, content = serving(
        lambda simulated: http(simulated, "POST", path, body, headers), **options
    )
    return status, told, json.loads(content)


def ask(prompt: str = "hello", **fields) -> Request:
    return Request(MODEL, "You are brief.", [user(prompt)], **fields)


def against(scenario, *, server=None, **options):
    """Run ``scenario(claude, simulated)`` with the real client opened on a simulated API."""

    async def main():
        async with (
            SimulatedClaude(**(server or {})) as simulated,
            Claude(simulated.base_url, **options) as claude,
        ):
            return await scenario(claude, simulated)

    return asyncio.run(main())


def failing(fault: Fault, request: Request | None = None, on_text=None, **options):
    """Return the error that a call ends with when this goes wrong."""

    async def scenario(claude, _):
        with pytest.raises(Exception, match=r"\w") as raised:
            await claude(request or ask(), on_text)
        return raised.value

    return against(scenario, server={"faults": [fault]}, **options)
