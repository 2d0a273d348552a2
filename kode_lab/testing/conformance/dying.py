"""Holders that are killed or paused: the next one goes on, and the old one writes nothing more."""

from __future__ import annotations

import asyncio
import signal

from kode_lab.testing.conformance.child import Child
from kode_lab.testing.conformance.contract import Contract
from kode_lab.testing.conformance.scene import TURN_MESSAGES, Scene, Skipped, demand

__all__ = ["DYING"]

# At the first kill the holder has nothing more to do: what it acknowledged must be down already.
_TURNS = (1, 100_000, 100_000)


async def _killed_holder(scene: Scene) -> None:
    key = scene.key()
    store = await scene.store()
    await scene.append(store, key, "t1")
    async with Child(scene, key) as child:
        fence = await child.hear()
        waiting = scene.begin(scene.hold(store, key))
        await asyncio.sleep(0)
        child.send(signal.SIGKILL)
        lease = await waiting
        demand(lease.fence > fence, f"the killed holder had fence {fence}, the next {lease.fence}")
        found = await scene.soon(store.load(lease), "load")
        scene.expect(found.messages, ["t1"])
        demand(found.open is not None, "the step that the killed holder had journalled is gone")
        turn, entries = scene.turn("held")
        await scene.soon(store.append(lease, turn, entries[1:]), "append")
        store.release(lease)
    scene.expect((await scene.stored(store, key)).messages, ["t1", "held"])


async def _killed_writer(scene: Scene) -> None:
    store = await scene.store()
    for number, turns_limit in enumerate(_TURNS):
        key = scene.key(f"s{number}")
        async with Child(scene, key, turns=turns_limit) as child:
            for _ in range(20 * number + 1):
                last = await child.hear()
            await asyncio.sleep(0.0007 * number)  # anywhere in the next turn
            child.send(signal.SIGKILL)
            last = max([last, *await child.rest()])
        found = await scene.stored(store, key)
        turns = len(found.messages) // TURN_MESSAGES
        why = f"turn {last} was acknowledged before the kill, and {turns} turns are there"
        demand(turns > last, why)
        scene.expect(found.messages, [f"t{n}" for n in range(turns)])
        demand(turns <= last + 2, f"{turns} turns are there, of which {last + 1} were acknowledged")


async def _paused_holder(scene: Scene) -> None:
    ttl_s = scene.claims.ttl_s
    if ttl_s is None:
        raise Skipped("the store says that a holder that does not run is never overtaken")
    key = scene.key()
    store = await scene.store()
    await scene.append(store, key, "t1")
    async with Child(scene, key) as child:
        fence = await child.hear()
        child.send(signal.SIGSTOP)
        waiting = scene.begin(store.hold(key, queue_limit=1))
        limit_s = ttl_s + scene.claims.patience_s
        await asyncio.wait([waiting], timeout=limit_s)
        demand(waiting.done(), f"the next one waits {limit_s:g} s already, with ttl_s={ttl_s:g}")
        lease = waiting.result()
        demand(lease.fence > fence, f"the paused holder had fence {fence}, the next {lease.fence}")
        await scene.soon(store.load(lease), "load")
        child.send(signal.SIGCONT)
        child.say("go on")
        for _ in range(4):
            name, error = await child.hear()
            demand(error == "StaleLease", f"{name} by the overtaken holder gave {error or 'leave'}")
        await scene.soon(store.append(lease, *scene.turn("t2")), "append")
        store.release(lease)
    scene.expect((await scene.stored(store, key)).messages, ["t1", "t2"])


DYING = (
    Contract("When its holder is killed, the next one gets it with its open turn.", _killed_holder),
    Contract("What was acknowledged survives kill -9; a torn turn is never seen.", _killed_writer),
    Contract("A holder paused past its time is overtaken, and refused.", _paused_holder),
)
