"""What is written, and what of it is found again: whole turns, steps of an open one, a memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kode_lab.errors import KodeLabError
from kode_lab.message import ToolResult, Usage, assistant, tool_results, user
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Amendable, MemoryStore, Rewindable, Stored
from kode_lab.testing.conformance.scene import (
    TURN_MESSAGES,
    Contract,
    Handle,
    Scene,
    Skipped,
    demand,
)

__all__ = ["PERSISTENCE"]

_BIG_CHARS = 2_000_000
_MANY = 100
_WRITERS, _WRITES = 4, 3
_TEXT = '\0 \x01 \x7f \u2028 \ufeff \uffff é e\u0301 \U0001f600 \ud800 \udfff \\u0000 " \\ ]\n,{'


async def _appended(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    ended = [await scene.append(store, key, f"t{n}") for n in range(3)]
    turn = scene.turn("t1")[0]
    wanted = Finished("t1", TURN_MESSAGES, 2 * TURN_MESSAGES - 1, False, turn.usage, "v1")
    demand(ended[1] == wanted, f"append gave {ended[1]}, not {wanted}")
    other = await scene.perhaps_another(store)
    nothing = await scene.stored(other, scene.key("none"))
    demand(nothing == ([], {}, None), f"a new session is not empty: {nothing!r:.200}")
    for is_last, one in ((False, store), (False, other), (True, store)):
        found = await scene.stored(await scene.reopened(one) if is_last else one, key)
        scene.expect(found.messages, ["t0", "t1", "t2"])
        known = list(found.finished.values())
        demand(known == ended, f"load says that the turns ended as {known}, append said {ended}")
        demand(found.open is None, "load found an open turn after all had ended")


async def _whole(scene: Scene) -> None:
    """Cancel at every await of append, and load by a fresh hold."""
    store = await scene.store()
    other = await scene.perhaps_another(store)
    key, there, number, bare = scene.key(), list[str](), 0, store.inner

    async def append() -> None:
        lease = await bare.hold(key, queue_limit=0)
        try:
            await bare.load(lease)
            await bare.append(lease, *scene.turn(f"t{number}"))
        finally:
            bare.release(lease)

    async for task in scene.try_cancelling(append):
        demand(task.cancelled() or task.exception() is None, f"append: {task!r}")
        found = await scene.stored(other if number % 4 == 3 else store, key)
        if len(found.messages) > len(there) * TURN_MESSAGES:
            there.append(f"t{number}")
        else:
            demand(task.cancelled(), "a turn that was acknowledged is not in the conversation")
        scene.expect(found.messages, there)
        demand([*found.finished] == there, f"the finished turns are {[*found.finished]}: {there}")
        number += 1


async def _peek_never_half(scene: Scene) -> None:
    store = await scene.store()
    other = await scene.perhaps_another(store)
    key, is_done = scene.key(), False

    async def look() -> int:
        seen = 0
        while not is_done:
            found = await other.inner.peek(key)
            turns = [f"t{n}" for n in range(len(found) // TURN_MESSAGES)]
            scene.expect(found, turns)
            demand(len(found) >= seen, f"peek saw {seen} messages and then {len(found)}")
            seen = len(found)
            await asyncio.sleep(0)
        return seen

    looking = scene.begin(look())
    for number in range(30):
        await scene.append(store, key, f"t{number}")
        if looking.done():
            break
    is_done = True
    await scene.soon(looking, "peek")


async def _peek_is_free(scene: Scene) -> None:
    store = await scene.store()
    other = await scene.perhaps_another(store)
    key = scene.key()
    await scene.append(store, key, "t1")
    async with scene.held(store, key) as (lease, _):
        turn, entries = scene.turn("t2")
        await store.journal(lease, _begun("t2"), entries[0])
        for one in (store, other):
            seen = await one.peek(key)
            scene.expect(seen, ["t1"])
            seen.clear()  # it is the caller's own
        await store.append(lease, turn, entries[1:])
        for one in (store, other):
            scene.expect(await one.peek(key), ["t1", "t2"])
    demand(await store.peek(scene.key("none")) == [], "peek of a session that is not is not []")


def _begun(turn_id: str, calls: int = 1) -> OpenTurn:
    """Return a turn whose first reply asked for tools."""
    turn = OpenTurn(turn_id, Scene.turn(turn_id)[0].messages[0], "v1")
    ids = [f"c-{turn_id}"] + [f"c{n}-{turn_id}" for n in range(1, calls)]
    blocks = [{"type": "tool_use", "id": one, "name": "note", "input": {"text": ""}} for one in ids]
    turn.add_reply({"role": "assistant", "content": blocks}, Usage(3, 2))
    return turn


def _first_entry(turn: OpenTurn) -> dict[str, Any]:
    return turn.reply_entry(turn.messages[1], turn.usage)


def _said(turn: OpenTurn | None) -> Any:
    return turn and tuple(getattr(turn, name) for name in sorted(OpenTurn.__slots__))


async def _recovered(scene: Scene) -> None:
    """Take each step of a turn with another handle, as after a crash."""
    store = await scene.store()
    key, turn = scene.key(), _begun("t2", calls=2)
    await scene.append(store, key, "t1")

    def result(number: int) -> Callable[[OpenTurn], dict[str, Any]]:
        def step(turn: OpenTurn) -> dict[str, Any]:
            given = ToolResult(turn.calls[0].id, f"noted {number}", is_error=bool(number))
            turn.add_result(given)
            return turn.result_entry(given)

        return step

    for step in (
        _first_entry,
        lambda turn: turn.remember(approvals={turn.calls[0].id: "yes"}),
        result(0),
        result(1),
        lambda turn: turn.add_prompt("t3", [{"type": "text", "text": "and one more"}]),
    ):
        async with scene.held(store, key) as (lease, found):
            turn = found.open or turn
            await store.journal(lease, turn, step(turn))
        store = await scene.reopened(store)
        found = await scene.stored(store, key)
        scene.expect(found.messages, ["t1"])
        demand(found.open is not None, "the journalled steps of the open turn are gone")
        was, now = _said(turn), _said(found.open)
        demand(now == was, f"the open turn came back as {now!r:.400}, was {was!r:.400}")
    async with scene.held(store, key) as (lease, found):
        assert found.open is not None
        turn, said = found.open, assistant("done")
        turn.add_reply(said, Usage(5, 1))
        ended = await store.append(lease, turn, [turn.reply_entry(said, Usage(5, 1))])
    found = await scene.stored(await scene.reopened(store), key)
    demand(found.messages[TURN_MESSAGES:] == turn.messages, "its messages changed on the way")
    demand(found.finished.get("t2") == ended, f"it ended as {ended}: {found.finished}")
    demand(ended.usage == Usage(8, 3), f"3+2 and 5+1 tokens became {ended.usage}")
    demand(ended.facts == turn.facts, f"it ended knowing {ended.facts}, not {turn.facts}")
    demand(found.open is None, "the turn is still open after its append")


async def _discarded(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t1")
    async with scene.held(store, key) as (lease, _):
        begun = _begun("t2")
        await store.journal(lease, begun, _first_entry(begun))
        await store.discard(lease)
    store = await scene.reopened(store)
    found = await scene.stored(store, key)
    scene.expect(found.messages, ["t1"])
    demand(found.open is None, "a discarded turn is open again")
    demand("t2" not in found.finished, "a discarded turn is among the finished ones")
    await scene.append(store, key, "t2")  # the same turn, sent again
    scene.expect((await scene.stored(store, key)).messages, ["t1", "t2"])


async def _deleted(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t1")
    await scene.append(store, scene.key("beside"), "t1")
    async with scene.held(store, key) as (lease, _):
        await store.delete(lease)
    other = await scene.perhaps_another(store)
    for one in (store, other):
        found = await scene.stored(one, key)
        demand(found == ([], {}, None), f"after delete there is {found!r:.200}")
        demand(await one.peek(key) == [], "after delete peek still sees something")
    scene.expect((await scene.stored(other, scene.key("beside"))).messages, ["t1"])
    newer = await scene.hold(other, key)
    demand(newer.fence > lease.fence, f"fence {lease.fence} before delete, {newer.fence} after")
    other.release(newer)
    await scene.append(other, key, "t1")
    scene.expect((await scene.stored(await scene.reopened(store), key)).messages, ["t1"])


def _need(store: Handle, protocol: Any, lacks: str) -> None:
    if not isinstance(store.inner, protocol):
        raise Skipped(f"the store has no {lacks}")


async def _rewound(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    for number in range(4):
        await scene.append(store, key, f"t{number}")
    _need(store, Rewindable, "rewind and fill")
    async with scene.held(store, key) as (lease, _):
        await store.rewind(lease, 2 * TURN_MESSAGES, "back", ["t2", "t3", "open"])
    try:
        await store.rewind(lease, 0, "again", ["t0", "t1"])
    except KodeLabError:
        pass
    else:
        demand(False, "a lease that was released rewinds")
    for is_reopened in (False, True):
        if is_reopened:
            store = await scene.reopened(store)
        found = await scene.stored(store, key)
        scene.expect(found.messages, ["t0", "t1"])
        scene.expect(await store.peek(key), ["t0", "t1"])
        known = {name: turn.is_rewound for name, turn in found.finished.items()}
        wanted = {"t0": False, "t1": False, "t2": True, "t3": True, "open": True, "back": True}
        demand(known == wanted, f"after the rewind, is_rewound is {known}, not {wanted}")
        names = [*found.finished["back"].facts.get("rewound", ())]
        demand(names == ["t2", "t3", "open"], f"the rewind says it removed {names}")
    await scene.append(store, key, "t4")
    scene.expect((await scene.stored(store, key)).messages, ["t0", "t1", "t4"])


async def _filled(scene: Scene) -> None:
    store = await scene.store()
    source, key = scene.key(), scene.key("copy")
    for number in range(3):
        await scene.append(store, source, f"t{number}")
    there = await scene.stored(store, source)
    async with scene.held(store, key) as (lease, _):
        _need(store, Rewindable, "rewind and fill")
        await store.fill(lease, there.messages, [*there.finished.values()])
    await scene.append(store, key, "t3")
    store = await scene.reopened(store)
    found = await scene.stored(store, key)
    scene.expect(found.messages, ["t0", "t1", "t2", "t3"])
    demand([*found.finished] == ["t0", "t1", "t2", "t3"], f"its turns are {[*found.finished]}")
    first = found.finished["t1"]
    demand(first == there.finished["t1"], f"t1 became {first}, was {there.finished['t1']}")
    scene.expect((await scene.stored(store, source)).messages, ["t0", "t1", "t2"])


async def _moved_whole(scene: Scene) -> None:
    """Cancel rewinds and copies at every await: there is what was before, or what is after."""
    store = await scene.store()
    _need(store, Rewindable, "rewind and fill")
    bare: Any = store.inner
    source, number, key = scene.key(), 0, scene.key("c0")
    for turn_id in ("t0", "t1"):
        await scene.append(store, source, turn_id)
    there = await scene.stored(store, source)

    async def work() -> None:
        lease = await bare.hold(key, queue_limit=0)
        try:
            if number % 2:
                await bare.load(lease)
                await bare.rewind(lease, TURN_MESSAGES, "back", ["t1"])
            else:
                await bare.fill(lease, there.messages, [*there.finished.values()])
        finally:
            bare.release(lease)

    async for task in scene.try_cancelling(work):
        demand(task.cancelled() or task.exception() is None, f"rewind or fill: {task!r}")
        found = await scene.stored(store, key)
        turns = ["t0", "t1"][: len(found.messages) // TURN_MESSAGES]
        scene.expect(found.messages, turns)
        known = [name for name, turn in found.finished.items() if not turn.is_rewound]
        demand(known == turns, f"the conversation is {turns}, and the turns are {known}")
        before, after = (["t0", "t1"], ["t0"]) if number % 2 else ([], ["t0", "t1"])
        is_there = turns == after or (task.cancelled() and turns == before)
        demand(is_there, f"a rewind or copy of {before} to {after} left {turns}")
        number += 1
        key = scene.key(f"c{number}")
        if number % 2:
            async with scene.held(store, key) as (lease, _):
                await bare.fill(lease, there.messages, [*there.finished.values()])


async def _amended(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    for turn_id in ("t0", "t1", "t2"):
        await scene.append(store, key, turn_id)
    begun, at = _begun("t3"), TURN_MESSAGES + 2
    async with scene.held(store, key) as (lease, stored):
        wanted = stored.messages
        wanted[at] = tool_results([ToolResult("c-t1", "came late")])
        await store.journal(lease, begun, _first_entry(begun))
        _need(store, Amendable, "amend")
        await store.amend(lease, at, wanted[at])

    def check(found: Stored, how: str) -> None:
        changed = [n for n, one in enumerate(found.messages) if one != wanted[n]]
        demand(found.messages[: len(wanted)] == wanted, f"{how}, other messages are {changed}")
        demand([*found.finished][:3] == ["t0", "t1", "t2"], f"{how}: {[*found.finished]}")

    for one in (store, await scene.perhaps_another(store)):
        found = await scene.stored(one, key)
        check(found, "after a message was replaced")
        demand(await one.peek(key) == wanted, "peek shows the message that was replaced")
        demand(_said(found.open) == _said(begun), "replacing a message changed the open turn")
    store = await scene.reopened(store)
    async with scene.held(store, key) as (lease, _):
        await store.append(lease, *scene.turn("t3"))
    wanted += scene.turn("t3")[0].messages
    check(await scene.stored(await scene.reopened(store), key), "after one more turn")


async def _remembered(scene: Scene) -> None:
    """Let writers of several handles each add to one list, by compare-and-set."""
    store = await scene.store()
    other, user_id = await scene.perhaps_another(store), scene.key().user_id
    _need(store, MemoryStore, "memory")
    demand(
        (await store.read_memory(user_id)).entries == {}, "the memory of a new user is not empty"
    )

    async def add(one: Handle, name: str) -> None:
        for number in range(_WRITES):
            for _ in range(_WRITERS * _WRITES + 1):
                found = await one.read_memory(user_id)
                entries = {**found.entries, f"{name}{number}": f"\0é{number}"}
                if await one.write_memory(user_id, entries, version=found.version):
                    break
            else:
                demand(False, "each write of a memory was refused, though one of them was first")

    await asyncio.gather(*[add((store, other)[n % 2], f"w{n}-") for n in range(_WRITERS)])
    beside = await store.read_memory(scene.key(user_id="-beside").user_id)
    demand(beside.entries == {}, f"another user's memory holds {beside.entries!r:.200}")
    found = await other.read_memory(user_id)
    wanted = {f"w{n}-{m}": f"\0é{m}" for n in range(_WRITERS) for m in range(_WRITES)}
    lost = sorted(wanted.keys() - found.entries.keys())
    demand(found.entries == wanted, f"a write of another version was accepted: {lost} are lost")
    was_old = await other.write_memory(user_id, {}, version=found.version - 1)
    demand(not was_old, "a write that had seen an older version was accepted")
    store = await scene.reopened(store)
    demand(await store.read_memory(user_id) == found, "the memory changed with its handle")


async def _any_text(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t é\u2028", _TEXT)
    await scene.append(store, key, "t2", _TEXT)
    store = await scene.reopened(store)
    found = await scene.stored(store, key)
    scene.expect(found.messages, ["t é\u2028", "t2"], _TEXT)
    demand([*found.finished] == ["t é\u2028", "t2"], f"turn ids became {[*found.finished]}")
    scene.expect(await store.peek(key), ["t é\u2028", "t2"], _TEXT)


async def _big(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    turn = OpenTurn("big", user("a" * _BIG_CHARS), "v1")
    said = assistant("é" * (_BIG_CHARS // 2))
    turn.add_reply(said, Usage(1, 1))
    async with scene.held(store, key) as (lease, _):
        await store.append(lease, turn, [turn.reply_entry(said, Usage(1, 1))])
    found = await scene.stored(await scene.reopened(store), key)
    demand(found.messages == turn.messages, "messages of two megabytes came back changed")


async def _own_objects(scene: Scene) -> None:
    """Change everything that passed between caller and store, as a client's SDK may do."""

    def change(messages: Any) -> None:
        for message in messages:
            for block in message["content"] if isinstance(message["content"], list) else ():
                block["cache_control"] = {"type": "ephemeral"}
                block["text" if "text" in block else "name"] = "changed"
            message["content"] = "changed"
        if isinstance(messages, list):
            messages.append(user("never said"))

    store = await scene.store()
    other = await scene.perhaps_another(store)
    key = scene.key()
    async with scene.held(store, key) as (lease, _):
        turn, entries = scene.turn("t1")
        begun = _begun("t1")
        await store.journal(lease, begun, entries[0])
        change(begun.messages)
        change((entries[0]["reply"],))
        found = (await store.load(lease)).open
        demand(_said(found) == _said(_begun("t1")), "a step changed with the caller's object")
        await store.append(lease, turn, entries[1:])
        change(turn.messages)
    for one in (store, other, store):
        stored = await scene.stored(one, key)
        scene.expect(stored.messages, ["t1"])
        change(stored.messages)
        seen = await one.peek(key)
        scene.expect(seen, ["t1"])
        change(seen)


