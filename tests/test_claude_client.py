"""The real client against the simulated API: replies, keys, limits, its life."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from types import MappingProxyType

import pytest
from simulated_http import MODEL, TOOL, against, ask, until

from kode_lab.claude import Claude, Fault, Profile
from kode_lab.claude.client import _body_of
from kode_lab.errors import (
    CallerError,
    InvalidScenario,
    MissingApiKey,
    ModelRefused,
)
from kode_lab.history.operation import echo_in, marker_of
from kode_lab.key import SessionKey
from kode_lab.message import ToolResult, assistant, tool_results


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


def test_marks_of_the_prompt_cache_leave_the_prefix_and_the_caller_s_messages_as_they_are():
    request = ask()._replace(system="be brief", cache=True, tools=[TOOL])
    longer = request._replace(
        messages=[*request.messages, assistant("hi"), *ask("and now?").messages]
    )
    before = json.dumps(longer.messages)
    first, second = (json.loads(_body_of(one, is_stream=False)) for one in (request, longer))
    mark = {"type": "ephemeral"}
    assert first["system"] == second["system"]
    assert first["system"][0]["cache_control"] == mark
    assert first["messages"][-1]["content"][-1].pop("cache_control") == mark
    assert second["messages"][-1]["content"][-1].pop("cache_control") == mark
    assert first["messages"] == second["messages"][:1]
    assert json.dumps(longer.messages) == before
    assert "cache_control" not in _body_of(request._replace(cache=False), is_stream=False).decode()


def test_text_that_is_not_unicode_is_refused_before_it_is_sent():
    async def scenario(claude, simulated):
        with pytest.raises(ModelRefused, match="cannot be written as JSON"):
            await claude(ask("half \ud800 a pair"))
        return simulated.statistics().requests

    assert against(scenario) == 0


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


def test_no_piece_of_a_stream_comes_before_its_moment():
    async def scenario(claude, _):
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        moments_s = []
        await claude(ask(), lambda _: moments_s.append(loop.time() - begin_s))
        return moments_s, loop.time() - begin_s

    moments_s, took_s = against(scenario, server={"profile": Profile(ttft_s=0.02, token_s=0.004)})
    pieces = len(moments_s)
    assert pieces > 5
    for number, moment_s in enumerate(moments_s):
        assert moment_s >= 0.02 + 0.004 * pieces * number / (pieces - 1)
    assert took_s >= 0.02 + 0.004 * pieces


def test_a_slow_answer_takes_the_longer_that_was_asked_for():
    async def scenario(claude, simulated):
        await claude(ask())
        await claude(ask())
        return [record.latency_s for record in simulated.records()]

    server = {"profile": Profile(speed=2.0), "faults": [Fault("slow", delay_s=0.04)]}
    assert against(scenario, server=server) == [0.02, 0.0]


def test_a_slow_first_token_delays_the_reply_and_nothing_else():
    async def scenario(claude, simulated):
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        await claude(ask())
        return loop.time() - begin_s, simulated.records()[0]

    took_s, record = against(scenario, server={"profile": Profile(ttft_s=0.05)})
    assert record.latency_s == 0.05
    assert took_s >= 0.05
