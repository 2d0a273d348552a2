"""Conversations that others wrote are read where they can be, and named where they cannot."""

import copy
import json

import pytest
from house import ADA, Clerk, assert_legal, managing, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kode_lab.errors import SessionDamaged
from kode_lab.message import Reply, Usage, assistant, text_of, user
from kode_lab.sessions.adoption import invalid_place, request_form


def said(role, *blocks, **more):
    return {"role": role, "content": list(blocks), **more}


def text(words):
    return {"type": "text", "text": words}


CALL = {"type": "tool_use", "id": "toolu_1", "name": "note", "input": {"text": "1"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "noted"}
FOREIGN = {
    "ours": [user("q"), assistant("a")],
    "metadata": [
        said("user", text("q"), metadata={"transport": "provider"}),
        said("assistant", {**text("a"), "meta": {"k": 1}}),
    ],
    "a tool result that is an object": [
        user("q"),
        said("assistant", CALL),
        said("user", {**RESULT, "content": {"ok": True, "data": {"n": 1}}}),
        assistant("a"),
    ],
    "reasoning": [
        user("q"),
        said("assistant", {"type": "reasoning", "reasoning": "hm"}, text("a")),
    ],
    "only reasoning": [user("q"), said("assistant", {"type": "reasoning", "reasoning": "hm"})],
    "a system summary": [said("system", text("summary")), user("q"), assistant("a")],
    "a dangling call": [user("q"), said("assistant", CALL)],
    "a call without its result": [user("q"), said("assistant", CALL), user("q2"), assistant("a")],
    "an orphaned result": [said("user", RESULT), assistant("a")],
    "a result after its message": [
        user("q"),
        said("assistant", CALL),
        said("user", text("first"), RESULT),
        assistant("a"),
    ],
    "two results of one call": [
        user("q"),
        said("assistant", CALL),
        said("user", RESULT, RESULT),
        assistant("a"),
    ],
    "ids that repeat": [
        *(user("q"), said("assistant", CALL), said("user", RESULT), assistant("a")) * 2
    ],
    "a trailing user": [user("q"), assistant("a"), user("unanswered")],
    "two users": [user("q"), user("q2"), assistant("a")],
    "string contents": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ],
    "empty text": [user("q"), assistant("")],
    "no blocks": [said("user"), said("assistant")],
    "the assistant first": [assistant("hello"), user("q"), assistant("a")],
    "an empty array": [],
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_messages_that_others_wrote_go_on_as_a_legal_conversation_and_stay_in_the_record(
    tmp_path, name, turns, indent
):
    """Edited by hand (``turns.jsonl`` is there), or put there by another tool (it is not)."""
    foreign = copy.deepcopy(FOREIGN[name])
    shown = []

    async def model(request, on_text=None):  # noqa: ARG001 - as a model is called
        shown.append(json.loads(request.messages.to_json()))
        return Reply(({"type": "text", "text": "answer"},), "end_turn", Usage(1, 1))

    async def scenario():
        async with managing(tmp_path, model) as manager:
            await manager.turn(ADA, "probe")
        (path,) = (tmp_path / "store").rglob("messages.json")
        path.write_text(json.dumps(foreign, indent=indent))
        if not turns:
            path.with_name("turns.jsonl").unlink()
        async with managing(tmp_path, model) as manager:
            assert await manager.history(ADA) == foreign
            for number in range(2):
                await manager.turn(ADA, f"next {number}", turn_id=f"n{number}")
            wanted = [m for n in range(2) for m in (user(f"next {n}"), assistant("answer"))]
            assert await manager.history(ADA) == [*foreign, *wanted]
        async with managing(tmp_path, model) as manager:
            assert (await manager.turn(ADA, "next 1", turn_id="n1")).is_replay
            await manager.turn(ADA, "last")
            assert (await manager.history(ADA))[: len(foreign)] == foreign

    run(scenario())
    for messages in shown:
        assert_legal(messages[:-1])
    for words in ("q", "a", "summary", "noted", "unanswered", "first", "hello", "q2"):
        if words in json.dumps(foreign):
            assert words in json.dumps(shown[-1])


INVALID = [
    ([{"role": "user"}], "message 0 has missing as content"),
    ([user("q"), "a"], "message 1 is text, not an object"),
    ([said("owner", text("q"))], "message 0 has the role 'owner'"),
    ([said("user", {"text": "q"})], "message 0, block 0 has no type"),
    ([said("user", text("q"), "a")], "message 0, block 1 is text, not an object"),
    ([said("user", {"type": "text", "text": 7})], "whose text is a number, not text"),
    (
        [user("q"), said("assistant", {**CALL, "input": None})],
        "message 1, block 0 .* input is missing",
    ),
    ([user("q"), said("assistant", {**CALL, "id": 7})], "whose id is a number"),
    ([said("user", {"type": "tool_result"})], "whose tool_use_id is missing"),
    ({"messages": []}, "an object, not an array of messages"),
]


@pytest.mark.parametrize(("messages", "words"), INVALID)
@pytest.mark.parametrize("turns", [True, False])
def test_what_cannot_be_read_is_refused_with_its_place_before_anything_is_written(
    tmp_path, messages, words, turns
):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "probe")
        (path,) = (tmp_path / "store").rglob("messages.json")
        path.write_text(json.dumps(messages))
        if not turns:
            path.with_name("turns.jsonl").unlink()
        model = Clerk()
        async with managing(tmp_path, model) as manager:
            for _ in range(2):
                for call in (lambda: manager.turn(ADA, "next"), lambda: manager.history(ADA)):
                    with pytest.raises(SessionDamaged, match=words):
                        await call()
            assert json.loads(path.read_text()) == messages
            assert model.requests == []

    run(scenario())


