"""Turns of one session come one by one, in order; different sessions side by side and apart."""

import asyncio
import copy
import gc
import json
import tracemalloc
from itertools import pairwise

import pytest
from house import (
    ADA,
    BOB,
    Clerk,
    World,
    assert_idle,
    assert_legal,
    managing,
    prompts,
    run,
    shelf,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kode_lab.errors import Draining, UnknownAgent
from kode_lab.key import SessionKey
from kode_lab.message import Reply, assistant, user
from kode_lab.sessions import JsonStore, SessionManager, Toolbox

HELLO = Reply(({"type": "text", "text": "hello"},), "end_turn")


class Barrier:
    """A model that answers no request before that many came at the same time."""

    def __init__(self, count):
        self.count = count
        self.asking = 0
        self.all_here = asyncio.Event()

    async def __call__(self, _request, _on_text=None):
        self.asking += 1
        if self.asking == self.count:
            self.all_here.set()
        await self.all_here.wait()
        return HELLO


class Watched(Clerk):
    """A model that knows how many of its calls run at once for each user."""

    def __init__(self):
        super().__init__()
        self.running = {}
        self.most = {}

    async def __call__(self, request, on_text=None):
        who = self._prompt(request.messages)[0].split()[0]
        self.running[who] = self.running.get(who, 0) + 1
        self.most[who] = max(self.most.get(who, 0), self.running[who])
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            return await super().__call__(request, on_text)
        finally:
            self.running[who] -= 1


def test_a_thousand_sessions_all_reach_the_model_before_any_of_them_goes_on(tmp_path):
    count = 1_000

    async def scenario():
        barrier = Barrier(count)
        async with managing(tmp_path, barrier) as manager:
            keys = [SessionKey.of(f"u{n % 100}", "clerk", f"s{n}") for n in range(count)]
            async with asyncio.TaskGroup() as group:
                for key in keys:
                    group.create_task(manager.turn(key, "hello"))
            assert barrier.asking == count
            assert_idle(manager)

    run(scenario())


def test_the_turns_of_one_session_never_overlap_and_those_of_two_do(tmp_path):
    async def scenario():
        model = Watched()
        async with managing(tmp_path, model) as manager:
            await asyncio.gather(
                *(manager.turn(ADA, f"ada {n}") for n in range(30)),
                *(manager.turn(BOB, f"bob {n}") for n in range(30)),
            )
        assert model.most == {"ada": 1, "bob": 1}
        shown = [Clerk._prompt(request.messages)[0] for request in model.requests]
        alternations = sum(a[:3] != b[:3] for a, b in pairwise(shown))
        assert alternations > 30, "neither waits for the other"

    run(scenario())


@settings(max_examples=10, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25
    )
)
def test_turns_are_taken_in_the_order_of_arrival_even_when_some_give_up(tmp_path_factory, arrivals):
    """An arrival: of which session, how many steps of the loop later, and does it give up?"""

    async def scenario():
        async with managing(tmp_path_factory.mktemp("order")) as manager:
            tasks, expected = [], {name: [] for name in "abc"}
            for number, (name, pause, gives_up) in enumerate(arrivals):
                key = SessionKey.of(name, "clerk")
                task = asyncio.create_task(manager.turn(key, f"{number}", turn_id=f"t{number}"))
                for _ in range(pause):
                    await asyncio.sleep(0)
                tasks.append((key, task, gives_up, f"{number}"))
            for _, task, gives_up, _ in tasks:
                if gives_up:
                    task.cancel()
            await asyncio.wait([task for _, task, *_ in tasks])
            for key, task, _, prompt in tasks:
                if not task.cancelled():
                    assert task.result().text == f"re: {prompt}"
                    expected[key.user_id].append(prompt)
            assert_idle(manager)
            for name, acknowledged in expected.items():
                found = prompts(await manager.history(SessionKey.of(name, "clerk")))
                assert [prompt for prompt in found if prompt in acknowledged] == acknowledged
                assert found == sorted(found, key=int)

    if arrivals:
        run(scenario())


