"""Turns that are steered, ended in a tool, or asked by other agents; and what users share."""

import asyncio
import json
import threading

import pytest
from house import ADA, World, assert_idle, assert_legal, managing, prompts, run, until

from kode_lab.errors import (
    AlreadyAnswered,
    CallerError,
    DeadlineExceeded,
    InvalidConfig,
    InvalidPrompt,
    ModelUnavailable,
    Refused,
    SelfDeadlock,
    Superseded,
    TurnFailed,
    TurnPending,
    UnknownCall,
)
from kode_lab.key import SessionKey
from kode_lab.message import Reply, text_of
from kode_lab.sessions import AgentConfig, JsonStore, Pending, SessionManager, Toolbox, ToolContext
from kode_lab.sessions.files.upkeep import back_up
from kode_lab.sessions.memory import MEMORY_LIMIT_BYTES, Memory
from kode_lab.sessions.own_tools import sub_agent

WHO = SessionKey.of("ada", "boss", "s")


def calls(*asked):
    """Return a reply that asks for tools, given as (id, name, input)."""
    blocks = [{"type": "tool_use", "id": i, "name": n, "input": given} for i, n, given in asked]
    return Reply(tuple(blocks), "tool_use")


def results(messages):
    """Return the contents of all tool results, by the id of the call."""
    return {
        block["tool_use_id"]: block["content"]
        for message in messages
        for block in message["content"]
        if block["type"] == "tool_result"
    }


