"""The server's parts by themselves: what the figures, the census and a silent stream do."""

import asyncio
from datetime import date

import pytest
from house import run
from served import events_of

from kode_lab.claude import SimulatedClaude
from kode_lab.claude.client import Claude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile
from kode_lab.history.operation import echo_in
from kode_lab.history.span import Span
from kode_lab.key import SessionKey
from kode_lab.message import Request, assistant, user
from kode_lab.server.events import EventStream
from kode_lab.server.live_state import BOUNDS_S, LAST_LIMIT, Board, Histogram
from kode_lab.server.refusal import Rejected
from kode_lab.server.session_limit import Census
from kode_lab.sessions import TurnEvent

TODAY = date(2026, 7, 15)
TOOL = {"name": "create_schedule", "description": "Create.", "input_schema": {"type": "object"}}


def key(user_id, session_id="s"):
    return SessionKey(user_id, session_id, "clerk")


def test_a_silent_stream_says_that_it_goes_on_and_a_busy_one_does_not():
    async def scenario():
        stream = EventStream("t1", asyncio.get_running_loop())
        stream.take()
        stream._on_beat()
        assert stream.take() == b""  # something came since the last beat
        stream._on_beat()
        assert stream.take() == b": the turn goes on\n\n"
        stream._on_beat()
        stream._on_beat()
        stream.tell(TurnEvent("text", "x"))
        chunk = stream.take()
        assert chunk.startswith(b": the turn goes on\n\n")
        assert events_of(chunk.decode()) == [("text", {"text": "x"})]
        stream.end_heartbeat()
        stream.end_heartbeat()

    run(scenario())


def test_the_census_asks_the_store_once_for_each_user_that_it_remembers():
    async def scenario():
        asked = []

        async def sessions_of(user_id):
            asked.append(user_id)
            return [key(user_id, f"old{number}") for number in range(2)]

        census = Census(sessions_of, 3, in_flight=lambda _: [key("ada", "new")], remembered_limit=6)
        await census.admit(key("ada", "old0"))
        await census.admit(key("ada", "new"))
        await census.admit(key("ada", "new"))
        with pytest.raises(Rejected, match="sessions_per_user_limit=3"):
            await census.admit(key("ada", "newer"))
        census.forget(key("ada", "new"))
        census.forget(key("ada", "new"))
        await census.admit(key("ada", "newer"))
        assert asked == ["ada"] * 2  # the second time before the refusal
        for user_id in ("bob", "cy", "dee"):  # ada is forgotten, and asked for again
            await census.admit(key(user_id))
        await census.admit(key("ada", "old0"))
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
            await census.admit(key("ada", f"s{number}"))
            begun.append(key("ada", f"s{number}"))

        census = Census(sessions_of, 5, in_flight=lambda _: begun)
        admitted = await asyncio.gather(*map(turn, range(9)), return_exceptions=True)
        assert len(begun) == 5
        assert sum(isinstance(one, Rejected) for one in admitted) == 4
        assert len(asked) == 9 + 1, "whoever is refused together is looked up together"

    run(scenario())


def test_the_board_finds_each_span_its_turn_and_forgets_what_is_old():
    seen = []
    board = Board(seen.append)
    first, second = board.accept(key("ada"), "t"), board.accept(key("ada"), "t")
    spans = [
        Span(key("ada"), "t", step, 1_000_000, 3_000_000)
        for step in ("wait", "ask", "tool", "turn")
    ]
    for span in spans:
        board.see(span)
    assert seen == spans
    assert (first.held_s, first.asks, first.tools) == (0.003, 1, 1)
    assert (second.held_s, second.asks, second.tools) == (None, 0, 0)
    assert board.line(key("ada")) == (first, second)
    board.end(first, "ok")
    board.end(second, "Superseded")
    assert board.line(key("ada")) == ()
    assert board.outcomes == {"ok": 1, "Superseded": 1}
    assert board.last(key("ada")).outcome == "Superseded"
    # A span of a turn that nobody wrote down is passed on all the same.
    board.see(Span(key("bob"), "t", "wait", 0, 1))
    assert len(seen) == 5
    for number in range(LAST_LIMIT):
        board.end(board.accept(key(f"u{number}"), "t"), "ok")
    assert board.last(key("ada")) is None
    assert board.last(key("u0")) is not None


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