def test_a_turn_is_shown_the_whole_conversation_of_its_session_and_nothing_of_any_other(tmp_path):
    # The same session id for two users, and colons that could make two names one.
    keys = [ADA, BOB, SessionKey.of("ada:x", "clerk", "y"), SessionKey.of("ada", "clerk", "x:y")]
    keys += [
        SessionKey.of("ada", "clerk"),
        SessionKey.of("Ada", "clerk"),
        ADA._replace(agent_id="b"),
    ]

    async def scenario():
        model = Clerk()
        store = JsonStore(tmp_path / "store")
        shelf(tmp_path / "agents", agent_id="b")
        async with managing(tmp_path, model, store=store) as manager:
            for turn in range(3):
                await asyncio.gather(
                    *(manager.turn(key, f"secret-{n} {turn}") for n, key in enumerate(keys))
                )
            for request in model.requests:
                said = prompts(request.messages)
                mine = said[-1].split()[0]
                assert said == [f"{mine} {turn}" for turn in range(len(said))]
            for number, key in enumerate(keys):
                said = prompts(await manager.history(key))
                assert said == [f"secret-{number} {turn}" for turn in range(3)]
            assert set(store.sessions()) == set(keys)
            assert set(store.sessions("ada")) == {key for key in keys if key.user_id == "ada"}

    run(scenario())


def test_a_tool_is_told_which_session_it_runs_for_even_when_many_run_at_once(tmp_path):
    async def scenario():
        world = World()
        async with managing(tmp_path, world=world) as manager:
            keys = [SessionKey.of(f"u{n}", "clerk", "s") for n in range(20)]
            await asyncio.gather(
                *(manager.turn(key, f"{key.user_id} note:2 thread:2") for key in keys)
            )
            assert len(world.runs) == 80
            for text, context in world.runs:
                assert text.split()[0] == context.key.user_id
                names = [*context.key, context.turn_id, context.call_id]
                assert json.loads(context.idempotency_key) == names
            assert len(world.notes) == 80

    run(scenario())


def test_what_a_caller_does_with_what_was_given_to_it_changes_no_memory(tmp_path):
    async def scenario():
        model, world = Clerk(), World()
        async with managing(tmp_path, model, world) as manager:
            reply = await manager.turn(ADA, "one note:1", turn_id="t")
            reply.tool_calls[0].input["text"] = "forged"
            history = await manager.history(ADA)
            before = copy.deepcopy(history)
            history[0]["content"][0]["text"] = "forged"
            history.clear()
            again = await manager.turn(ADA, "one note:1", turn_id="t")
            assert again.tool_calls[0].input["text"] == "one note:1 0.0"
            await manager.turn(ADA, "two")
            assert "forged" not in str(model.requests[-1].messages)
            assert list(model.requests[-1].messages[:-1]) == before != []

    run(scenario())


def test_two_agents_of_one_user_and_session_share_the_lock_and_not_the_memory(tmp_path):
    async def scenario():
        model = Watched()
        shelf(tmp_path / "agents", agent_id="other")
        async with managing(tmp_path, model) as manager:
            other = ADA._replace(agent_id="other")
            await asyncio.gather(
                *(manager.turn(key, f"ada {n}") for n in range(10) for key in (ADA, other))
            )
            assert model.most == {"ada": 1}, "the lock is userId:sessionId"
            for key in (ADA, other):
                assert prompts(await manager.history(key)) == [f"ada {n}" for n in range(10)]

    run(scenario())


def test_the_report_s_layout_keeps_the_report_s_paths(tmp_path):
    async def scenario():
        async with managing(tmp_path, store={"layout": "report"}) as manager:
            await manager.turn(SessionKey.of("yeya", "clerk"), "hello")
            await manager.turn(SessionKey.of("test_user", "clerk", "independent"), "hello")
        names = sorted(
            str(path.relative_to(tmp_path / "store"))
            for path in (tmp_path / "store").rglob("messages.json")
        )
        assert names == [
            "clerk/clerk/runtime/messages.json",
            "independent:clerk/independent:clerk/runtime/messages.json",
        ]

    run(scenario())


def test_a_deleted_conversation_does_not_come_back(tmp_path):
    async def scenario():
        model = Clerk()
        async with managing(tmp_path, model) as manager:
            await manager.turn(ADA, "old", turn_id="t")
            await manager.delete(ADA)
            assert await manager.history(ADA) == []
            reply = await manager.turn(ADA, "new", turn_id="t")
            assert not reply.is_replay, "the old turn is forgotten with its conversation"
            assert prompts(model.requests[-1].messages) == ["new"]
        async with managing(tmp_path, model) as manager:
            assert prompts(await manager.history(ADA)) == ["new"]

    run(scenario())


def test_a_deletion_waits_for_the_turns_before_it_and_those_after_begin_anew(tmp_path):
    async def scenario():
        model = Clerk()
        gate = model.gates["first"] = asyncio.Event()
        async with managing(tmp_path, model) as manager:
            first = asyncio.create_task(manager.turn(ADA, "first"))
            await model.asked.wait()
            deletion = asyncio.create_task(manager.delete(ADA))
            await asyncio.sleep(0)
            after = asyncio.create_task(manager.turn(ADA, "after"))
            gate.set()
            assert (await first).text == "re: first"
            await deletion
            await after
            assert prompts(await manager.history(ADA)) == ["after"]

    run(scenario())


