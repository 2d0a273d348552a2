"""A turn that stops anywhere goes on where it stopped, and happens once.

``every moment`` here means: before each call to the disk, and in the middle of each write at each
of its bytes. What a kill leaves there is written to a new directory, a new manager opens it, and
the client sends its turn again.
"""

import asyncio
import contextlib
import errno
import itertools

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
    shelf,
    until,
)

from kode_lab.errors import InvalidPrompt, ModelUnavailable, StoreUnwritable, Superseded
from kode_lab.key import SessionKey
from kode_lab.message import Reply
from kode_lab.sessions import JsonStore

PLAIN = "hello"
TOOLS = "note:2 thread:1"


async def moments_of(path, prompt, turn_id, *, stride=1, before=("first",)):
    """Return every different state that a kill during the turn can leave, with the world's then."""
    world, found = World(), []
    disk = FaultyDisk(path / "store")

    def remember(*torn):
        image = disk.after_kill(*torn)
        if not found or found[-1][0] != image:
            found.append((image, dict(world.notes), len(world.runs)))

    def hook(call, at_path, change):
        remember()
        if call == "write":
            last = len(change[2]) - 1
            for torn in sorted({1, 2, 3, *range(disk.calls % stride, last, stride), last}):
                remember(at_path, change, torn)

    async with managing(path, world=world, store={"disk": disk}) as manager:
        for number, text in enumerate(before):
            await manager.turn(ADA, text, turn_id=f"before-{number}")
        disk.hook = hook
        reply = await manager.turn(ADA, prompt, turn_id=turn_id)
        disk.hook = None
        remember()
    return disk, found, reply


@pytest.mark.parametrize(("prompt", "stride"), [(PLAIN, 3), (TOOLS, 23)])
def test_a_turn_killed_at_every_moment_and_sent_again_is_there_once_with_its_tools_run_once(
    tmp_path, prompt, stride
):
    async def scenario():
        disk, found, _ = await moments_of(tmp_path, prompt, "t", stride=stride)
        assert len(found) > 40
        no_tools = World()  # making one takes most of the time
        for number, (image, notes, _) in enumerate(found):
            world = World() if prompt == TOOLS else no_tools
            world.notes = notes
            there = tmp_path / f"again-{number}"
            disk.restore(image, there / "store")
            async with managing(there, world=world) as manager:
                reply = await manager.turn(ADA, prompt, turn_id="t")
                assert reply.text == f"re: {prompt}"
                messages = await manager.history(ADA)
                assert prompts(messages) == ["first", prompt]
                assert_legal(messages)
                assert sorted(world.notes.values()) == sorted(
                    call.input["text"] for call in reply.tool_calls
                )
                again = await manager.turn(ADA, prompt, turn_id="t")
                assert again.is_replay
                assert again[:5] == reply[:5]
                assert await manager.history(ADA) == messages

    run(scenario(), patience_s=100)


def test_a_turn_killed_at_every_moment_and_never_sent_again_is_closed_and_the_next_one_goes_on(
    tmp_path,
):
    async def scenario():
        disk, found, _ = await moments_of(tmp_path, TOOLS, "t", stride=41)
        for number, (image, *_) in enumerate(found):
            there = tmp_path / f"again-{number}"
            disk.restore(image, there / "store")
            model = Clerk()
            async with managing(there, model, World()) as manager:
                await manager.turn(ADA, "next", turn_id="u")
                messages = await manager.history(ADA)
                assert prompts(messages) in (["first", "next"], ["first", TOOLS, "next"])
                assert_legal(messages)
                assert_legal(model.requests[0].messages[:-1])

    run(scenario(), patience_s=100)


def test_a_finished_turn_sent_again_gives_the_saved_reply_without_a_model_call(tmp_path):
    async def scenario():
        model, world = Clerk(), World()
        async with managing(tmp_path, model, world) as manager:
            first = await manager.turn(ADA, TOOLS, turn_id="t")
            await manager.turn(ADA, "another")
            asked = len(model.requests)
            again = await manager.turn(ADA, TOOLS, turn_id="t")
            assert (again.is_replay, again[:5]) == (True, first[:5])
        async with managing(tmp_path, model, world) as manager:
            restarted = await manager.turn(ADA, TOOLS, turn_id="t")
            assert (restarted.is_replay, restarted[:5]) == (True, first[:5])
        assert len(model.requests) == asked
        assert len(world.runs) == 3
        assert first.usage == (4, 2)

    run(scenario())


