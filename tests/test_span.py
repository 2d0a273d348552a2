"""A span survives its line, a line that is no span is refused by its number."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kode_lab.errors import InvalidRecord
from kode_lab.history.span import STEPS, Span, read_spans, span_line, span_of
from kode_lab.key import SessionKey

KEY = SessionKey.of("ada", "planner", "s1")
SPAN = Span(KEY, "t1", "ask", 10, 20, {"gen_ai.request.model": "m"})

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
spans = st.builds(
    lambda key, turn, step, start, length, attributes, error: Span(
        key, turn, step, start, start + length, attributes, error
    ),
    st.builds(SessionKey, texts, texts, texts),
    texts,
    st.sampled_from(STEPS),
    st.integers(0, 2**63),
    st.integers(0, 2**40),
    st.dictionaries(texts.map("kode_lab.".__add__), values, max_size=4),
    st.none() | texts,
)


def as_written(value):
    """Return what a reader finds where a writer had ``value``: a text where JSON has no number."""
    if isinstance(value, dict):
        return {name: as_written(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_written(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


@given(st.lists(spans, max_size=4))
@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
def test_spans_survive_their_lines(given_spans):
    lines = [span_line(span) for span in given_spans]
    assert all("\n" not in line and "\r" not in line for line in lines)
    for line in lines:
        json.loads(line, parse_constant=no_constant)
    expected = [span._replace(attributes=as_written(span.attributes)) for span in given_spans]
    assert list(read_spans(lines)) == expected


def test_a_line_uses_the_names_of_the_genai_conventions():
    fields = json.loads(span_line(SPAN._replace(error="TimeoutError")))
    assert fields["attributes"] == {
        "gen_ai.conversation.id": "s1",
        "gen_ai.agent.id": "planner",
        "enduser.id": "ada",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "error.type": "TimeoutError",
    }
    assert fields["start_ns"] == 10


NAMES = json.loads(span_line(SPAN))["attributes"]


def line_with(**changes):
    return json.dumps(json.loads(span_line(SPAN)) | changes)  # NaN where a value is NaN


def line_without(field):
    fields = json.loads(span_line(SPAN))
    del fields[field]
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not a span"),
        ("[]", "not a span"),
        ("7", "not a span"),
        ("[" * 100_000, "not a span"),
        (line_without("turn_id"), "needs the field 'turn_id'"),
        (line_without("attributes"), "needs the field 'attributes'"),
        (line_with(attributes={}), "needs the field 'enduser.id'"),
        (line_with(attributes=[]), "not a span"),
        (line_with(step="dance"), "step 'dance' is none of turn, wait, load, ask, tool, commit"),
        (line_with(start_ns=21), "not after end_ns 20"),
        (line_with(end_ns="20"), "must be an integer"),
        (line_with(end_ns=None), "must be an integer"),
        (line_with(turn_id=[]), "turn_id is text"),
        (line_with(turn_id={}), "turn_id is text"),
        (line_with(turn_id="\ud800"), "turn_id is text"),
        (line_with(step=[]), "none of turn, wait"),
        (line_with(attributes=NAMES | {"enduser.id": 5}), "userId must be a string"),
        (line_with(attributes=NAMES | {"enduser.id": None}), "userId must be a string"),
        (line_with(attributes=NAMES | {"gen_ai.agent.id": "\ud800"}), "not valid Unicode"),
        (line_with(attributes=NAMES | {"error.type": 7}), "error.type is text"),
        (line_with(attributes=NAMES | {"x": float("nan")}), "NaN is no JSON"),
    ],
)
def test_a_line_that_is_no_span_is_refused_by_its_number(line, told):
    with pytest.raises(InvalidRecord, match=f"^line 3: .*{told}") as caught:
        list(read_spans([span_line(SPAN), "  ", line]))
    assert caught.value.line == 3


@given(st.dictionaries(st.sampled_from(list(json.loads(span_line(SPAN)))), values))
@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
def test_any_json_in_a_line_is_a_span_or_refused(changes):
    try:
        span = span_of(line_with(**changes))
    except InvalidRecord:
        return
    assert span.start_ns <= span.end_ns
    assert span.step in STEPS


def test_empty_lines_are_no_spans():
    assert list(read_spans(["", "\n", span_line(SPAN) + "\n"])) == [SPAN]