def test_a_conversation_can_be_deleted_when_its_agent_is_gone_and_nothing_is_made_by_it(tmp_path):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "old")
        async with managing(tmp_path) as manager:
            (tmp_path / "agents" / f"{ADA.agent_id}.toml").unlink()
            with pytest.raises(UnknownAgent):
                await manager.turn(ADA, "new")
            await manager.delete(ADA)
            assert await manager.history(ADA) == []
            there = sorted((tmp_path / "store").rglob("*"))
            for key in (ADA, BOB):
                with pytest.raises(UnknownAgent):
                    await manager.delete(key)
            assert sorted((tmp_path / "store").rglob("*")) == there

    run(scenario())


# ---- residents


def test_an_idle_agent_is_evicted_by_count_without_effect_on_turns(tmp_path):
    async def scenario():
        model = Clerk()
        async with managing(tmp_path, model, residents_limit=3) as manager:
            keys = [SessionKey.of(f"u{n}", "clerk") for n in range(8)]
            for turn in range(3):
                for key in keys:
                    await manager.turn(key, f"{turn}")
                    assert manager.statistics().residents <= 3
            for key in keys:
                assert prompts(await manager.history(key)) == ["0", "1", "2"]
            assert [len(r.messages) for r in model.requests[-8:]] == [5] * 8

    run(scenario())


def test_an_idle_agent_is_evicted_by_age_when_another_turn_ends(tmp_path):
    async def scenario():
        async with managing(tmp_path, resident_idle_s=0.0) as manager:
            await manager.turn(ADA, "one")
            assert manager.statistics().residents == 1
            await manager.turn(BOB, "one")
            assert manager.statistics().residents == 1
            await manager.turn(ADA, "two")
            assert prompts(await manager.history(ADA)) == ["one", "two"]

    run(scenario())


def test_an_agent_in_a_turn_is_no_candidate_for_eviction(tmp_path):
    async def scenario():
        model = Clerk()
        gate = model.gates["slow"] = asyncio.Event()
        async with managing(tmp_path, model, residents_limit=1) as manager:
            await manager.turn(ADA, "before")
            slow = asyncio.create_task(manager.turn(ADA, "slow"))
            await until(lambda: len(model.requests) == 2)
            for number in range(5):
                await manager.turn(SessionKey.of(f"u{number}", "clerk"), "hello")
            gate.set()
            await slow
            await manager.turn(ADA, "after")
            assert prompts(model.requests[-1].messages) == ["before", "slow", "after"]

    run(scenario())


def test_a_resident_is_not_used_after_somebody_else_held_the_session(tmp_path):
    async def scenario():
        model = Clerk()
        async with (
            managing(tmp_path, model) as one,
            managing(tmp_path, model) as two,
        ):
            for number in range(6):
                await (one, two)[number % 2].turn(ADA, f"{number}")
                assert prompts(model.requests[-1].messages) == [f"{n}" for n in range(number + 1)]
            # Also when the other one held it without a turn.
            await two.delete(ADA)
            await one.turn(ADA, "anew")
            assert prompts(model.requests[-1].messages) == ["anew"]

    run(scenario())


def test_nothing_remains_in_memory_for_sessions_that_are_idle_and_evicted(tmp_path):
    async def scenario():
        async with managing(
            tmp_path, Barrier(1), residents_limit=8, store={"open_sessions_limit": 8}
        ) as manager:

            async def visit(numbers):
                for number in numbers:
                    await manager.turn(SessionKey.of(f"u{number:05}", "clerk"), "hello")
                await asyncio.sleep(0)  # the loop drops the timers that were cancelled
                gc.collect()

            await visit(range(100))  # the encoded names are remembered, up to a limit
            tracemalloc.start()
            try:
                sizes = []
                for _ in range(3):
                    await visit(range(100))
                    sizes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
            assert_idle(manager)
            assert manager.statistics().residents <= 8
            assert sizes[-1] - sizes[0] < 200 * 100, "an agent alone takes ten times as much"

    run(scenario())


# ---- the end


