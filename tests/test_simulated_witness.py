"""What the simulated model remembers of the conversations it was shown."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_http import TOOL, asked, http, serving

from kode_lab.claude.conversation import Conversation, conversation_of, shown_to
from kode_lab.claude.prefixes import Prefixes
from kode_lab.claude.records import CALLS_PER_TURN_LIMIT, Records
from kode_lab.history.operation import Read, digest_of, echo_of, marker_of, read_of
from kode_lab.key import SessionKey
from kode_lab.message import ToolResult, assistant, tool_results, user

# A busy machine must not fail a test.
SURE = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))

ADA, BOB = SessionKey.of("ada", "agent"), SessionKey.of("bob", "agent")
A1, A2, A3, B1 = (*(marker_of(ADA, n) for n in (1, 2, 3)), marker_of(BOB, 1))
CALL = {"type": "tool_use", "id": "toolu_1", "name": "create_schedule", "input": {}}


async def post(simulated, *messages, **fields):
    status, _, body = await http(simulated, "POST", "/v1/messages", asked(*messages, **fields))
    return status, json.loads(body)


async def turn_of(simulated, marker):
    return json.loads((await http(simulated, "GET", f"/lab/turns/{quote(marker)}"))[2])


def test_a_turn_collects_its_calls_and_retries_and_tells_them_apart():
    async def scenario(simulated):
        first = [user(f"create lunch {A1}")]
        tools = {"tools": [TOOL]}
        await post(simulated, *first, **tools)
        await post(simulated, *first, **tools)
        done = tool_results([ToolResult("toolu_1", '{"schedule_id": 7}')])
        await post(simulated, *first, assistant([CALL]), done, **tools)
        return await turn_of(simulated, A1), simulated.turn(A1)

    told, turn = serving(scenario)
    assert (told["requests"], told["attempts"]) == (3, 2)
    assert [(c["call"], c["attempt"], c["status"]) for c in told["calls"]] == [
        (0, 1, 200),
        (0, 2, 200),
        (1, 1, 200),
    ]
    assert all(c["arrivedNs"] <= c["answeredNs"] for c in told["calls"])
    assert [c["number"] for c in told["calls"]] == [1, 2, 3]
    assert turn.read == Read(0, 0)
    assert turn.calls[0].read is turn.calls[2].read


def test_reminders_system_texts_and_tool_results_are_mentions_and_no_prompts():
    blocks = [
        {"type": "text", "text": f"<system-reminder>as {B1} said</system-reminder>"},
        {"type": "text", "text": f"hello {A2}"},
        {"type": "text", "text": "<system-reminder>be brief</system-reminder>"},
    ]
    messages = [
        user(f"hi {A1}"),
        assistant("hi"),
        {"role": "user", "content": blocks},
        {"role": "system", "content": "The time has changed."},
    ]

    async def scenario(simulated):
        _, body = await post(simulated, *messages, system=f"You know {A3}.")
        return body, simulated.turn(A2).calls[0]

    body, call = serving(scenario)
    assert call.read == Read(1, digest_of([A1]), (A1,))
    assert set(call.mentions) == {B1, A3}
    assert body["content"][0]["text"].startswith("You said: hello.")


def test_a_side_request_without_tools_does_not_stand_for_the_turn():
    async def scenario(simulated):
        await post(simulated, user(f"Make a title of: hello {A2}"))
        await post(simulated, user(A1), assistant("hi"), user(f"hello {A2}"), tools=[TOOL])
        return simulated.read(A2)

    assert serving(scenario).position == 1


def test_replies_are_counted_by_their_echoes():
    echo = echo_of(A1, Read(0, 0))
    fold = conversation_of([user(A1), assistant(f"hi\n{echo}"), user(A2)])
    assert fold.replies == 1
    assert fold.replies_digest == digest_of([A1])
    assert fold.mentions == ()


def test_a_transcript_within_one_prompt_is_read_without_its_echoes():
    echo = echo_of(A1, Read(0, 0))
    marker, read = shown_to([user(f"So far:\nuser: {A1}\nassistant: hi {echo}\nuser: {A2}")])
    assert (marker, read.position, read.tail) == (A2, 1, (A1,))


def test_calls_are_paged_in_the_order_of_arrival():
    async def scenario(simulated):
        for marker in (A1, A2, A3):
            await post(simulated, user(marker))
        pages, after = [], 0
        for _ in range(4):
            path = f"/lab/calls?after={after}&limit=2"
            page = json.loads((await http(simulated, "GET", path))[2])
            pages.append([call["marker"] for call in page["calls"]])
            after = page["next"]
        wrong, _, _ = await http(simulated, "GET", "/lab/calls?limit=0")
        return pages, wrong

    assert serving(scenario) == ([[A1, A2], [A3], [], []], 400)


def test_the_memory_is_bounded_by_turns_and_by_calls_of_a_turn():
    records = Records(reads_limit=3)
    for number in range(50):
        for _ in range(CALLS_PER_TURN_LIMIT + 1):
            call = records.arrive("r")
            call.marker, call.read = marker_of(ADA, number), Read(0, 0)
            records.show(call)
            records.leave(call, 200)
    assert len(records.turns()) <= 3
    assert all(len(turn.calls) == CALLS_PER_TURN_LIMIT for turn in records.turns())
    assert records.turns()[-1].requests == CALLS_PER_TURN_LIMIT + 1
    assert records.statistics().reads_forgotten >= 47


STEPS = st.lists(
    st.tuples(
        st.sampled_from([ADA, ADA, ADA, BOB]),
        st.integers(1, 6),
        st.sampled_from(["final", "call", "none", "again"]),
    ),
    min_size=1,
    max_size=12,
)


def conversation_from(steps):
    messages = []
    for key, number, what in steps:
        marker = marker_of(key, number)
        messages.append(user(f"say {marker}" + (f" {marker}" if what == "again" else "")))
        if what == "call":
            messages += [assistant([CALL]), tool_results([ToolResult("toolu_1", "x")])]
        elif what == "final":
            messages.append(assistant(f"said\n{echo_of(marker, Read(0, 0))}"))
    return messages


@settings(SURE, max_examples=50)
@given(STEPS, st.data())
def test_a_conversation_folded_in_parts_is_that_folded_at_once(steps, data):
    messages = conversation_from(steps)
    whole = conversation_of(messages)
    cut = data.draw(st.integers(0, len(messages)))
    begun = conversation_of(messages[:cut])
    rest = conversation_of(messages[cut:], begun.copy())
    markers = [m for message in messages if message["role"] == "user" for m in _markers(message)]
    assert rest.marker == whole.marker == markers[-1]
    assert rest.read() == whole.read()
    assert whole.read()._replace(half=()) == read_of(markers[-1], markers)
    assert (rest.prompts, rest.call, rest.replies) == (whole.prompts, whole.call, whole.replies)


def _markers(message):
    return [w for b in message["content"] if b["type"] == "text" for w in b["text"].split()[1:]]


@pytest.mark.parametrize("spacing", [(",", ":"), (", ", ": ")])
def test_a_growing_body_is_parsed_from_where_the_last_one_ended(spacing):
    prefixes = Prefixes()
    parsed = []
    messages = [user(f"é {marker_of(ADA, n)}") for n in range(200)]
    for count in (150, 160, 160, 200):
        data = json.dumps(
            {"tools": [{"messages": [1]}], "messages": messages[:count], "model": "m"},
            separators=spacing,
            ensure_ascii=False,
        )
        # The same name inside something else must not be taken for the list.
        plain = data.replace(
            '"tools"' + spacing[1] + '[{"messages"', '"tools"' + spacing[1] + '[{"x"'
        )
        opened = prefixes.open(plain.encode(), "messages")
        parsed.append((opened.fold, len(opened.body["messages"])))
        assert opened.body["model"] == "m"
        assert opened.body["messages"] == messages[opened.fold or 0 : count]
        prefixes.keep(opened, opened.whole, count)
        assert prefixes.open(data.encode(), "messages").body["messages"] == messages[:count]
    assert parsed == [(None, 150), (150, 10), (160, 0), (160, 40)]


def test_a_changed_beginning_is_not_taken_for_the_known_one():
    prefixes = Prefixes()
    messages = [user(f"hello {marker_of(ADA, n)}") for n in range(200)]
    opened = prefixes.open(json.dumps({"messages": messages}).encode(), "messages")
    prefixes.keep(opened, opened.whole, 200)
    prefixes.keep(opened, opened.before, 199)
    other_end = json.dumps({"messages": [*messages[:-1], user("another end")]}).encode()
    assert prefixes.open(other_end, "messages").fold == 199
    messages[100] = user("something else")
    changed = json.dumps({"messages": [*messages, user("more")]}).encode()
    assert prefixes.open(changed, "messages").fold is None


def test_a_long_conversation_is_witnessed_the_same_with_and_without_its_beginning():
    messages = []
    for number in range(1, 120):
        marker = marker_of(ADA, number)
        messages += [user(f"hello {marker}"), assistant(f"hi\n{echo_of(marker, Read(0, 0))}")]
    leaked = [*messages, user(f"as {B1} said"), assistant("ok"), user(marker_of(ADA, 200))]

    async def scenario(simulated):
        for _ in range(2):
            await post(simulated, *messages[:-1])
        await post(simulated, *messages, user(marker_of(ADA, 150)))
        await post(simulated, *leaked)
        await post(simulated, *leaked, assistant("ok"), user(marker_of(ADA, 201)))
        return [simulated.read(marker_of(ADA, number)) for number in (119, 150, 200, 201)]

    first, second, third, fourth = serving(scenario)
    assert first.position == 118
    assert second == shown_to([*messages, user(marker_of(ADA, 150))])[1]
    assert (third.position, third.foreign) == (119, (B1,))
    assert (fourth.position, fourth.foreign) == (120, (B1,))


def test_an_empty_conversation_has_no_marker():
    assert Conversation().marker == ""
    assert shown_to([user("hello")]) is None
