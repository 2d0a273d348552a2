"""What turns and connections leave to the garbage collector: nothing, however they ended.

The server tells the collector to come rarely (``kode_lab.server.serve``). That is right only
while everything is gone by itself when its turn or connection is over: a failed turn in a circle
of task, error, traceback and frame would hold its whole request for minutes.
"""

import asyncio
import gc
import weakref
from contextlib import asynccontextmanager

import pytest
import uvloop
from house import until
from served import served, turn_request

from kode_lab.server.serve import settled

TIMES = 3
OURS = ("kode_lab", "starlette")
# A circle of anybody's that holds one of these may hold a request.
HOLDERS = ("frame", "traceback", "coroutine", "Task", "bytes")


async def answered(scene):
    assert (await scene.post("hello"))[0] == 200


async def with_a_tool(scene):
    assert (await scene.post("tool note x"))[0] == 200


async def streamed(scene):
    assert (await scene.stream("one two three"))[0] == 200


async def no_json(scene):
    assert (await scene.ask("POST", "/v1/turns", data=b"{"))[0] == 415


async def wrong_field(scene):
    assert (await scene.post("hello", colour="blue"))[0] == 422


async def unknown_agent(scene):
    assert (await scene.post("hello", agentId="stranger"))[0] == 404


async def no_room(scene):
    gate = scene.gates["ask"]
    gate.shut()
    asked = [asyncio.ensure_future(scene.post("hello", sessionId="full")) for _ in range(4)]
    # Those that are refused are answered while the first one still stands at the gate.
    refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    gate.open()
    assert {task.result()[0] for task in refused} == {429}
    await asyncio.gather(*asked)


async def rejected(scene):
    await _meeting(scene, "reject", 200, 409)


async def interrupted(scene):
    await _meeting(scene, "interrupt", 410, 200)


async def rolled_back(scene):
    await _meeting(scene, "rollback", 410, 200)


async def _meeting(scene, strategy, first, second):
    """Let a turn with this strategy meet one that stands at the gate."""
    gate = scene.gates["ask"]
    gate.reached.clear()
    gate.shut()
    standing = asyncio.ensure_future(scene.post("hello"))
    await gate.reached.wait()
    coming = asyncio.ensure_future(scene.post("hello", strategy=strategy))
    await asyncio.wait((standing, coming), return_when=asyncio.FIRST_COMPLETED)
    gate.open()
    assert (await standing)[0] == first
    assert (await coming)[0] == second


async def left(scene):
    gate = scene.gates["ask"]
    gate.reached.clear()
    gate.shut()
    async with _connection(scene) as (_, writer):
        writer.write(turn_request(scene.body(onDisconnect="rollback")))
        await gate.reached.wait()
    await scene.idle()
    gate.open()


async def left_with_the_next_sent(scene):
    gate = scene.gates["ask"]
    gate.reached.clear()
    gate.shut()
    async with _connection(scene) as (_, writer):
        writer.write(turn_request(scene.body()) * 2 + b"POST /v1/tu")
        await gate.reached.wait()
        writer.transport.abort()
    gate.open()
    await scene.idle()


async def cut(scene):
    async with _connection(scene) as (_, writer):
        writer.write(turn_request(scene.body())[:-10])
        await writer.drain()


async def no_http(scene):
    async with _connection(scene) as (reader, writer):
        writer.write(b"NONSENSE\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")


@asynccontextmanager
async def _connection(scene):
    """Return a raw connection; at the end the server, too, knows that it is over."""
    others = len(scene.connections)
    reader, writer = await scene.connect()
    await until(lambda: len(scene.connections) > others)
    yield reader, writer
    writer.close()
    await until(lambda: len(scene.connections) == others)


WAYS = (
    *(answered, with_a_tool, streamed, no_json, wrong_field, unknown_agent),
    *(no_room, rejected, interrupted, rolled_back, left, left_with_the_next_sent, cut, no_http),
)


@pytest.fixture(scope="module")
def told_off():
    """What lives already is nothing for the collector, which would walk through it each time."""
    _collect_all()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_turn_or_connection_leaves_nothing_to_the_collector(tmp_path, way, told_off):  # noqa: ARG001
    async def scenario():
        async with served(tmp_path, agent={"queue_limit": 1}) as scene:
            await way(scene)  # what is made once is made here
            await scene.idle()
            _collect_all()
            gc.disable()
            try:
                for _ in range(TIMES):
                    await way(scene)
                await scene.idle()
                assert not _circles()
            finally:
                gc.enable()

    uvloop.run(scenario())


def _collect_all():
    """Collect what earlier tests of this process left: what ends tasks leaves more, in rounds."""
    for _ in range(10):
        if not gc.collect():
            return


def _circles():
    """Return what only the collector finds, if it is ours or may hold a request."""
    before = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        names = [f"{type(one).__module__}.{type(one).__name__}" for one in gc.garbage]
    finally:
        gc.set_debug(before)
        gc.garbage.clear()
    return sorted(
        name for name in names if name.startswith(OURS) or name.rpartition(".")[2] in HOLDERS
    )


class Ring:
    """Something that holds itself, as nothing of ours does."""

    def __init__(self):
        self.me = self


def test_what_lives_is_told_off_while_turns_run_and_looked_at_when_none_do():
    async def scenario():
        in_flight = 1
        async with settled(lambda: in_flight, look_s=0.001, idle_looks=3):
            frozen = gc.get_freeze_count()
            kept = [[] for _ in range(20_000)]
            ring = Ring()
            lost = weakref.ref(ring)
            await until(lambda: gc.get_freeze_count() >= frozen + len(kept))
            del ring
            gc.collect()
            assert lost() is not None, "it was told off, so it is not looked at"
            in_flight = 0
            await until(lambda: lost() is None)
            assert gc.get_threshold()[0] == 1_000_000
        assert gc.get_threshold() == before

    before = gc.get_threshold()
    asyncio.run(scenario())
    gc.unfreeze()
