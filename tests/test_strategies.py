"""Two turns for one session: the second waits, is refused, or takes the place of the first."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest
from house import (
    ADA,
    BOB,
    PATIENCE_S,
    Clerk,
    World,
    assert_idle,
    assert_legal,
    managing,
    prompts,
    run,
    until,
)

from kode_lab.errors import (
    DeadlineExceeded,
    InvalidPrompt,
    ModelUnavailable,
    SessionBusy,
    StaleLease,
    Superseded,
    WaitingRoomFull,
)
from kode_lab.message import text_of
from kode_lab.sessions import JsonStore


class Scene:
    """A manager with one turn under way, ``busy``, whose model does not answer before ``go``."""

    def __init__(self, path, prompt="busy", *, world=None, **options):
        self.path = path
        self.prompt = prompt
        self.model = Clerk()
        self.world = world or World()
        self.go = self.model.gates[prompt] = asyncio.Event()
        self.options = options

    async def __aenter__(self):
        self.managing = managing(self.path, self.model, self.world, **self.options)
        self.manager = await self.managing.__aenter__()
        self.busy = asyncio.create_task(self.manager.turn(ADA, self.prompt, turn_id="busy"))
        await self.model.asked.wait()
        return self

    async def __aexit__(self, *error):
        self.go.set()
        await asyncio.gather(self.busy, return_exceptions=True)
        assert_idle(self.manager)
        await self.managing.__aexit__(*error)

    def begin(self, prompt, key=ADA, **options):
        return asyncio.create_task(self.manager.turn(key, prompt, **options))

    async def said(self):
        messages = await self.manager.history(ADA)
        assert_legal(messages)
        return prompts(messages)


# ---- enqueue


def test_enqueue_waits_its_turn_and_the_waiting_room_has_a_limit_that_the_error_names(tmp_path):
    async def scenario():
        async with Scene(tmp_path, agent={"queue_limit": 2}) as scene:
            waiting = [scene.begin(f"w{n}") for n in range(2)]
            await until(lambda: scene.manager.statistics().lock.waiting == 2)
            with pytest.raises(WaitingRoomFull, match=r"ada:s1: 2 turns wait.*queue_limit=2.*late"):
                await scene.manager.turn(ADA, "one too many")
            assert (await scene.manager.turn(BOB, "other session")).text == "re: other session"
            scene.go.set()
            await asyncio.gather(*waiting)
            assert await scene.said() == ["busy", "w0", "w1"]

    run(scenario())


# ---- reject


def test_reject_gives_up_at_once_where_a_turn_is_running(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            with pytest.raises(SessionBusy, match="ada:s1: a turn is running"):
                await scene.manager.turn(ADA, "hello", strategy="reject")
            assert (await scene.manager.turn(BOB, "hello", strategy="reject")).text == "re: hello"
            scene.go.set()
            await scene.busy
            assert (await scene.manager.turn(ADA, "hello", strategy="reject")).text == "re: hello"
            assert await scene.said() == ["busy", "hello"]

    run(scenario())


def test_reject_gives_up_where_another_process_holds_the_session(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene, managing(tmp_path) as elsewhere:
            with pytest.raises(SessionBusy, match="ada:s1"):
                await elsewhere.turn(ADA, "hello", strategy="reject")
            assert_idle(elsewhere)
            scene.go.set()
            await scene.busy
            assert (await elsewhere.turn(ADA, "hello", strategy="reject")).text == "re: hello"

    run(scenario())


def test_the_agent_s_configuration_chooses_the_strategy_and_a_call_may_choose_another(tmp_path):
    async def scenario():
        async with Scene(tmp_path, agent={"strategy": "reject"}) as scene:
            with pytest.raises(SessionBusy):
                await scene.manager.turn(ADA, "hello")
            waiting = scene.begin("waits", strategy="enqueue")
            with pytest.raises(InvalidPrompt, match=r"'push' is not valid: choose one of"):
                await scene.manager.turn(ADA, "hello", strategy="push")
            scene.go.set()
            assert (await waiting).text == "re: waits"

    run(scenario())


# ---- interrupt


def test_interrupt_closes_the_running_turn_and_the_conversation_shows_that_it_was_broken_off(
    tmp_path,
):
    async def scenario():
        async with Scene(tmp_path) as scene:
            new = await scene.manager.turn(ADA, "new", strategy="interrupt")
            assert new.text == "re: new"
            with pytest.raises(Superseded, match=r"ada:s1.*interrupt"):
                await scene.busy
            assert await scene.said() == ["busy", "new"]
            shown = scene.model.requests[-1].messages
            assert "interrupted" in text_of(shown[1])
            with pytest.raises(Superseded, match=r"'busy' was interrupted.*new turnId"):
                await scene.manager.turn(ADA, "busy", turn_id="busy")

    run(scenario())


def test_interrupt_in_the_middle_of_tools_leaves_each_call_with_a_result(tmp_path):
    async def scenario():
        world = World()
        model = Clerk()
        world.gates["note:2 0.1"] = asyncio.Event()
        async with managing(tmp_path, model, world) as manager:
            events = []
            busy = asyncio.create_task(manager.turn(ADA, "note:2", on_event=events.append))
            await until(lambda: any(event.kind == "tool_result" for event in events))
            await manager.turn(ADA, "new", strategy="interrupt")
            with pytest.raises(Superseded):
                await busy
            messages = await manager.history(ADA)
            assert_legal(messages)
            done, open_ = messages[2]["content"]
            assert (done["content"], done["is_error"]) == ("noted note:2 0.0", False)
            assert open_["is_error"]
            assert prompts(messages) == ["note:2", "new"]
        async with managing(tmp_path, model) as manager:
            assert await manager.history(ADA) == messages

    run(scenario())


def test_interrupt_ends_those_who_wait_as_well_and_they_leave_nothing(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            waiting = [scene.begin(f"w{n}") for n in range(3)]
            await until(lambda: scene.manager.statistics().lock.waiting == 3)
            await scene.manager.turn(ADA, "new", strategy="interrupt")
            for task in waiting:
                with pytest.raises(Superseded):
                    await task
            assert await scene.said() == ["busy", "new"]

    run(scenario())


def test_interrupt_has_room_in_a_full_waiting_room_because_it_empties_it(tmp_path):
    async def scenario():
        for limit in (0, 1):
            async with Scene(tmp_path / f"{limit}", agent={"queue_limit": limit}) as scene:
                waiting = [scene.begin("waits") for _ in range(limit)]
                await asyncio.sleep(0)
                reply = await scene.manager.turn(ADA, "new", strategy="interrupt")
                assert reply.text == "re: new"
                ended = await asyncio.gather(scene.busy, *waiting, return_exceptions=True)
                assert all(isinstance(error, Superseded) for error in ended)

    run(scenario())


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_who_takes_a_place_comes_before_all_that_come_later(tmp_path, strategy):
    async def scenario():
        for limit in (2, 100):
            async with Scene(tmp_path / f"{limit}", agent={"queue_limit": limit}) as scene:
                waiting = [scene.begin(f"w{n}") for n in range(2)]
                await until(lambda: scene.manager.statistics().lock.waiting == 2)
                tasks = [scene.begin("next", strategy=strategy), scene.begin("later")]
                assert [(await task).text for task in tasks] == ["re: next", "re: later"]
                assert (await scene.said())[-2:] == ["next", "later"]
                ended = await asyncio.gather(*waiting, return_exceptions=True)
                assert all(isinstance(error, Superseded) for error in ended)

    run(scenario())


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_a_turn_whose_model_makes_an_error_of_the_interruption_gives_way_all_the_same(
    tmp_path, strategy
):
    async def scenario():
        world = World()
        gate, after_tool, inner = asyncio.Event(), asyncio.Event(), Clerk()

        async def model(request, on_text=None):
            try:
                if len(request.messages) == 3 and not gate.is_set():
                    after_tool.set()
                    await gate.wait()
            except asyncio.CancelledError:
                raise ModelUnavailable("the connection was closed") from None
            return await inner(request, on_text)

        async def caller():
            with pytest.raises(Superseded, match=strategy):
                await manager.turn(ADA, "note:1", turn_id="busy")
            return asyncio.current_task().cancelling()

        async with managing(tmp_path, model, world) as manager:
            busy = asyncio.create_task(caller())
            await after_tool.wait()
            assert (await manager.turn(ADA, "new", strategy=strategy)).text == "re: new"
            assert await busy == 0, "no cancel is left behind"
            kept = ["note:1"] if strategy == "interrupt" else []
            assert prompts(await manager.history(ADA)) == [*kept, "new"]
            gate.set()
            if strategy == "rollback":
                again = await manager.turn(ADA, "note:1", turn_id="busy")
                assert not again.is_replay
                assert len(world.runs) == 2

    run(scenario())


def test_a_task_whose_turn_was_superseded_leaves_no_cancel_behind_however_the_turn_ended(tmp_path):
    async def scenario():
        async def model(request, _on_text=None):
            if prompts(request.messages) == ["busy"]:
                asking.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                raise ValueError("of the model's own")
            return await Clerk()(request)

        async def caller():
            with pytest.raises(ValueError, match="own"):
                await manager.turn(ADA, "busy")
            return asyncio.current_task().cancelling()

        asking = asyncio.Event()
        async with managing(tmp_path, model) as manager:
            busy = asyncio.create_task(caller())
            await asking.wait()
            await manager.turn(ADA, "new", strategy="interrupt")
            assert await busy == 0

    run(scenario())


def test_a_turn_taken_while_a_cancelled_task_tidies_up_is_told_that_it_was_superseded(tmp_path):
    async def scenario():
        async def caller():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                with pytest.raises(Superseded, match="interrupt"):
                    await manager.turn(ADA, "tidy up")
                return asyncio.current_task().cancelling()

        model = Clerk()
        model.gates["tidy up"] = asyncio.Event()
        async with managing(tmp_path, model) as manager:
            task = asyncio.create_task(caller())
            await asyncio.sleep(0)
            task.cancel()
            await model.asked.wait()
            await manager.turn(ADA, "new", strategy="interrupt")
            assert await task == 1, "its own cancel is still there"

    run(scenario())


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_a_turn_sent_again_does_not_take_the_place_of_its_own_first_sending(tmp_path, strategy):
    """A client whose connection broke sends its turn again: it is one turn, and runs once."""

    async def scenario():
        world = World()
        async with Scene(tmp_path, "note:1", world=world) as scene:
            again = scene.begin("note:1", turn_id="busy", strategy=strategy)
            await until(lambda: scene.manager.statistics().lock.waiting == 1)
            scene.go.set()
            first, second = await asyncio.gather(scene.busy, again)
            assert (first.is_replay, second.is_replay) == (False, True)
            assert first[:5] == second[:5]
            assert len(world.notes) == len(world.runs) == 1

    run(scenario())


def test_the_last_of_many_interrupts_has_the_session_and_each_other_is_told(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            tasks = []
            for number in range(10):
                tasks.append(scene.begin(f"i{number}", strategy="interrupt"))
                await asyncio.sleep(0)
            results = await asyncio.gather(*tasks, scene.busy, return_exceptions=True)
            assert results[9].text == "re: i9"
            assert all(isinstance(r, Superseded) for r in [*results[:9], results[10]])
            said = await scene.said()
            assert said[0] == "busy"
            assert said[-1] == "i9"

    run(scenario())


def test_a_turn_that_is_already_being_saved_cannot_be_taken_back(tmp_path):
    async def scenario():
        model = Clerk()
        async with managing(tmp_path, model, store={"durability": "power"}) as manager:
            first = asyncio.create_task(manager.turn(ADA, "first"))
            ticket = None
            while ticket is None or not (ticket.is_committing):
                await asyncio.sleep(0)
                ticket = next(iter(manager._in_line.get(ADA[:2], ())), None)
            second = await manager.turn(ADA, "second", strategy="rollback")
            assert (await first).text == "re: first"
            assert second.text == "re: second"
            assert prompts(await manager.history(ADA)) == ["first", "second"]

    run(scenario())


# ---- rollback


def test_rollback_forgets_what_the_running_turn_did(tmp_path):
    async def scenario():
        world = World()
        world.gates["note:2 0.1"] = asyncio.Event()
        model = Clerk()
        async with managing(tmp_path, model, world) as manager:
            await manager.turn(ADA, "before")
            busy = asyncio.create_task(manager.turn(ADA, "note:2", turn_id="busy"))
            await until(lambda: len(world.notes) == 1)
            new = await manager.turn(ADA, "new", strategy="rollback")
            assert new.text == "re: new"
            with pytest.raises(Superseded, match="rollback"):
                await busy
            messages = await manager.history(ADA)
            assert prompts(messages) == ["before", "new"]
            assert prompts(model.requests[-1].messages) == ["before", "new"]
            world.gates.clear()
            again = await manager.turn(ADA, "note:2", turn_id="busy")
            assert not again.is_replay, "it is as if it had never been sent"
        async with managing(tmp_path) as manager:
            assert prompts(await manager.history(ADA)) == ["before", "new", "note:2"]

    run(scenario())


def test_a_withdrawn_turn_is_rolled_back_and_the_session_goes_on(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            scene.manager.withdraw(ADA, scene.busy)
            with pytest.raises(Superseded, match="rollback"):
                await scene.busy
            await scene.manager.turn(ADA, "new")
            assert await scene.said() == ["new"]

    run(scenario())


# ---- deadlines


def test_a_turn_past_its_deadline_fails_by_name_and_the_same_turn_id_goes_on(tmp_path):
    async def scenario():
        world = World()
        model = Clerk()
        gate = world.gates["rounds:2 note:1 1.0"] = asyncio.Event()
        async with managing(tmp_path, model, world) as manager:
            with pytest.raises(DeadlineExceeded, match=r"ada:s1.*deadline_s=1; the same turnId"):
                await manager.turn(ADA, "rounds:2 note:1", turn_id="t", deadline_s=1)
            assert_idle(manager)
            asked = len(model.requests)
            gate.set()
            reply = await manager.turn(ADA, "rounds:2 note:1", turn_id="t")
            assert len(reply.tool_calls) == 2
            assert len(model.requests) - asked == 1, "both replies were saved"
            assert sorted(world.notes.values()) == ["rounds:2 note:1 0.0", "rounds:2 note:1 1.0"]

    run(scenario())


def test_the_deadline_counts_the_waiting_too_and_who_gives_up_leaves_the_queue(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            with pytest.raises(DeadlineExceeded, match=r"deadline_s=0\.05"):
                await scene.manager.turn(ADA, "impatient", deadline_s=0.05)
            assert scene.manager.statistics().lock.waiting == 0
            scene.go.set()
            await scene.busy
            assert await scene.said() == ["busy"]

    run(scenario())


def test_the_agent_s_deadline_holds_where_the_call_has_none(tmp_path):
    async def scenario():
        async with managing(tmp_path, agent={"deadline_s": 0.05}) as manager:
            manager._model.gates["never"] = asyncio.Event()
            with pytest.raises(DeadlineExceeded, match=r"deadline_s=0\.05"):
                await manager.turn(ADA, "never")
            with pytest.raises(DeadlineExceeded, match="deadline_s=0;"):
                await manager.turn(ADA, "no time at all", deadline_s=0)
            assert_idle(manager)

    run(scenario())


@pytest.mark.parametrize("deadline_s", [float("nan"), float("inf"), 1e300, 10**20, "5", True])
def test_a_deadline_that_is_no_time_is_refused_by_name(tmp_path, deadline_s):
    async def scenario():
        async with managing(tmp_path) as manager:
            with pytest.raises(InvalidPrompt, match="deadline_s is "):
                await manager.turn(ADA, "hello", deadline_s=deadline_s)
            assert_idle(manager)
            assert await manager.history(ADA) == []

    run(scenario())


def test_a_task_whose_turn_ran_out_of_time_leaves_no_cancel_behind(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            with pytest.raises(DeadlineExceeded):
                await scene.manager.turn(ADA, "impatient", deadline_s=0.05)
            assert asyncio.current_task().cancelling() == 0

    run(scenario())


def test_a_cancel_that_comes_together_with_the_deadline_is_a_cancel(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            late = asyncio.create_task(scene.manager.turn(ADA, "late", deadline_s=PATIENCE_S))
            await until(lambda: scene.manager.statistics().lock.waiting == 1)
            [*_, ticket] = next(iter(scene.manager._in_line.values()))
            ticket._expire()
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late

    run(scenario())


def test_a_caller_s_own_time_out_stays_the_caller_s(tmp_path):
    async def scenario():
        async with Scene(tmp_path) as scene:
            with pytest.raises(TimeoutError) as raised:
                async with asyncio.timeout(0.05):
                    await scene.manager.turn(ADA, "mine")
            assert not isinstance(raised.value, DeadlineExceeded)

    run(scenario())


# ---- several stores on one directory


@asynccontextmanager
async def other_locks(path):
    """Put the lock files aside and back: what happens meanwhile sees no lock of those before."""
    locks = path / "store" / "+locks"
    aside = [lock.replace(path / lock.name) for lock in locks.iterdir()]
    yield
    for lock in aside:
        lock.replace(locks / lock.name)


def test_an_overtaken_holder_is_refused_and_the_overtaker_s_turn_stands(tmp_path):
    """The overtaker saw no lock, so only the fence is left."""

    async def scenario():
        async with Scene(tmp_path) as scene:
            async with other_locks(tmp_path), managing(tmp_path) as elsewhere:
                assert (await elsewhere.turn(ADA, "overtaker")).text == "re: overtaker"
            scene.go.set()
            with pytest.raises(
                StaleLease, match=r"ada:s1: fence 1 was overtaken by 257.*same turnId"
            ):
                await scene.busy
            reply = await scene.manager.turn(ADA, "busy", turn_id="busy")
            assert reply.text == "re: busy"
            assert await scene.said() == ["overtaker", "busy"]
            assert prompts(scene.model.requests[-1].messages) == ["overtaker", "busy"]

    run(scenario())


def test_an_overtaken_holder_is_refused_at_its_journal_too(tmp_path):
    async def scenario():
        async with Scene(tmp_path, "note:1") as scene:
            async with other_locks(tmp_path), managing(tmp_path) as elsewhere:
                await elsewhere.turn(ADA, "overtaker")
            scene.go.set()
            with pytest.raises(StaleLease, match="overtaken"):
                await scene.busy
            assert scene.world.runs == [], "refused before the tool could do anything"

    run(scenario())


def test_a_released_lease_opens_nothing(tmp_path):
    async def scenario():
        store = JsonStore(tmp_path)
        lease = await store.hold(ADA, queue_limit=0)
        store.release(lease)
        store.release(lease)
        with pytest.raises(StaleLease, match="ada:s1: the lease was released"):
            await store.load(lease)
        newer = await store.hold(ADA, queue_limit=0)
        assert newer.fence == lease.fence + 1
        store.release(lease)
        with pytest.raises(WaitingRoomFull):
            await store.hold(ADA, queue_limit=0)
        await store.aclose()

    run(scenario())
