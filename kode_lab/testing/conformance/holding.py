"""Who holds a session, and when: one at a time, in order, and giving up blocks no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from kode_lab.errors import KodeLabError, StaleLease, WaitingRoomFull
from kode_lab.key import SessionKey
from kode_lab.sessions.store import Lease
from kode_lab.testing.conformance.scene import QUEUE, Contract, Handle, Scene, Skipped, demand

__all__ = ["HOLDING"]

_TASKS, _ROUNDS = 4, 6


async def _one_holder(scene: Scene) -> None:
    store = await scene.store()
    await _exclusion(scene, [store])


async def _one_holder_of_all(scene: Scene) -> None:
    await _exclusion(scene, list(await scene.stores()))


async def _exclusion(scene: Scene, stores: list[Handle]) -> None:
    """Hold one session from many tasks, under two agents, and check that two never hold it."""
    inside: list[int] = []

    async def come(number: int) -> None:
        store, key = stores[number % len(stores)], scene.key(agent=f"a{number % 2}")
        for _ in range(_ROUNDS):
            lease = await store.hold(key, queue_limit=QUEUE)
            demand(not inside, f"task {number} came in while {inside} held userId:sessionId")
            inside.append(number)
            for _ in range(3):
                await asyncio.sleep(0)
            await store.load(lease)
            inside.remove(number)
            store.release(lease)

    await scene.soon(
        asyncio.gather(*[scene.begin(come(n)) for n in range(_TASKS * len(stores))]), "the crowd"
    )


async def _others_are_free(scene: Scene) -> None:
    store = await scene.store()
    leases = [await scene.hold(store, scene.key(f"s{n}"), 0) for n in range(3)]
    for lease in leases:
        store.release(lease)


@asynccontextmanager
async def _crowd(
    scene: Scene, stores: list[Handle], apart_s: float = 0.0
) -> AsyncIterator[tuple[list[int], list[int]]]:
    """Let one hold and six wait, one after the other; yield the orders of asking and of serving."""
    key, came = scene.key(), list[int]()
    for store in stores:  # a handle that still has to connect would come late
        store.release(await scene.hold(store, scene.key("beside")))
    first = await scene.hold(stores[0], key)

    async def wait(number: int, store: Handle) -> None:
        lease = await store.hold(key, queue_limit=QUEUE)
        came.append(number)
        store.release(lease)

    tasks = []
    for number in range(6):
        store = stores[number % len(stores)]
        before = store.statistics().waiting
        tasks.append(scene.begin(wait(number, store)))
        if apart_s:
            await asyncio.sleep(apart_s)  # the claim is about a distance in time
        else:
            await scene.waits(store, before + 1)
    stores[0].release(first)
    await scene.soon(asyncio.gather(*tasks), "the queue")
    yield list(range(6)), came


async def _order(scene: Scene) -> None:
    async with _crowd(scene, [await scene.store()]) as (asked, came):
        demand(came == asked, f"they asked in the order {asked} and came in the order {came}")


async def _order_of_all(scene: Scene) -> None:
    if scene.claims.apart_s is None:
        raise Skipped("the store claims no order between handles (apart_s=None)")
    async with _crowd(scene, list(await scene.stores()), scene.claims.apart_s) as (asked, came):
        demand(came == asked, f"they asked in the order {asked} and came in the order {came}")


async def _no_starvation(scene: Scene) -> None:
    greedy, other = await scene.stores()
    key = scene.key()
    lease = await scene.hold(greedy, key)
    waiting = scene.begin(other.hold(key, queue_limit=QUEUE))

    async def go_on(lease: Lease) -> None:
        while not waiting.done():
            greedy.release(lease)
            lease = await greedy.hold(key, queue_limit=QUEUE)
            await asyncio.sleep(0)
        greedy.release(lease)

    going = scene.begin(go_on(lease))
    other.release(
        await scene.soon(waiting, "the wait beside a handle that takes it again and again")
    )
    await scene.soon(going, "the wait of the greedy one")


async def _full(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    lease = await scene.hold(store, key, 0)
    tasks = []
    for number in range(2):
        tasks.append(scene.begin(store.hold(key, queue_limit=2)))
        await scene.waits(store, number + 1)
    await _refused(scene, store, key, 2)
    store.release(lease)
    for task in tasks:
        store.release(await scene.soon(task, "a place in the queue"))
    store.release(await scene.hold(store, key, 0))


async def _refused(scene: Scene, store: Handle, key: SessionKey, limit: int) -> None:
    try:
        lease = await scene.soon(store.hold(key, queue_limit=limit), f"hold with {limit=}")
    except WaitingRoomFull as error:
        demand(str(key) in str(error), f"WaitingRoomFull does not name {key}: {error}")
        return
    store.release(lease)
    demand(False, f"hold with queue_limit={limit} returned a lease while the session was held")


async def _no_waiting(scene: Scene) -> None:
    store = await scene.store()
    other = await scene.perhaps_another(store)
    key = scene.key()
    lease = await scene.hold(store, key, 0)
    for one in (store, other):
        await _refused(scene, one, key, 0)
        await _refused(scene, one, scene.key(agent="other"), 0)
    store.release(lease)
    for one in (other, store):  # wherever it was held before
        one.release(await scene.hold(one, key, 0))


async def _giving_up(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    async for task in scene.try_cancelling(lambda: store.hold(key, queue_limit=QUEUE)):
        if not task.cancelled():
            store.release(task.result())
        store.release(await scene.hold(store, key))
    for is_released_first in (True, False):
        lease = await scene.hold(store, key)
        waiters = []
        for number in range(3):
            waiters.append(scene.begin(store.hold(key, queue_limit=QUEUE)))
            await scene.waits(store, number + 1)
        # At the moment of the hand-over, before or after it.
        if is_released_first:
            store.release(lease)
        waiters[0].cancel()
        waiters[2].cancel()
        if not is_released_first:
            store.release(lease)
        store.release(await scene.soon(waiters[1], "the turn of the one that did not give up"))
        await asyncio.wait([waiters[0], waiters[2]])
        for one in (waiters[0], waiters[2]):
            if not one.cancelled() and one.exception() is None:
                store.release(one.result())
        store.release(await scene.hold(store, key))


async def _fence(scene: Scene) -> None:
    store = await scene.store()
    other = await scene.perhaps_another(store)
    key, fences = scene.key(), list[int]()
    for one in (store, store, other, other, store, other, store):
        lease = await scene.hold(one, key)
        fences.append(lease.fence)
        await one.load(lease)
        if len(fences) % 2:
            await one.append(lease, *scene.turn(f"t{len(fences)}"))
        one.release(lease)
    last = await scene.hold(await scene.reopened(store), key)
    fences.append(last.fence)
    demand(fences == sorted(set(fences)), f"the fences of one session were {fences}")


async def _void(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    lease = await scene.hold(store, key)
    await store.load(lease)
    await store.append(lease, *scene.turn("t1"))
    store.release(lease)
    store.release(lease)
    await _void_everywhere(scene, store, lease, "it was released")
    newer = await scene.hold(store, key)
    store.release(lease)  # must not end the newer one
    await _void_everywhere(scene, store, lease, "another hold came after it")
    scene.expect((await store.load(newer)).messages, ["t1"])
    await _refused(scene, store, key, 0)
    store.release(newer)


async def _void_everywhere(scene: Scene, store: Handle, lease: Lease, why: str) -> None:
    turn, entries = scene.turn("stale")
    for name, call in (
        ("load", partial(store.load, lease)),
        ("journal", partial(store.journal, lease, turn, entries[0])),
        ("append", partial(store.append, lease, turn, entries)),
        ("discard", partial(store.discard, lease)),
        ("delete", partial(store.delete, lease)),
    ):
        try:
            await scene.soon(call(), name)
        except StaleLease:
            continue
        demand(False, f"{name} took a lease although {why}")


async def _closed(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t1")
    lease = await scene.hold(store, key)
    await scene.close(store)
    other = await scene.store()
    newer = await scene.hold(other, key)
    try:
        await store.append(lease, *scene.turn("late"))
    except KodeLabError:
        pass
    else:
        demand(False, "a closed handle appended with a lease that was out")
    scene.expect((await other.load(newer)).messages, ["t1"])


async def _nothing_left(scene: Scene) -> None:
    store = await scene.store()
    for number in range(20):
        await scene.append(store, scene.key(f"s{number}"), "t")
    lease = await scene.hold(store, scene.key())
    waiter = scene.begin(store.hold(scene.key(), queue_limit=QUEUE))
    await scene.waits(store, 1)
    demand(store.statistics().held == 1, f"one is held, and statistics() is {store.statistics()}")
    waiter.cancel()
    await asyncio.wait([waiter])
    store.release(lease)
    await scene.until(
        lambda: store.statistics()[:2] == (0, 0), "statistics() with no holder and no waiter"
    )


HOLDING = (
    Contract(
        "In one handle, a userId:sessionId has at most one holder, whatever the agent.", _one_holder
    ),
    Contract("In two handles too, a userId:sessionId has at most one holder.", _one_holder_of_all),
    Contract("Different sessions are held at once.", _others_are_free),
    Contract("In one handle, the session is handed over in the order of asking.", _order),
    Contract("Across handles, a caller that asked clearly earlier is served first.", _order_of_all),
    Contract(
        "A handle that takes a session again and again does not starve another.", _no_starvation
    ),
    Contract("At most queue_limit callers wait; the next one gets WaitingRoomFull.", _full),
    Contract("A queue_limit of 0 does not wait, and takes what is free.", _no_waiting),
    Contract("A caller that gives up while waiting does not block others.", _giving_up),
    Contract("The fence grows with every hold, in any handle.", _fence),
    Contract("A lease that was released, even twice, is refused everywhere.", _void),
    Contract("A lease of a handle that was closed writes nothing.", _closed),
    Contract("statistics() counts holders and waiters, and returns to zero.", _nothing_left),
)
