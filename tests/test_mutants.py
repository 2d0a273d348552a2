"""The sessions broken on purpose: every guarantee has mutants, and a check that convicts each.

A mutant is the package ``kode_lab.sessions`` with a piece of its source changed, imported beside
the real one under another name. A check is a small scenario that the real package passes. Some
mutants are bugs that the package once had.
"""

import asyncio
import importlib
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import house
import pytest
from house import (
    ADA,
    BOB,
    Clerk,
    FaultyDisk,
    World,
    assert_idle,
    assert_legal,
    prompts,
    until,
)
from test_cancellation import Cut

from kode_lab import sessions
from kode_lab.errors import (
    DeadlineExceeded,
    Draining,
    ForeignHost,
    InvalidPrompt,
    ModelGarbage,
    ModelUnavailable,
    NewerFormat,
    SessionBusy,
    SessionDamaged,
    StaleLease,
    StoreMoved,
    StoreUnwritable,
    Superseded,
    WaitingRoomFull,
    WrongOwner,
)
from kode_lab.key import SessionKey
from kode_lab.message import Reply

HOME = Path(sessions.__file__).parent
# What a check may take, on any machine.
PATIENCE_S = 120.0
# What a step may take in which a mutant hangs, and a check whose mutant hangs all of it.
STEP_S = 1.0
POWER = {"durability": "power", "journal_bytes": 8192}


# ---- the checks


def in_time(lab):
    """Return a time-out for a step in which a mutant hangs."""
    return asyncio.timeout(PATIENCE_S if lab is sessions else STEP_S)


def managing(*arguments, **options):
    """Return a manager that does not wait long for turns that hang."""
    return house.managing(*arguments, drain_s=0.05, **options)


async def order(lab, path):
    """One at a time, first come first served, and a hand-over is never lost."""
    model = Clerk()
    gate = model.gates["0"] = asyncio.Event()
    async with managing(path, model, lab=lab) as manager, in_time(lab):
        # The first waiter is cancelled in the moment in which the session comes to it.
        cut = Cut(0, "as it comes")
        turns = [manager.turn(ADA, f"{n}") for n in range(5)]
        turns[1] = cut.run(turns[1])
        tasks = [asyncio.create_task(turn) for turn in turns]
        await model.asked.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(model.requests) == 1
        gate.set()
        await asyncio.wait(tasks)
        assert tasks[1].cancelled()
        assert prompts(await manager.history(ADA)) == ["0", "2", "3", "4"]
        assert_idle(manager)


async def room(lab, path):
    """The waiting room has a limit, who leaves it makes room, and who rejects does not wait."""
    model = Clerk()
    gate = model.gates["busy"] = asyncio.Event()
    async with managing(path, model, lab=lab, agent={"queue_limit": 1}) as manager:
        busy = asyncio.create_task(manager.turn(ADA, "busy"))
        await model.asked.wait()
        with pytest.raises(SessionBusy):
            async with in_time(lab):
                await manager.turn(ADA, "rejects", strategy="reject")
        leaver = asyncio.create_task(manager.turn(ADA, "leaves"))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.wait([leaver])
        assert manager.statistics().lock.waiting == 0
        stays = asyncio.create_task(manager.turn(ADA, "stays"))
        await asyncio.sleep(0)
        with pytest.raises(WaitingRoomFull):
            async with in_time(lab):
                await manager.turn(ADA, "one too many")
        gate.set()
        await asyncio.gather(busy, stays)


async def parallel(lab, path):
    """No session waits for another: of one user, or of one name."""
    keys = [SessionKey.of(f"u{user}", "clerk", f"s{name}") for user in "ab" for name in "cd"]
    all_here, here = asyncio.Event(), itertools.count(1)

    async def model(_request, _on_text=None):
        if next(here) == len(keys):
            all_here.set()
        await all_here.wait()
        return Reply(({"type": "text", "text": "hello"},), "end_turn")

    async with managing(path, model, lab=lab) as manager, in_time(lab):
        await asyncio.gather(*(manager.turn(key, "hello") for key in keys))


async def apart(lab, path):
    """Users with the same session name share nothing."""
    model, world = Clerk(), World(lab)
    async with managing(path, model, world, lab=lab) as manager:
        for turn in range(2):
            for key in (ADA, BOB):
                await manager.turn(key, f"{key.user_id} note:1 {turn}")
        for request in model.requests:
            said = prompts(request.messages)
            assert {prompt.split()[0] for prompt in said} == {said[-1].split()[0]}
        assert all(text.startswith(context.key.user_id) for text, context in world.runs)


async def owner(lab, path):
    """Where users share directories, no user is given another's messages."""
    async with managing(path, lab=lab, store={"layout": "report"}) as manager:
        await manager.turn(ADA, "secret")
        for call in (lambda: manager.turn(BOB, "hello"), lambda: manager.history(BOB)):
            with pytest.raises(WrongOwner):
                await call()
    turns = next(path.rglob("turns.jsonl"))
    turns.write_bytes(turns.read_bytes()[:30])
    async with managing(path, lab=lab, store={"layout": "report"}) as manager:
        with pytest.raises(SessionDamaged):
            await manager.turn(BOB, "hello")


async def residents(lab, path):
    """What is remembered is used only if no other held the session, and is limited."""
    model = Clerk()
    one = managing(path, model, lab=lab, residents_limit=1)
    async with one as first, managing(path, model, lab=lab) as second:
        for number in range(4):
            await (first, second)[number % 2].turn(ADA, f"{number}")
            assert prompts(model.requests[-1].messages) == [f"{n}" for n in range(number + 1)]
        await first.turn(BOB, "hello")
        assert first.statistics().residents == 1


async def overtaken(lab, path):
    """Who was overtaken cannot write any more, neither its turn nor a step."""
    for prompt in ("busy", "note:1"):
        there, world, model = path / prompt[:4], World(lab), Clerk()
        gate = model.gates[prompt] = asyncio.Event()
        async with managing(there, model, world, lab=lab) as manager:
            busy = asyncio.create_task(manager.turn(ADA, prompt))
            await model.asked.wait()
            # The overtaker locks other files; then the first are back, and only the fence is left.
            aside = [
                lock.replace(there / lock.name) for lock in (there / "store" / "+locks").iterdir()
            ]
            async with managing(there, lab=lab) as elsewhere:
                await elsewhere.turn(ADA, "overtaker")
                for lock in aside:
                    lock.replace(there / "store" / "+locks" / lock.name)
                gate.set()
                with pytest.raises(StaleLease):
                    await busy
            assert world.runs == []
            assert prompts(await manager.history(ADA)) == ["overtaker"]


