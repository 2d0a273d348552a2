"""Sessions in their users' hands: stopped, rewound, forked; over restarts, crashes and both kinds
of durability."""

import asyncio
import json
import random

import pytest
from house import (
    ADA,
    BOB,
    Clerk,
    FaultyDisk,
    World,
    assert_idle,
    assert_legal,
    managing,
    prompts,
    run,
    until,
)

from kode_lab.errors import (
    CallerError,
    DeadlineExceeded,
    InvalidPrompt,
    StoreError,
    Superseded,
    UnknownAgent,
)
from kode_lab.key import SessionKey
from kode_lab.message import Usage, assistant, user
from kode_lab.sessions import JsonStore
from kode_lab.sessions.open_turn import OpenTurn

NEW = SessionKey.of("ada", "clerk", "s2")
both = pytest.mark.parametrize("durability", ["process", "power"])


def stored(durability):
    """Return options of a store, with a journal that is cheap to make."""
    return {"durability": durability, "journal_bytes": 200_000}


def at(tmp_path, durability="process", **options):
    return managing(tmp_path, options.pop("model", None), store=stored(durability), **options)


async def talk(manager, count, key=ADA, first=0):
    for number in range(first, first + count):
        await manager.turn(key, f"q{number}", turn_id=f"t{number}")


# ---- stop


@pytest.mark.parametrize(
    ("how", "left"), [("interrupt", ["before", "hangs"]), ("rollback", ["before"])]
)
def test_a_running_turn_is_stopped_without_a_new_message(tmp_path, how, left):
    async def scenario():
        model = Clerk()
        gate = model.gates["hangs"] = asyncio.Event()
        async with at(tmp_path, model=model) as manager:
            await manager.turn(ADA, "before")
            assert await manager.stop(ADA) == ()
            hanging = asyncio.create_task(manager.turn(ADA, "hangs", turn_id="hung"))
            await until(lambda: len(model.requests) == 2)
            waiting = asyncio.create_task(manager.turn(ADA, "waits"))
            await until(lambda: manager.statistics().lock.waiting == 1)
            assert await manager.stop(BOB) == ()
            assert await manager.stop(ADA, how=how) == ("hung",)
            with pytest.raises(Superseded, match=f"it was stopped .{how}"):
                await hanging
            assert (await waiting).text == "re: waits"
            messages = await manager.history(ADA)
            assert prompts(messages) == [*left, "waits"]
            assert_legal(messages)
            assert_idle(manager)
        gate.set()

    run(scenario())


def test_a_stop_ends_waiting_turns_too_or_one_by_its_id(tmp_path):
    async def scenario():
        model = Clerk({"q0": asyncio.Event()})
        async with at(tmp_path, model=model) as manager:
            turns = [
                asyncio.create_task(manager.turn(ADA, f"q{n}", turn_id=f"t{n}")) for n in range(4)
            ]
            await until(lambda: manager.statistics().lock.waiting == 3)
            assert await manager.stop(ADA, turn_id="t2") == ("t2",)
            assert await manager.stop(ADA, how="rollback", waiting=True) == ("t0", "t1", "t3")
            for turn in turns:
                with pytest.raises(Superseded):
                    await turn
            assert await manager.history(ADA) == []
            with pytest.raises(InvalidPrompt, match="how 'now' is not valid: choose interrupt"):
                await manager.stop(ADA, how="now")

    run(scenario())


def test_a_stopped_tool_that_had_begun_is_not_denied(tmp_path):
    """The model is told that the call may have taken effect, not that it never ran."""

    async def scenario():
        world = World()
        world.gates["note:2 0.1"] = asyncio.Event()
        async with at(tmp_path, world=world) as manager:
            events = []
            turn = asyncio.create_task(manager.turn(ADA, "note:2", on_event=events.append))
            await until(lambda: any(event.kind == "tool_result" for event in events))
            await manager.stop(ADA)
            with pytest.raises(Superseded):
                await turn
            messages = await manager.history(ADA)
            assert_legal(messages)
            noted, unknown = messages[2]["content"]
            assert noted["content"] == "noted note:2 0.0"
            assert "may have taken effect" in unknown["content"]

    run(scenario())


