"""The server's parts by themselves: what the figures, the limit and a silent stream do."""

import asyncio
from datetime import date
from types import SimpleNamespace

import pytest
from house import PATIENCE_S, run, until
from served import events_of

from kode_lab.claude import SimulatedClaude
from kode_lab.claude.client import Claude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile
from kode_lab.history.operation import echo_in
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.message import Request, assistant, user
from kode_lab.server.limits import HeldSessions, SessionLimit, file_budget
from kode_lab.server.live_state import BOUNDS_S, LAST_LIMIT, Histogram, LiveState
from kode_lab.server.refusal import Rejected
from kode_lab.server.turns import EventLog
from kode_lab.sessions import TurnEvent

TODAY = date(2026, 7, 15)
TOOL = {"name": "create_schedule", "description": "Create.", "input_schema": {"type": "object"}}


def key(user_id, session_id="s"):
    return SessionKey(user_id, session_id, "clerk")


def test_an_event_log_can_be_read_from_any_event_and_says_when_nothing_comes():
    async def scenario():
        log = EventLog(SimpleNamespace(turn_id="t1", key=key("ada")))
        chunk, last = log.after(0)
        assert (events_of(chunk.decode()), last) == ([("accepted", {"turnId": "t1"})], 1)
        assert not await log.wait(0.001)
        waiting = asyncio.create_task(log.wait(PATIENCE_S))
        await asyncio.sleep(0)
        log.tell(TurnEvent("text", "x"))
        log.tell(TurnEvent("text", "y"))
        assert await waiting
        chunk, last = log.after(1)
        assert (events_of(chunk.decode()), last) == ([("text", {"text": "xy"})], 2)
        assert log.after(2) == (b"", 2)
        assert len(events_of(log.after(9)[0].decode())) == 2  # an id of another stream
        later = EventLog(SimpleNamespace(turn_id="t1", key=key("ada")), 7)
        assert (later.after(0), b"id: 8" in later.after(7)[0]) == (later.after(7), True)

    run(scenario())


def test_turns_of_few_sessions_run_at_once_and_the_others_wait_in_order():
    async def scenario():
        held = HeldSessions(2)
        entered = []

        async def turn(name):
            await held.enter(key(name))
            entered.append(name)

        tasks = [asyncio.create_task(turn(name)) for name in ("a", "a", "b", "c", "d", "a")]
        await until(lambda: len(entered) == 4)
        assert entered == ["a", "a", "b", "a"]  # those of a session that has a place do not wait
        tasks[3].cancel()
        await asyncio.gather(tasks[3], return_exceptions=True)
        held.leave(key("b"))
        await tasks[4]
        assert entered[4:] == ["d"]
        for name in ("a", "a", "a", "d"):
            held.leave(key(name))
        await held.enter(key("e"))
        await held.enter(key("f"))
        held.leave(key("e"))
        held.leave(key("f"))

    run(scenario())