def test_a_turn_id_with_another_prompt_is_refused_and_changes_nothing(tmp_path):
    async def scenario():
        def watch(event):
            if event.kind == "tool_result":
                raise LookupError

        world = World()
        async with managing(tmp_path, world=world) as manager:
            done = await manager.turn(ADA, "hello", turn_id="done")
            with pytest.raises(LookupError):
                await manager.turn(ADA, "note:1", turn_id="open", on_event=watch)
        # A manager that remembers nothing is no different.
        for _ in range(2):
            async with managing(tmp_path, world=world) as manager:
                for turn_id in ("done", "open"):
                    for _ in range(2):
                        with pytest.raises(InvalidPrompt, match=f"{turn_id}'.*another prompt"):
                            await manager.turn(ADA, "another", turn_id=turn_id)
                assert_idle(manager)
                assert prompts(await manager.history(ADA)) == ["hello"]
        async with managing(tmp_path, world=world) as manager:
            again = await manager.turn(ADA, "hello", turn_id="done")
            assert (again.is_replay, again[:5]) == (True, done[:5])
            reply = await manager.turn(ADA, "note:1", turn_id="open")
            assert not reply.is_replay
            assert len(world.runs) == 1, "it goes on after the tool that had ended"
            assert prompts(await manager.history(ADA)) == ["hello", "note:1"]

    run(scenario())


def test_effects_of_sessions_that_count_alike_are_all_made(tmp_path):
    """Clients number the turns of each session, and models the calls of each conversation."""

    async def scenario():
        async def model(request, _on_text=None):
            if request.messages[-1]["content"][0]["type"] == "tool_result":
                return Reply(({"type": "text", "text": "done"},), "end_turn")
            text = prompts(request.messages)[-1]
            call = {"type": "tool_use", "id": "call_0", "name": "note", "input": {"text": text}}
            return Reply((call,), "tool_use")

        world = World()
        keys = [SessionKey(*ids) for ids in itertools.product(("a", "b"), ("s", "s:c"), ("c", "d"))]
        async with managing(tmp_path, model, world) as manager:
            for key in keys:
                shelf(tmp_path / "agents", world.box, key.agent_id)
                await manager.turn(key, f"{key}", turn_id="1")
        assert len(world.notes) == len(keys)

    run(scenario())


def test_a_turn_id_means_another_turn_in_another_session(tmp_path):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "hers", turn_id="t")
            reply = await manager.turn(BOB, "his", turn_id="t")
            assert (reply.text, reply.is_replay) == ("re: his", False)

    run(scenario())


def test_after_each_step_the_turn_goes_on_with_what_is_left_to_do(tmp_path):
    """The journal is cut after each of its lines: nothing before the cut is done again."""

    async def scenario():
        disk, images = FaultyDisk(tmp_path / "store"), []

        def hook(call, path, change):
            if call == "write" and path.endswith("turns.jsonl") and b'{"' in change[2]:
                images.append(disk.after_kill(path, change, len(change[2])))

        world = World()
        async with managing(tmp_path, world=world, store={"disk": disk}) as manager:
            disk.hook = hook
            await manager.turn(ADA, "rounds:2 note:2", turn_id="t")
            disk.hook = None
        left = []
        for number, image in enumerate(images):
            there, model, again = tmp_path / f"{number}", Clerk(), World()
            disk.restore(image, there / "store")
            async with managing(there, model, again) as manager:
                assert (await manager.turn(ADA, "rounds:2 note:2", turn_id="t")).text
                left.append((len(model.requests), len(again.runs)))
        # A new file, a reply, two results, a reply, two results, the last reply, the done line.
        assert left == [(3, 4), (2, 4), (2, 3), (2, 2), (1, 2), (1, 1), (1, 0), (0, 0), (0, 0)]

    run(scenario())