def test_a_deletion_waits_no_longer_than_it_says_or_stops_the_turn(tmp_path):
    async def scenario():
        model = Clerk({"hangs": asyncio.Event()})
        async with at(tmp_path, model=model) as manager:
            await manager.turn(ADA, "before")
            hanging = asyncio.create_task(manager.turn(ADA, "hangs"))
            await until(lambda: len(model.requests) == 2)
            with pytest.raises(DeadlineExceeded, match=r"wait_s=0.01; nothing was changed"):
                await manager.delete(ADA, wait_s=0.01)
            assert prompts(await manager.history(ADA)) == ["before"]
            await manager.delete(ADA, stop=True)
            with pytest.raises(Superseded):
                await hanging
            assert await manager.history(ADA) == []
            assert_idle(manager)

    run(scenario())


# ---- rewind


@both
@pytest.mark.parametrize("restarts", [False, True])
def test_a_rewind_removes_later_turns_and_keeps_their_ids_known(tmp_path, durability, restarts):
    async def scenario():
        world = World()
        async with at(tmp_path, durability, world=world) as manager:
            await talk(manager, 2)
            await manager.turn(ADA, "note:1", turn_id="acts")
            assert await manager.rewind(ADA, "t0", turn_id="back") == ("t1", "acts")
            if not restarts:
                await check(manager, world)
        if restarts:
            async with at(tmp_path, durability, world=world) as manager:
                await check(manager, world)
        async with at(tmp_path, durability, world=world) as manager:
            assert prompts(await manager.history(ADA)) == ["q0", "again"]
            assert (await manager.turn(ADA, "again", turn_id="new")).is_replay

    async def check(manager, world):
        assert prompts(await manager.history(ADA)) == ["q0"]
        with pytest.raises(Superseded, match="'acts' was removed by a rewind"):
            await manager.turn(ADA, "note:1", turn_id="acts")
        assert len(world.runs) == 1
        assert (await manager.turn(ADA, "q0", turn_id="t0")).is_replay
        await manager.turn(ADA, "again", turn_id="new")
        assert await manager.rewind(ADA, "t0", turn_id="back") == ("t1", "acts")
        assert_legal(await manager.history(ADA))

    run(scenario())


@both
def test_a_rewind_counts_turns_forgets_the_unfinished_one_and_names_what_it_cannot_find(
    tmp_path, durability
):
    async def scenario():
        world = World()
        world.gates["note:1 0.0"] = asyncio.Event()
        async with at(tmp_path, durability, world=world) as manager:
            await talk(manager, 3)
            with pytest.raises(DeadlineExceeded):
                await manager.turn(ADA, "note:1", turn_id="left", deadline_s=0.05)
            assert await manager.rewind(ADA, 2) == ("t2", "left")
            with pytest.raises(Superseded, match="'left' was removed"):
                await manager.turn(ADA, "note:1", turn_id="left")
            for wrong, words in (
                ("t2", "was removed by a rewind"),
                ("never", "is not in the conversation"),
                (3, "a number from 0 to 2"),
                (-1, "a number from 0 to 2"),
                (True, "pass the id of a turn"),
            ):
                with pytest.raises(InvalidPrompt, match=words):
                    await manager.rewind(ADA, wrong)
            with pytest.raises(InvalidPrompt, match="'t0' is the id of a turn"):
                await manager.rewind(ADA, 0, turn_id="t0")
            assert await manager.rewind(ADA, 0) == ("t0", "t1")
            assert await manager.history(ADA) == []
            await manager.turn(ADA, "new", turn_id="t9")
        async with at(tmp_path, durability, world=world) as manager:
            assert prompts(await manager.history(ADA)) == ["new"]
            with pytest.raises(Superseded):
                await manager.turn(ADA, "q1", turn_id="t1")

    run(scenario())


