"""The real client against the simulated API: replies, errors, retries, time-outs, limits."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from types import MappingProxyType

import pytest

from kode_lab.claude import Attempt, Claude, Fault, Profile, SimulatedClaude
from kode_lab.errors import (
    CallerError,
    InvalidScenario,
    MissingApiKey,
    ModelGarbage,
    ModelRefused,
    ModelUnavailable,
)
from kode_lab.key import SessionKey
from kode_lab.message import Request, ToolResult, assistant, tool_results, user
from kode_lab.operation import echo_in, marker_of

MODEL = "claude-sonnet-5-5"
TOOL = {
    "name": "create_schedule",
    "description": "Create a schedule.",
    "input_schema": {"type": "object", "properties": {"title": {"type": "string"}}},
}


def ask(prompt: str = "hello", **fields) -> Request:
    return Request(MODEL, "You are brief.", [user(prompt)], **fields)


def against(scenario, *, server=None, **options):
    """Run ``scenario(claude, simulated)`` with the real client opened on a simulated API."""

    async def main():
        async with (
            SimulatedClaude(**(server or {})) as simulated,
            Claude(simulated.base_url, **options) as claude,
        ):
            return await scenario(claude, simulated)

    return asyncio.run(main())


async def until(holds):
    """Let everything run until this holds of the server's state; it tells nobody by itself."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


def failing(fault: Fault, request: Request | None = None, on_text=None, **options):
    """Give the error that a call ends with when this goes wrong."""

    async def scenario(claude, _):
        with pytest.raises(Exception, match=r"\w") as raised:
            await claude(request or ask(), on_text)
        return raised.value

    return against(scenario, server={"faults": [fault]}, **options)


def test_a_streamed_reply_is_the_plain_reply_in_pieces():
    async def scenario(claude, _):
        pieces = []
        plain = await claude(ask())
        streamed = await claude(ask(), pieces.append)
        return plain, streamed, pieces

    plain, streamed, pieces = against(scenario)
    assert len(pieces) > 3
    assert "".join(pieces) == plain.text == streamed.text
    assert plain.content == streamed.content
    assert plain.usage == streamed.usage
    assert plain.usage.input_tokens > 0
    assert plain.usage.output_tokens > 0
    assert plain.stop_reason == streamed.stop_reason == "end_turn"
    assert plain.model == MODEL
    assert plain.id != streamed.id


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_turn_with_tools_goes_from_calls_over_results_to_an_answer(is_streamed):
    async def scenario(claude, _):
        on_text = [].append if is_streamed else None
        request = ask("create lunch today and dinner tomorrow", tools=[TOOL])
        first = await claude(request, on_text)
        assert first.stop_reason == "tool_use"
        results = [
            ToolResult(call.id, f'{{"schedule_id": {13039 + number}, "title": "x"}}')
            for number, call in enumerate(first.tool_calls)
        ]
        messages = [*request.messages, assistant(first.content), tool_results(results)]
        return first, await claude(request._replace(messages=messages), on_text)

    first, last = against(scenario)
    assert [call.name for call in first.tool_calls] == ["create_schedule"] * 2
    assert [call.input["title"] for call in first.tool_calls] == ["lunch", "dinner"]
    assert len({call.id for call in first.tool_calls}) == 2
    assert last.stop_reason == "end_turn"
    assert "13039" in last.text
    assert "13040" in last.text


def test_read_only_tools_and_tuples_can_be_sent():
    tool = MappingProxyType({**TOOL, "input_schema": MappingProxyType(TOOL["input_schema"])})

    async def scenario(claude, _):
        request = ask("create lunch", tools=(tool,))
        return await claude(request._replace(messages=tuple(request.messages)))

    assert against(scenario).stop_reason == "tool_use"


def test_text_that_is_not_unicode_is_refused_before_it_is_sent():
    async def scenario(claude, simulated):
        with pytest.raises(ModelRefused, match="cannot be written as JSON"):
            await claude(ask("half \ud800 a pair"))
        return simulated.statistics().requests

    assert against(scenario) == 0


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", ModelRefused),
        (401, "authentication_error", ModelRefused),
        (403, "permission_error", ModelRefused),
        (404, "not_found_error", ModelRefused),
        (413, "request_too_large", ModelRefused),
        (422, "invalid_request_error", ModelRefused),
        (409, "invalid_request_error", ModelUnavailable),
        (429, "rate_limit_error", ModelUnavailable),
        (500, "api_error", ModelUnavailable),
        (504, "timeout_error", ModelUnavailable),
        (529, "overloaded_error", ModelUnavailable),
    ],
)
def test_each_error_status_says_its_type_its_request_and_what_to_do(status, kind, error):
    raised = failing(Fault("status", status=status))
    assert type(raised) is error
    assert f"{status} {kind}" in str(raised)
    assert "(request req_sim" in str(raised)
    assert "; " in str(raised)


