"""A started target behind two HTTP endpoints, for load generators that cannot hold it themselves.

    python -m kode_lab.targets.gateway mine.toml --model-url http://127.0.0.1:8765

It owns the target's life: started once, killed and started again on request, ended with this
process. Several generators share it. One that is described over HTTP is asked directly by them
(``attached``); here only its life is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from kode_lab.errors import KodeLabError
from kode_lab.key import SessionKey
from kode_lab.targets.description import read_description
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
    if fields["described"]:
        return HttpTarget(read_description(Path(fields["described"]))).attach(
            fields["surroundings"]
        )
    declares: dict[str, Any] = fields["declares"]
    declares = {n: tuple(v) if isinstance(v, list) else v for n, v in declares.items()}
    return GatewayTarget(url, Declaration(**declares))


async def _serve(options: argparse.Namespace) -> int:
    from aiohttp import web  # noqa: PLC0415 - the gateway's own process pays for it

    target = open_target(options.target, model_url=options.model_url)
    described = str(Path.cwd() / options.target) if isinstance(target, HttpTarget) else ""

    async def tell(_request: Any) -> Any:
        surroundings = target.surroundings if isinstance(target, HttpTarget) else {}
        return web.json_response(
            {
                "declares": target.declaration._asdict(),
                "described": described,
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
    try:
        return asyncio.run(_serve(parser.parse_args()))
    except KodeLabError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 3


if __name__ == "__main__":
    sys.exit(_main())