async def processes(lab, path):
    """Two stores on one directory exclude each other, in order, and a waiter leaves no trace."""
    stores = [lab.JsonStore(path) for _ in range(4)]
    lease = await stores[0].hold(ADA, queue_limit=1)
    with pytest.raises(WaitingRoomFull):
        await stores[1].hold(ADA, queue_limit=0)
    came = []

    async def take(number):
        lease = await stores[number].hold(ADA, queue_limit=1)
        came.append(number)
        stores[number].release(lease)

    tasks = []
    for number in (1, 2, 3):
        tasks.append(asyncio.create_task(take(number)))
        await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    stores[0].release(lease)
    with pytest.raises(WaitingRoomFull):  # the lock is free, but somebody waits for it
        await stores[0].hold(ADA, queue_limit=0)
    async with in_time(lab):
        await asyncio.wait(tasks)
    assert came == [1, 3]
    for store in stores:
        await store.aclose()


async def kills(lab, path):
    """Killed at any moment and sent again: there once, tools run once, the next one goes on."""
    for prompt, stride in (("hello", 11), ("note:2", 67)):
        there = path / prompt[:4]
        for number, (disk, image, notes) in enumerate(await _moments(lab, there, prompt, stride)):
            for turn_id in ("t", "another") if number % 4 == 0 else ("t",):
                world, model = World(lab), Clerk()
                world.notes = dict(notes)
                again = there / f"{number}{turn_id}"
                disk.restore(image, again / "store")
                async with managing(again, model, world, lab=lab) as manager:
                    reply = await manager.turn(ADA, prompt, turn_id=turn_id)
                    messages = await manager.history(ADA)
                    assert_legal(messages)
                    if turn_id == "t":
                        assert prompts(messages) == ["first", prompt]
                        made = sorted(call.input["text"] for call in reply.tool_calls)
                        assert sorted(world.notes.values()) == made
                        asked = len(model.requests)
                        assert (await manager.turn(ADA, prompt, turn_id="t")).is_replay
                        assert len(model.requests) == asked


async def prompts_of_ids(lab, path):
    """A turn id names one prompt's turn, whether it has ended or rests in its journal."""

    def watch(event):
        if event.kind == "tool_result":
            raise LookupError

    async with managing(path, Clerk(), World(lab), lab=lab) as manager:
        await manager.turn(ADA, "hello", turn_id="done")
        with pytest.raises(LookupError):
            await manager.turn(ADA, "note:1", turn_id="open", on_event=watch)
        for turn_id in ("open", "done"):
            with pytest.raises(InvalidPrompt):
                await manager.turn(ADA, "another", turn_id=turn_id)
        assert prompts(await manager.history(ADA)) == ["hello"]


async def _moments(lab, path, prompt, stride):
    found = []
    world, disk = World(lab), FaultyDisk(path / "store")

    def remember(at_path=None, change=None, torn=0):
        image = disk.after_kill(at_path, change, torn)
        if not found or found[-1][1] != image:
            found.append((disk, image, dict(world.notes)))

    def hook(call, at_path, change):
        remember()
        if call == "write":
            last = len(change[2]) - 1
            for torn in sorted({1, *range(disk.calls % stride, last, stride), last}):
                remember(at_path, change, torn)

    async with managing(path, world=world, store={"disk": disk}, lab=lab) as manager:
        await manager.turn(ADA, "first")
        disk.hook = hook
        await manager.turn(ADA, prompt, turn_id="t")
        disk.hook = None
    return found


async def steps(lab, path):
    """What a finished tool gave is saved: it is not run again."""
    for durability in ("process", "power"):
        there, world, model = path / durability, World(lab), Clerk()
        disk = FaultyDisk(there / "store")
        images = []
        store = {"durability": durability, "disk": disk}
        ask = model.__call__

        async def call(request, on_text=None, disk=disk, images=images, ask=ask):
            images.append(disk.after_kill())
            return await ask(request, on_text)

        async with managing(there, call, world, store=store, lab=lab) as manager:
            await manager.turn(ADA, "note:3", turn_id="t")
        again, world = there / "again", World(lab)
        disk.restore(images[1], again / "store")
        store = {"durability": durability, "disk": FaultyDisk(again / "store")}
        async with managing(again, world=world, store=store, lab=lab) as one:
            assert len((await one.turn(ADA, "note:3", turn_id="t")).tool_calls) == 3
        assert world.runs == []


async def power(lab, path):
    """What was acknowledged survives a power cut at any moment."""
    for seed in range(12):  # a thread may be too quick to be caught
        random, said, left = Random(seed), {ADA: [], BOB: []}, []
        here = path / f"{seed}"
        disk = FaultyDisk(here / "store")
        async with managing(here, lab=lab, store={"disk": disk, **POWER}) as manager:

            def hook(*_, disk=disk, random=random, said=said, left=left):
                if random.random() < 0.1:
                    then = {key: list(prompts) for key, prompts in said.items()}
                    left.append((disk.after_power_cut(random), then))

            async def talk(key, manager=manager, said=said):
                for number in range(12):
                    await manager.turn(key, f"{number}")
                    said[key].append(f"{number}")

            disk.hook = hook
            await asyncio.gather(*map(talk, said))
            disk.hook = None
        for number, (image, then) in enumerate(left):
            there = here / f"cut-{number}"
            disk.restore(image, there / "store")
            async with managing(there, lab=lab, store={"disk": FaultyDisk(there)}) as manager:
                for key, acknowledged in then.items():
                    found = prompts(await manager.history(key))
                    assert found[: len(acknowledged)] == acknowledged