def test_a_rate_limit_says_how_long_to_wait():
    raised = failing(Fault("status", status=429, retry_after_s=7.5))
    assert raised.retry_after_s == 7.5
    assert failing(Fault("status", status=429)).retry_after_s is None


@pytest.mark.parametrize(
    ("status", "error"), [(529, ModelUnavailable), (500, ModelUnavailable), (400, ModelRefused)]
)
def test_an_error_inside_a_stream_is_told_by_its_type_though_the_status_is_200(status, error):
    pieces = []
    raised = failing(Fault("error_event", status=status, after_events=5), on_text=pieces.append)
    assert type(raised) is error
    assert "broke off its stream" in str(raised)
    assert pieces


@pytest.mark.parametrize("events", [0, 1, 4, 9])
@pytest.mark.parametrize("kind", ["cut", "end_early"])
def test_a_stream_that_ends_before_its_end_is_no_reply(kind, events):
    raised = failing(Fault(kind, after_events=events), on_text=lambda _: None)
    assert type(raised) is ModelUnavailable
    assert "send again" in str(raised)


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_connection_that_is_dropped_is_no_reply(kind):
    assert type(failing(Fault(kind))) is ModelUnavailable


@pytest.mark.parametrize("on_text", [None, lambda _: None])
def test_garbage_is_told_as_garbage_with_the_request_id(on_text):
    raised = failing(Fault("garbage"), on_text=on_text)
    assert type(raised) is ModelGarbage
    assert "(request req_sim" in str(raised)


def test_nobody_at_the_address_is_told_with_the_address():
    async def scenario():
        async with SimulatedClaude() as simulated:
            gone = simulated.base_url
        async with Claude(gone) as claude:
            with pytest.raises(ModelUnavailable, match="check the address") as raised:
                await claude(ask())
        assert gone in str(raised.value)

    asyncio.run(scenario())


@pytest.mark.parametrize("on_text", [None, lambda _: None])
def test_a_call_that_takes_too_long_ends_with_the_name_of_its_limit(on_text):
    raised = failing(Fault("hang"), on_text=on_text, timeout_s=0.05)
    assert type(raised) is ModelUnavailable
    assert "timeout_s=0.05" in str(raised)


def test_a_request_may_shorten_the_time_out_but_not_lengthen_it():
    assert "timeout_s=0.05" in str(failing(Fault("hang"), ask(timeout_s=0.05)))
    assert "timeout_s=0.05" in str(failing(Fault("hang"), ask(timeout_s=9.0), timeout_s=0.05))


def test_nothing_is_repeated_unless_it_was_asked_for():
    async def scenario(claude, simulated):
        with pytest.raises(ModelUnavailable):
            await claude(ask())
        return simulated.statistics().requests, claude.statistics().attempts

    assert against(scenario, server={"faults": [Fault("status")]}) == (1, 1)


def test_every_attempt_of_a_retried_call_is_told():
    attempts: list[Attempt] = []
    faults = [Fault("status", status=529, retry_after_s=0.0, times=2)]

    async def scenario(claude, simulated):
        reply = await claude(ask())
        return reply, simulated.statistics().requests, claude.statistics()

    reply, requests, statistics = against(
        scenario, server={"faults": faults}, retries=3, on_attempt=attempts.append
    )
    assert reply.stop_reason == "end_turn"
    assert requests == statistics.attempts == len(attempts) == 3
    assert statistics.calls == 1
    assert [attempt.number for attempt in attempts] == [0, 1, 2]
    assert [attempt.pause_s for attempt in attempts] == [0.0, 0.0, None]
    assert ["529" in attempt.error for attempt in attempts] == [True, True, False]
    assert attempts[-1].error == ""


def test_a_retry_ends_at_its_limit_with_the_last_error():
    attempts: list[Attempt] = []

    async def scenario(claude, _):
        with pytest.raises(ModelUnavailable, match="500"):
            await claude(ask())

    fault = Fault("status", times=None, retry_after_s=0.0)
    against(scenario, server={"faults": [fault]}, retries=2, on_attempt=attempts.append)
    assert [attempt.pause_s for attempt in attempts] == [0.0, 0.0, None]


def test_a_wrong_request_is_not_repeated():
    attempts: list[Attempt] = []

    async def scenario(claude, _):
        with pytest.raises(ModelRefused):
            await claude(ask()._replace(messages=[assistant("me first")]))

    against(scenario, retries=5, on_attempt=attempts.append)
    assert len(attempts) == 1


def test_a_stream_that_has_spoken_is_not_repeated_because_it_would_say_it_twice():
    pieces: list[str] = []

    async def scenario(claude, simulated):
        with pytest.raises(ModelUnavailable):
            await claude(ask(), pieces.append)
        return simulated.statistics().requests

    server = {"faults": [Fault("cut", after_events=5)]}
    assert against(scenario, server=server, retries=3) == 1
    assert pieces