def test_in_the_reports_layout_a_conversation_without_an_owner_has_no_owner(tmp_path):
    """There two users share a directory's name, so the first to come must not get it."""

    async def scenario():
        store = {"layout": "report"}
        async with managing(tmp_path, store=store) as manager:
            await manager.turn(ADA, "secret")
        (path,) = (tmp_path / "store").rglob("turns.jsonl")
        path.unlink()
        async with managing(tmp_path, store=store) as manager:
            with pytest.raises(SessionDamaged, match="does not say whose"):
                await manager.turn(ADA, "next")

    run(scenario())


blocks = st.one_of(
    st.builds(text, st.sampled_from(["", " ", "x", "y"])),
    st.builds(lambda n: {**CALL, "id": f"c{n}"}, st.integers(0, 2)),
    st.builds(lambda n: {**RESULT, "tool_use_id": f"c{n}"}, st.integers(0, 2)),
    st.just({"type": "reasoning", "reasoning": "hm"}),
    st.just({"type": "thinking", "thinking": "hm", "signature": "s"}),
)
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system"]),
    st.one_of(st.text("ab ", max_size=2), st.lists(blocks, max_size=4)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(messages, max_size=6))
def test_all_that_others_wrote_is_shown_as_legal_messages_and_a_legal_one_as_it_is(foreign):
    before = copy.deepcopy(foreign)
    assert invalid_place(foreign) is None
    shown = request_form(foreign)
    assert foreign == before
    assert_legal(_without_thinking_of_users(before if shown is None else shown))
    if shown is not None:
        assert request_form(shown) is None
        for word in ("x", "y"):
            if word in "".join(map(text_of, map(_blocked, foreign))):
                assert word in "".join(map(text_of, shown))


def _blocked(message):
    content = message["content"]
    inner = [b for b in content if b["type"] != "tool_result"] if isinstance(content, list) else []
    return {"content": content if isinstance(content, str) else inner}


def _without_thinking_of_users(shown):
    """Who may think is the API's rule for one model, not for a conversation's form."""
    return [
        {**m, "content": [b for b in m["content"] if b["type"] != "thinking"] or [text("-")]}
        for m in shown
    ]