@pytest.mark.parametrize("files", [16, 64, 256, 1_024, 20_000, 1_048_576])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("per_call", [1, 2])
def test_open_files_are_divided_once(files, workers, per_call):
    budget = file_budget(files, workers=workers, files_per_model_call=per_call)
    assert min(budget) >= 1
    spent = budget.connections + 2 * budget.sessions + per_call * budget.model_connections
    if workers > 1:  # to the others, and from them
        spent += 2 * (workers - 1) * budget.peer_connections
    if files >= 64:
        assert spent <= files - min(32, files // 2)
    if files == 1_024 and workers == 1:
        assert (budget.connections > 390, budget.sessions > 190) == (True, True)


def test_the_limit_asks_the_store_once_for_each_user_that_it_remembers():
    async def scenario():
        asked = []

        async def sessions_of(user_id):
            asked.append(user_id)
            return [key(user_id, f"old{number}") for number in range(2)]

        limit = SessionLimit(
            sessions_of, 3, in_flight=lambda _: [key("ada", "new")], remembered_limit=6
        )
        await limit.admit(key("ada", "old0"))
        await limit.admit(key("ada", "new"))
        await limit.admit(key("ada", "new"))
        with pytest.raises(Rejected, match="sessions_per_user_limit=3"):
            await limit.admit(key("ada", "newer"))
        limit.forget(key("ada", "new"))
        limit.forget(key("ada", "new"))
        await limit.admit(key("ada", "newer"))
        assert asked == ["ada"] * 2  # the second time before the refusal
        for user_id in ("bob", "cy", "dee"):  # ada is forgotten, and asked for again
            await limit.admit(key(user_id))
        await limit.admit(key("ada", "old0"))
        assert asked == ["ada", "ada", "bob", "cy", "dee", "ada"]

    run(scenario())


def test_users_that_come_together_are_counted_together():
    async def scenario():
        begun, asked = [], []

        async def sessions_of(user_id):
            asked.append(user_id)
            await asyncio.sleep(0)
            return []

        async def turn(number):
            await limit.admit(key("ada", f"s{number}"))
            begun.append(key("ada", f"s{number}"))

        limit = SessionLimit(sessions_of, 5, in_flight=lambda _: begun)
        admitted = await asyncio.gather(*map(turn, range(9)), return_exceptions=True)
        assert len(begun) == 5
        assert sum(isinstance(one, Rejected) for one in admitted) == 4
        assert len(asked) == 9 + 1, "those refused together are looked up together"

    run(scenario())


def test_the_live_state_finds_each_span_its_turn_and_forgets_what_is_old():
    seen = []
    live_state = LiveState(seen.append)
    first, second = live_state.accept(key("ada"), "t"), live_state.accept(key("ada"), "t")
    spans = [
        Span(key("ada"), "t", step, 1_000_000, 3_000_000)
        for step in ("wait", "ask", "tool", "turn")
    ]
    for span in spans:
        live_state.see(span)
    assert seen == spans
    assert (first.held_s, first.asks, first.tools) == (0.003, 1, 1)
    assert (second.held_s, second.asks, second.tools) == (None, 0, 0)
    assert live_state.queue(key("ada")) == (first, second)
    live_state.end(first, "ok")
    live_state.end(second, "Superseded")
    assert live_state.queue(key("ada")) == ()
    assert live_state.outcomes == {"ok": 1, "Superseded": 1}
    assert live_state.last(key("ada")).outcome == "Superseded"
    # A span of a turn that was not recorded is passed on all the same.
    live_state.see(Span(key("bob"), "t", "wait", 0, 1))
    assert len(seen) == 5
    for number in range(LAST_LIMIT):
        live_state.end(live_state.accept(key(f"u{number}"), "t"), "ok")
    assert live_state.last(key("ada")) is None
    assert live_state.last(key("u0")) is not None


def test_a_histogram_counts_a_bound_to_the_bucket_below_it():
    histogram = Histogram()
    for duration_s in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, BOUNDS_S[-1], 10_000.0):
        histogram.add(duration_s)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-2:] == [1, 1]


@pytest.mark.parametrize(
    "messages",
    [
        [user("hello #m0123456789-000001")],
        [user("Create a meeting tomorrow at 15:00 #m0123456789-000001")],
        [
            user("hello #m0123456789-000001"),
            assistant("hi"),
            user("明天上午创建学习时间 #m0123456789-000002"),
        ],
    ],
)
def test_the_model_in_this_process_says_what_the_one_behind_http_says(messages):
    async def scenario():
        request = Request("claude-sonnet-5-5", "", messages, [TOOL])
        ours = InProcessClaude(today=TODAY)
        async with SimulatedClaude(today=TODAY) as simulated, Claude(simulated.base_url) as claude:
            theirs = await claude(request)
        pieces = []
        for reply in (await ours(request), await ours(request, pieces.append)):
            assert reply.text == theirs.text
            assert reply.stop_reason == theirs.stop_reason
            assert [(call.name, call.input) for call in reply.tool_calls] == [
                (call.name, call.input) for call in theirs.tool_calls
            ]
            assert echo_in(reply.text) == echo_in(theirs.text)
        assert "".join(pieces) == theirs.text
        ids = [call.id for _ in range(3) for call in (await ours(request)).tool_calls]
        assert len(set(ids)) == len(ids)

    run(scenario())


def test_the_model_in_this_process_takes_the_time_that_its_profile_says():
    async def scenario():
        loop = asyncio.get_running_loop()
        model = InProcessClaude(Profile(ttft_s=0.02, token_s=0.002))
        heard = []
        start_s = loop.time()
        reply = await model(
            Request("m", "", [user("hello")]), lambda _: heard.append(loop.time() - start_s)
        )
        tokens = reply.usage.output_tokens
        assert len(heard) == tokens > 5
        assert heard[0] >= 0.02
        assert heard == sorted(heard)
        assert loop.time() - start_s >= 0.02 + 0.002 * tokens

    run(scenario())