def test_a_stream_that_breaks_before_its_first_word_is_repeated():
    async def scenario(claude, simulated):
        pieces = []
        reply = await claude(ask(), pieces.append)
        assert "".join(pieces) == reply.text
        return simulated.statistics().requests

    server = {"faults": [Fault("error_event", status=529, after_events=1, retry_after_s=0.0)]}
    assert against(scenario, server=server, retries=1) == 2


def test_a_real_model_needs_a_key(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(MissingApiKey, match="ANTHROPIC_API_KEY"):
        Claude()


def test_the_key_of_the_environment_is_not_shown_to_another_address(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")

    async def scenario(claude, _):
        with pytest.raises(ModelRefused, match="401"):
            await claude(ask())

    against(scenario, server={"api_key": "secret"})


def test_a_key_that_is_given_is_the_key_that_is_sent():
    async def scenario(claude, _):
        return await claude(ask())

    reply = against(scenario, server={"api_key": "right"}, api_key="right")
    assert reply.stop_reason == "end_turn"


@pytest.mark.parametrize(
    "limits", [{"concurrency": 0}, {"timeout_s": 0}, {"retries": -1}, {"retries": 11}]
)
def test_limits_that_make_no_sense_are_refused_at_once(limits):
    with pytest.raises(InvalidScenario, match="RETRIES_LIMIT=10"):
        Claude("http://127.0.0.1:1", **limits)


def test_a_client_that_is_not_open_says_how_to_open_it():
    async def scenario():
        with pytest.raises(CallerError, match="async with"):
            await Claude("http://127.0.0.1:1")(ask())

    asyncio.run(scenario())


def test_a_client_of_another_event_loop_is_refused_rather_than_broken():
    claude = Claude("http://127.0.0.1:1")
    asyncio.run(claude.__aenter__())

    async def scenario():
        with pytest.raises(CallerError, match="another event loop"):
            await claude(ask())
        await claude.__aexit__(None, None, None)

    asyncio.run(scenario())


def test_a_temperature_is_sent_under_the_api_version_that_knows_one():
    async def scenario(claude, simulated):
        reply = await claude(ask(temperature=0.5))
        assert reply.stop_reason == "end_turn"
        with pytest.raises(ModelRefused, match="temperature"):
            await claude(ask(temperature=1.5))
        return simulated.records()

    assert [record.status for record in against(scenario)] == [200, 400]


def test_as_many_calls_as_asked_for_are_under_way_at_once_and_further_ones_wait():
    async def scenario(claude, simulated):
        calls = [asyncio.create_task(claude(ask())) for _ in range(60)]
        await until(lambda: simulated.statistics().in_flight == 50)
        # Give a 51st every chance to come.
        for _ in range(200):
            await asyncio.sleep(0)
        assert simulated.statistics().in_flight == 50
        assert claude.statistics().in_flight == 60
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert claude.statistics().in_flight == 0

    against(scenario, server={"faults": [Fault("hang", times=None)]}, concurrency=50)


def test_after_any_cancel_each_reply_still_belongs_to_its_own_prompt():
    """A connection that a cancelled call leaves behind must not answer the next one."""
    key = SessionKey.of("ada", "agent")
    chance = random.Random(7)

    async def one(claude, number):
        marker = marker_of(key, number)
        on_text = (lambda _: None) if number % 2 else None
        call = asyncio.create_task(claude(ask(f"hello {marker}"), on_text))
        if chance.random() < 0.5:
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            call.cancel()
        try:
            reply = await call
        except asyncio.CancelledError:
            return 0
        assert echo_in(reply.text)[0] == marker
        return 1

    async def scenario(claude, _):
        answered = 0
        for round_ in range(10):
            answered += sum(
                await asyncio.gather(*(one(claude, round_ * 20 + n) for n in range(20)))
            )
        return answered

    answered = against(scenario, concurrency=3)
    assert 50 < answered < 200


def test_warming_up_opens_connections_without_asking_the_model():
    async def scenario(claude, simulated):
        await claude.warm_up(3)
        return simulated.statistics().requests

    assert against(scenario) == 0


def test_warming_up_against_a_wrong_key_is_refused():
    async def scenario(claude, _):
        with pytest.raises(ModelRefused, match="401"):
            await claude.warm_up()

    against(scenario, server={"api_key": "right"})


def test_importing_the_package_does_not_import_the_sdk():
    code = (
        "import sys, kode_lab.claude; "
        "print([m for m in ('anthropic', 'httpx2', 'aiohttp', 'uvicorn', 'pydantic')"
        " if m in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout == "[]\n"


def test_a_slow_first_token_delays_the_reply_and_nothing_else():
    async def scenario(claude, simulated):
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        await claude(ask())
        return loop.time() - begin_s, simulated.records()[0]

    took_s, record = against(scenario, server={"profile": Profile(ttft_s=0.05)})
    assert record.latency_s == 0.05
    assert took_s >= 0.05