async def journal(lab, path):
    """A failed sync is the end, a torn frame is no frame; a crowd shares few open files."""
    disk = FaultyDisk(path / "store")
    store = POWER | {"disk": disk, "open_sessions_limit": 1}
    async with managing(path, lab=lab, store=store) as manager:
        keys = [SessionKey.of(f"u{n}", "clerk") for n in range(4)]
        for number in range(3):
            await asyncio.gather(*(manager.turn(key, f"{number}") for key in keys))
        for key in keys:
            assert prompts(await manager.history(key)) == ["0", "1", "2"]
        await manager.turn(ADA, "one")
        torn = []

        def hook(call, at_path, change):
            if call == "write" and at_path.endswith("+journal"):
                at = range(1, len(change[2]), 40)
                torn.extend(disk.after_kill(at_path, change, size) for size in at)

        disk.hook = hook
        await manager.turn(ADA, "two")
        disk.hook = None
        disk.fail_at(0, calls=("sync",))
        for _ in range(2):
            with pytest.raises(StoreUnwritable):
                await manager.turn(ADA, "three")
    for number, image in enumerate(torn):
        disk.restore(image, path / f"{number}" / "store")
        async with managing(path / f"{number}", lab=lab) as manager:
            assert prompts(await manager.history(ADA)) == ["one"]
    assert len(torn) > 10


async def lives(lab, path):
    """The journal of one life is not taken for that of another, though its frames are as long."""
    disk = FaultyDisk(path / "store")
    for said in (["0"], ["a", "b"], ["c"]):
        async with managing(path, lab=lab, store=POWER | {"disk": disk}) as manager:
            for prompt in said:
                await manager.turn(ADA, prompt)
            image = disk.after_kill()
    disk.restore(image, path / "killed" / "store")
    async with managing(path / "killed", lab=lab) as manager:
        assert prompts(await manager.history(ADA)) == ["0", "a", "b", "c"]


async def cancels(lab, path):
    """Cancelled at any await, a session is usable and nothing is held."""
    async with managing(path, world=World(lab), lab=lab) as manager:
        for moment, number in itertools.product(("meanwhile", "as it comes"), range(6)):
            key = SessionKey.of(f"{moment} {number}", "clerk")
            ahead = asyncio.create_task(manager.turn(key, "ahead"))
            await asyncio.sleep(0)
            cut = Cut(number, moment)
            task = asyncio.create_task(cut.run(manager.turn(key, "note:1")))
            await asyncio.wait([task, ahead])
            assert_idle(manager)
            async with in_time(lab):
                await manager.turn(key, "after")
            assert_legal(await manager.history(key))


async def failures(lab, path):
    """A model, a trace or a disk that fails leaves the session usable and the turn resumable."""
    fails = []

    def trace(span):
        if span.step in fails:
            raise OSError("trace")

    async def model(request, on_text=None):
        if "model" in fails:
            raise ZeroDivisionError
        numbers = {"NaN": float("nan"), "large": 2**64}
        if (number := numbers.get("".join(fails))) and prompts(request.messages[-1:]):
            call = {"type": "tool_use", "id": "c", "name": "note", "input": {"text": number}}
            return Reply((call,), "tool_use")
        return Reply(None, "") if "garbage" in fails else await Clerk()(request, on_text)

    disk = FaultyDisk(path / "store")
    async with managing(path, model, World(lab), lab=lab, trace=trace, store={"disk": disk}) as m:
        causes = {"model": ZeroDivisionError, "garbage": ModelGarbage, "wait": OSError}
        causes |= {"NaN": ModelGarbage, "large": ModelGarbage}
        for cause, error in causes.items():
            fails[:] = [cause]
            with pytest.raises(error):
                await m.turn(ADA, "note:2", turn_id=cause)
            fails.clear()
            assert_idle(m)
            async with in_time(lab):
                await m.turn(ADA, "note:2", turn_id=cause)
        disk.hook = lambda call, _path, change: _full(call, change)
        with pytest.raises(StoreUnwritable, match="ada:s1"):
            await m.turn(ADA, "note:2", turn_id="full")
        disk.hook = None
        await m.turn(ADA, "note:2", turn_id="full")
        assert prompts(await m.history(ADA)) == ["note:2"] * 6


def _full(call, change):
    if call == "write" and b'"result"' in change[2]:
        raise OSError(28, os.strerror(28))


@asynccontextmanager
async def _busy(lab, path, prompt="note:2", **options):
    """A turn of which one tool has ended and one has not."""
    model, world = Clerk(), World(lab)
    world.gates["note:2 0.1"] = asyncio.Event()
    async with managing(path, model, world, lab=lab, **options) as manager:
        task = asyncio.create_task(manager.turn(ADA, prompt, turn_id="busy"))
        await until(lambda: len(world.notes) == 1)
        yield manager, task, world


