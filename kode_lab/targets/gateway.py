"""A target for other processes: started here and shared, or asked from here by the line.

    python -m kode_lab.targets.gateway mine.toml --model-url http://127.0.0.1:8765
    python -m kode_lab.targets.gateway mine.toml --ask '{"port": "4711", ...}'

The first owns the target's life behind two HTTP endpoints: started once, killed and started again
on request, ended with this process. Several load generators share it; a service that is described
over HTTP is asked directly by them (``attached``). The second asks a service that another process
started, with connections of its own (``lines.asking_process``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kode_lab.errors import KodeLabError
from kode_lab.key import SessionKey
from kode_lab.targets.http_target import HttpTarget, http_client
from kode_lab.targets.opening import open_target
from kode_lab.targets.target import Answer, Declaration, History

__all__ = ["GatewayTarget", "attached"]


class GatewayTarget:
    """The target behind a gateway."""

    def __init__(self, url: str, declaration: Declaration) -> None:
        self.declaration = declaration
        self._url = url
        self._client = http_client()

    async def turn(self, key: SessionKey, prompt: str, turn_id: str) -> Answer:
        """Take one turn."""
        body = {"key": list(key), "prompt": prompt, "turn_id": turn_id}
        async with self._client.post(f"{self._url}/turn", json=body) as response:
            fields = await response.json()
        return Answer(fields["kind"], fields["text"], fields["error"])

    async def history(self, key: SessionKey) -> History | None:
        """Read a session."""
        async with self._client.post(f"{self._url}/history", json={"key": list(key)}) as response:
            fields = await response.json()
        if fields["error"]:
            raise KodeLabError(fields["error"])
        return None if fields["prompts"] is None else History(tuple(fields["prompts"]))

    async def stop(self) -> None:
        """Close the connections; the target lives on."""
        await self._client.close()


async def attached(url: str) -> HttpTarget | GatewayTarget:
    """Return a client of the target behind the gateway at ``url``."""
    async with http_client() as client, client.get(f"{url}/target") as response:
        fields = await response.json()
    if fields["spec"]:
        described = open_target(fields["spec"])
        assert isinstance(described, HttpTarget)
        return described.attach(fields["surroundings"])
    declares: dict[str, Any] = fields["declares"]
    declares = {n: tuple(v) if isinstance(v, list) else v for n, v in declares.items()}
    return GatewayTarget(url, Declaration(**declares))


async def _ask(options: argparse.Namespace) -> int:
    """Ask a started service what standard input says, and write its answers."""
    target = open_target(options.target)
    if not isinstance(target, HttpTarget):
        raise KodeLabError(f"{options.target} is not asked over HTTP")
    answers = os.fdopen(os.dup(1), "wb")
    target.attach(json.loads(options.ask))

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    async def take(asked: dict[str, Any]) -> None:
        await asyncio.sleep((asked["at_ns"] - time.monotonic_ns()) / 1e9)
        key = SessionKey(*asked["key"])
        target.adopt(key, asked["opened"])
        answer = await target.turn(key, asked["prompt"], asked["turn_id"])
        say({"id": asked["id"], **answer._asdict()})

    say({"ready": {}})
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as tasks:
        while line := await reader.readline():
            tasks.create_task(take(json.loads(line)))
    await target.stop()
    return 0


async def _serve(options: argparse.Namespace) -> int:
    from aiohttp import web  # noqa: PLC0415 - the gateway's own process pays for it

    target = open_target(options.target, model_url=options.model_url)
    is_file = options.target.endswith(".toml")
    spec = str(Path.cwd() / options.target) if is_file else options.target

    async def tell(_request: Any) -> Any:
        surroundings = target.surroundings if isinstance(target, HttpTarget) else {}
        return web.json_response(
            {
                "declares": target.declaration._asdict(),
                "spec": spec if isinstance(target, HttpTarget) else "",
                "surroundings": surroundings,
            }
        )

    async def turn(request: Any) -> Any:
        asked = await request.json()
        answer = await target.turn(SessionKey(*asked["key"]), asked["prompt"], asked["turn_id"])
        return web.json_response(answer._replace(read=None)._asdict())

    async def history(request: Any) -> Any:
        asked = await request.json()
        try:
            told = await target.history(SessionKey(*asked["key"]))
        except KodeLabError as error:
            return web.json_response({"prompts": None, "error": str(error)})
        return web.json_response({"prompts": None if told is None else told.prompts, "error": ""})

    async def kill(_request: Any) -> Any:
        await target.kill()
        return web.json_response({})

    async def restart(_request: Any) -> Any:
        await target.restart()
        return web.json_response({})

    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.get("/target", tell)])
    posts = {"/turn": turn, "/history": history, "/kill": kill, "/restart": restart}
    app.add_routes([web.post(path, handler) for path, handler in posts.items()])
    runner = web.AppRunner(app, access_log=None)
    try:
        await target.start(options.model_url)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        sys.stdout.write(
            f"gateway of {options.target} on http://127.0.0.1:{runner.addresses[0][1]}\n"
        )
        sys.stdout.flush()
        await over.wait()
    except KodeLabError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 3
    finally:
        await runner.cleanup()
        await target.stop()
    return 0


def _main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--model-url", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ask", default="", help="surroundings of a service that is started")
    options = parser.parse_args()
    try:
        return asyncio.run(_ask(options) if options.ask else _serve(options))
    except KodeLabError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 3


if __name__ == "__main__":
    sys.exit(_main())
