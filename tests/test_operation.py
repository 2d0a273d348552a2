"""A history survives its file, marks what is not known, and is refused by line where it is bad."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import (
    NEMESIS,
    TAIL_LIMIT,
    HistoryWriter,
    Operation,
    Read,
    digest_of,
    echo_in,
    echo_of,
    marker_of,
    markers_in,
    read_of,
)
from kode_lab.history.reader import read_operations
from kode_lab.key import SessionKey

ADA = SessionKey.of("ada", "planner", "s1")
BOB = SessionKey.of("bob", "planner", "s1")
INVOKE = {
    "type": "invoke",
    "f": "turn",
    "process": "p",
    "time_ns": 1,
    "marker": "#m",
} | ADA.to_json()
OK = {"type": "ok", "process": "p", "time_ns": 2}

SHOWN = {"position": 1, "digest": f"{digest_of(['#a']):x}", "tail": ["#a"]}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
keys = st.builds(SessionKey, texts, texts, texts)
reads = st.builds(
    lambda more, digest, tail, foreign: Read(
        len(tail) + more, digest if more else digest_of(tail), tail, foreign
    ),
    st.integers(0, 2**40),
    st.integers(0, 2**64 - 1),
    st.lists(texts, max_size=TAIL_LIMIT).map(tuple),
    st.lists(texts, max_size=3).map(tuple),
)


def operations_in(path):
    with path.open(encoding="utf-8") as lines:
        return list(read_operations(lines))


@given(
    st.lists(
        st.tuples(
            keys,
            st.sampled_from(["ok", "fail", "info", "never"]),
            st.none() | reads,
            st.none() | st.lists(texts, max_size=3).map(tuple),
            texts | st.just(""),
        ),
        max_size=5,
    )
)
@settings(deadline=None, max_examples=50)
def test_a_history_survives_its_file(tmp_path_factory, told):
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    writer = HistoryWriter(path)
    expected, never = [], []
    for at, (key, how, read, markers, error) in enumerate(told):
        f = "turn" if markers is None else "read"
        writer.invoke(key, f"p{at}", 10 * at, f=f, marker=f"#m{at}", turn_id=f"t{at}")
        begun = Operation(key, f, f"p{at}", "info", 10 * at, math.inf, f"#m{at}", f"t{at}")
        if how == "never":
            never.append(begun)
            continue
        writer.complete(f"p{at}", 10 * at + 5, how, read=read, markers=markers, error=error)
        expected.append(
            begun._replace(
                type=how, complete_ns=10 * at + 5, read=read, markers=markers, error=error
            )
        )
    writer.close()
    assert [one._replace(line=0) for one in operations_in(path)] == expected + never


def test_a_request_that_nothing_answered_stays_indeterminate(tmp_path):
    path = tmp_path / "history.jsonl"
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from kode_lab.key import SessionKey\n"
        "from kode_lab.history.operation import HistoryWriter\n"
        "writer = HistoryWriter(Path(sys.argv[1]))\n"
        "writer.invoke(SessionKey.of('ada', 'planner'), 'p', 7, marker='#m0')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, path], check=False)
    assert died.returncode == -9
    (operation,) = operations_in(path)
    assert (operation.type, operation.invoke_ns, operation.complete_ns) == ("info", 7, math.inf)


def test_two_writers_of_one_file_never_mix_their_lines(tmp_path):
    path = tmp_path / "history.jsonl"
    one, other = HistoryWriter(path), HistoryWriter(path)
    for at in range(50):
        one.invoke(ADA, "a", 2 * at, marker=marker_of(ADA, at))
        other.invoke(BOB, "b", 2 * at, marker=marker_of(BOB, at))
        other.complete("b", 2 * at + 1, "ok")
        one.complete("a", 2 * at + 1, "ok")
    one.close()
    other.close()
    other.close()  # closing twice is harmless
    assert [operation.process for operation in operations_in(path)] == ["b", "a"] * 50


def test_a_fault_is_an_operation_of_the_nemesis_at_one_moment(tmp_path):
    path = tmp_path / "history.jsonl"
    writer = HistoryWriter(path)
    writer.fault("kill", 5, "pid 17")
    writer.close()
    (fault,) = operations_in(path)
    assert (fault.process, fault.f, fault.error) == (NEMESIS, "kill", "pid 17")
    assert fault.invoke_ns == fault.complete_ns == 5


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (["{"], "not JSON"),
        (["[" * 100_000], "not JSON"),
        (["[]"], "an event is a JSON object"),
        ([OK | {"type": "maybe"}], "type 'maybe' is none of invoke, ok, fail, info"),
        ([OK | {"time_ns": "2"}], "time_ns is "),
        ([OK], "completes what it never invoked"),
        ([INVOKE, INVOKE], "invokes again before its last one ended"),
        ([INVOKE, OK, OK], "completes what it never invoked"),
        ([INVOKE, OK | {"time_ns": 0}], "completes before it invoked"),
        ([INVOKE | {"marker": ""}], "a turn needs its marker"),
        ([INVOKE | {"marker": 5}], "marker is text"),
        ([INVOKE | {"turn_id": 5}], "turn_id is text"),
        ([INVOKE | {"userId": ""}], "userId is empty"),
        ([INVOKE, OK | {"read": {}}], "read needs markers, or position"),
        ([INVOKE, OK | {"read": {"markers": ["a"], "position": 1}}], "leave them out"),
        ([INVOKE | {"f": "compact"}], "f 'compact' needs 'upto'"),
        ([INVOKE | {"f": "fork", "upto": "a"}], "f 'fork' needs 'from'"),
        ([INVOKE | {"f": "edit"}], "f 'edit' needs 'replaces'"),
        ([INVOKE | {"f": "turn", "replaces": "a"}], "f 'turn' has no 'replaces'"),
        ([INVOKE, OK | {"rolled_back": True}], "its type is fail"),
        ([INVOKE, OK | {"suffix": True}], "suffix belongs to a read's markers"),
        ([INVOKE, OK | {"model": {"calls": [[5, 3]]}}], "model.calls holds pairs"),
        ([INVOKE, OK | {"model": {"tool_results": [[1, 2]]}}], "pairs of call ids"),
        ([INVOKE, OK | {"read": {"position": 1, "digest": "xyz"}}], "hexadecimal digest"),
        ([INVOKE, OK | {"read": 5}], "read is an object"),
        ([INVOKE, OK | {"markers": 5}], "markers is a list of texts"),
        ([INVOKE, OK | {"markers": [5]}], "markers is a list of texts"),
        ([INVOKE, OK | {"error": 5}], "error is text"),
        (['{"type":"fail","type":"ok","process":"p","time_ns":1}'], "'type' stands twice"),
        (['{"type" :"fail","type":"ok","process":"p","time_ns":1}'], "'type' stands twice"),
        ([r'{"type":"fail","type":"ok","process":"\":","time_ns":1}'], "'type' stands twice"),
        (
            [INVOKE, '{"type":"ok","process":"p","time_ns":2,"read":{"digest":"0","digest":"1"}}'],
            "'digest' stands twice",
        ),
        ([INVOKE, OK, INVOKE], "invokes before its last one ended"),
        ([INVOKE | {"read": {"position": 0, "digest": "0"}}], "read belongs to the completion"),
        ([INVOKE | {"error": "?"}], "error belongs to the completion"),
        ([INVOKE, OK | {"userId": "bob"}], "userId 'bob' is not that of the invoke"),
        ([INVOKE, OK | {"sessionId": "s2"}], "sessionId 's2' is not that of the invoke"),
        ([INVOKE, OK | {"markers": []}], "markers are what a read tells"),
        ([INVOKE, OK | {"read": {"position": 0, "digest": "0_0"}}], "hexadecimal digest"),
        ([INVOKE, OK | {"read": {"position": 0, "digest": "-0"}}], "hexadecimal digest"),
        ([INVOKE, OK | {"read": {"position": 0, "digest": "\u0660"}}], "hexadecimal digest"),
        ([INVOKE, OK | {"read": SHOWN | {"position": 0}}], "1 markers in its tail at position 0"),
        ([INVOKE, OK | {"read": SHOWN | {"digest": "7"}}], "not what its digest says"),
    ],
)
def test_a_bad_event_is_refused_by_the_number_of_its_line(events, told):
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    with pytest.raises(InvalidRecord, match=f"^line {len(lines)}: .*{told}") as caught:
        list(read_operations(lines))
    assert caught.value.line == len(lines)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FIELDS = ["f", "marker", "turn_id", "userId", "sessionId", "read", "markers", "error", "time_ns"]


@given(
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_events_of_any_json_are_operations_or_refused(first, second):
    try:
        list(read_operations([json.dumps(INVOKE | first), json.dumps(OK | second)]))
    except InvalidRecord as refused:
        assert refused.line in (1, 2)  # noqa: PT017 - either outcome is right


def test_markers_tell_their_session_apart_and_are_found_again_in_any_text():
    markers = [marker_of(key, number) for key in (ADA, BOB) for number in (0, 1, 2**30)]
    assert len(set(markers)) == 6
    assert markers_in(f"create {markers[0]}, then{markers[3]}。{markers[2]}!") == [
        markers[0],
        markers[3],
        markers[2],
    ]
    assert len({marker.partition("-")[0] for marker in markers[:3]}) == 1
    assert markers[0].partition("-")[0] != markers[3].partition("-")[0]
    assert marker_of(ADA, 0, seed=1) != marker_of(ADA, 0, seed=2)
    assert marker_of(ADA, 0) == marker_of(ADA, 0)


def test_a_marker_knows_the_agent_because_two_agents_of_one_session_are_two_lists():
    assert marker_of(ADA, 0) != marker_of(ADA._replace(agent_id="writer"), 0)


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_the_digest_tells_order_and_continues_from_any_prefix(one, other):
    assert (digest_of(one) == digest_of(other)) == (one == other)
    assert digest_of([*one, *other]) == digest_of(other, digest_of(one))


def test_a_read_counts_its_own_session_s_markers_and_names_foreign_ones():
    mine = [marker_of(ADA, number) for number in range(TAIL_LIMIT + 3)]
    theirs = [marker_of(BOB, 0), marker_of(BOB, 1)]
    shown = [*mine[:3], theirs[0], *mine[3:-1], theirs[1], mine[-1]]
    read = read_of(mine[-1], shown)
    assert read.position == TAIL_LIMIT + 2
    assert read.digest == digest_of(mine[:-1])
    assert read.tail == tuple(mine[-1 - TAIL_LIMIT : -1])
    assert read.foreign == tuple(theirs)


@given(
    st.lists(st.integers(0, 2**30), max_size=TAIL_LIMIT), st.lists(st.integers(0, 9), max_size=3)
)
def test_an_echo_carries_the_read_through_a_reply(mine, theirs):
    own = marker_of(ADA, 2**31)
    shown = [marker_of(BOB, n) for n in theirs] + [marker_of(ADA, n) for n in mine]
    read = read_of(own, shown)
    assert echo_in(f"Done.\n{echo_of(own, read)}\n") == (own, read)
    assert echo_in("Done.") is None


def test_a_history_that_cannot_be_opened_says_so_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        HistoryWriter(tmp_path / "nowhere" / "history.jsonl")
    assert list(tmp_path.iterdir()) == []