@both
def test_a_fork_copies_a_conversation_once_and_both_go_on_apart(tmp_path, durability):
    async def scenario():
        async with at(tmp_path, durability, world=World()) as manager:
            await talk(manager, 2)
            await manager.turn(ADA, "note:1", turn_id="acts")
            assert await manager.fork(ADA, NEW, at_turn="t1") == 4
            assert await manager.fork(ADA, NEW, at_turn="t1") == 4
            await manager.turn(NEW, "there", turn_id="new")
            assert await manager.fork(ADA, NEW, at_turn=2) == 4
            with pytest.raises(InvalidPrompt, match="it has another conversation"):
                await manager.fork(ADA, NEW)
            with pytest.raises(UnknownAgent):
                await manager.fork(ADA, SessionKey.of("ada", "stranger", "s3"))
            assert await manager.fork(ADA, BOB) == 8
            assert await manager.fork(SessionKey.of("eve", "clerk"), NEW) == 0
        async with at(tmp_path, durability, world=World()) as manager:
            assert prompts(await manager.history(NEW)) == ["q0", "q1", "there"]
            assert prompts(await manager.history(ADA)) == ["q0", "q1", "note:1"]
            assert await manager.history(BOB) == await manager.history(ADA)
            for key in (NEW, BOB):
                assert (await manager.turn(key, "q1", turn_id="t1")).is_replay
            assert (await manager.turn(BOB, "note:1", turn_id="acts")).is_replay
            await manager.rewind(NEW, "t0")
            assert prompts(await manager.history(NEW)) == ["q0"]

    run(scenario())


