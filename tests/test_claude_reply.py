"""Replies from what came over the wire, whole and from events; no network anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kode_lab.claude.formats.messages import events_of
from kode_lab.claude.formats.seam import pieces_of
from kode_lab.claude.reply import Assembly, reply_of
from kode_lab.errors import ModelGarbage

# A busy machine must not fail a test.
SURE = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.builds(lambda text: {"type": "text", "text": text}, WORDS)
CALLS = st.builds(
    lambda call_id, name, value: {"type": "tool_use", "id": call_id, "name": name, "input": value},
    WORDS,
    WORDS,
    st.dictionaries(WORDS, VALUES, max_size=3),
)
CONTENT = st.lists(TEXTS | CALLS, max_size=5)


def message(content, stop_reason="end_turn", **fields):
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 9},
    } | fields


def assembled(events):
    pieces = []
    assembly = Assembly(pieces.append)
    for event in events:
        assembly.take(event)
    return assembly, pieces


@SURE
@given(CONTENT)
def test_a_streamed_message_is_put_together_again_as_it_was(content):
    sent = message(content)
    assembly, pieces = assembled(json.loads(json.dumps(data)) for data, _ in events_of(sent))
    assert assembly.is_complete
    assert assembly.reply() == reply_of(sent)
    assert "".join(pieces) == "".join(b["text"] for b in content if b["type"] == "text")


@SURE
@given(CONTENT, st.data())
def test_a_stream_is_complete_only_with_its_last_event(content, data):
    events = [data for data, _ in events_of(message(content))]
    shorter = events[: data.draw(st.integers(0, len(events) - 1))]
    assert not assembled(shorter)[0].is_complete


@SURE
@given(WORDS)
def test_pieces_of_a_text_are_the_text(text):
    assert "".join(pieces_of(text)) == text


def test_cached_input_counts_as_input():
    usage = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 10,
        "cache_read_input_tokens": 100,
        "output_tokens": 5,
    }
    assert reply_of(message([], usage=usage)).usage == (111, 5)
    with_nothing_cached = {"input_tokens": 1, "cache_read_input_tokens": None, "output_tokens": 5}
    assert reply_of(message([], usage=with_nothing_cached)).usage == (1, 5)


def test_unknown_events_deltas_and_blocks_pass():
    events = [data for data, _ in events_of(message([{"type": "text", "text": "hi"}]))]
    events.insert(2, {"type": "weather", "sky": "blue"})
    events.insert(3, {"type": "content_block_delta", "index": 0, "delta": {"type": "colour"}})
    assert assembled(events)[0].reply().text == "hi"
    block = {"type": "hologram", "light": 3}
    assert reply_of(message([block])).content == (block,)


def test_thinking_signatures_and_citations_are_kept():
    start = {"type": "content_block_start"}
    delta = {"type": "content_block_delta"}
    events = [
        {"type": "message_start", "message": message([], stop_reason=None)},
        start | {"index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        delta | {"index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        delta | {"index": 0, "delta": {"type": "thinking_delta", "thinking": "m"}},
        delta | {"index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        start | {"index": 1, "content_block": {"type": "text", "text": ""}},
        delta | {"index": 1, "delta": {"type": "citations_delta", "citation": {"n": 1}}},
        delta | {"index": 1, "delta": {"type": "text_delta", "text": "so"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
        {"type": "message_stop"},
    ]
    assembly, pieces = assembled(events)
    assert pieces == ["so"]
    assert assembly.reply().content == (
        {"type": "thinking", "thinking": "hmm", "signature": "s"},
        {"type": "text", "text": "so", "citations": [{"n": 1}]},
    )


@pytest.mark.parametrize(
    ("garbage", "field"),
    [
        (None, "type message"),
        ([], "type message"),
        ({"type": "error"}, "type message"),
        (message([]) | {"content": None}, "content"),
        (message([7]), r"content\[0\]"),
        (message([{"type": "text", "text": None}]), r"content\[0\] of type text needs text"),
        (message([{"type": "tool_use", "id": "a", "name": "b", "input": []}]), "needs input"),
        (message([], stop_reason=None), "stop_reason"),
        (message([], usage=None), "usage"),
        (message([], usage={"input_tokens": "many"}), "usage"),
    ],
)
def test_what_is_not_a_message_is_garbage_and_the_field_is_named(garbage, field):
    with pytest.raises(ModelGarbage, match=field):
        reply_of(garbage)


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_start", "index": 0, "content_block": 7},
        {"type": "message_start"},
    ],
)
def test_an_event_out_of_order_or_without_its_fields_is_garbage(event):
    with pytest.raises(ModelGarbage, match="stream event"):
        assembled([event])


def streamed_call(pieces, stop_reason):
    call = {"type": "tool_use", "id": "a", "name": "b", "input": {}}
    events = [
        {"type": "message_start", "message": message([], stop_reason=None)},
        {"type": "content_block_start", "index": 0, "content_block": call},
    ]
    for piece in pieces:
        delta = {"type": "input_json_delta", "partial_json": piece}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    events += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {}},
        {"type": "message_stop"},
    ]
    return assembled(events)[0].reply().content[0]["input"]


@pytest.mark.parametrize("stop_reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (['{"x": "ha', "lf"], {"x": "half"}),
        (['{"x": 1, "y": [1, 2'], {"x": 1, "y": [1, 2]}),
        (['{"x'], {}),
        (["{"], {}),
        ([""], {}),
        ([], {}),
        (["[1"], {}),
        (["\x00"], {}),
        (['{"x": "whole"}'], {"x": "whole"}),
    ],
)
def test_the_input_of_a_call_that_was_cut_off_is_what_arrived(pieces, found, stop_reason):
    assert streamed_call(pieces, stop_reason) == found


def test_a_streamed_input_that_is_not_json_becomes_an_argument_that_no_tool_has():
    assert streamed_call(['{"half":'], "tool_use") == {"INVALID_JSON": '{"half":'}
    assert streamed_call(['{"n": 1}', ' {"n"'], "tool_use") == {"INVALID_JSON": '{"n": 1} {"n"'}
    assert streamed_call([""], "tool_use") == {}
    with pytest.raises(ModelGarbage, match="needs input"):
        streamed_call(["[1]"], "tool_use")


def test_deltas_of_a_kind_that_is_not_known_grow_the_fields_of_their_names():
    delta = {"type": "content_block_delta", "index": 0}
    kind = {"type": "future_delta"}
    block = {"type": "future_block", "body": None, "parts": ["a"], "about": {"n": 1}}
    events = [
        {"type": "message_start", "message": message([], stop_reason=None)},
        {"type": "content_block_start", "index": 0, "content_block": block},
        delta | {"delta": kind | {"body": "so ", "parts": ["b"], "about": {"m": 2}}},
        delta | {"delta": kind | {"body": "far", "new": 7, "parts": None}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
        {"type": "message_stop"},
    ]
    assert assembled(events)[0].reply().content == (
        {
            "type": "future_block",
            "body": "so far",
            "parts": ["a", "b"],
            "about": {"n": 1, "m": 2},
            "new": 7,
        },
    )