def test_a_turn_that_fails_keeps_its_steps_and_goes_on_in_this_process_and_in_the_next(tmp_path):
    async def scenario():
        world, down = World(), []

        async def model(request, on_text=None):
            if down and request.messages[-1]["content"][0]["type"] == "tool_result":
                raise ModelUnavailable("overloaded")
            return await Clerk()(request, on_text)

        for restart in (False, True):
            path = tmp_path / str(restart)
            world.runs.clear()
            async with managing(path, model, world) as manager:
                down.append(True)
                with pytest.raises(ModelUnavailable):
                    await manager.turn(ADA, "note:2", turn_id="t")
                assert prompts(await manager.history(ADA)) == []
                assert_idle(manager)
                if not restart:
                    down.clear()
                    await manager.turn(ADA, "note:2", turn_id="t")
            async with managing(path, model, world) as manager:
                down.clear()
                assert (await manager.turn(ADA, "note:2", turn_id="t")).text == "re: note:2"
                assert len(world.runs) == 2
                assert prompts(await manager.history(ADA)) == ["note:2"]

    run(scenario())


def test_a_turn_left_for_good_is_sealed_and_its_id_says_so(tmp_path):
    async def scenario():
        world, model = World(), Clerk()
        gate = world.gates["note:2 0.1"] = asyncio.Event()
        async with managing(tmp_path, model, world) as manager:
            events = []
            turn = manager.turn(ADA, "note:2", turn_id="left", on_event=events.append)
            left = asyncio.create_task(turn)
            await until(lambda: any(event.kind == "tool_result" for event in events))
            left.cancel()
            await asyncio.wait([left])
            await manager.turn(ADA, "next", turn_id="next")
        gate.set()
        async with managing(tmp_path, model, world) as manager:
            with pytest.raises(Superseded, match=r"'left' was interrupted.*new turnId"):
                await manager.turn(ADA, "note:2", turn_id="left")
            messages = await manager.history(ADA)
            assert prompts(messages) == ["note:2", "next"]
            assert_legal(messages)
            done, broken = messages[2]["content"]
            assert (done["is_error"], broken["is_error"]) == (False, True)
            assert "may have taken effect" in broken["content"]

    run(scenario())


def test_a_turn_shows_in_the_history_whole_or_not_at_all_while_it_runs(tmp_path):
    async def scenario():
        seen = []
        async with managing(tmp_path, world=World()) as manager:
            await manager.turn(ADA, "first")

            def watch(_event):
                seen.append(asyncio.ensure_future(manager.history(ADA)))

            await manager.turn(ADA, "rounds:3 note:2", on_event=watch)
            looks = await asyncio.gather(*seen)
            assert len(looks) > 12
            assert {len(look) for look in looks} <= {2, 2 + 8}
            assert len(await manager.history(ADA)) == 2 + 8

    run(scenario())


# ---- deletions


async def assert_there_or_gone(manager, said):
    """The conversation is whole and knows its turns, or it is gone and knows none; say which."""
    found = prompts(await manager.history(ADA))
    assert found in ([], said)
    again = await manager.turn(ADA, said[0], turn_id="t0")
    assert again.is_replay == bool(found)
    assert prompts(await manager.history(ADA)) == (found or said[:1])
    assert_legal(await manager.history(ADA))
    return bool(found)


