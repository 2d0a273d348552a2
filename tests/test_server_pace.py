"""Replies that come all at once are let in a few in a pass of the loop, in their order."""

import asyncio

import pytest

from kode_lab.errors import ModelUnavailable
from kode_lab.message import Reply, Request
from kode_lab.server.serve import ReplyPace

REQUEST = Request("m", "", [])


class Together:
    """A model that answers all who ask at one moment."""

    def __init__(self):
        self.now = asyncio.Event()

    async def __call__(self, request, on_text=None):  # noqa: ARG002
        await self.now.wait()
        return Reply(({"type": "text", "text": request.model},), "end_turn")


async def passes_of(pace, model, names):
    """Return who came in, pass by pass of the loop."""
    passes = [[]]

    async def one(name):
        reply = await pace(REQUEST._replace(model=name))
        passes[-1].append(reply.text)

    tasks = [asyncio.create_task(one(name)) for name in names]
    await asyncio.sleep(0)
    model.now.set()
    while not all(task.done() for task in tasks):
        passes.append([])
        await asyncio.sleep(0)
    return tasks, [came for came in passes if came]


def test_so_many_replies_come_in_in_one_pass_and_all_in_their_order():
    async def scenario():
        model = Together()
        names = [f"n{number}" for number in range(10)]
        _, passes = await passes_of(ReplyPace(model, at_once=3), model, names)
        assert max(map(len, passes)) == 3
        assert [name for came in passes for name in came] == names
        assert len(passes) == 4

    asyncio.run(scenario())


def test_who_begins_meanwhile_is_heard_before_the_last_reply_comes_in():
    async def scenario():
        model, heard = Together(), []
        pace = ReplyPace(model, at_once=2)
        tasks = [asyncio.create_task(pace(REQUEST)) for _ in range(8)]
        await asyncio.sleep(0)
        model.now.set()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        asyncio.get_running_loop().call_soon(
            lambda: heard.append(sum(task.done() for task in tasks))
        )
        await asyncio.gather(*tasks)
        assert heard[0] < 8

    asyncio.run(scenario())


def test_who_is_cancelled_while_waiting_takes_no_place():
    async def scenario():
        model = Together()
        pace = ReplyPace(model, at_once=1)
        tasks = [asyncio.create_task(pace(REQUEST)) for _ in range(5)]
        await asyncio.sleep(0)
        model.now.set()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks[3].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in done] == [0, 0, 0, 1, 0]
        assert (await pace(REQUEST)).stop_reason == "end_turn"

    asyncio.run(scenario())


def test_an_error_does_not_wait():
    async def down(request, on_text=None):  # noqa: ARG001
        raise ModelUnavailable("down")

    async def scenario():
        pace = ReplyPace(down, at_once=1)
        for _ in range(3):
            with pytest.raises(ModelUnavailable):
                await pace(REQUEST)

    asyncio.run(scenario())