async def _many(scene: Scene) -> None:
    store = await scene.store()
    keys = [scene.key(f"s{number}") for number in range(_MANY)]
    leases = await asyncio.gather(*[scene.hold(store, key, 0) for key in keys])
    await asyncio.gather(*[store.load(lease) for lease in leases])
    turns = [scene.turn(f"t{number}") for number in range(_MANY)]
    appends = [store.append(lease, *turn) for lease, turn in zip(leases, turns, strict=True)]
    await asyncio.gather(*appends)
    for lease in leases:
        store.release(lease)
    other = await scene.perhaps_another(store)
    for number in range(0, _MANY, 9):
        scene.expect((await scene.stored(other, keys[number])).messages, [f"t{number}"])


PERSISTENCE = (
    Contract("What was appended is loaded as it was, by any handle.", _appended),
    Contract("An append that is cancelled anywhere is there whole, or not at all.", _whole),
    Contract("peek shows whole turns only, and none disappears.", _peek_never_half),
    Contract("peek does not wait for the holder, and shows no open turn.", _peek_is_free),
    Contract(
        "The journalled steps of an open turn come back, approvals and prompts that it was given "
        "too, and it can end.",
        _recovered,
    ),
    Contract("A turn that was discarded is gone, and can be sent again.", _discarded),
    Contract("delete forgets one conversation; its fence goes on growing.", _deleted),
    Contract("Any text comes back as it was: NUL, surrogates, quotes, both forms of é.", _any_text),
    Contract("Messages of two megabytes come back as they were.", _big),
    Contract("What a caller changes afterwards does not change what is stored.", _own_objects),
    Contract("A rewind keeps the first turns, and the ids of the others stay known.", _rewound),
    Contract("A conversation that is copied into a session comes back whole.", _filled),
    Contract(
        "A rewind or copy that is cancelled anywhere is there whole, or not at all.", _moved_whole
    ),
    Contract("A message that is replaced stays so, and all others as they were.", _amended),
    Contract("A user's memory is replaced only by a writer that saw its newest.", _remembered),
    Contract("A hundred sessions are held and written at once.", _many),
)