@pytest.mark.parametrize(("durability", "stride"), [("process", 1), ("power", 50)])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_a_conversation_whose_deletion_is_killed_at_any_moment_is_whole_or_gone_with_its_ids(
    tmp_path, durability, stride, is_open
):
    async def scenario():
        disk, images, said = FaultyDisk(tmp_path / "store"), [], ["one", "note:1 two"]

        def hook(call, path, change):
            images.append(disk.after_kill())
            torn = range(1, len(change[2]) if call == "write" else 0, stride)
            images.extend(disk.after_kill(path, change, count) for count in torn)

        def watch(event):
            if event.kind == "tool_result":
                raise LookupError

        store = {"disk": disk, "durability": durability, "journal_bytes": 8192}
        async with managing(tmp_path, world=World(), store=store) as manager:
            for number, prompt in enumerate(said):
                await manager.turn(ADA, prompt, turn_id=f"t{number}")
            if is_open:
                with pytest.raises(LookupError):
                    await manager.turn(ADA, "note:1", turn_id="open", on_event=watch)
            disk.hook = hook
            await manager.delete(ADA)
        disk.hook = None
        images.append(disk.after_kill())
        there = []
        for number, image in enumerate(images):
            path = tmp_path / f"{number}"
            disk.restore(image, path / "store")
            store = {"disk": FaultyDisk(path / "store"), "durability": durability}
            store["journal_bytes"] = 8192
            async with managing(path, world=World(), store=store) as manager:
                there.append(await assert_there_or_gone(manager, said))
        assert there == sorted(there, reverse=True), "gone once, it does not come back"
        assert there[0]
        assert not there[-1]

    run(scenario())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_deletion_that_the_disk_refuses_leaves_the_conversation_whole_or_gone_with_its_ids(
    tmp_path, code
):
    async def scenario():
        said, calls = ["one", "two"], ("write", "truncate", "remove")
        for number in itertools.count():
            path = tmp_path / f"{number}"
            disk = FaultyDisk(path / "store")
            async with managing(path, store={"disk": disk}) as manager:
                for at, prompt in enumerate(said):
                    await manager.turn(ADA, prompt, turn_id=f"t{at}")
                disk.torn_bytes = 5 * number
                counter = disk.fail_at(number, code, calls)
                with contextlib.suppress(StoreUnwritable):
                    await manager.delete(ADA)
                disk.hook = None
                await assert_there_or_gone(manager, said)
            if next(counter) <= number:
                break
        assert number >= 3

    run(scenario())


@pytest.mark.parametrize("durability", ["process", "power"])
def test_deleting_a_session_that_never_was_makes_nothing_and_one_that_begins_is_waited_for(
    tmp_path, durability
):
    async def scenario():
        model = Clerk()
        gate = model.gates["first"] = asyncio.Event()
        async with managing(tmp_path, model, store={"durability": durability}) as manager:
            await manager.delete(ADA)
            assert not (tmp_path / "store" / "ada").exists()
            turn = asyncio.create_task(manager.turn(ADA, "first"))
            await asyncio.sleep(0)
            deleting = asyncio.create_task(manager.delete(ADA))
            await until(lambda: manager.statistics().lock.waiting == 1)
            gate.set()
            await asyncio.gather(turn, deleting)
            assert await manager.history(ADA) == []

    run(scenario())


def test_a_deletion_that_waits_for_another_process_is_cancelled_by_a_manager_that_closes(
    tmp_path,
):
    async def scenario():
        elsewhere = JsonStore(tmp_path / "store")
        lease = await elsewhere.hold(ADA, queue_limit=0)
        async with managing(tmp_path, drain_s=0.05) as manager:
            deleting = asyncio.create_task(manager.delete(ADA))
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await deleting
        elsewhere.release(lease)
        await elsewhere.aclose()

    run(scenario())


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_manager_that_closes_lets_deletions_end_and_its_store_takes_no_more(tmp_path, durability):
    async def scenario():
        model, store = Clerk(), JsonStore(tmp_path / "store", durability=durability)
        gate = model.gates["busy"] = asyncio.Event()
        async with managing(tmp_path, model, store=store) as manager:
            busy = asyncio.create_task(manager.turn(ADA, "busy"))
            await model.asked.wait()
            deleting = [asyncio.create_task(manager.delete(ADA)) for _ in range(2)]
            await until(lambda: manager.statistics().lock.waiting == 2)
            closing = asyncio.create_task(manager.aclose())
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(busy, closing, *deleting)
            with pytest.raises(StoreUnwritable, match="ada:s1: the store is closed"):
                await store.hold(ADA, queue_limit=9)
        async with managing(tmp_path) as manager:
            assert await manager.history(ADA) == []

    run(scenario())
