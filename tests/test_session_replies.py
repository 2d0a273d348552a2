"""What a model answers reaches the caller and the record whole, of any kind."""

import asyncio
import json
import threading

import pytest
from house import ADA, BOB, World, assert_legal, prompts, run

from kode_lab.errors import (
    AlreadyAnswered,
    CallerError,
    InvalidPrompt,
    ModelGarbage,
    ModelRefused,
    ModelUnavailable,
    SelfDeadlock,
    StepLimitReached,
    TurnPending,
    UnknownCall,
)
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client, OperationList
from kode_lab.message import Reply, text_of
from kode_lab.sessions import (
    AgentConfig,
    ContextPolicy,
    JsonStore,
    Pending,
    SessionManager,
    Toolbox,
    ToolContext,
)
from kode_lab.targets.ours import ManagerTarget

LONG_S = 30.0


def text(words):
    return {"type": "text", "text": words}


def call(call_id, name="note", **given):
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


def thinking(signature):
    return {"type": "thinking", "thinking": "hm", "signature": signature}


class Scripted:
    """A model that gives these replies one after another, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []

    async def __call__(self, request, _on_text=None):
        self.requests.append(json.loads(json.dumps(list(request.messages))))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def manager_of(tmp_path, model, tools=(), **fields):
    config = AgentConfig("clerk", "m1", tools=tools, deadline_s=LONG_S, **fields)
    return SessionManager(store=JsonStore(tmp_path), agents=[config], model=model)


# --- stop reasons ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "stop_reason", "said"),
    [
        ((text("whole"),), "end_turn", "whole"),
        ((text("The dose is at most 5"),), "max_tokens", "The dose is at most 5"),
        ((text("so far"),), "stop_sequence", "so far"),
        ((text("so far"),), "model_context_window_exceeded", "so far"),
        ((text("so far"),), "a_word_of_tomorrow", "so far"),
        ((), "refusal", "(The model refused to answer.)"),
        ((call("c1", text="half"),), "refusal", "(The model refused to answer.)"),
        ((thinking("s"),), "max_tokens", "(The reply was cut off at its token limit, before any"),
        ((), "model_context_window_exceeded", "(The reply was cut off: the model's context is fu"),
        ((), "end_turn", "(The reply was empty.)"),
    ],
)
def test_the_reply_and_its_replay_say_why_the_model_stopped(tmp_path, content, stop_reason, said):
    async def scenario():
        async with manager_of(tmp_path, Scripted(Reply(content, stop_reason))) as manager:
            first = await manager.turn(ADA, "q", turn_id="t")
        async with manager_of(tmp_path, Scripted()) as manager:
            again = await manager.turn(ADA, "q", turn_id="t")
            assert_legal(await manager.history(ADA))
        assert first.stop_reason == again.stop_reason == stop_reason
        assert first.text.startswith(said)
        assert again == first._replace(is_replay=True)
        assert first.tool_calls == ()

    run(scenario())


@pytest.mark.parametrize("stop_reason", ["max_tokens", "model_context_window_exceeded"])
def test_a_call_of_a_reply_that_was_cut_off_is_not_run_and_the_turn_goes_on(tmp_path, stop_reason):
    async def scenario():
        world = World()
        model = Scripted(Reply((call("c1", text="ha"),), stop_reason), Reply.of_text("sorry"))
        async with manager_of(tmp_path, model, world.box) as manager:
            reply = await manager.turn(ADA, "q")
        assert (reply.text, reply.stop_reason, world.runs) == ("sorry", "end_turn", [])
        assert "Not run: the reply was cut off" in text_of(model.requests[1][-1])

    run(scenario())


def test_a_paused_reply_is_continued_and_becomes_one_message_with_its_rest(tmp_path):
    search = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": "x"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}

    async def scenario():
        paused = Reply((search, found, text("I look")), "pause_turn")
        model = Scripted(paused, paused, Reply.of_text("found"))
        async with manager_of(tmp_path, model) as manager:
            reply = await manager.turn(ADA, "q", turn_id="t")
            history = await manager.history(ADA)
        assert (reply.text, reply.stop_reason) == ("I lookI lookfound", "end_turn")
        assert [m["role"] for m in history] == ["user", "assistant"]
        assert history[1]["content"] == [*paused.content, *paused.content, text("found")]
        assert [len(request) for request in model.requests] == [1, 2, 2]
        assert model.requests[1][-1]["content"] == list(paused.content)

    run(scenario())


def test_a_model_that_pauses_again_and_again_meets_the_step_limit_and_goes_on_later(tmp_path):
    async def scenario():
        paused = Reply((text("wait "),), "pause_turn")
        async with manager_of(tmp_path, Scripted(paused, paused), step_limit=2) as manager:
            with pytest.raises(StepLimitReached, match="step_limit=2"):
                await manager.turn(ADA, "q", turn_id="t")
        model = Scripted(Reply.of_text("done"))
        async with manager_of(tmp_path, model, step_limit=3) as manager:
            reply = await manager.turn(ADA, "q", turn_id="t")
        assert reply.text == "wait wait done"
        assert len(model.requests) == 1

    run(scenario())


# --- ids of calls, thinking ------------------------------------------------------------------


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_model_that_numbers_its_calls_anew_can_be_used_without_end(tmp_path, is_restarted):
    async def model(request, _on_text=None):
        if request.messages[-1]["content"][0]["type"] == "tool_result":
            return Reply.of_text("ok")
        same = call("call_0", text=str(len(request.messages)))
        return Reply((same, same | {"name": "fail"}, call("call_0-2", text="x")), "tool_use")

    async def scenario():
        world, seen = World(), set()
        for number in range(4):
            if number == 0 or is_restarted:
                manager = await manager_of(tmp_path, model, world.box).__aenter__()
            reply = await manager.turn(ADA, f"q{number}")
            assert len(reply.tool_calls) == 3
            seen |= {asked.id for asked in reply.tool_calls}
            history = await manager.history(ADA)
            assert_legal(history)
            if is_restarted or number == 3:
                await manager.aclose()
        assert len(seen) == 12
        assert history[1]["content"][0]["id"] == "call_0"
        assert len(world.runs) == len(world.notes) == 8

    run(scenario())


def with_model(manager, name):
    manager._agents.put(AgentConfig("clerk", name, deadline_s=LONG_S))


@pytest.mark.parametrize("is_restarted", [False, True])
def test_thinking_of_another_model_is_left_out_of_the_request_and_kept_in_the_record(
    tmp_path, is_restarted
):
    replies = [Reply((thinking(f"s{n}"), text(f"r{n}")), "end_turn") for n in range(3)]

    async def scenario():
        model = Scripted(*replies)
        manager = manager_of(tmp_path, model)
        await manager.turn(ADA, "one")
        await manager.turn(ADA, "two")
        if is_restarted:
            await manager.aclose()
            manager = manager_of(tmp_path, model)
        with_model(manager, "m2")
        await manager.turn(ADA, "three")
        model.replies = [Reply.of_text("r3"), Reply.of_text("r4")]
        await manager.turn(ADA, "four")
        with_model(manager, "m1")
        await manager.turn(ADA, "five")
        history = await manager.history(ADA)
        await manager.aclose()
        return model.requests, history

    requests, history = run(scenario())
    signatures = [
        [b["signature"] for m in request for b in m["content"] if b["type"] == "thinking"]
        for request in [*requests, history]
    ]
    assert signatures == [[], ["s0"], [], ["s2"], ["s0", "s1"], ["s0", "s1", "s2"]]
    assert [text_of(m) for m in requests[2] if m["role"] == "assistant"] == ["r0", "r1"]


def test_thinking_that_a_service_refuses_is_left_out_once_more(tmp_path):
    async def scenario():
        refused = ModelRefused("messages.1.content.0: Invalid `signature` in `thinking` block")
        first = Reply((thinking("old"), text("a")), "end_turn")
        model = Scripted(first, refused, Reply.of_text("b"), refused, ModelRefused("no signature"))
        async with manager_of(tmp_path, model) as manager:
            await manager.turn(ADA, "one")
            assert (await manager.turn(ADA, "two")).text == "b"
            assert model.requests[2][1]["content"] == [text("a")]
            assert (await manager.history(ADA))[1]["content"] == list(first.content)
            with pytest.raises(ModelRefused, match="no signature"):
                await manager.turn(ADA, "three")
        assert len(model.requests) == 5

    run(scenario())


# --- tools -----------------------------------------------------------------------------------


def test_a_tool_that_runs_alone_waits_for_those_before_it_and_holds_those_after_it(tmp_path):
    box, running, most = Toolbox(), [], {}

    async def enter(name):
        running.append(name)
        most[name] = max(most.get(name, 0), len(running))
        for _ in range(20):
            await asyncio.sleep(0)
        running.remove(name)
        return name

    @box.tool
    async def read(who: str) -> str:
        return await enter(who)

    @box.tool(alone=True)
    async def write(who: str) -> str:
        return await enter(who)

    names = [("read", "a"), ("read", "b"), ("write", "c"), ("write", "d"), ("read", "e")]
    names += [("read", "f")]
    calls = tuple(call(f"id-{name}", tool, who=name) for tool, name in names)

    async def scenario():
        model = Scripted(Reply(calls, "tool_use"), Reply.of_text("done"))
        async with manager_of(tmp_path, model, box) as manager:
            await manager.turn(ADA, "q")
        results = model.requests[1][-1]["content"]
        assert [r["content"] for r in results] == ["a", "b", "c", "d", "e", "f"]
        assert most == {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1, "f": 2}

    run(scenario())


def approving():
    """A tool that acts only after an answer, and the list of what it did."""
    box, acted = Toolbox(), []

    @box.tool
    async def pay(amount: int, context: ToolContext) -> object:
        if context.approval is None:
            return Pending(f"pay {amount}?")
        if context.approval != "yes":
            return f"not paid: {context.approval}"
        acted.append((amount, context.idempotency_key))
        return f"paid {amount}"

    @box.tool
    async def look() -> str:
        acted.append("looked")
        return "seen"

    return box, acted


PAY = (call("p1", "pay", amount=5), call("l1", "look"), call("p2", "pay", amount=7))


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_turn_rests_until_its_calls_are_approved_and_each_acts_once(tmp_path, is_restarted):
    box, acted = approving()

    async def scenario():
        model = Scripted(Reply(PAY, "tool_use"), Reply.of_text("done"))
        manager = manager_of(tmp_path, model, box)

        async def perhaps_another():
            if not is_restarted:
                return manager
            await manager.aclose()
            return manager_of(tmp_path, model, box)

        with pytest.raises(
            TurnPending, match=r"call 'p1' asks 'pay 5\?'; call 'p2' asks 'pay 7\?'"
        ) as waits:
            await manager.turn(ADA, "pay", turn_id="t")
        assert waits.value.questions == {"p1": "pay 5?", "p2": "pay 7?"}
        assert manager.statistics().turns == 0
        assert await manager.history(ADA) == []
        manager = await perhaps_another()
        with pytest.raises(TurnPending, match="pay 7") as waits:
            await manager.approve(ADA, "p1", "yes")
        assert list(waits.value.questions) == ["p2"]
        with pytest.raises(
            AlreadyAnswered, match="'p1' was answered 'yes' already, and that counts"
        ):
            await manager.approve(ADA, "p1", "no")
        manager = await perhaps_another()
        reply = await manager.approve(ADA, "p2", "no")
        assert reply.text == "done"
        results = [b["content"] for b in model.requests[-1][-1]["content"]]
        assert results == ["paid 5", "seen", "not paid: no"]
        manager = await perhaps_another()
        assert (await manager.approve(ADA, "p2", "no")).is_replay
        with pytest.raises(AlreadyAnswered, match="'p2' was answered 'no' already"):
            await manager.approve(ADA, "p2", "yes")
        with pytest.raises(UnknownCall, match="no tool call 'p3' waits here"):
            await manager.approve(ADA, "p3", "yes")
        assert_legal(await manager.history(ADA))
        await manager.aclose()

    run(scenario())
    assert acted.count("looked") == 1
    assert [done[0] for done in acted if done != "looked"] == [5]


def test_two_answers_at_once_are_one_and_a_later_turn_closes_what_waits(tmp_path):
    box, acted = approving()

    async def scenario():
        model = Scripted(Reply(PAY[:1], "tool_use"), Reply.of_text("done"))
        async with manager_of(tmp_path, model, box) as manager:
            with pytest.raises(TurnPending):
                await manager.turn(ADA, "pay", turn_id="t")
            answers = ("yes", "no", "yes")
            ended = await asyncio.gather(
                *(manager.approve(ADA, "p1", answer) for answer in answers), return_exceptions=True
            )
            assert ended[0].text == ended[2].text == "done"
            assert isinstance(ended[1], AlreadyAnswered)
            model.replies = [Reply(PAY[2:], "tool_use"), Reply.of_text("later")]
            with pytest.raises(TurnPending):
                await manager.turn(ADA, "pay more", turn_id="u")
            await manager.turn(ADA, "never mind")
            assert "Not run." in text_of(model.requests[-1][-2 - 1])
            with pytest.raises(UnknownCall, match="no tool call 'p2' waits here"):
                await manager.approve(ADA, "p2", "yes")

    run(scenario())
    assert [done[0] for done in acted] == [5]


def asking_tools(managers):
    """Tools that ask in the session that they are told, and say how that ended."""
    box = Toolbox()

    async def ask(session: str, prompt: str) -> str:
        try:
            reply = await managers[0].turn(SessionKey.of("ada", "clerk", session), prompt)
        except SelfDeadlock as error:
            return f"refused: {error}"
        return reply.text

    @box.tool
    async def ask_later(session: str, prompt: str) -> str:
        return await ask(session, prompt)

    loops = []

    @box.tool
    def ask_from_thread(session: str, prompt: str) -> str:
        return asyncio.run_coroutine_threadsafe(ask(session, prompt), loops[0]).result()

    @box.tool
    async def leave_behind(session: str, prompt: str) -> str:
        managers.append(asyncio.create_task(after(session, prompt)))
        return "left behind"

    ended = asyncio.Event()

    async def after(session, prompt):
        await ended.wait()
        return await ask(session, prompt)

    return box, loops, ended


class Obeying:
    """A model that makes the calls that a prompt ``tool session prompt > ...`` names."""

    async def __call__(self, request, _on_text=None):
        last = request.messages[-1]
        words = text_of(last)
        if last["content"][0]["type"] == "tool_result":
            return Reply.of_text(f"told: {words}")
        tool, _, rest = words.partition(" ")
        session, _, prompt = rest.partition(" ")
        if not prompt:
            return Reply.of_text(f"said {words}")
        return Reply((call("c", tool, session=session, prompt=prompt),), "tool_use")


@pytest.mark.parametrize("tool", ["ask_later", "ask_from_thread"])
def test_a_tool_that_would_wait_for_its_own_session_is_refused_at_once(tmp_path, tool):
    managers = []
    box, loops, _ = asking_tools(managers)

    async def scenario():
        loops.append(asyncio.get_running_loop())
        async with manager_of(tmp_path, Obeying(), box, tool_timeout_s=LONG_S) as manager:
            managers.append(manager)
            key = SessionKey.of("ada", "clerk", "a")
            direct = await manager.turn(key, f"{tool} a hello")
            assert "refused: ada:a: a tool of a turn asks in a session that waits" in direct.text
            other = await manager.turn(key, f"{tool} b hello")
            assert other.text == "told: said hello"
            around = await manager.turn(key, f"{tool} b {tool} a hello")
            assert "told: told: refused: ada:a" in around.text
            assert manager.statistics().turns == 0

    run(scenario())


def test_turns_whose_tools_ask_in_each_other_s_sessions_at_once_do_not_wait_for_each_other(
    tmp_path,
):
    managers = []
    box, _, _ = asking_tools(managers)

    async def scenario():
        async with manager_of(tmp_path, Obeying(), box, tool_timeout_s=LONG_S) as manager:
            managers.append(manager)
            keys = [SessionKey.of("ada", "clerk", session) for session in "abc"]
            asked = (
                manager.turn(key, f"ask_later {to} hello")
                for key, to in zip(keys, "bca", strict=True)
            )
            texts = [reply.text for reply in await asyncio.gather(*asked)]
            assert sum("refused" in words for words in texts) == 1
            assert sum(words == "told: said hello" for words in texts) == 2

    run(scenario())


def test_what_a_tool_leaves_running_may_ask_in_its_session_after_the_turn(tmp_path):
    managers = []
    box, _, ended = asking_tools(managers)

    async def scenario():
        async with manager_of(tmp_path, Obeying(), box) as manager:
            managers.append(manager)
            key = SessionKey.of("ada", "clerk", "a")
            await manager.turn(key, "leave_behind a hello")
            ended.set()
            assert await managers[1] == "said hello"

    run(scenario())


def test_a_model_that_asks_in_the_session_it_answers_is_refused_too(tmp_path):
    async def scenario():
        async def model(_request, _on_text=None):
            await manager.delete(ADA)

        async with manager_of(tmp_path, model) as manager:
            with pytest.raises(SelfDeadlock):
                await manager.turn(ADA, "q")

    run(scenario())


def test_time_for_which_a_tool_blocks_the_loop_is_in_the_spans_of_others_and_in_the_figures(
    tmp_path,
):
    box, spans = Toolbox(), []
    asked, blocked = asyncio.Event(), asyncio.Event()

    @box.tool
    async def block() -> str:
        asyncio.get_running_loop().call_soon(blocked.set)
        threading.Event().wait(0.15)
        return "done"

    async def model(request, _on_text=None):
        words = text_of(request.messages[-1])
        if words == "wait":
            asked.set()
            await blocked.wait()
        return Reply((call("c", "block"),), "tool_use") if words == "block" else Reply.of_text("ok")

    async def scenario():
        config = AgentConfig("clerk", "m", tools=box)
        async with SessionManager(
            store=JsonStore(tmp_path), agents=config, model=model, trace=spans.append
        ) as manager:
            waiting = asyncio.create_task(manager.turn(BOB, "wait"))
            await asked.wait()
            await manager.turn(ADA, "block")
            await waiting
            return manager.statistics().blocked

    ((name, times, total_s, longest_s),) = run(scenario())
    assert (name, times) == ("block", 1)
    assert total_s == longest_s >= 0.15
    found = {
        (span.key.user_id, span.step): span.attributes["kode_lab.loop.blocked_s"]
        for span in spans
        if "kode_lab.loop.blocked_s" in span.attributes
    }
    assert found == {("ada", "tool"): total_s, ("bob", "ask"): total_s}


# --- what the model receives -----------------------------------------------------------------


def shown_to(tmp_path, policy, turns=5):
    async def scenario():
        model = Scripted(*(Reply.of_text(f"r{n} " + "x" * 100) for n in range(turns)))
        async with manager_of(tmp_path, model, context=policy) as manager:
            for number in range(turns):
                await manager.turn(ADA, f"q{number}")
            assert len(await manager.history(ADA)) == 2 * turns
        return [prompts(request) for request in model.requests]

    return run(scenario())


def test_a_window_of_turns_is_the_end_of_the_conversation_and_the_record_is_whole(tmp_path):
    shown = shown_to(tmp_path, ContextPolicy(window_turns=2))
    assert shown == [["q0"], ["q0", "q1"], ["q0", "q1", "q2"], ["q1", "q2", "q3"],
                     ["q2", "q3", "q4"]]  # fmt: skip


def test_a_window_of_no_turns_shows_the_running_turn_alone(tmp_path):
    assert shown_to(tmp_path, ContextPolicy(window_turns=0))[-1] == ["q4"]


def test_a_window_of_tokens_holds_whole_turns_only(tmp_path):
    assert shown_to(tmp_path, ContextPolicy(window_tokens=100))[-1] == ["q3", "q4"]


def test_a_window_never_separates_a_call_from_its_result(tmp_path):
    async def scenario():
        world, model = World(), Scripted()
        async with manager_of(
            tmp_path, model, world.box, context=ContextPolicy(window_turns=1)
        ) as manager:
            for number in range(4):
                model.replies = [
                    Reply((call(f"c{number}", text="x"),), "tool_use"),
                    Reply.of_text("ok"),
                ]
                await manager.turn(ADA, f"q{number}")
        for request in model.requests[1::2]:
            assert_legal([*request, {"role": "assistant", "content": [text("ok")]}])
        assert len(model.requests[-1]) == 7

    run(scenario())


class Summarising:
    """A model that counts its summaries, and says what its request begins with."""

    def __init__(self, crashes=()):
        self.summaries, self.requests, self.crashes = 0, [], list(crashes)

    async def __call__(self, request, on_text=None):
        messages = list(request.messages)
        self.requests.append(messages)
        assert_legal([*messages, {"role": "assistant", "content": [text("ok")]}])
        if text_of(messages[-1]).startswith("Summarise our conversation"):
            assert on_text is None
            self.summaries += 1
            return Reply.of_text(f"summary {self.summaries}")
        if self.crashes and self.crashes.pop(0):
            raise ModelUnavailable("down")
        return Reply.of_text("r" * 400)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_older_turns_are_replaced_by_a_summary_and_the_record_keeps_them(tmp_path, is_restarted):
    policy = ContextPolicy(compact_above_tokens=400, keep_turns=1)

    async def scenario():
        model = Summarising()
        manager = manager_of(tmp_path, model, context=policy)
        for number in range(12):
            await manager.turn(ADA, f"q{number}", turn_id=f"t{number}", on_event=lambda _: None)
            if is_restarted:
                await manager.aclose()
                manager = manager_of(tmp_path, model, context=policy)
        again = await manager.turn(ADA, "q3", turn_id="t3")
        history = await manager.history(ADA)
        await manager.aclose()
        assert again.is_replay
        assert prompts(history) == [f"q{number}" for number in range(12)]
        assert 2 <= model.summaries <= 5
        last = model.requests[-1]
        said = f"Summary of our conversation until now:\n\nsummary {model.summaries}"
        assert text_of(last[0]) == said
        assert prompts(last)[-2:] == ["q10", "q11"]
        assert max(len(json.dumps(request)) for request in model.requests) < 3_600
        # A later summary is made of the one before, not of all that it replaced.
        made_of = [r for r in model.requests if text_of(r[-1]).startswith("Summarise")]
        assert text_of(made_of[1][0]).endswith("summary 1")

    run(scenario())


def test_a_summary_survives_a_turn_that_fails_after_it_had_used_a_tool(tmp_path):
    policy = ContextPolicy(compact_above_tokens=1, keep_turns=0)

    async def scenario():
        world = World()
        model = Scripted(Reply.of_text("first"))
        async with manager_of(tmp_path, model, world.box, context=policy) as manager:
            await manager.turn(ADA, "one")
            model.replies = [
                Reply.of_text("the summary"),
                Reply((call("c1", text="x"),), "tool_use"),
                ModelUnavailable("down"),
            ]
            with pytest.raises(ModelUnavailable):
                await manager.turn(ADA, "two", turn_id="t")
        model = Scripted(Reply.of_text("done"))
        async with manager_of(tmp_path, model, world.box, context=policy) as manager:
            assert (await manager.turn(ADA, "two", turn_id="t")).text == "done"
        assert "the summary" in text_of(model.requests[0][0])
        assert len(world.runs) == 1

    run(scenario())


def test_a_summary_that_is_cut_off_or_empty_is_not_used(tmp_path):
    policy = ContextPolicy(compact_above_tokens=1, keep_turns=0)

    async def scenario():
        model = Scripted(
            Reply.of_text("first"),
            Reply.of_text("half a summ", "max_tokens"),
            Reply.of_text("second"),
            Reply((), "end_turn"),
            Reply.of_text("third"),
        )
        async with manager_of(tmp_path, model, context=policy) as manager:
            for prompt in ("one", "two", "three"):
                await manager.turn(ADA, prompt)
        assert prompts(model.requests[-1]) == ["one", "two", "three"]

    run(scenario())


def test_a_conversation_that_is_too_long_says_which_policy_helps(tmp_path):
    too_long = ModelRefused("the API answered 400: prompt is too long: 200001 tokens")

    async def scenario(policy, told):
        async with manager_of(tmp_path, Scripted(too_long), context=policy) as manager:
            with pytest.raises(ModelRefused, match=told):
                await manager.turn(ADA, "q")

    run(scenario("all", "declare a context policy for agent 'clerk' .context = { window_turns"))
    run(scenario(ContextPolicy(window_turns=9), "lower the limit in .*window_turns=9"))


# --- prompts of blocks -----------------------------------------------------------------------

IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
    "cache_control": {"type": "ephemeral"},
}
BLOCKS = [
    text("what is this? é\u2028\U0001f600"),
    IMAGE,
    {"type": "document", "source": {"type": "text", "data": "d", "media_type": "text/plain"}},
    {"type": "tool_reference", "tool_name": "look"},
    {"type": "of_tomorrow", "n": [1, 2.5, None, True, -0.0, 1e16]},
]


def test_a_prompt_of_blocks_is_stored_and_sent_again_as_it_was(tmp_path):
    async def scenario():
        model = Scripted(*(Reply.of_text("ok") for _ in range(3)))
        given = json.loads(json.dumps(BLOCKS))
        async with manager_of(tmp_path, model) as manager:
            await manager.turn(ADA, given, turn_id="t")
            given[0]["text"] = "changed by the caller"
            again = await manager.turn(ADA, BLOCKS, turn_id="t")
            assert again.is_replay
            with pytest.raises(InvalidPrompt, match="belongs to another prompt"):
                await manager.turn(ADA, given, turn_id="t")
        async with manager_of(tmp_path, model) as manager:
            await manager.turn(ADA, "and now?")
        for request in model.requests:
            assert json.dumps(request[0]["content"]) == json.dumps(BLOCKS)

    run(scenario())


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ([], "the prompt has 0 blocks: send 1 to PROMPT_BLOCKS_LIMIT=1000"),
        ([text("x")] * 1_001, "the prompt has 1001 blocks"),
        ([text("  ")], "block 0 of the prompt is an empty text: leave it out"),
        (["words"], "block 0 of the prompt is not an object with a type"),
        ([text("a"), {"text": "b"}], "block 1 of the prompt is not an object with a type"),
        ([{"type": "text"}], "block 0 of the prompt has type text, and its text is no text"),
        ([call("c")], "block 0 of the prompt has type tool_use, which only a model or a tool"),
        ([{"type": "tool_result", "tool_use_id": "c"}], "type tool_result, which only"),
        ([{"type": "web_search_tool_result"}], "type web_search_tool_result, which only"),
        ([thinking("s")], "type thinking, which only"),
        ([text("a"), {"type": "x", "n": float("nan")}], "a value that JSON cannot hold"),
        ([text("a"), {"type": "x", "n": {1}}], "cannot be written as JSON"),
        ([text("a\ud800")], "cannot be written as JSON"),
        ([{"type": "x", "n": 2**64}], "cannot be written as JSON"),
        ([{"type": "x", "data": "x" * 30_000_000}], "PROMPT_LIMIT_BYTES=30000000"),
        ({"type": "text", "text": "a"}, "send text or a list of blocks"),
    ],
    ids=range(16),
)
def test_blocks_that_a_user_cannot_say_are_refused_by_their_place(tmp_path, prompt, told):
    async def scenario():
        async with manager_of(tmp_path, Scripted()) as manager:
            with pytest.raises(InvalidPrompt, match=told):
                await manager.turn(ADA, prompt)
            assert await manager.history(ADA) == []

    run(scenario())


# --- wrong kinds -----------------------------------------------------------------------------


def plain_model(_request, _on_text=None):
    return Reply.of_text("plain")


async def text_model(_request, _on_text=None):
    return "words"


async def short_model(_request):
    return Reply.of_text("short")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (plain_model, "returned a Reply that cannot be awaited: define it with `async def`"),
        (text_model, r"the model returned a str \('words'\), not a Reply: return Reply\(blocks"),
    ],
)
def test_a_model_that_answers_in_a_wrong_way_is_told_what_to_write(tmp_path, model, told):
    async def scenario():
        async with manager_of(tmp_path, model) as manager:
            with pytest.raises(ModelGarbage, match=told):
                await manager.turn(ADA, "q")
            assert await manager.history(ADA) == []

    run(scenario())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model": short_model}, r"model cannot be called as a model .*: pass an async function"),
        ({"model": "claude"}, "model is a str: pass an async function"),
        ({"model": Scripted}, "model is the class Scripted: make an object of it"),
        ({"store": 3}, "store is a int: pass a directory's path, a JsonStore"),
        ({"store": JsonStore}, "store is the class JsonStore: pass a directory's path"),
        ({"agents": {"a": {}}}, r"an agent is a dict: pass AgentConfig\(agent_id, model, ...\)"),
        ({"agents": "agents"}, "agents is a str"),
    ],
)
def test_a_manager_of_wrong_parts_is_refused_in_one_sentence(tmp_path, wrong, told):
    parts = {"store": JsonStore(tmp_path), "agents": [AgentConfig("a", "m")], "model": plain_model}
    with pytest.raises(CallerError, match=told):
        SessionManager(**parts | wrong)


def test_the_model_is_told_how_much_of_the_turn_s_time_is_left(tmp_path):
    async def scenario():
        async def model(request, _on_text=None):
            raise ModelUnavailable(f"{0 < request.time_left_s <= 7} {request.cache}")

        async with manager_of(tmp_path, model, cache=True) as manager:
            with pytest.raises(ModelUnavailable, match="True True"):
                await manager.turn(ADA, "q", deadline_s=7)

    run(scenario())


def test_a_recorded_history_says_that_a_reply_was_cut_off(tmp_path):
    marker = "#m0123456789-000001"

    async def scenario(stop_reason):
        reply = Reply((text(f"The dose is at most 5 {marker}"),), stop_reason)
        recorded = OperationList()
        async with manager_of(tmp_path / stop_reason, Scripted(reply)) as manager:
            client = Client(ManagerTarget(manager), recorded)
            await client.turn("p", ADA, marker, f"how much? {marker}")
        return recorded.done[0]

    assert run(scenario("max_tokens")).details.stop_reason == "max_tokens"
    assert run(scenario("end_turn")).details.stop_reason == ""
