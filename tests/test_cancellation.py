"""A turn cancelled at any await leaves the session usable, its history whole, and nothing held.

The awaits are the code's own: a turn is run once for each of its suspensions, and cancelled there,
until it runs through. It is cancelled while it waits (``meanwhile``), and in the very moment in
which what it waits for has come (``as it comes``), when cancelling comes too late to stop it.
"""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager

import pytest
from house import Clerk, FaultyDisk, World, assert_idle, assert_legal, managing, prompts, run, until

from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore

LOCK_LOOKS = 4  # how often a turn looks whether another process has let go


class Suspensions:
    """Runs a coroutine inside the current task, and tells of each of its suspensions."""

    def __init__(self, coroutine, told):
        self.coroutine = coroutine
        self.told = told
        self.count = 0

    def __await__(self):
        error = None
        while True:
            try:
                if error is None:
                    awaited = self.coroutine.send(None)
                else:
                    awaited = self.coroutine.throw(error)
            except StopIteration as ended:
                return ended.value
            self.told(self.count, awaited)
            self.count += 1
            error = None
            try:
                yield awaited
            except BaseException as thrown:  # noqa: BLE001 - it is handed on to the coroutine
                error = thrown


class Cut:
    """Cancels the current task at its ``number``-th suspension."""

    def __init__(self, number, moment, told=None):
        self.number = number
        self.moment = moment
        self.told = told
        self.is_reached = False

    async def run(self, coroutine):
        return await Suspensions(coroutine, self.suspended)

    def suspended(self, number, awaited):
        if self.told is not None:
            self.told(number)
        if number != self.number:
            return
        self.is_reached = True
        task = asyncio.current_task()
        if awaited is None:  # it only lets others run
            task.cancel()
        elif self.moment == "meanwhile":
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            # Before the task's own callback, because it waits only after this.
            awaited.add_done_callback(lambda _: task.cancel())


@asynccontextmanager
async def free(_manager, _key, _store):
    """No one else wants the session."""
    yield None


@asynccontextmanager
async def one_ahead(manager, key, _store):
    """A turn of the same session is running, and two wait."""
    tasks = [asyncio.create_task(manager.turn(key, f"ahead {n}")) for n in range(3)]
    await asyncio.sleep(0)
    yield None
    await asyncio.gather(*tasks)


@asynccontextmanager
async def elsewhere(_manager, key, store):
    """Another process has the session, and lets go after some looks."""
    other = JsonStore(store.root)
    lease = await other.hold(key, queue_limit=1)
    yield lambda number: number == LOCK_LOOKS and other.release(lease)
    await other.aclose()


ELSEWHERE = "after another process"
SCENES = {
    "plain": ("hello", free, False),
    "one tool": ("note:1", free, False),
    "tools together, in the loop and in a thread": ("note:2 thread:1", free, False),
    "two rounds of tools": ("rounds:2 note:1", free, False),
    "streamed": ("several words to stream", free, True),
    "after others": ("note:1", one_ahead, False),
    ELSEWHERE: ("note:1", elsewhere, False),
}


@pytest.mark.parametrize("moment", ["meanwhile", "as it comes"])
@pytest.mark.parametrize(
    ("scene", "durability"),
    # Power owns its directory alone: there is no other process.
    [p for p in itertools.product(SCENES, ["process", "power"]) if p != (ELSEWHERE, "power")],
)
def test_a_turn_cancelled_at_any_of_its_awaits_can_be_sent_again_or_followed_by_another(
    tmp_path, scene, durability, moment
):
    prompt, others, is_streamed = SCENES[scene]

    async def scenario():
        world, model = World(), Clerk()
        disk = FaultyDisk(tmp_path / "store")
        store = JsonStore(tmp_path / "store", durability=durability, disk=disk)
        async with managing(tmp_path, model, world, store=store) as manager:
            for number in itertools.count():
                key = SessionKey.of(f"user {number}", "clerk")
                told = (lambda _: None) if is_streamed else None
                async with others(manager, key, store) as lets_go:
                    cut = Cut(number, moment, lets_go)
                    turn = manager.turn(key, prompt, turn_id="t", on_event=told)
                    task = asyncio.create_task(cut.run(turn))
                    await asyncio.wait([task])
                # The result of a tool that had begun may come late.
                await until(lambda: manager.statistics().lock.held == 0)
                assert_idle(manager)
                if not cut.is_reached:
                    break
                assert task.cancelled(), "a cancel is never swallowed"
                again = number % 2 == 0
                reply = await manager.turn(key, prompt, turn_id="t" if again else "another")
                assert reply.text == f"re: {prompt}"
                await assert_whole(manager, key, world, times=1 if again else 2)
                await until(lambda: manager.statistics().lock.held == 0)
            assert task.result().text == f"re: {prompt}"
            assert number >= 1, "there were awaits to cancel at"

    async def assert_whole(manager, key, world, times):
        messages = await manager.history(key)
        assert_legal(messages)
        said = [text for text in prompts(messages) if not text.startswith("ahead")]
        assert said in ([prompt], [prompt] * times)
        in_history = [
            block["id"] for m in messages for block in m["content"] if block["type"] == "tool_use"
        ]
        ran = [context.call_id for _, context in world.runs if context.key == key]
        assert set(ran) <= set(in_history), "no tool ran that the conversation does not know of"
        done = [k for k in world.notes if json.loads(k)[-1] in in_history]
        assert len(done) == len(set(ran)), "each once"

    run(scenario())
