"""The scripted assistant acts on the conversation it is sent; pure functions, no network."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kode_lab.claude.conversation import shown_to
from kode_lab.claude.formats.messages import MessagesFormat
from kode_lab.claude.formats.seam import ApiError
from kode_lab.claude.legality import problem_of
from kode_lab.claude.script import plan_of
from kode_lab.history.operation import Read, digest_of, echo_in, echo_of, marker_of
from kode_lab.key import SessionKey
from kode_lab.message import ToolResult, assistant, tool_results, user

# A busy machine must not fail a test.
SURE = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))

TODAY = date(2026, 3, 2)
NAMES = ("create_schedule", "query_schedules", "update_schedule", "delete_schedule")
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in NAMES]
ADA = SessionKey.of("ada", "agent")
BOB = SessionKey.of("bob", "agent")
MARKERS = st.builds(marker_of, st.sampled_from([ADA, BOB]), st.integers(0, 10**7))
READS = st.builds(
    Read,
    st.integers(0, 10**9),
    st.integers(0, 2**64 - 1),
    *[st.lists(MARKERS, max_size=4).map(tuple)] * 4,
    st.just(False),  # an echo tells neither a window ...
    st.none(),  # ... nor a list
)


HEADERS = {b"anthropic-version": b"2026-10-21"}
FORMAT = MessagesFormat()


def received(body):
    """Return what the Messages format makes of a body that came as bytes."""
    return FORMAT.receive(json.dumps(body).encode(), HEADERS, "/v1/messages")


def plan(*messages, tools=TOOLS, **fields):
    body = {"model": "m", "max_tokens": 1, "messages": list(messages), "tools": tools, **fields}
    return plan_of(received(body), TODAY)


def converse(prompt, use, before=()):
    """Play a whole turn: give every plan, with each call answered by ``use(name, input)``."""
    messages = [*before, user(prompt)]
    plans = []
    for _ in range(30):
        body = {"model": "m", "max_tokens": 1, "messages": messages, "tools": TOOLS}
        assert problem_of(body, "2026-10-21") is None
        plans.append(plan_of(received(body), TODAY))
        if not plans[-1].calls:
            messages.append(assistant(plans[-1].text))
            return plans, messages
        calls = [
            {
                "type": "tool_use",
                "name": name,
                "input": given,
                "id": f"toolu_{len(messages)}_{number}",
            }
            for number, (name, given) in enumerate(plans[-1].calls)
        ]
        results = [
            ToolResult(call["id"], json.dumps(use(call["name"], call["input"]))) for call in calls
        ]
        messages += [assistant(calls), tool_results(results)]
    raise AssertionError("the turn does not end")


def made(prompt):
    return list(plan(user(prompt)).calls)


@pytest.mark.parametrize(
    ("prompt", "title", "start"),
    [
        ("Create a meeting this afternoon", "meeting", "2026-03-02T15:00"),
        ("create study time tomorrow morning", "study time", "2026-03-03T09:00"),
        (
            "Create a schedule: project review on 2026-05-06 at 14:30.",
            "project review",
            "2026-05-06T14:30",
        ),
        ("Please create a schedule for me: lunch at 1 pm", "lunch", "2026-03-02T13:00"),
        ('add "bread and butter" the day after tomorrow', "bread and butter", "2026-03-04T09:00"),
        ("schedule a call", "call", "2026-03-02T09:00"),
        ("创建今天下午会议", "会议", "2026-03-02T15:00"),
        ("创建明天上午学习", "学习", "2026-03-03T09:00"),
        ("帮我创建一个日程：今天下午3点半开会", "开会", "2026-03-02T15:30"),
    ],
)
def test_a_creation_takes_title_and_time_from_the_prompt(prompt, title, start):
    assert made(prompt) == [("create_schedule", {"title": title, "start": start})]


def test_several_creations_are_asked_for_in_one_reply():
    assert made('create a meeting at 10:00 and "tea and cake" tomorrow evening') == [
        ("create_schedule", {"title": "meeting", "start": "2026-03-02T10:00"}),
        ("create_schedule", {"title": "tea and cake", "start": "2026-03-03T19:00"}),
    ]
    assert [given["title"] for _, given in made("create A and B")] == ["A", "B"]
    assert len(made("create " + " and ".join(f"x{n}" for n in range(50)))) == 8


def test_the_answer_to_a_creation_names_what_the_tool_said():
    plans, _ = converse(
        "create lunch and dinner",
        lambda _, given: {"schedule_id": 700 + len(given["title"]), **given},
    )
    assert [p.call for p in plans] == [0, 1]
    assert "705" in plans[-1].text
    assert "706" in plans[-1].text
    chinese, _ = converse("创建会议", lambda _, given: {"schedule_id": 13039, **given})
    assert "已创建日程 13039" in chinese[-1].text


def test_a_query_asks_day_by_day_eight_times_and_sums_up_what_it_was_given():
    days = []

    def use(name, given):
        assert name == "query_schedules"
        days.append(given["day"])
        schedule = {"schedule_id": 13039, "title": "party", "start": "2026-04-02T20:00"}
        return {"count": 1, "schedules": [schedule] if given["day"] == "2026-04-02" else []}

    plans, _ = converse("Query my schedules from 2026-04-01 on", use)
    assert [len(p.calls) for p in plans] == [1] * 8 + [0]
    assert days == [f"2026-04-{day:02d}" for day in range(1, 9)]
    assert "1 schedules" in plans[-1].text
    assert "13039 (party" in plans[-1].text


def test_a_query_may_say_for_how_many_days():
    plans, _ = converse("list my schedules for 2 days", lambda *_: {"schedules": []})
    assert [len(p.calls) for p in plans] == [1, 1, 0]
    assert "none" in plans[-1].text


def test_a_change_concerns_the_schedule_that_the_prompt_names():
    assert made("move 13040 to tomorrow 10:00") == [
        ("update_schedule", {"schedule_id": 13040, "start": "2026-03-03T10:00"})
    ]
    assert made('rename 13040 to "tea"') == [
        ("update_schedule", {"schedule_id": 13040, "title": "tea"})
    ]
    assert made("删除 13041") == [("delete_schedule", {"schedule_id": 13041})]


def test_a_change_without_an_id_concerns_what_the_conversation_told_of_last():
    _, before = converse("create lunch", lambda _, given: {"schedule_id": 13050, **given})
    plans, _ = converse("delete it", lambda _, given: {"deleted": given}, before)
    assert plans[0].calls[0][1] == {"schedule_id": 13050}
    assert plans[-1].text.startswith("Done")


def test_a_change_without_any_id_looks_first_and_owns_up_to_finding_nothing():
    plans, _ = converse("cancel the lunch tomorrow", lambda *_: {"schedules": []})
    assert plans[0].calls[0][1] == {"day": "2026-03-03"}
    assert not plans[-1].calls
    assert "no schedule" in plans[-1].text


def test_a_failed_tool_is_told_and_not_tried_again():
    call = {"type": "tool_use", "id": "toolu_1", "name": "create_schedule", "input": {}}
    result = ToolResult("toolu_1", "the book is full", is_error=True)
    answer = plan(user("create lunch"), assistant([call]), tool_results([result]))
    assert not answer.calls
    assert "create_schedule failed: the book is full" in answer.text


def test_only_tools_that_are_offered_are_asked_for():
    assert not plan(user("create lunch"), tools=TOOLS[1:]).calls
    assert not plan(user("create lunch"), tools=[]).calls
    assert not plan(user("create lunch"), tool_choice={"type": "none"}).calls


def test_small_talk_tells_how_many_earlier_prompts_it_was_shown():
    conversation = [user("one"), assistant("1"), user("two"), assistant("2"), user("three")]
    assert "2 earlier prompts" in plan(*conversation).text
    assert "0 earlier prompts" in plan(conversation[-1]).text


def test_the_marker_is_no_part_of_the_title():
    marker = marker_of(ADA, 7)
    assert made(f"create lunch today {marker}")[0][1]["title"] == "lunch"
    assert made(f"创建今天下午会议 {marker}")[0][1]["title"] == "会议"


def test_what_was_shown_is_read_from_the_texts_of_the_user_only():
    a1, a2, a3, b1 = *(marker_of(ADA, n) for n in (1, 2, 3)), marker_of(BOB, 1)
    call = {"type": "tool_use", "id": "toolu_1", "name": "create_schedule", "input": {"t": b1}}
    shown = shown_to(
        [
            user(a1),
            assistant([call]),
            tool_results([ToolResult("toolu_1", b1)]),
            assistant(f"done {b1}"),
            {"role": "user", "content": a2},
            assistant("fine"),
            user(a3),
        ]
    )
    assert shown == (a3, Read(2, digest_of([a1, a2]), (a1, a2)))
    assert shown_to([user("hello")]) is None


def test_a_turn_without_its_final_reply_was_shown_by_half():
    a1, a2, a3 = (marker_of(ADA, n) for n in (1, 2, 3))
    call = {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {}}
    begun = [user(a2), assistant([call]), tool_results([ToolResult("toolu_1", "x")])]
    whole = [*begun, assistant("done")]
    first = [user(a1), assistant("hi")]
    assert shown_to([*first, *whole, user(a3)])[1].half == ()
    assert shown_to([*first, *begun, user(a3)])[1].half == (a2,)
    assert shown_to([user(a1), user(a2), user(a3)])[1].half == (a1, a2)
    # The turn's own prompt is under way, however often it stands there.
    assert shown_to([*first, user(a3), user(a3)])[1].half == ()
    assert shown_to([*first, user(a3), assistant([call])])[1].half == ()
    # Another session's half turn is a leak, which is told as such.
    assert shown_to([user(marker_of(BOB, 1)), user(a3)])[1].half == ()


@SURE
@given(MARKERS, READS, st.text(max_size=80), st.text(max_size=80))
def test_an_echo_tells_what_was_shown_in_any_surroundings(own, read, before, after):
    assert echo_in(before + echo_of(own, read) + after) == (own, read)


@SURE
@given(MARKERS, READS, MARKERS, READS)
def test_the_last_of_two_echoes_counts(own, read, other, earlier):
    assert echo_in(f"{echo_of(other, earlier)} and {echo_of(own, read)}") == (own, read)


@SURE
@given(st.text(max_size=200))
def test_a_text_without_an_echo_has_none(text):
    assert echo_in(text) is None
    assert echo_in(f"[{marker_of(ADA, 1)} read]{text}") is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "id", "name", "input", "tool_use_id"]
            ),
            inner | st.sampled_from(["user", "assistant", "text", "tool_use", "tool_result"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)
FIELDS = ["model", "messages", "max_tokens", "tools", "tool_choice", "system", "stream", "extra"]


@SURE
@given(VALUES | st.dictionaries(st.sampled_from(FIELDS), VALUES), st.booleans())
def test_no_body_breaks_the_rules_and_what_they_let_pass_is_answered(body, is_count):
    path = "/v1/messages/count_tokens" if is_count else "/v1/messages"
    answer = FORMAT.receive(json.dumps(body).encode(), HEADERS, path)
    if isinstance(answer, ApiError):
        assert answer.status in (400, 404)
        assert answer.message
    else:
        answer_plan = plan_of(answer, TODAY)
        assert answer_plan.text or answer_plan.calls


@SURE
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_no_messages_break_the_rules_and_what_they_let_pass_is_answered(messages):
    messages = [
        message | {"role": message.get("role", "user")} if isinstance(message, dict) else message
        for message in messages
    ]
    body = {"model": "m", "max_tokens": 1, "messages": messages}
    answer = received(body)
    if isinstance(answer, ApiError):
        assert answer.status == 400
    else:
        plan_of(answer, TODAY)
        shown_to(messages)


PROMPTS = st.text(max_size=60) | st.builds(
    lambda verb, rest: f"{verb} {rest}",
    st.sampled_from(["create", "query", "update", "delete", "创建", "查询", "修改", "删除"]),
    st.text(max_size=60),
)


@SURE
@given(PROMPTS.filter(str.strip), st.text(max_size=40))
def test_with_any_prompt_and_any_tool_answers_the_turn_stays_legal_and_ends(prompt, said):
    plans, _ = converse(prompt, lambda *_: said)
    assert plans[-1].text
    assert plans == converse(prompt, lambda *_: said)[0]