def test_a_closing_manager_lets_turns_end_takes_no_new_ones_and_cancels_what_lasts(tmp_path):
    async def scenario():
        model = Clerk()
        gate = model.gates["short"] = asyncio.Event()
        model.gates["endless"] = asyncio.Event()
        async with managing(tmp_path, model, drain_s=0.2) as manager:
            short = asyncio.create_task(manager.turn(ADA, "short"))
            waiting = asyncio.create_task(manager.turn(ADA, "waiting"))
            endless = asyncio.create_task(manager.turn(BOB, "endless"))
            await until(lambda: len(model.requests) == 2)
            closing = asyncio.create_task(manager.aclose())
            await asyncio.sleep(0)
            with pytest.raises(Draining, match="bob:s1: the manager is closing"):
                await manager.turn(BOB, "new")
            with pytest.raises(Draining, match="bob:s1"):
                await manager.delete(BOB)
            gate.set()
            assert (await short).text == "re: short"
            assert (await waiting).text == "re: waiting"
            await closing
            assert endless.cancelled()
        async with managing(tmp_path) as manager:
            assert prompts(await manager.history(ADA)) == ["short", "waiting"]
            assert await manager.history(BOB) == []

    run(scenario())


def test_closing_waits_for_turns_and_not_for_the_tasks_that_made_them(tmp_path):
    async def scenario():
        model = Clerk()
        gate = model.gates["short"] = asyncio.Event()
        closed = asyncio.Event()

        async def handler(manager):
            reply = await manager.turn(ADA, "short")
            await closed.wait()  # a connection that lives on
            return reply

        async with managing(tmp_path, model, drain_s=0.1) as manager:
            task = asyncio.create_task(handler(manager))
            await model.asked.wait()
            closing = asyncio.create_task(manager.aclose())
            await asyncio.sleep(0)
            gate.set()
            await closing
        closed.set()
        assert (await task).text == "re: short"

    run(scenario())


# ---- failures


def test_a_trace_that_raises_fails_its_turn_and_not_the_session(tmp_path):
    async def scenario():
        fails = []

        def trace(span):
            if span.step in fails:
                fails.clear()
                raise OSError("the trace's disk is full")

        model = Clerk()
        async with managing(tmp_path, model, World(), trace=trace) as manager:
            for step in ("wait", "load", "ask", "tool", "commit", "turn"):
                fails[:] = [step]
                with pytest.raises(OSError, match="trace's disk"):
                    await manager.turn(SessionKey.of(step, "clerk"), "note:1", turn_id="t")
                fails.clear()
                reply = await manager.turn(SessionKey.of(step, "clerk"), "note:1", turn_id="t")
                assert reply.text == "re: note:1"
                history = await manager.history(SessionKey.of(step, "clerk"))
                assert prompts(history) == ["note:1"]
            assert_idle(manager)

    run(scenario())


@pytest.mark.parametrize("kind", ["started", "text", "tool_call", "tool_result"])
def test_a_watcher_that_raises_fails_its_turn_and_not_the_session(tmp_path, kind):
    async def scenario():
        def watch(event):
            if event.kind == kind:
                raise LookupError(kind)

        world = World()
        async with managing(tmp_path, world=world) as manager:
            with pytest.raises(LookupError, match=kind):
                await manager.turn(ADA, "note:2", turn_id="t", on_event=watch)
            assert_idle(manager)
            reply = await manager.turn(ADA, "note:2", turn_id="t")
            assert sorted(world.notes.values()) == sorted(c.input["text"] for c in reply.tool_calls)
            assert_legal(await manager.history(ADA))

    run(scenario())


def test_a_watcher_is_told_of_the_start_each_text_and_each_tool_in_order(tmp_path):
    async def scenario():
        events = []
        async with managing(tmp_path, world=World()) as manager:
            reply = await manager.turn(ADA, "note:1 please", on_event=events.append)
        assert [event.kind for event in events] == [
            *("started", "tool_call", "tool_result"),
            *("text",) * len(reply.text.split()),
        ]
        assert events[1].data == reply.tool_calls[0]
        assert (events[2].data.call_id, events[2].data.content) == (
            reply.tool_calls[0].id,
            "noted note:1 please 0.0",
        )

    run(scenario())


def test_a_conversation_that_came_from_elsewhere_is_taken_up(tmp_path):
    async def scenario():
        model = Clerk()
        agents = shelf(tmp_path / "agents", Toolbox())
        store = JsonStore(tmp_path / "store")
        async with SessionManager(store=store, agents=agents, model=model) as manager:
            await manager.turn(ADA, "first")
            path = next((tmp_path / "store").rglob("messages.json"))
            messages = [user("theirs"), assistant("yes")]
            # As another program would write it.
            path.write_text(json.dumps(messages, indent=2))
        for text in ("one", "two"):
            store = JsonStore(tmp_path / "store")
            async with SessionManager(store=store, agents=agents, model=model) as manager:
                await manager.turn(ADA, text)
                history = await manager.history(ADA)
                assert history[:2] == messages
        assert prompts(history) == ["theirs", "one", "two"]
        assert_legal(history)

    run(scenario())
