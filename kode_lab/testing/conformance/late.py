"""Writes that arrive late, and storage that is set back, moved away or copied while it is used."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kode_lab.errors import KodeLabError
from kode_lab.key import SessionKey
from kode_lab.sessions.store import Lease, Store
from kode_lab.testing.conformance.scene import (
    TURN_MESSAGES,
    Contract,
    HeldFlow,
    Scene,
    Skipped,
    demand,
)

__all__ = ["LATE"]

# A write is given up after so many ticks of the loop.
_TICKS = 16
_COPIES = 12


async def _given_up(scene: Scene) -> None:
    """Give writes up, let the session go on, and see what is there after the handle was closed."""
    store = await scene.store()
    key, there = scene.key(), ["t"]
    await scene.append(store, key, "t")
    for ticks in range(_TICKS):
        async with scene.held(store, key) as (lease, _):
            task = scene.begin(store.inner.append(lease, *scene.turn(f"late{ticks}")))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=scene.claims.patience_s)
        async with scene.held(store, key) as (newer, found):
            if len(found.messages) > TURN_MESSAGES * len(there):
                there.append(f"late{ticks}")
            scene.expect(found.messages, there)
            await store.append(newer, *scene.turn(f"t{ticks}"))
            there.append(f"t{ticks}")
    scene.expect((await scene.stored(await scene.reopened(store), key)).messages, there)


async def _append(scene: Scene, store: Store, lease: Lease) -> None:
    await store.append(lease, *scene.turn("late"))


async def _delete(_scene: Scene, store: Store, lease: Lease) -> None:
    await store.delete(lease)


async def _delivered_late(scene: Scene) -> None:
    if scene.claims.delayed is None:
        raise Skipped("the store names no way to hold a write back (delayed=None)")
    for write in (_append, _delete):
        for is_early in (True, False):
            key = scene.key(f"{write.__name__}{is_early}")
            async with scene.claims.delayed() as flow:
                await _late_in(scene, flow, key, write, is_early=is_early)


async def _late_in(
    scene: Scene,
    flow: HeldFlow,
    key: SessionKey,
    write: Callable[[Scene, Store, Lease], Awaitable[None]],
    *,
    is_early: bool,
) -> None:
    """Deliver a write before or after the next one, under the same taking of the session."""
    store, beside = flow.store, scene.key("beside")
    for name in (beside, key):
        await scene.append(store, name, "t1")
        async with scene.held(store, name) as (lease, _):
            if name == beside:  # a statement that is prepared first would be two messages
                await write(scene, store, lease)
                continue
            flow.hold_back()
            try:
                await scene.soon(write(scene, store, lease), "a write that does not arrive")
            except KodeLabError:
                pass
            else:
                demand(False, "a write that did not arrive was acknowledged")
            flow.let_pass()
    async with scene.held(store, key) as (newer, found):
        scene.expect(found.messages, ["t1"])
        if is_early:
            await flow.deliver()
        await store.append(newer, *scene.turn("t2"))
    if not is_early:
        await flow.deliver()
    await scene.append(store, key, "t3")
    scene.expect((await scene.stored(store, key)).messages, ["t1", "t2", "t3"])


async def _set_back(scene: Scene) -> None:
    if scene.claims.copied is None:
        raise Skipped("the store names no way to set its storage back (copied=None)")
    store = await scene.store()
    key, there = scene.key(), ["t1"]
    await scene.append(store, key, "t1")
    put_back = await scene.claims.copied()
    await scene.append(store, key, "t2")
    await put_back()
    for number in range(3, 6):  # an error may tell once what is missing
        lease = await scene.hold(store, key)
        try:
            if number > 3:  # at first it goes on with what it knows, as a warm agent does
                await store.load(lease)
            await store.append(lease, *scene.turn(f"t{number}"))
            there.append(f"t{number}")
        except KodeLabError:
            pass
        finally:
            store.release(lease)
    demand(there != ["t1"], "after the storage was set back, no turn is possible any more")
    scene.expect((await scene.stored(await scene.reopened(store), key)).messages, there)


@asynccontextmanager
async def _in_a_directory(scene: Scene) -> AsyncIterator[tuple[Path, Store]]:
    """Open a handle on a directory of its own: the store's would hold all other sessions, too."""
    if scene.claims.at is None:
        raise Skipped("the store is in no directory (at=None)")
    with TemporaryDirectory() as home:
        root = Path(home) / "store"
        store = scene.claims.at(root)
        try:
            yield root, store
        finally:
            await scene.soon(store.aclose(), "aclose")


async def _moved(scene: Scene) -> None:
    async with _in_a_directory(scene) as (root, store):
        await scene.append(store, scene.key(), "t1")
        elsewhere = root.with_name("moved")
        root.rename(elsewhere)
        try:
            for key in (scene.key(), scene.key("new")):
                try:
                    await scene.append(store, key, "t2")
                except KodeLabError:
                    continue
                demand(False, f"{key} was written to a directory that had been moved away")
        finally:
            shutil.rmtree(root, ignore_errors=True)
            elsewhere.rename(root)


async def _copied(scene: Scene) -> None:
    async with _in_a_directory(scene) as (root, store):
        assert scene.claims.at is not None
        for number in range(_COPIES):
            key, place = scene.key(f"s{number}"), root.with_name(f"copy{number}")
            await scene.append(store, key, "t1")
            task = scene.begin(scene.append(store, key, "t2"))
            for _ in range(3 * number):
                await asyncio.sleep(0)
            shutil.copytree(root, place)
            await scene.soon(task, "append")
            copy = scene.claims.at(place)
            try:
                found = await scene.stored(copy, key)
                turns = [f"t{n + 1}" for n in range(len(found.messages) // TURN_MESSAGES)]
                scene.expect(found.messages, turns)
                why = f"the copy has the turns {turns}, and knows {[*found.finished]}"
                demand([*found.finished] == turns, why)
            finally:
                await copy.aclose()


LATE = (
    Contract("A write that was given up changes nothing that a later hold has read.", _given_up),
    Contract("A write that arrives after its sender gave up is refused.", _delivered_late),
    Contract("Storage that is set back is noticed, and the session goes on from it.", _set_back),
    Contract("A directory that is moved away is noticed; nothing begins anew.", _moved),
    Contract("A copy of a directory in use is older, and knows its turns.", _copied),
)
