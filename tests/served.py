"""A served house: the real server on a socket, its sessions on a real directory, clients beside it.

``served`` is in this process, so that a test sees inside; ``serving`` is ``kode-lab serve``.

The model is the house's clerk with two more places to stop: before it answers, and after the first
word of a stream; the store may stop before it appends. So a test can bring a turn to a stage, see
that it is there, and do something to its client.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote

import aiohttp
from house import PATIENCE_S, Clerk, World, shelf, until

from kode_lab.http import ConnectionLimits, HttpServer
from kode_lab.key import SessionKey
from kode_lab.server import Limits, LiveState, app_of, in_thread
from kode_lab.sessions import JsonStore, SessionManager

JSON = {"Content-Type": "application/json"}


class Gate:
    """A place where a turn stops, once it is shut, until it is opened."""

    def __init__(self):
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def shut(self):
        self._open.clear()

    def open(self):
        self._open.set()

    async def __call__(self):
        self.reached.set()
        await self._open.wait()


class Teller:
    """A model: the clerk's answers, with gates before them and in the middle of a stream."""

    def __init__(self, ask, midstream):
        self.clerk = Clerk()
        self._ask = ask
        self._midstream = midstream

    async def __call__(self, request, on_text=None):
        await self._ask()
        reply = await self.clerk(request)
        if on_text is not None and reply.text:
            for number, word in enumerate(re.findall(r"\S+\s*", reply.text)):
                if number == 1:
                    await self._midstream()
                on_text(word)
                await asyncio.sleep(0)
        return reply


class GatedStore:
    """A store that stops before it appends."""

    def __init__(self, store, gate):
        self._store = store
        self._gate = gate

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def has(self, key):
        return await self._store.has(key)

    async def append(self, lease, turn, entries):
        await self._gate()
        return await self._store.append(lease, turn, entries)


class Served:
    """One server with its parts, and what a client does with it."""

    def __init__(self, path, agent):
        self.gates = {name: Gate() for name in ("ask", "midstream", "commit")}
        self.world = World()
        self.model = Teller(self.gates["ask"], self.gates["midstream"])
        self.store = JsonStore(path / "store")
        self.live_state = LiveState()
        self.agents = shelf(path / "agents", self.world.box, **(agent or {}))
        self.listings = []
        self.manager = None
        self.service = None
        self.http = None
        self.client = None

    @property
    def connections(self):
        return self.http.connections

    def sessions(self, user_id):
        """Return the user's sessions, as the server asks for them, and remember that it did."""
        self.listings.append(user_id)
        return list(self.store.sessions(user_id))

    async def idle(self):
        """Wait until no turn is in flight."""
        await until(lambda: not self.service.turns_in_flight)

    async def post(self, message="hello", **fields):
        """Take a turn of ada's; give the status, the answer's JSON and its headers."""
        return await self.ask("POST", "/v1/turns", data=self.body(message, **fields), headers=JSON)

    @staticmethod
    def body(message="hello", **fields):
        body = {"userId": "ada", "agentId": "clerk", "sessionId": "s1", "message": message}
        return json.dumps(body | fields).encode()

    async def ask(self, method, path, **options):
        async with self.client.request(method, self.http.base_url + path, **options) as answer:
            content = await answer.read()
            told = json.loads(content) if "json" in answer.headers.get("content-type", "") else None
            return answer.status, content if told is None else told, answer.headers

    async def stream(self, message="hello", **fields):
        """Take a streamed turn; give the status and its events as (name, data)."""
        data = self.body(message, stream=True, **fields)
        async with self.client.post(
            f"{self.http.base_url}/v1/turns", data=data, headers=JSON
        ) as answer:
            text = (await answer.read()).decode()
            if not answer.headers["content-type"].startswith("text/event-stream"):
                return answer.status, json.loads(text)
            return answer.status, events_of(text)

    async def history(self, user="ada", session="s1"):
        status, told, _ = await self.ask("GET", f"/v1/sessions/{user}/{session}/clerk/messages")
        assert status == 200, told
        return told["messages"]

    async def delete(self, session):
        path = f"/v1/sessions/ada/{quote(session, safe='')}/clerk"
        status, _, _ = await self.ask("DELETE", path)
        return status

    @staticmethod
    def key(session):
        return SessionKey.of("ada", "clerk", session)

    async def connect(self):
        """Return a raw connection: reader and writer."""
        return await asyncio.open_connection("127.0.0.1", self.http.port)


def events_of(text):
    """Return the events of a stream's text as (name, data), comments left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":")
        )
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


def turn_request(body, *headers):
    """Return the bytes of a ``POST /v1/turns``."""
    lines = [b"POST /v1/turns HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    lines += [b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


@asynccontextmanager
async def served(path, *, agent=None, limits=None, tokens=None):
    """Return a server of the sessions below ``path``."""
    scene = Served(path, agent)
    if isinstance(limits, ConnectionLimits):
        limits = Limits(limits)
    limits = limits or Limits()
    async with SessionManager(
        store=GatedStore(scene.store, scene.gates["commit"]),
        agents=scene.agents,
        model=scene.model,
        trace=scene.live_state.see,
        drain_s=PATIENCE_S,
    ) as scene.manager:
        app = app_of(
            scene.manager,
            live_state=scene.live_state,
            sessions_of=in_thread(scene.sessions),
            tokens=tokens,
            limits=limits,
        )
        scene.app, scene.service = app, app.service
        async with (
            HttpServer(app, limits=limits.connection) as scene.http,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as scene.client,
        ):
            yield scene


# ---- kode-lab serve in a process of its own


class Child:
    """A server process and what its client does."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    def signal(self, number):
        self.process.send_signal(number)

    async def ended(self):
        """Return its exit status."""
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)

    async def post(self, client, message, session="s1", **fields):
        body = {"userId": "ada", "agentId": "schedule-assistant", "sessionId": session}
        data = json.dumps(body | {"message": message} | fields)
        async with client.post(f"{self.url}/v1/turns", data=data, headers=JSON) as answer:
            text = await answer.text()
            if answer.content_type == "text/event-stream":
                return answer.status, text
            return answer.status, json.loads(text)

    async def get(self, client, path):
        async with client.get(self.url + path) as answer:
            return await answer.json()

    async def until(self, client, condition):
        """Wait until the statistics fit."""
        while not condition(await self.get(client, "/v1/statistics")):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def messages(self, client, session="s1"):
        told = await self.get(client, f"/v1/sessions/ada/{session}/schedule-assistant/messages")
        return told["messages"]


def command(path, *options):
    return [
        *(sys.executable, "-m", "kode_lab", "serve", "--port", "0"),
        *("--data", str(path / "data"), "--in-process", *options),
    ]


@contextmanager
def serving(path, *options, ttft_s=0.0, files_limit=None, **environment):
    """Return a running server whose model takes so long for each call."""
    shell = [] if files_limit is None else ["bash", "-c", f'ulimit -n {files_limit}; exec "$@"', ""]
    (path / "profile.toml").write_text(f"ttft_s = {ttft_s}\n")
    options = ("--profile", str(path / "profile.toml"), *options)
    with (path / "stderr").open("ab") as stderr:
        process = subprocess.Popen(
            [*shell, *command(path, *options)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | environment,
        )
    try:
        ready = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", ready)
        assert url, (ready, (path / "stderr").read_text())
        yield Child(process, url[0])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def patient():
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S))