class Script:
    """A model that gives the replies of a list, one after the other; a gate holds one back."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.gates = {}

    async def __call__(self, request, on_text=None):
        number = len(self.requests)
        self.requests.append([*request.messages])
        if number in self.gates:
            await self.gates[number].wait()
        reply = self.replies[number] if number < len(self.replies) else f"answer {number}"
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, str) and on_text is not None:
            on_text(reply)
        return Reply.of_text(reply) if isinstance(reply, str) else reply


def agents_with(*tools, **fields):
    return [AgentConfig("clerk", "m", tools=tools, **fields)]


# ---- a turn that is ended while a tool runs


class Booking:
    """A tool that books in a thread, when it is let go; each idempotency key once."""

    def __init__(self):
        self.go, self.started = threading.Event(), asyncio.Event()
        self.booked, self.contexts = {}, []
        loop = asyncio.get_running_loop()

        def book(what: str, context: ToolContext) -> str:
            """Book something.

            Args:
                what: what.
                context: of the call.
            """
            self.contexts.append(context)
            loop.call_soon_threadsafe(self.started.set)
            assert self.go.wait(20)
            self.booked.setdefault(context.idempotency_key, what)
            return f"booked {what} as number {len(self.booked)}"

        self.tool = book


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_result_that_comes_after_the_seal_replaces_it(tmp_path, durability):
    async def scenario():
        tool = Booking()
        model = Script(calls(("c1", "book", {"what": "a table"})))
        store = JsonStore(tmp_path, durability=durability)
        async with SessionManager(store=store, agents=agents_with(tool.tool), model=model) as m:
            turn = asyncio.create_task(m.turn(ADA, "book", turn_id="t1"))
            await tool.started.wait()
            assert await m.stop(ADA) == ("t1",)
            with pytest.raises(Superseded):
                await turn
            sealed = await m.history(ADA)
            assert "may have taken effect" in results(sealed)["c1"]
            await m.turn(ADA, "and now?")
            assert "may have taken effect" in results(model.requests[-1])["c1"]
            tool.go.set()
            await until(lambda: tool.booked and not m._others)
            after = await m.history(ADA)
            assert results(after)["c1"] == "booked a table as number 1"
            assert [m for m in after if m not in sealed][1:] == (await m.history(ADA))[4:]
            await m.turn(ADA, "and now?")
            assert results(model.requests[-1])["c1"] == "booked a table as number 1"
            assert_legal(await m.history(ADA))
            assert_idle(m)
        async with managing(tmp_path / "next", store=JsonStore(tmp_path)) as m:
            assert results(await m.history(ADA))["c1"] == "booked a table as number 1"

    run(scenario())


def test_a_result_that_comes_after_the_deadline_is_not_asked_for_again(tmp_path):
    async def scenario():
        tool = Booking()
        model = Script(calls(("c1", "book", {"what": "a table"})))
        agents = agents_with(tool.tool)
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            turn = asyncio.create_task(manager.turn(ADA, "book", turn_id="t1", deadline_s=0.1))
            with pytest.raises(DeadlineExceeded):
                await turn
            tool.go.set()
            await until(lambda: tool.booked and not manager._others)
            reply = await manager.turn(ADA, "book", turn_id="t1")
            assert len(tool.contexts) == 1
            assert results(model.requests[-1])["c1"] == "booked a table as number 1"
            assert reply.text == "answer 1"

    run(scenario())


def test_the_same_effect_asked_again_has_the_key_of_the_call_whose_outcome_is_unknown(tmp_path):
    async def scenario():
        tool = Booking()
        again = calls(("c2", "book", {"what": "a table"}), ("c3", "book", {"what": "a room"}))
        third = calls(("c4", "book", {"what": "a table"}))
        model = Script(calls(("c1", "book", {"what": "a table"})), again, "both", third, "more")
        agents = agents_with(tool.tool)
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            turn = asyncio.create_task(manager.turn(ADA, "book", turn_id="t1"))
            await tool.started.wait()
            asking = asyncio.create_task(manager.turn(ADA, "again", strategy="interrupt"))
            await until(lambda: len(tool.contexts) == 3)
            tool.go.set()
            assert (await asking).text == "both"
            first, *others = tool.contexts
            by_id = {context.call_id: context for context in others}
            assert by_id["c2"].idempotency_key == first.idempotency_key
            assert (by_id["c2"].earlier_call, by_id["c3"].earlier_call) == ("c1", "")
            assert sorted(tool.booked.values()) == ["a room", "a table"], "one table"
            with pytest.raises(Superseded):
                await turn
            await until(lambda: not manager._others)
            await manager.turn(ADA, "another table")
            assert tool.contexts[-1].earlier_call == "", "its outcome is known by now"
            assert len(tool.booked) == 3

    run(scenario())


# ---- steering


def test_a_prompt_is_given_to_the_running_turn_at_its_next_step(tmp_path):
    async def scenario():
        world, told = World(), {"main": [], "steer": []}
        model = Script(calls(("c1", "note", {"text": "x"})), "both done")
        model.gates[0] = asyncio.Event()
        agents = [AgentConfig("clerk", "m", tools=world.box)]
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            main = asyncio.create_task(
                manager.turn(ADA, "do x", turn_id="t1", on_event=told["main"].append)
            )
            await until(lambda: model.requests)
            steer = asyncio.create_task(
                manager.turn(
                    ADA, "in blue", turn_id="t2", strategy="steer", on_event=told["steer"].append
                )
            )
            await asyncio.sleep(0)
            model.gates[0].set()
            first, second = await main, await steer
            assert (first.text, first.steered, first.into) == ("both done", ("t2",), "")
            assert (second.text, second.turn_id, second.into) == ("both done", "t2", "t1")
            for events in told.values():
                assert {"steered", "text"} <= {event.kind for event in events}
            assert told["steer"][0].data == ("t2", "t1")
            last = model.requests[1][-1]["content"]
            assert [block["type"] for block in last] == ["tool_result", "text"]
            assert_legal(await manager.history(ADA))
            for name, prompt in (("t1", "do x"), ("t2", "in blue")):
                again = await manager.turn(ADA, prompt, turn_id=name)
                assert (again.is_replay, again.text) == (True, "both done")
            with pytest.raises(InvalidPrompt, match="belongs to another prompt"):
                await manager.turn(ADA, "in red", turn_id="t2")
            assert_idle(manager)
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            assert (await manager.turn(ADA, "in blue", turn_id="t2")).into == "t1"
            assert await manager.rewind(ADA, 0) == ("t1", "t2")
            with pytest.raises(Superseded, match="removed by a rewind"):
                await manager.turn(ADA, "in blue", turn_id="t2")

    run(scenario())


def test_a_prompt_that_comes_with_the_last_reply_is_answered_by_one_more(tmp_path):
    async def scenario():
        model = Script("first answer", "second answer")
        model.gates[0] = asyncio.Event()
        async with managing(tmp_path, model) as manager:
            main = asyncio.create_task(manager.turn(ADA, "one", turn_id="t1"))
            await until(lambda: model.requests)
            steers = [
                asyncio.create_task(manager.turn(ADA, text, strategy="steer"))
                for text in ("two", "three")
            ]
            await asyncio.sleep(0)
            model.gates[0].set()
            replies = await asyncio.gather(main, *steers)
            assert {reply.text for reply in replies} == {"second answer"}
            messages = await manager.history(ADA)
            assert [text_of(m) for m in messages] == [
                *("one", "first answer", "two\nthree", "second answer")
            ]
            await manager.turn(ADA, "four")
            assert await manager.rewind(ADA, 1) != ()
            assert await manager.history(ADA) == messages, "a steered prompt begins no turn"

    run(scenario())


def test_steering_an_idle_session_or_another_agent_waits_like_any_turn(tmp_path):
    async def scenario():
        agents = [AgentConfig("clerk", "m", strategy="steer"), AgentConfig("b", "m")]
        model = Script()
        model.gates[1] = asyncio.Event()
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            assert (await manager.turn(ADA, "one")).into == ""
            busy = asyncio.create_task(manager.turn(ADA, "two", turn_id="t2"))
            await until(lambda: len(model.requests) == 2)
            other = asyncio.create_task(
                manager.turn(ADA._replace(agent_id="b"), "three", strategy="steer")
            )
            same = asyncio.create_task(manager.turn(ADA, "two", turn_id="t2"))
            leaver = asyncio.create_task(manager.turn(ADA, "never", deadline_s=0.01))
            with pytest.raises(DeadlineExceeded):
                await leaver
            model.gates[1].set()
            assert (await busy).steered == ()
            assert ((await other).into, (await same).is_replay) == ("", True)
            assert prompts(await manager.history(ADA)) == ["one", "two"]

    run(scenario())


def test_a_steering_prompt_that_is_sent_again_is_given_once(tmp_path):
    """While the turn that it was given to before a crash continues, or another one runs."""

    async def scenario():
        world, down = World(), ModelUnavailable("down")
        model = Script(calls(("c1", "note", {"text": "x"})), down, down)
        model.gates |= {0: asyncio.Event(), 3: asyncio.Event(), 4: asyncio.Event()}
        agents = [AgentConfig("clerk", "m", tools=world.box)]

        async def both(manager, text, turn_id, gate):
            main = asyncio.create_task(manager.turn(ADA, text, turn_id=turn_id))
            await until(lambda: len(model.requests) == gate + 1)
            steer = asyncio.create_task(manager.turn(ADA, "two", turn_id="t2", strategy="steer"))
            await asyncio.sleep(0)
            model.gates[gate].set()
            return await asyncio.gather(main, steer, return_exceptions=True)

        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            failed = await both(manager, "one", "t1", 0)
            assert {type(error) for error in failed} == {ModelUnavailable}
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            first, second = await both(manager, "one", "t1", 3)
            assert (first.steered, second.into) == (("t2",), "t1")
            third, again = await both(manager, "three", "t3", 4)
            assert (third.steered, again.into, again.is_replay) == ((), "t1", True)
            assert str(await manager.history(ADA)).count("'two'") == 1

    run(scenario())


def test_a_watcher_of_a_steering_turn_that_raises_fails_that_turn_only(tmp_path):
    async def scenario():
        def watch(event):
            raise LookupError(event.kind)

        model = Script("first answer", "second answer")
        model.gates[0] = asyncio.Event()
        async with managing(tmp_path, model) as manager:
            main = asyncio.create_task(manager.turn(ADA, "one"))
            await until(lambda: model.requests)
            steer = asyncio.create_task(
                manager.turn(ADA, "two", turn_id="t2", strategy="steer", on_event=watch)
            )
            await asyncio.sleep(0)
            model.gates[0].set()
            with pytest.raises(LookupError, match="steered"):
                await steer
            assert (await main).text == "second answer"
            assert (await manager.turn(ADA, "two", turn_id="t2")).is_replay

    run(scenario())


@pytest.mark.parametrize("how", ["interrupt", "rollback"])
def test_a_steered_turn_that_is_ended_ends_for_both(tmp_path, how):
    async def scenario():
        world, model = World(), Script(calls(("c1", "note", {"text": "x"})))
        model.gates |= {0: asyncio.Event(), 1: asyncio.Event()}
        agents = [AgentConfig("clerk", "m", tools=world.box)]
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            main = asyncio.create_task(manager.turn(ADA, "one", turn_id="t1"))
            await until(lambda: model.requests)
            steer = asyncio.create_task(manager.turn(ADA, "two", turn_id="t2", strategy="steer"))
            await asyncio.sleep(0)
            model.gates[0].set()
            await until(lambda: len(model.requests) == 2)
            await manager.stop(ADA, how=how)
            for task in (main, steer):
                with pytest.raises(Superseded):
                    await task
            if how == "interrupt":
                with pytest.raises(Superseded, match="interrupted and closed"):
                    await manager.turn(ADA, "two", turn_id="t2")
            assert_legal(await manager.history(ADA))

    run(scenario())


def test_a_steered_turn_that_fails_is_continued_once_by_whichever_comes_back(tmp_path):
    """Also after a crash: the prompt was journalled before the model was asked."""

    async def scenario():
        world = World()
        down = ModelUnavailable("down")
        model = Script(calls(("c1", "note", {"text": "x"})), down, down, "done")
        model.gates[0] = asyncio.Event()
        agents = [AgentConfig("clerk", "m", tools=world.box)]
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            main = asyncio.create_task(manager.turn(ADA, "one", turn_id="t1"))
            await until(lambda: model.requests)
            steer = asyncio.create_task(manager.turn(ADA, "two", turn_id="t2", strategy="steer"))
            await asyncio.sleep(0)
            model.gates[0].set()
            for task in (main, steer):
                with pytest.raises(ModelUnavailable):
                    await task
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            second = await manager.turn(ADA, "two", turn_id="t2")
            assert (second.text, second.into, second.is_replay) == ("done", "t1", False)
            assert (await manager.turn(ADA, "one", turn_id="t1")).steered == ("t2",)
            assert len(world.runs) == 1
            assert str(await manager.history(ADA)).count("'two'") == 1

    run(scenario())


# ---- approvals


class Asking:
    """A tool that asks before it acts, and notes each answer under which it acted."""

    def __init__(self):
        self.acted = {}

        async def pay(sum: int, context: ToolContext) -> str | Pending:  # noqa: A002
            """Pay.

            Args:
                sum: how much.
                context: of the call.
            """
            if context.approval is None:
                return Pending(f"pay {sum}?")
            self.acted[context.idempotency_key] = context.approval
            return f"{context.approval}: paid {sum}"

        self.tool = pay


def test_an_approval_is_an_event_and_is_given_once_also_after_a_restart(tmp_path):
    async def scenario():
        tool, model, told = Asking(), Script(calls(("c1", "pay", {"sum": 9}))), []
        agents = agents_with(tool.tool)
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            with pytest.raises(TurnPending):
                await manager.turn(ADA, "pay", turn_id="t1", on_event=told.append)
            assert told[-1].kind == "approval_needed"
            needed = told[-1].data
            assert (needed.call_id, needed.call.input, needed.question) == (
                *("c1", {"sum": 9}, "pay 9?"),
            )
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            with pytest.raises(TurnPending):  # the answer is still missing
                await manager.turn(ADA, "pay", turn_id="t1")
            replies = await asyncio.gather(
                *(manager.approve(ADA, "c1", word) for word in ("yes", "no", "yes")),
                return_exceptions=True,
            )
            assert [type(reply).__name__ for reply in replies] == [
                *("TurnReply", "AlreadyAnswered", "TurnReply")
            ]
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            assert (await manager.approve(ADA, "c1", "yes")).is_replay
            with pytest.raises(AlreadyAnswered, match="'yes' already"):
                await manager.approve(ADA, "c1", "no")
            with pytest.raises(UnknownCall):
                await manager.approve(ADA, "c2", "yes")
        assert list(tool.acted.values()) == ["yes"]

    run(scenario())


# ---- agents that use agents


class Office:
    """The model of several agents: what each replies is a function of its own messages."""

    def __init__(self, **replies):
        self.replies = replies
        self.shown = {}

    async def __call__(self, request, _on_text=None):
        name = request.system
        self.shown.setdefault(name, []).append([*request.messages])
        reply = self.replies[name](request.messages)
        if asyncio.iscoroutine(reply):
            reply = await reply
        return Reply.of_text(reply) if isinstance(reply, str) else reply


def delegating(messages, *, child="child"):
    """Ask the child what the user asked, and repeat what it said."""
    last = messages[-1]["content"][0]
    if last["type"] == "tool_result":
        return f"it said: {last['content']}"
    return calls((f"c{len(messages)}", child, {"task": last["text"]}))


def office(tmp_path, model, *tools, **fields):
    agents = [
        AgentConfig("boss", "m", "boss", agents=["child"], **fields),
        AgentConfig("child", "m", "child", tools=tools),
    ]
    return SessionManager(store=tmp_path, agents=agents, model=model)


def test_an_agent_uses_another_in_a_session_of_its_own_and_once(tmp_path):
    async def scenario():
        model = Office(
            boss=delegating, child=lambda messages: f"{text_of(messages[-1])}/{len(messages)}"
        )
        async with office(tmp_path, model) as manager:
            assert (await manager.turn(WHO, "a", turn_id="t1")).text == "it said: a/1"
            assert (await manager.turn(WHO, "b", turn_id="t2")).text == "it said: b/3"
            other = WHO._replace(session_id="other")
            assert (await manager.turn(other, "c")).text == "it said: c/1", "its own child"
            child = WHO.child("child")
            assert child == SessionKey("ada", "s:boss/child", "child")
            assert prompts(await manager.history(child)) == ["a", "b"]
            assert (await manager.turn(WHO, "a", turn_id="t1")).is_replay
            assert_idle(manager)

    run(scenario())


def test_no_two_parents_have_one_child():
    keys = [
        SessionKey.of("u", *names).child(child)
        for names in (("a", "s"), ("b", "s"), ("a", "s/b"), ("a",), ("s:a", "s"), ("s:a",), ("s",))
        for child in ("c", "b/c", "c%2f", "c/")
    ]
    assert len({(key.session_id, key.agent_id) for key in keys}) == len(keys)


def test_a_child_is_cancelled_with_its_parent_and_goes_on_with_it(tmp_path):
    async def scenario():
        gate, asked = asyncio.Event(), asyncio.Event()

        async def child(messages):
            asked.set()
            await gate.wait()
            return f"child of {text_of(messages[-1])}"

        model = Office(boss=delegating, child=child)
        async with office(tmp_path, model) as manager:
            turn = asyncio.create_task(manager.turn(WHO, "a", turn_id="t1"))
            await asked.wait()
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
            await until(lambda: manager.statistics().lock.held == 0)
            assert_idle(manager)
            assert len(await manager.history(WHO.child("child"))) == 0
        gate.set()
        async with office(tmp_path, model) as manager:
            assert (await manager.turn(WHO, "a", turn_id="t1")).text == "it said: child of a"
            assert len(model.shown["boss"]) == 2, "the parent asked once, and went on"
            assert prompts(await manager.history(WHO.child("child"))) == ["a"]

    run(scenario())


def test_a_crash_between_the_child_s_end_and_the_parent_s_runs_the_child_once(tmp_path):
    async def scenario():
        ran = []

        def act(text: str, context: ToolContext) -> str:
            """Act.

            Args:
                text: what.
                context: of the call.
            """
            ran.append(context.key)
            return text

        def child(messages):
            if len(messages) == 1:
                return calls(("k1", "act", {"text": "x"}))
            return "acted"

        def boss(messages):
            if len(messages) > 1 and not is_up:
                raise ModelUnavailable("down")
            return delegating(messages)

        is_up, model = False, Office(boss=boss, child=child)
        async with office(tmp_path, model, act) as manager:
            with pytest.raises(ModelUnavailable):
                await manager.turn(WHO, "a", turn_id="t1")
        is_up = True
        async with office(tmp_path, model, act) as manager:
            assert (await manager.turn(WHO, "a", turn_id="t1")).text == "it said: acted"
        assert ran == [WHO.child("child")]

    run(scenario())


def test_a_child_s_approvals_are_asked_through_its_parent_one_by_one(tmp_path):
    async def scenario():
        tool = Asking()

        def child(messages):
            if len(messages) < 4:
                return calls((f"k{len(messages)}", "pay", {"sum": len(messages)}))
            return " and ".join(results(messages).values())

        model = Office(boss=delegating, child=child)
        async with office(tmp_path, model, tool.tool) as manager:
            for question, answer in (("c1:k1", "yes"), ("c1:k3", "no")):
                with pytest.raises(TurnPending, match="child: pay") as pending:
                    await manager.turn(WHO, "a", turn_id="t1")
                assert [*pending.value.questions] == [question]
                if answer == "yes":
                    with pytest.raises(TurnPending):
                        await manager.approve(WHO, question, answer)
            reply = await manager.approve(WHO, "c1:k3", "no")
            assert reply.text == "it said: yes: paid 1 and no: paid 3"
            with pytest.raises(AlreadyAnswered):
                await manager.approve(WHO, "c1:k1", "no")
            assert list(tool.acted.values()) == ["yes", "no"]

    run(scenario())


def test_agents_that_ask_each_other_without_end_are_stopped(tmp_path):
    async def scenario():
        model = Office(boss=delegating, child=lambda m: delegating(m, child="boss"))
        agents = [
            AgentConfig("boss", "m", "boss", agents=["child"]),
            AgentConfig("child", "m", "child", agents=["boss"]),
        ]
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            reply = await manager.turn(WHO, "a")
            assert "NESTING_LIMIT=5" in reply.text
            assert_idle(manager)

    run(scenario())


def test_a_child_may_still_be_asked_while_the_manager_drains(tmp_path):
    async def scenario():
        model = Office(boss=delegating, child=lambda _: "done")
        gate, boss = asyncio.Event(), model.replies["boss"]

        async def slow(messages):
            await gate.wait()
            return boss(messages)

        model.replies["boss"] = slow
        async with office(tmp_path, model) as manager:
            turn = asyncio.create_task(manager.turn(WHO, "a"))
            await until(lambda: model.shown)
            closing = asyncio.create_task(manager.aclose())
            await asyncio.sleep(0)
            gate.set()
            assert (await turn).text == "it said: done"
            await closing

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"agents": "child"}, "agents is 'child': list different names of agents"),
        ({"agents": ["a", "a"]}, "list different names"),
        ({"agents": ["a", "a?"], "tools": [sub_agent("a")]}, "two tools are called 'a'"),
        ({"memory": 1}, "memory is 1: use true or false"),
        ({"strategy": "stear"}, "use one of enqueue, reject, interrupt, rollback, steer"),
    ],
)
def test_a_wrong_field_is_named(fields, why):
    with pytest.raises(InvalidConfig, match=why.replace("?", ".")):
        AgentConfig("boss", "m", **fields)


def test_an_agent_that_does_not_exist_is_told_to_the_model(tmp_path):
    async def scenario():
        model = Office(boss=delegating)
        agents = [AgentConfig("boss", "m", "boss", agents=["child"])]
        async with SessionManager(store=tmp_path, agents=agents, model=model) as manager:
            assert "there is no agent 'child'" in (await manager.turn(WHO, "a")).text

    run(scenario())


# ---- what a user's sessions share


def test_the_sessions_of_a_user_share_a_memory_and_no_write_loses_another_s_entry(tmp_path):
    async def scenario():
        def boss(messages):
            word = text_of(messages[0])
            if len(messages) == 1:
                return calls(("c1", "remember", {"name": word, "text": f"about {word}"}))
            return calls(("c2", "recall", {})) if len(messages) == 3 else results(messages)["c2"]

        agents = [AgentConfig("boss", "m", "boss", memory=True)]
        async with SessionManager(store=tmp_path, agents=agents, model=Office(boss=boss)) as one:
            keys = [SessionKey.of("ada", "boss", f"s{n}") for n in range(8)]
            await asyncio.gather(*(one.turn(key, key.session_id) for key in keys))
            last = await one.turn(SessionKey.of("ada", "boss", "last"), "last")
            wanted = {name: f"about {name}" for name in [k.session_id for k in keys] + ["last"]}
            assert json.loads(last.text) == wanted
            bob = await one.turn(SessionKey.of("bob", "boss"), "bob")
            assert json.loads(bob.text) == {"bob": "about bob"}

    run(scenario())


def test_a_backup_holds_the_memories(tmp_path):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "one")
            await Memory(manager.store, "ada").put("x", [1])
            back_up(tmp_path / "store", tmp_path / "copy")
        store = JsonStore(tmp_path / "copy")
        assert await Memory(store, "ada").read() == {"x": [1]}
        await store.aclose()

    run(scenario())


def test_a_change_of_a_memory_is_made_of_the_newest_and_wrong_ones_are_named(tmp_path):
    async def scenario():
        store = JsonStore(tmp_path)
        memory = Memory(store, "ada")

        async def count():
            for _ in range(5):
                await memory.update("count", lambda n: (n or 0) + 1)

        await asyncio.gather(count(), count())
        assert await memory.read() == {"count": 10}
        for name, value, why in (
            ("", 1, "the name of a memory is ''"),
            ("n" * 201, 1, "MEMORY_NAME_LIMIT_CHARS=200"),
            ("x", float("nan"), "use a JSON value"),
            ("x", {1}, "use a JSON value"),
            ("x", "a" * MEMORY_LIMIT_BYTES, "MEMORY_LIMIT_BYTES=1000000"),
        ):
            with pytest.raises(InvalidPrompt, match=why):
                await memory.put(name, value)
        await memory.remove("count")
        assert await memory.read() == {}

        async def refused(*_, version):
            return not version

        store.write_memory = refused
        with pytest.raises(Refused, match="written by others"):
            await memory.put("x", 1)
        await store.aclose()

    run(scenario())


def test_a_tool_without_a_manager_says_what_it_lacks():
    context = ToolContext(WHO, "t", "c", "k")
    with pytest.raises(CallerError, match="without a SessionManager"):
        run(context.ask("child", "a"))
    with pytest.raises(CallerError, match="keeps no memories"):
        _ = context.memory
    box = Toolbox()
    box.tool(sub_agent("a child"))
    assert box.names == ("a_child",)
    assert issubclass(SelfDeadlock, Refused)
    assert issubclass(TurnPending, TurnFailed)