async def interrupts(lab, path):
    """Interrupt closes the running turn legally; sent again, a turn does not end itself."""
    async with _busy(lab, path / "one") as (manager, busy, _):
        await manager.turn(ADA, "new", strategy="interrupt")
        with pytest.raises(Superseded):
            await busy
        messages = await manager.history(ADA)
        assert_legal(messages)
        assert prompts(messages) == ["note:2", "new"]
        manager._model.gates["new"] = asyncio.Event()
        asked = ("new", "enqueue"), ("next", "interrupt"), ("later", "enqueue")
        turns = [asyncio.create_task(manager.turn(ADA, p, strategy=s)) for p, s in asked]
        await asyncio.wait(turns)
        assert prompts(await manager.history(ADA))[-2:] == ["next", "later"]
    async with _busy(lab, path / "two") as (manager, busy, world):
        again = asyncio.create_task(
            manager.turn(ADA, "note:2", turn_id="busy", strategy="interrupt")
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        world.gates["note:2 0.1"].set()
        assert (await busy)[:5] == (await again)[:5]


async def rollbacks(lab, path):
    """Rollback forgets the running turn, unless it is being saved already."""
    async with _busy(lab, path / "one") as (manager, busy, _):
        await manager.turn(ADA, "new", strategy="rollback")
        with pytest.raises(Superseded):
            await busy
    async with managing(path / "one", lab=lab) as manager:
        assert prompts(await manager.history(ADA)) == ["new"]
    store = POWER | {"disk": FaultyDisk(path / "two" / "store")}
    async with managing(path / "two", lab=lab, store=store) as manager:
        first = asyncio.create_task(manager.turn(ADA, "first"))
        ticket = None
        while ticket is None or not (ticket.is_committing):
            await asyncio.sleep(0)
            ticket = next(iter(manager._in_line.get(ADA[:2], ())), None)
        await manager.turn(ADA, "second", strategy="rollback")
        assert (await first).text == "re: first"
    asked = asyncio.Event()

    async def model(request, on_text=None):
        if prompts(request.messages)[-1] != "busy":
            return await Clerk()(request, on_text)
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ModelUnavailable("the connection was closed") from None

    async def tidy_up():
        asyncio.current_task().cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        with pytest.raises(Superseded):
            await manager.turn(ADA, "busy")
        assert asyncio.current_task().cancelling() == 1

    async with managing(path / "three", model, lab=lab) as manager:
        busy = asyncio.create_task(tidy_up())
        await asked.wait()
        await manager.turn(ADA, "new", strategy="rollback")
        await busy


async def cut_off(lab, path):
    """The calls of a reply that was cut off are not run after a kill, either."""
    disk, world, images = FaultyDisk(path / "one" / "store"), World(lab), []

    async def model(request, on_text=None):
        reply = await Clerk()(request, on_text)
        return reply._replace(stop_reason="max_tokens") if reply.tool_calls else reply

    def hook(*_):
        images.append(disk.after_kill())

    async with managing(path / "one", model, world, lab=lab, store={"disk": disk}) as manager:
        disk.hook = hook
        await manager.turn(ADA, "note:2", turn_id="t")
        disk.hook = None
    for number, image in enumerate(images):
        disk.restore(image, path / f"{number}" / "store")
        async with managing(path / f"{number}", model, world, lab=lab) as manager:
            await manager.turn(ADA, "note:2", turn_id="t")
    assert not world.runs


async def deletions(lab, path):
    """Killed within its deletion, a conversation is whole or gone, and so are its turns' ids."""
    disk, images = FaultyDisk(path / "store"), []
    async with managing(path, lab=lab, store={"disk": disk}) as manager:
        await manager.turn(ADA, "one", turn_id="t")
        disk.hook = lambda *_: images.append(disk.after_kill())
        await manager.delete(ADA)
        disk.hook = None
    for number, image in enumerate(images):
        disk.restore(image, path / f"{number}" / "store")
        async with managing(path / f"{number}", lab=lab) as manager:
            await manager.turn(ADA, "one", turn_id="t")
            assert prompts(await manager.history(ADA)) == ["one"]
    model = Clerk()
    model.gates["busy"] = asyncio.Event()
    async with managing(path, model, lab=lab) as manager:
        busy = asyncio.create_task(manager.turn(ADA, "busy"))
        await model.asked.wait()
        deleting = [asyncio.create_task(manager.delete(ADA)) for _ in range(2)]
        await until(lambda: manager.statistics().lock.waiting == 2)
        closing = asyncio.create_task(manager.aclose())
        await asyncio.sleep(0)
        model.gates["busy"].set()
        await asyncio.gather(busy, closing, *deleting)


async def spelled(lab, path):
    """The journal finds its sessions however the root was spelled, and grows for a large turn."""
    path.mkdir(exist_ok=True)
    store = lab.JsonStore(f"{path}/./store", **POWER)
    async with managing(path / "one", lab=lab, store=store) as manager:
        await manager.turn(ADA, "one")
        await manager.turn(ADA, "long " * 2_000)
        shutil.copytree(path / "store", path / "killed" / "store")
    async with managing(path / "killed", lab=lab) as manager:
        assert prompts(await manager.history(ADA)) == ["one", "long " * 2_000]


async def alike(lab, path):
    """Effects of sessions that count alike are all made, and none has all threads."""

    async def model(request, on_text=None):
        reply = await Clerk()(request, on_text)
        blocks = [b | {"id": "call_0"} if "id" in b else b for b in reply.content]
        return reply._replace(content=tuple(blocks))

    world = World(lab)
    async with managing(path, model, world, lab=lab) as manager:
        for session in "abc":
            await manager.turn(SessionKey.of("ada", "clerk", session), "note:1", turn_id="1")
    assert len(world.notes) == 3
    threads, begun = importlib.import_module(f"{lab.__name__}.threads").Threads(8), []
    release = threading.Event()

    def block():
        begun.append(1)
        release.wait(STEP_S)

    calls = [asyncio.create_task(threads.run(block, PATIENCE_S, owner="a")) for _ in range(9)]
    await asyncio.sleep(0)  # all of them stand in line before the next
    other = asyncio.create_task(threads.run(lambda: None, PATIENCE_S, owner="b"))
    await until(lambda: other.done() or len(begun) > 2)
    count = len(begun)
    release.set()
    assert count <= 2
    await asyncio.gather(*calls, other)


async def ends(lab, path):
    """A deadline ends a turn; a closing manager lets turns end and takes no new ones."""
    model = Clerk()
    gate = model.gates["slow"] = asyncio.Event()
    async with managing(path, model, lab=lab) as manager:
        with pytest.raises(DeadlineExceeded):
            async with in_time(lab):
                await manager.turn(BOB, "slow", deadline_s=0.02)
        slow = asyncio.create_task(manager.turn(ADA, "slow"))
        await until(lambda: len(model.requests) == 2)
        closing = asyncio.create_task(manager.aclose())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await manager.turn(BOB, "new")
        with pytest.raises(Draining):
            await manager.delete(BOB)
        gate.set()
        assert (await slow).text == "re: slow"
        await closing


async def files(lab, path):
    """Files of others, of newer versions, cut short or edited: refused or taken up, not broken."""
    async with managing(path, lab=lab) as manager:
        await manager.turn(ADA, "one")
    messages, turns = (next(path.rglob(name)) for name in ("messages.json", "turns.jsonl"))
    whole, lines = messages.read_bytes(), turns.read_bytes()
    for damaged, content, error in (
        (messages, b"", SessionDamaged),
        (messages, whole[:40], SessionDamaged),
        (turns, lines.replace(b":1,", b":3,", 1), NewerFormat),
        (turns, lines.replace(b'"0000', b'"x000', 1), SessionDamaged),
    ):
        damaged.write_bytes(content)
        async with managing(path, lab=lab) as manager:
            with pytest.raises(error):
                await manager.turn(ADA, "two")
            messages.write_bytes(whole)
            turns.write_bytes(lines)
            async with in_time(lab):
                await manager.turn(ADA, "two")
        messages.write_bytes(whole)
        turns.write_bytes(lines)
    edited = json.loads(whole)
    messages.write_text(json.dumps(edited, indent=1))
    model = Clerk()
    async with managing(path, model, lab=lab) as manager:
        await manager.turn(ADA, "two")
        assert (await manager.history(ADA))[:2] == edited
        gate = model.gates["three"] = asyncio.Event()
        three = asyncio.create_task(manager.turn(ADA, "three"))
        await until(lambda: len(model.requests) == 2)
        messages.with_name("new").write_bytes(whole)
        messages.with_name("new").replace(messages)
        gate.set()
        with pytest.raises(SessionDamaged):
            await three


async def moved(lab, path):
    """Directories that move, lock files that go, and versions that lock in another way."""
    store = path / "store"
    model = Clerk()
    gate = model.gates["slow"] = asyncio.Event()
    async with managing(path, model, lab=lab) as manager:
        await manager.turn(ADA, "one")
        said = json.loads((store / "+store").read_bytes())
        (store / "+store").write_text(json.dumps(said | {"locks": "other"}))
        with pytest.raises(ForeignHost):
            lab.JsonStore(store, move_in_s=0.0)
        (store / "+store").write_text(json.dumps(said | {"inode": 1}))
        with pytest.raises(StoreMoved):
            lab.JsonStore(store, move_in_s=0.0)
        (store / "+store").write_text(json.dumps(said))
        slow = asyncio.create_task(manager.turn(ADA, "slow"))
        await until(lambda: len(model.requests) == 2)
        store.rename(path / "elsewhere")
        gate.set()
        with pytest.raises(StoreMoved):
            await slow
        for key in (ADA, BOB):
            with pytest.raises(StoreMoved):
                await manager.turn(key, "lost")
        with pytest.raises(StoreMoved):
            await manager.history(ADA)
        assert not store.exists()
        (path / "elsewhere").rename(store)
        await manager.turn(ADA, "two")
        for lock in (store / "+locks").iterdir():
            lock.unlink()
        with pytest.raises(StoreMoved):
            await manager.turn(ADA, "three")


async def rewinds(lab, path):
    """Rewinds and forks, cut off by a kill at any write."""
    disk = FaultyDisk(path / "disk")
    store = lab.JsonStore(path / "disk" / "store", disk=disk)
    images = []

    def hook(call, _path, _change):
        if call in ("write", "truncate"):
            images.append(disk.after_kill())

    async with managing(path / "disk", store=store, lab=lab) as manager:
        for number in range(3):
            await manager.turn(ADA, f"q{number}", turn_id=f"t{number}")
        disk.hook = hook
        await manager.rewind(ADA, "t0", turn_id="back")
        await manager.fork(ADA, BOB)
        disk.hook = None
        with pytest.raises(Superseded):
            await manager.turn(ADA, "q2", turn_id="t2")
        await manager.turn(ADA, "on")
        assert await manager.rewind(ADA, "t0", turn_id="back") == ("t1", "t2")
        assert prompts(await manager.history(ADA)) == ["q0", "on"]
    for number, image in enumerate(images):
        disk.restore(image, path / f"life{number}")
        async with managing(path / f"life{number}", lab=lab) as manager:
            assert prompts(await manager.history(ADA)) in (["q0", "q1", "q2"], ["q0"])
            assert prompts(await manager.history(BOB)) in ([], ["q0"])
            await manager.rewind(ADA, "t0", turn_id="back")
            await manager.fork(ADA, BOB)
            for key in (ADA, BOB):
                await manager.turn(key, "on", turn_id="on")
                assert prompts(await manager.history(key)) == ["q0", "on"]


TOOL, TOOL_AGAIN = (
    Reply(({"type": "tool_use", "id": name, "name": "note", "input": {"text": "x"}},), "tool_use")
    for name in ("c1", "c2")
)
DONE = Reply.of_text("done")


async def reached(lab, path):
    """A model that changes what it is given, and what it gave."""
    block = {"type": "text", "text": "hi"}

    async def model(request, on_text=None):  # noqa: ARG001 - as a model is called
        request.messages[-1]["content"][0]["text"] += " changed"
        request.messages.append({"role": "user", "content": []})
        return Reply((block,), "end_turn")

    async with managing(path, model, lab=lab) as manager:
        for number in range(2):
            await manager.turn(ADA, f"q{number}", turn_id=f"t{number}")
            block["text"] = "hi"
        assert (await manager.turn(ADA, "q0", turn_id="t0")).is_replay
        assert prompts(await manager.history(ADA)) == ["q0", "q1"]


async def steers(lab, path):
    """A prompt is given to the running turn once, whatever fails and is sent again."""
    down = ModelUnavailable("down")
    replies, asked, world = iter([TOOL, down, down, DONE, TOOL_AGAIN, DONE]), [], World(lab)
    gates = {1: asyncio.Event(), 5: asyncio.Event()}

    async def model(request, on_text=None):  # noqa: ARG001 - as a model is called
        asked.append([*request.messages])
        if len(asked) in gates:
            await gates[len(asked)].wait()
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def both(manager, prompt, turn_id, number):
        main = asyncio.create_task(manager.turn(ADA, prompt, turn_id=turn_id))
        await until(lambda: len(asked) == number)
        steer = asyncio.create_task(manager.turn(ADA, "two", turn_id="t2", strategy="steer"))
        for _ in range(3):
            await asyncio.sleep(0)
        gates[number].set()
        return await asyncio.gather(main, steer, return_exceptions=True)

    async with managing(path, model, world, lab=lab) as manager, in_time(lab):
        await both(manager, "one", "t1", 1)
    async with managing(path, model, world, lab=lab) as manager, in_time(lab):
        assert (await manager.turn(ADA, "one", turn_id="t1")).steered == ("t2",)
        again = await manager.turn(ADA, "two", turn_id="t2")
        assert (again.is_replay, again.into) == (True, "t1")
        third, again = await both(manager, "three", "t3", 5)
        assert (third.steered, again.into) == ((), "t1")
        assert str(await manager.history(ADA)).count("'two'") == 1


async def late(lab, path):
    """What a thread did after its turn was ended is not done again, and becomes known."""
    replies, go, runs = iter([TOOL, TOOL_AGAIN, DONE, DONE]), threading.Event(), []
    box = lab.Toolbox()
    ToolContext = lab.ToolContext  # noqa: N806 - a class, in the annotation below

    @box.tool
    def note(text: str, context: ToolContext) -> str:
        """Note."""
        runs.append(context.idempotency_key)
        assert go.wait(STEP_S if lab is not sessions else PATIENCE_S)
        return f"noted {text}"

    async def model(request, on_text=None):  # noqa: ARG001 - as a model is called
        return next(replies)

    async with (
        lab.SessionManager(
            store=path, agents=[lab.AgentConfig("clerk", "m", tools=box)], model=model
        ) as manager,
        in_time(lab),
    ):
        first = asyncio.create_task(manager.turn(ADA, "one"))
        await until(lambda: runs)
        second = asyncio.create_task(manager.turn(ADA, "two", strategy="interrupt"))
        await until(lambda: len(runs) == 2)
        go.set()
        await asyncio.gather(first, second, return_exceptions=True)
        assert runs[0] == runs[1]
        while "may have taken effect" in str(await manager.history(ADA)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert_legal(await manager.history(ADA))


async def memories(lab, path):
    """Sessions that write a user's memory at once lose none of its entries."""
    store = lab.JsonStore(path)
    found = await store.read_memory("ada")
    for name in "ab":
        entries = {**found.entries, name: 1}
        if not await store.write_memory("ada", entries, version=found.version):
            found = await store.read_memory("ada")
            assert await store.write_memory(
                "ada", {**found.entries, name: 1}, version=found.version
            )
    assert (await store.read_memory("ada")).entries == {"a": 1, "b": 1}
    await store.aclose()


CHECKS = (
    *(steers, late, memories),
    *(moved, rewinds, reached),
    *(order, room, parallel, apart, owner, residents, overtaken, processes, kills, steps),
    *(prompts_of_ids, power, journal, lives, cancels, failures, interrupts, rollbacks, ends, files),
    *(cut_off, deletions, spelled, alike),
)


# ---- the mutants


class Mutant(NamedTuple):
    name: str
    check: Callable  # who convicts it
    file: str
    old: str
    new: str
    hangs: bool = False


MUTANTS = [
    # serial, first come first served, parallel
    Mutant("no lock in the process", order, "lock", "if key in self._queues:", "if False:"),
    Mutant("last in, first out", order, "lock", "queue.popleft()", "queue.pop()"),
    Mutant(
        "a cancelled waiter keeps the hand-over",
        order,
        "lock",
        "self.release(key)\n            else",
        "pass\n            else",
    ),
    Mutant(
        "an idle key stays",
        order,
        "lock",
        "del self._queues[key]",
        "self._queues[key] = None",
    ),
    Mutant("no limit of waiters", room, "lock", "if len(queue) >= queue_limit:", "if False:"),
    Mutant("reject waits", room, "ticket", 'if self.strategy == "reject":', "if False:"),
    Mutant("one lock for a user", parallel, "files/store", "key[:2]", "key[:1]"),
    Mutant("one lock for a session's name", parallel, "files/store", "key[:2]", "key[1:2]"),
    Mutant("one lock for all", parallel, "files/store", "key[:2]", "key[:0]"),
    # apart
    Mutant("stored without the user", apart, "files/store", 'f"{key.user_part}/"', '""'),
    Mutant(
        "an agent for all sessions",
        apart,
        "manager",
        "agent = self._residents.take(lease)\n",
        "agent = next(iter(self._residents._agents.values()), None)\n",
    ),
    Mutant(
        "owner not asked",
        owner,
        "files/format",
        "if owner_of(header) != key:",
        "key = owner_of(header)\n    if False:",
    ),
    Mutant(
        "a cut header is a new session",
        owner,
        "files/session_files",
        "elif size:",
        "elif 0:",
    ),
    # fence and residents
    Mutant(
        "resident without a look at the fence",
        residents,
        "residents",
        "if agent is None or agent.fence != lease.fence - 1:",
        "if agent is None:",
    ),
    Mutant("residents without limit", residents, "residents", "len(agents) <= self._limit", "True"),
    Mutant(
        "no fence at the writes",
        overtaken,
        "files/store",
        "if newest != files.fence_in_file or files.fence != lease.fence:",
        "if False:",
    ),
    Mutant(
        "a fence that does not grow",
        overtaken,
        "files/session_files",
        "self.fence += 1",
        "pass",
    ),
    # several processes
    Mutant(
        "no lock between processes",
        processes,
        "files/file_lock",
        "if not _try_lock(fd, at, _PLACES):",
        "if False:",
    ),
    Mutant(
        "a way past those who wait",
        processes,
        "files/file_lock",
        "if not _try_lock(fd, at, _PLACES):",
        "if not _try_lock(fd, at):",
    ),
    Mutant(
        "a place that is never left",
        processes,
        "files/file_lock",
        "except BaseException:\n            _unlock(fd, at)",
        "except BaseException:\n            pass",
    ),
    Mutant(
        "a lock that is kept from those who ask",
        residents,
        "files/file_lock",
        "if self._idle.pop(lock, _GONE) is None:\n                    self._give(lock)",
        "if False:\n                    pass",
        hangs=True,
    ),
    # durable turns
    Mutant(
        "messages before the line that announces them",
        kills,
        "files/store",
        "(done, messages)",
        "(messages, done)",
    ),
    Mutant(
        "a turn without its messages is known",
        kills,
        "files/session_files",
        "and size < end and self.is_crashed:",
        "and False:",
    ),
    Mutant(
        "done before the messages",
        kills,
        "files/store",
        (
            "[files.step_tail(turn, entries, done), messages])\n"
            "                await self._write(files, [done], can_undo=False)"
        ),
        (
            "[files.step_tail(turn, entries, done), done])\n"
            "                await self._write(files, [messages], can_undo=False)"
        ),
    ),
    Mutant(
        "done line not announced", kills, "files/session_files", "if done is not None:", "if False:"
    ),
    Mutant(
        "an append without its journal is kept",
        kills,
        "files/session_files",
        "(is_ours or whole is None)",
        "whole is None",
    ),
    Mutant(
        "a torn closing bracket is damage",
        kills,
        "files/session_files",
        "if len(data) < body_bytes:",
        "if len(data) <= end_bytes:",
    ),
    Mutant(
        "an open turn is not taken up",
        kills,
        "manager",
        "left.turn_id == ticket.turn_id",
        "left.turn_id == 0",
    ),
    Mutant(
        "an open turn is not sealed",
        kills,
        "manager",
        "[] if left.is_answered else left.seal(_BROKEN_OFF)",
        "[]",
    ),
    Mutant(
        "a finished turn runs again",
        kills,
        "manager",
        "saved = agent.turn(ticket.turn_id)",
        "saved = None",
    ),
    Mutant(
        "a finished turn answers any prompt",
        prompts_of_ids,
        "manager",
        "_check_prompt(ticket, agent.prompt(saved, ticket.turn_id))",
        "pass",
    ),
    Mutant(
        "an open turn goes on for any prompt",
        prompts_of_ids,
        "manager",
        '_check_prompt(ticket, left.messages[0]["content"])',
        "pass",
    ),
    Mutant(
        "no idempotency key",
        kills,
        "session",
        "encode([*key, earlier_turn or turn.turn_id, earlier_call or call.id]).decode()",
        "str(time.monotonic_ns())",
    ),
    Mutant(
        "replies not journalled",
        kills,
        "session",
        "await self._store.journal(self._lease, turn, entry)\n",
        "pass\n",
    ),
    Mutant(
        "results not journalled",
        steps,
        "session",
        "await self._store.journal(self._lease, turn, turn.result_entry(result))",
        "pass",
    ),
    # power
    Mutant(
        "no sync",
        power,
        "files/power_journal",
        "self._disk.sync(self._fd)\n        self._at +=",
        "self._at +=",
    ),
    Mutant(
        "acknowledged before the sync",
        power,
        "files/power_journal",
        (
            "await loop.run_in_executor(self._thread, self._write, batch)\n"
            "                    self._acknowledge(batch)"
        ),
        (
            "self._acknowledge(batch)\n"
            "                    await loop.run_in_executor(self._thread, self._write, batch)"
        ),
    ),
    Mutant(
        "frames without checksum",
        journal,
        "files/power_journal",
        "or crc != _sum(payload, generation, sequence)",
        "",
    ),
    Mutant(
        "the journal begins again before the files are synced",
        power,
        "files/power_journal",
        "_sync_all(self._dirty, self._root, self._disk)",
        "pass",
    ),
    Mutant("not recovered", power, "files/store", "recover(fd, self.root, self._disk)", "pass"),
    Mutant(
        "goes on after a failed sync",
        journal,
        "files/power_journal",
        "if self._failure is not None:",
        "if False:",
    ),
    Mutant(
        "generations used again",
        lives,
        "files/power_journal",
        "recover(self._fd, root, disk) + 1",
        "1",
    ),
    Mutant(
        "files closed while their step went down",
        journal,
        "files/store",
        "self._keep_open(held.files)",
        "pass",
    ),
    Mutant(
        "steps over each other",
        steps,
        "files/power_journal",
        "files.expect(tails)\n        self._queue.append(waiting)",
        "self._queue.append(waiting)",
    ),
    # failures and cancellation
    Mutant(
        "lease kept on failure",
        failures,
        "manager",
        "            self._store.release(lease)\n            version",
        "            if error_name is None: self._store.release(lease)\n            version",
    ),
    Mutant(
        "lock kept when the files cannot be held",
        files,
        "files/store",
        "            self._lock.release(slot)\n            if",
        "            if",
    ),
    Mutant(
        "a ticket is kept",
        cancels,
        "manager",
        "            del line[ticket]\n",
        "            pass\n",
        hangs=True,
    ),
    Mutant(
        "a cancelled waiter stays in line",
        room,
        "lock",
        "queue.remove(turn)",
        "turn.__class__",
    ),
    Mutant("garbage is stored", failures, "session", "_check(reply)", "pass"),
    Mutant(
        "a group of errors", failures, "session", "raise failed.exceptions[0] from None", "raise"
    ),
    # strategies, deadlines, the end
    Mutant(
        "an interrupted turn is not sealed",
        interrupts,
        "manager",
        "entries = turn.seal(_STOPPED if ticket.is_stopped else _INTERRUPTED)",
        "entries = []",
    ),
    Mutant(
        "a turn ends itself",
        interrupts,
        "manager",
        "[t for t in line if t.turn_id != ticket.turn_id]",
        "list(line)",
    ),
    Mutant(
        "rollback keeps",
        rollbacks,
        "manager",
        'if ticket.superseded_by == "rollback":',
        "if False:",
    ),
    Mutant(
        "taken back too late",
        rollbacks,
        "ticket",
        " and not self.is_committing",
        "",
    ),
    Mutant("no deadline", ends, "manager", "expire_in(limit_s)", "expire_in(3600)"),
    Mutant("closes at once", ends, "manager", "await self._ended(self._drain_s)", "pass"),
    Mutant("takes turns while it closes", ends, "manager", "if self._is_closing:", "if False:"),
    Mutant(
        "others' endings are taken for ours",
        files,
        "files/session_files",
        "if self.messages_bytes != size or",
        "if False and",
    ),
    Mutant(
        "any header will do",
        owner,
        "files/format",
        'fence >= 0 and header_of(key, fence, number) == line + b"\\n"',
        "fence >= 0",
    ),
    Mutant("newer files are read", files, "files/format", 'header["kode_lab"] > FORMAT', "False"),
    Mutant("changed files are written over", files, "files/store", "if is_touched:", "if False:"),
    Mutant("the root as it was spelled", spelled, "files/store", "str(self.root)", "str(root)"),
    Mutant(
        "a large turn is refused",
        spelled,
        "files/power_journal",
        "self._grow(_FRAME.size + len(payload))",
        'raise OSError("full")',
    ),
    Mutant(
        "keys of effects without the session",
        alike,
        "session",
        "[*key, earlier_turn or",
        "[earlier_turn or",
    ),
    Mutant(
        "all threads for one session",
        alike,
        "threads",
        "running.get(job.owner, 0) < share",
        "True",
    ),
    Mutant("calls cut off are run", cut_off, "session", 'entry["not_run"] = cut', "pass"),
    Mutant("NaN is stored", failures, "session", "allow_nan=False", "allow_nan=True"),
    Mutant("large numbers are stored", failures, "session", "_LONG_NUMBER.search(text)", "False"),
    Mutant(
        "ids are forgotten before their turns",
        deletions,
        "files/store",
        "await self._write(files, [saying])",
        "rest.reverse()",
    ),
    Mutant(
        "a deletion is not finished",
        deletions,
        "files/session_files",
        "if text.is_deleted:",
        "if False:",
    ),
    Mutant(
        "closes under a deletion",
        deletions,
        "manager",
        "while self._others or self._in_flight():",
        "while self._in_flight():",
    ),
    Mutant(
        "overtaken before it stands in the queue",
        interrupts,
        "manager",
        "reply = await self._hold(ticket)",
        "if others: await asyncio.sleep(0)\n            reply = await self._hold(ticket)",
    ),
    Mutant(
        "a cancel of others is taken for a later turn's",
        rollbacks,
        "ticket",
        "was_asked and self.task is not None and self.task.uncancel() <= self._cancels",
        "was_asked and self.task is not None and not self.task.uncancel()",
    ),
    Mutant(
        "no way given where the model makes an error of it",
        rollbacks,
        "manager",
        "except (TurnFailed, asyncio.CancelledError) as error:\n            if",
        (
            "except (TurnFailed, asyncio.CancelledError) as error:\n"
            "            if not isinstance(error, TurnFailed) and"
        ),
    ),
    # directories that move, rewinds, what models can reach
    Mutant("other locks", moved, "files/file_lock", '!= here["locks"]:', '== "":'),
    Mutant("new lock files", moved, "files/file_lock", '!= here["inode"]:', '== "":'),
    Mutant("new sessions elsewhere", moved, "files/file_lock", "self._guard()", "pass"),
    Mutant("a moved history", moved, "files/store", "self._occupancy.check()\n        if", "if"),
    Mutant("saved elsewhere", moved, "files/store", "self._locks.check(held.lock.file)", "pass"),
    Mutant(
        "a rewind that was not cut",
        rewinds,
        "files/session_files",
        "text.cut_from_bytes == size",
        "False",
    ),
    Mutant("half a fork is whole", rewinds, "files/format", " or data.startswith(FILLING)", ""),
    Mutant("rewound ids are new", rewinds, "files/format", "f.turn_id in gone", "False"),
    Mutant("each rewind is another", rewinds, "manager", "if done is not None:", "if False:"),
    # steering, late results, memories
    Mutant("steered by nobody", steers, "session", "elif ticket.notes and", "elif False and"),
    Mutant(
        "steered though it had a turn",
        steers,
        "session",
        "elif at is not None or self._agent.turn(one.turn_id) is not None:",
        "elif False:",
    ),
    Mutant(
        "steered ids are forgotten",
        steers,
        "residents",
        'if "steered" in facts:',
        "if False:",
    ),
    Mutant(
        "steered in memory only", steers, "open_turn", 'elif "steered" in entry:', "elif False:"
    ),
    Mutant("late results are dropped", late, "manager", "elif sealed and", "elif False and"),
    Mutant("another key", late, "session", "if one.what == what and one.turn_id:", "if False:"),
    Mutant(
        "any version is replaced",
        memories,
        "files/memory",
        "if read_memory(path).version != version:",
        "if False:",
    ),
    Mutant(
        "one request for all",
        reached,
        "conversation",
        "self._own = own",
        "self._own = own; self._lines.append(b'{}')",
    ),
]


@pytest.fixture
def made(tmp_path):
    """Make packages of changed sources; each is forgotten at the end."""
    names = []

    def make(file, old, new):
        name = f"mutant_{len(names)}_sessions"
        names.append(name)
        package = tmp_path / "packages" / name
        shutil.copytree(HOME, package, ignore=shutil.ignore_patterns("__pycache__"))
        for path in package.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path == package / f"{file}.py":
                assert old in text, f"{old!r} no longer stands in {file}"
                text = text.replace(old, new)
            path.write_text(text.replace("kode_lab.sessions", name), encoding="utf-8")
        sys.path.insert(0, str(package.parent))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(package.parent))

    yield make
    for name in [n for n in sys.modules if n.partition(".")[0] in names]:
        del sys.modules[name]


class Stuck(Exception):
    """The check did not end."""


def complaint(check, lab, path, patience_s=PATIENCE_S):
    """Return what the check says against the package, or None."""
    loop = asyncio.new_event_loop()
    # What a broken package leaves behind is not the test's affair.
    loop.set_exception_handler(lambda *_: None)
    try:
        task = loop.create_task(check(lab, path))
        loop.run_until_complete(asyncio.wait([task], timeout=patience_s))
        if not task.done():
            return Stuck(f"for {patience_s:g} s")
        return asyncio.CancelledError() if task.cancelled() else task.exception()
    finally:
        loop.close()


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_package_itself_passes(tmp_path, check):
    if (error := complaint(check, sessions, tmp_path)) is not None:
        raise error


@pytest.mark.mutants
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_each_mutant_is_convicted(made, tmp_path, mutant):
    lab = made(mutant.file, mutant.old, mutant.new)
    patience_s = STEP_S if mutant.hangs else PATIENCE_S
    error = complaint(mutant.check, lab, tmp_path / "there", patience_s)
    assert error is not None, "the mutant survived"
    assert isinstance(error, Stuck) == mutant.hangs


def test_every_check_convicts_somebody():
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)
