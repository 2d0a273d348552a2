"""What is written, and what of it is found again: whole turns, and steps of an open one."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from kode_lab.errors import KodeLabError
from kode_lab.message import ToolResult, Usage, assistant, user
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Rewindable, Store
from kode_lab.testing.conformance.scene import TURN_MESSAGES, Contract, Scene, Skipped, demand

__all__ = ["PERSISTENCE"]

_BIG_CHARS = 2_000_000
_MANY = 100
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
    key, there, number = scene.key(), list[str](), 0

    async def append() -> None:
        lease = await store.hold(key, queue_limit=0)
        try:
            await store.load(lease)
            await store.append(lease, *scene.turn(f"t{number}"))
        finally:
            store.release(lease)

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
            found = await other.peek(key)
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
    lease = await scene.hold(store, key)
    turn, entries = scene.turn("t2")
    await scene.soon(store.load(lease), "load")
    await scene.soon(store.journal(lease, _begun("t2"), entries[0]), "journal")
    for one in (store, other):
        seen = await scene.soon(one.peek(key), "peek while the session is held")
        scene.expect(seen, ["t1"])
        seen.clear()  # it is the caller's own
    await scene.soon(store.append(lease, turn, entries[1:]), "append")
    for one in (store, other):
        scene.expect(await scene.soon(one.peek(key), "peek after an append"), ["t1", "t2"])
    store.release(lease)
    demand(await store.peek(scene.key("none")) == [], "peek of a session that is not is not []")


def _begun(turn_id: str, calls: int = 1) -> OpenTurn:
    """Return a turn whose first reply asked for tools."""
    turn = OpenTurn(turn_id, Scene.turn(turn_id)[0].messages[0], "v1")
    ids = [f"c-{turn_id}"] + [f"c{n}-{turn_id}" for n in range(1, calls)]
    blocks = [{"type": "tool_use", "id": one, "name": "note", "input": {"text": ""}} for one in ids]
    turn.add_reply({"role": "assistant", "content": blocks}, Usage(3, 2))
    return turn


def _said(turn: OpenTurn | None) -> Any:
    return turn and tuple(getattr(turn, name) for name in sorted(OpenTurn.__slots__))


async def _recovered(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t1")
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    turn = _begun("t2", calls=2)
    await scene.soon(
        store.journal(lease, turn, turn.reply_entry(turn.messages[1], turn.usage)), "journal"
    )
    for number, call in enumerate(turn.calls):
        store, found = await _again(scene, store, lease, turn)
        lease = await scene.hold(store, key)
        await scene.soon(store.load(lease), "load")
        turn = found
        result = ToolResult(call.id, f"noted {number}", is_error=bool(number))
        turn.add_result(result)
        await scene.soon(store.journal(lease, turn, turn.result_entry(result)), "journal")
    store, turn = await _again(scene, store, lease, turn)
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    said = assistant("done")
    turn.add_reply(said, Usage(5, 1))
    ended = await scene.soon(
        store.append(lease, turn, [turn.reply_entry(said, Usage(5, 1))]), "append"
    )
    store.release(lease)
    found_now = await scene.stored(await scene.reopened(store), key)
    demand(found_now.messages[TURN_MESSAGES:] == turn.messages, "its messages changed on the way")
    demand(found_now.finished.get("t2") == ended, f"it ended as {ended}: {found_now.finished}")
    demand(ended.usage == Usage(8, 3), f"3+2 and 5+1 tokens became {ended.usage}")
    demand(found_now.open is None, "the turn is still open after its append")


async def _again(scene: Scene, store: Any, lease: Any, turn: OpenTurn) -> tuple[Any, OpenTurn]:
    """Release, reopen, and demand that the open turn comes back as it was."""
    store.release(lease)
    store = await scene.reopened(store)
    found = await scene.stored(store, lease.key)
    scene.expect(found.messages, ["t1"])
    demand(found.open is not None, "the journalled steps of the open turn are gone")
    demand(
        _said(found.open) == _said(turn),
        f"the open turn came back as {_said(found.open)!r:.400}, was {_said(turn)!r:.400}",
    )
    assert found.open is not None
    return store, found.open


async def _discarded(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t1")
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    begun = _begun("t2")
    entry = begun.reply_entry(begun.messages[1], begun.usage)
    await scene.soon(store.journal(lease, begun, entry), "journal")
    await scene.soon(store.discard(lease), "discard")
    store.release(lease)
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
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    await scene.soon(store.delete(lease), "delete")
    store.release(lease)
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


def _rewindable(store: Store) -> Rewindable:
    if not isinstance(store, Rewindable):
        raise Skipped("the store has no rewind and fill")
    return store


async def _rewound(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    for number in range(4):
        await scene.append(store, key, f"t{number}")
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    rewind = _rewindable(store).rewind(lease, 2 * TURN_MESSAGES, "back", ["t2", "t3", "open"])
    await scene.soon(rewind, "rewind")
    store.release(lease)
    try:
        await scene.soon(_rewindable(store).rewind(lease, 0, "again", ["t0", "t1"]), "rewind")
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
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    fill = _rewindable(store).fill(lease, there.messages, [*there.finished.values()])
    await scene.soon(fill, "fill")
    store.release(lease)
    await scene.append(store, key, "t3")
    store = await scene.reopened(store)
    found = await scene.stored(store, key)
    scene.expect(found.messages, ["t0", "t1", "t2", "t3"])
    demand([*found.finished] == ["t0", "t1", "t2", "t3"], f"its turns are {[*found.finished]}")
    first = found.finished["t1"]
    demand(first == there.finished["t1"], f"t1 became {first}, was {there.finished['t1']}")
    scene.expect((await scene.stored(store, source)).messages, ["t0", "t1", "t2"])


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
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    await scene.soon(store.append(lease, turn, [turn.reply_entry(said, Usage(1, 1))]), "append")
    store.release(lease)
    found = await scene.stored(await scene.reopened(store), key)
    demand(found.messages == turn.messages, "messages of two megabytes came back changed")


async def _own_lists(scene: Scene) -> None:
    store = await scene.store()
    key = scene.key()
    await scene.append(store, key, "t1")
    (await scene.stored(store, key)).messages.append(user("never said"))
    scene.expect((await scene.stored(store, key)).messages, ["t1"])
    scene.expect(await store.peek(key), ["t1"])


async def _own_objects(scene: Scene) -> None:
    """Change everything that passed between caller and store, as a client's SDK may do."""

    def change(messages: Any) -> None:
        for message in messages:
            for block in message["content"] if isinstance(message["content"], list) else ():
                block["cache_control"] = {"type": "ephemeral"}
                block["text" if "text" in block else "name"] = "changed"
            message["content"] = "changed"

    store = await scene.store()
    other = await scene.perhaps_another(store)
    key = scene.key()
    lease = await scene.hold(store, key)
    await scene.soon(store.load(lease), "load")
    turn, entries = scene.turn("t1")
    begun = _begun("t1")
    await scene.soon(store.journal(lease, begun, entries[0]), "journal")
    change(begun.messages)
    change([cast("Any", entries[0])["reply"]])
    found = (await scene.soon(store.load(lease), "load")).open
    demand(_said(found) == _said(_begun("t1")), "a step changed with the caller's object")
    await scene.soon(store.append(lease, turn, entries[1:]), "append")
    change(turn.messages)
    store.release(lease)
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
    leases = await scene.soon(
        asyncio.gather(*[store.hold(key, queue_limit=0) for key in keys]), f"{_MANY} holds"
    )
    await scene.soon(asyncio.gather(*[store.load(lease) for lease in leases]), f"{_MANY} loads")
    turns = [scene.turn(f"t{number}") for number in range(_MANY)]
    appends = [store.append(lease, *turn) for lease, turn in zip(leases, turns, strict=True)]
    await scene.soon(asyncio.gather(*appends), f"{_MANY} appends")
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
    Contract("The journalled steps of an open turn come back, and it can end.", _recovered),
    Contract("A turn that was discarded is gone, and can be sent again.", _discarded),
    Contract("delete forgets one conversation; its fence goes on growing.", _deleted),
    Contract("Any text comes back as it was: NUL, surrogates, quotes, both forms of é.", _any_text),
    Contract("Messages of two megabytes come back as they were.", _big),
    Contract("What load and peek return belongs to the caller.", _own_lists),
    Contract("Messages that a caller changes later do not change what is stored.", _own_objects),
    Contract("A rewind keeps the first turns, and the ids of the others stay known.", _rewound),
    Contract("A conversation that is copied into a session comes back whole.", _filled),
    Contract("A hundred sessions are held and written at once.", _many),
)