@both
def test_a_kill_at_any_write_of_a_rewind_or_fork_leaves_before_or_after(tmp_path, durability):
    """Never a part, and the next life goes on from there."""

    async def scenario():
        root = tmp_path / "disk" / "store"
        disk = FaultyDisk(tmp_path / "disk")
        images = []
        store = JsonStore(root, disk=disk, **stored(durability))
        async with managing(tmp_path / "disk", store=store) as manager:
            await talk(manager, 3)

            def hook(call, path, change):
                if call == "write":
                    images.append(disk.after_kill())
                    images.append(disk.after_kill(path, change, len(change[2]) // 2))
                elif call in ("truncate", "remove", "sync"):
                    images.append(disk.after_kill())

            disk.hook = hook
            await manager.rewind(ADA, "t0", turn_id="back")
            await manager.fork(ADA, BOB)
            disk.hook = None
        assert len(images) >= 4
        for number, image in enumerate(images):
            life = tmp_path / f"life{number}"
            disk.restore(image, life)
            async with managing(life, store=stored(durability)) as manager:
                assert prompts(await manager.history(ADA)) in (["q0", "q1", "q2"], ["q0"])
                assert prompts(await manager.history(BOB)) in ([], ["q0"])
                await manager.rewind(ADA, "t0", turn_id="back")
                await manager.fork(ADA, BOB)
                for key in (ADA, BOB):
                    await manager.turn(key, "on")
                    assert prompts(await manager.history(key)) == ["q0", "on"]
                with pytest.raises(Superseded):
                    await manager.turn(ADA, "q2", turn_id="t2")

    run(scenario())


@both
@pytest.mark.parametrize("text", ["short", "a longer text than that which was there before"])
def test_a_kill_at_any_write_of_a_replacement_leaves_the_message_before_or_after(
    tmp_path, durability, text
):
    """All other messages, and the steps of an open turn, are as they were."""

    async def scenario():
        disk, images = FaultyDisk(tmp_path / "disk"), []
        store = JsonStore(tmp_path / "disk" / "store", disk=disk, **stored(durability))
        for number in range(3):
            await append(store, number)
        begun = OpenTurn("open", user("q"), "v")
        lease = await store.hold(ADA, queue_limit=0)
        before = (await store.load(lease)).messages
        asked = {"type": "tool_use", "id": "c", "name": "n", "input": {}}
        begun.add_reply(assistant([asked]), Usage())
        await store.journal(lease, begun, begun.reply_entry(begun.messages[1], Usage()))

        def hook(call, path, change):
            images.append(disk.after_kill())
            if call == "write":
                parts = [len(change[2]) // 3, len(change[2]) // 2]
                images.extend(disk.after_kill(path, change, part) for part in parts)

        disk.hook = hook
        after = [*before[:3], assistant(text), *before[4:]]
        await store.amend(lease, 3, after[3])
        disk.hook = None
        images.append(disk.after_kill())
        await store.aclose()
        for number, image in enumerate(images):
            life = disk.restore(image, tmp_path / f"life{number}")
            next_store = JsonStore(life / "store", **stored(durability))
            lease = await next_store.hold(ADA, queue_limit=0)
            found = await next_store.load(lease)
            is_last = number == len(images) - 1
            assert found.messages in ([after] if is_last else [before, after])
            assert [*found.finished] == ["t0", "t1", "t2"]
            assert found.open.calls == begun.calls
            found.open.seal("ended")
            await next_store.append(lease, found.open, [])
            next_store.release(lease)
            assert await next_store.peek(ADA) == [*found.messages, *found.open.messages]
            await next_store.aclose()

    async def append(store, number):
        lease = await store.hold(ADA, queue_limit=0)
        turn = OpenTurn(f"t{number}", user(f"q{number}"), "v")
        turn.add_reply(assistant(f"the answer to q{number}"), Usage())
        await store.append(lease, turn, [turn.reply_entry(turn.messages[1], Usage())])
        store.release(lease)

    run(scenario())


def test_an_older_kode_lab_does_not_cut_off_what_it_cannot_read(tmp_path):
    """A rewound session says in its first line that it needs a newer reader."""

    async def scenario():
        async with at(tmp_path) as manager:
            await talk(manager, 2)
            await manager.rewind(ADA, "t0")
            await talk(manager, 1, first=5)
        (turns,) = (tmp_path / "store").rglob("turns.jsonl")
        assert json.loads(turns.read_bytes().splitlines()[0])["kode_lab"] == 2
        async with at(tmp_path) as manager:
            assert prompts(await manager.history(ADA)) == ["q0", "q5"]

    run(scenario())


def test_a_store_that_cannot_rewind_is_named(tmp_path):
    class Plain:
        def __init__(self, inner):
            for name in ("hold", "release", "load", "journal", "append", "peek", "aclose"):
                setattr(self, name, getattr(inner, name))
            self.statistics = inner.statistics

    async def scenario():
        store = Plain(JsonStore(tmp_path / "plain"))
        async with managing(tmp_path, store=store) as manager:
            with pytest.raises(CallerError, match="a Plain cannot rewind or fork"):
                await manager.rewind(ADA, 0)

    run(scenario())


def test_any_mixture_of_turns_rewinds_and_restarts_ends_in_what_was_acknowledged(tmp_path):
    async def scenario(seed):
        dice, wanted, number = random.Random(seed), [], 0
        place = tmp_path / f"{seed}"
        durability = dice.choice(["process", "power"])
        for _ in range(4):
            async with at(place, durability, residents_limit=dice.choice([0, 10])) as manager:
                for _ in range(6):
                    if wanted and dice.random() < 0.3:
                        keep = dice.randrange(len(wanted) + 1)
                        await manager.rewind(ADA, keep)
                        del wanted[keep:]
                    else:
                        await manager.turn(ADA, f"q{number}", turn_id=f"t{number}")
                        wanted.append(f"q{number}")
                        number += 1
                    assert prompts(await manager.history(ADA)) == wanted

    for seed in range(4):
        run(scenario(seed))


def test_a_full_disk_during_a_rewind_changes_nothing_or_all(tmp_path):
    async def scenario(number):
        disk = FaultyDisk(tmp_path / f"{number}")
        store = JsonStore(tmp_path / f"{number}" / "store", disk=disk)
        async with managing(tmp_path / f"{number}", store=store) as manager:
            await talk(manager, 2)
            disk.fail_at(number)
            try:
                await manager.rewind(ADA, 1)
            except StoreError:
                disk.hook = None
                assert prompts(await manager.history(ADA)) in (["q0"], ["q0", "q1"])
                await manager.rewind(ADA, 1)
            disk.hook = None
            await talk(manager, 1, first=7)
            assert prompts(await manager.history(ADA)) == ["q0", "q7"]

    for number in range(5):
        run(scenario(number))
