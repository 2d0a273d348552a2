"""The real client when things go wrong: each error, broken streams, retries, time-outs."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_http import against, ask, failing

from kode_lab.claude import Attempt, Claude, Fault, SimulatedClaude
from kode_lab.claude.failure import RETRY_AFTER_LIMIT_S, retry_after_s
from kode_lab.errors import (
    ModelGarbage,
    ModelRefused,
    ModelUnavailable,
)
from kode_lab.message import assistant

# A busy machine must not fail a test.
SURE = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


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


def test_a_missing_server_is_told_with_its_address():
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
    assert attempts[-1].pause_s is None
    assert all(0.1 <= attempt.pause_s <= 0.1 + 0.5 * 2**attempt.number for attempt in attempts[:2])
    assert ["529" in attempt.error for attempt in attempts] == [True, True, False]
    assert attempts[-1].error == ""


def test_a_retry_ends_at_its_limit_with_the_last_error():
    attempts: list[Attempt] = []

    async def scenario(claude, _):
        with pytest.raises(ModelUnavailable, match="500"):
            await claude(ask())

    fault = Fault("status", times=None, retry_after_s=0.0)
    against(scenario, server={"faults": [fault]}, retries=2, on_attempt=attempts.append)
    assert [attempt.pause_s is None for attempt in attempts] == [False, False, True]


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


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7.5"}, 7.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, RETRY_AFTER_LIMIT_S),
        ({"retry-after": "1e300"}, RETRY_AFTER_LIMIT_S),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 99 Oct 99999999999999 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_every_form_of_retry_after_is_read_and_what_cannot_be_meant_is_none(headers, seconds):
    assert retry_after_s(headers) == seconds


@given(st.text(max_size=40))
@settings(SURE, max_examples=50)
def test_for_anything_a_service_writes_the_wait_is_finite_or_none(value):
    for name in ("retry-after", "retry-after-ms"):
        found = retry_after_s({name: value})
        assert found is None or 0 <= found <= RETRY_AFTER_LIMIT_S


@given(
    number=st.integers(0, 10),
    asked_s=st.none() | st.floats(0, RETRY_AFTER_LIMIT_S),
    left_s=st.floats(-10, 1e6),
    seed=st.integers(0, 5),
)
@settings(SURE, max_examples=50)
def test_a_pause_is_above_what_was_asked_and_inside_what_is_left(number, asked_s, left_s, seed):
    pause_s = Claude("http://127.0.0.1:1", seed=seed)._pause_s(number, asked_s, left_s)
    least_s = max(0.1, asked_s or 0.0)
    if pause_s is None:
        assert least_s >= left_s
    else:
        assert least_s <= pause_s < left_s
        assert pause_s <= least_s + 8.0


def test_sessions_that_were_refused_together_do_not_come_back_together():
    pauses = [Claude("http://127.0.0.1:1")._pause_s(0, 1.0, 300.0) for _ in range(40)]
    assert max(pauses) - min(pauses) > 0.5
    assert min(pauses) >= 1.0


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date", "both"])
def test_a_wait_that_does_not_fit_into_the_turn_fails_at_once_and_is_passed_on(form):
    attempts: list[Attempt] = []

    async def scenario(claude, _):
        with pytest.raises(ModelUnavailable, match=r"it asks to wait .* s, and .* s are left") as e:
            await claude(ask(time_left_s=30.0))
        return e.value

    fault = Fault("status", status=429, times=None, retry_after_s=600.0, retry_form=form)
    error = against(scenario, server={"faults": [fault]}, retries=5, on_attempt=attempts.append)
    assert 590 < error.retry_after_s <= 600
    assert [attempt.pause_s for attempt in attempts] == [None]
