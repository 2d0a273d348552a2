"""Histories in EDN are read as Jepsen writes them, written to read the same, and judged."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge_spec import SPECS

from kode_lab.check import check
from kode_lab.check.ascii_history import drawn
from kode_lab.check.edn import calls_of, edn_of, operations_of
from kode_lab.check.edn_text import Keyword, read_edn, write_edn
from kode_lab.check.search import KEY_VALUE, REGISTER, Call, linearizable
from kode_lab.errors import InvalidRecord

# In the manner of the register histories that come with Knossos.
GOOD_REGISTER = """
{:process 0, :type :invoke, :f :write, :value 3}
{:process 1, :type :invoke, :f :cas, :value [3 5]}
{:process 0, :type :ok, :f :write, :value 3}
{:process 2, :type :invoke, :f :read, :value nil}
{:process 1, :type :ok, :f :cas, :value [3 5]}
{:process 2, :type :ok, :f :read, :value 5}
{:process :nemesis, :type :info, :f :start}
{:process 3, :type :invoke, :f :write, :value 7}
{:process 3, :type :info, :f :write, :value 7, :error :timeout}
{:process 4, :type :invoke, :f :cas, :value [1 2]}
{:process 4, :type :fail, :f :cas, :value [1 2]}
{:process 5, :type :invoke, :f :read, :value nil}
{:process 5, :type :ok, :f :read, :value 7}
"""
LIST_APPEND = """
; a dialect with tags and commas, as newer stores have it
[#jepsen.history.Op{:index 0, :time 10, :type :invoke, :process 0, :f :txn,
                    :value [[:r 8 nil] [:append 8 1]]},
 #jepsen.history.Op{:index 1, :time 12, :type :invoke, :process 1, :f :txn,
                    :value [[:r 8 nil] [:append 8 2]]},
 {:index 2, :time 20, :type :ok, :process 0, :f :txn, :value [[:r 8 []] [:append 8 1]]},
 {:index 3, :time 21, :type :info, :process :nemesis, :f :kill, :value nil},
 {:index 4, :time 22, :type :ok, :process 1, :f :txn, :value [[:r 8 [SEEN]] [:append 8 2]]},
 {:index 5, :time 30, :type :invoke, :process 2, :f :txn, :value [[:r 8 nil]]}
 {:index 6, :time 31, :type :ok, :process 2, :f :txn, :value [[:r 8 [1 2]]]}]
"""


def test_a_register_s_history_that_is_linearizable_is_found_so():
    outcome = linearizable(REGISTER)(calls_of(GOOD_REGISTER))
    assert outcome.status == "valid"
    assert [call.f for call in outcome.order] == ["write", "cas", "read", "write", "read"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (":ok, :f :read, :value 5", ":ok, :f :read, :value 4"),
        (":ok, :f :read, :value 7", ":ok, :f :read, :value 2"),
        (":type :info, :f :write", ":type :fail, :f :write"),
        (":value [3 5]", ":value [4 5]"),
    ],
)
def test_a_register_s_history_that_is_not_linearizable_is_found_so(old, new):
    assert GOOD_REGISTER.count(old) >= 1
    outcome = linearizable(REGISTER)(calls_of(GOOD_REGISTER.replace(old, new)))
    assert outcome.status == "invalid"
    assert "no order of these calls is allowed" in outcome.reason


def test_independent_keys_are_judged_apart():
    history = """
        {:process 0 :type :invoke :f :write :value [x 1]}
        {:process 0 :type :ok :f :write :value [x 1]}
        {:process 1 :type :invoke :f :cas :value [y [nil 2]]}
        {:process 1 :type :ok :f :cas :value [y [nil 2]]}
        {:process 0 :type :invoke :f :read :value [KEY nil]}
        {:process 0 :type :ok :f :read :value [KEY 1]}
    """
    assert linearizable(REGISTER)(calls_of(history.replace("KEY", "x"))).status == "valid"
    wrong = linearizable(REGISTER)(calls_of(history.replace("KEY", "y")))
    assert (wrong.status, wrong.reason[:7]) == ("invalid", "key 'y'")


def test_a_key_value_store_knows_get_put_and_append():
    def calls(answer):
        return [
            Call(0, "put", "ok", 0, 1, "a", "k"),
            Call(0, "append", "ok", 2, 5, "b", "k"),
            Call(1, "append", "info", 3, 4, "c", "k"),
            Call(1, "get", "ok", 6, 7, answer, "k"),
            Call(2, "get", "ok", 0, 9, None, "other"),
        ]

    judge = linearizable(KEY_VALUE)
    assert [judge(calls(answer)).status for answer in ("ab", "abc", "acb", "a", "abcc")] == [
        "valid", "valid", "valid", "invalid", "invalid",
    ]  # fmt: skip
    assert judge([]).status == "unknown"
    with pytest.raises(ValueError, match="read, write and cas, not 'dequeue'"):
        judge([Call(0, "dequeue", "ok", 0, 1)])


def test_what_cannot_be_decided_in_time_is_unknown_but_a_wrong_key_is_still_wrong():
    hard = [Call(n, "write", "ok", 0, 99, n, "hard") for n in range(12)]
    hard.append(Call(99, "read", "ok", 100, 101, "never written", "hard"))
    clock = iter(range(10**9)).__next__
    judge = linearizable(REGISTER, budget_s=1, clock=clock)
    outcome = judge(hard)
    assert (outcome.status, "budget_s=1" in outcome.reason) == ("unknown", True)
    wrong = [Call(0, "read", "ok", 0, 1, 7, "easy")]
    assert judge([*hard, *wrong]).status == "invalid"
    assert judge([*hard, Call(0, "write", "ok", 0, 1, 7, "easy")]).status == "unknown"


def test_calls_one_after_another_take_a_step_each():
    calls = [Call(0, "write", "ok", 2 * n, 2 * n + 1, n) for n in range(20_000)]
    looks = iter(range(10**9)).__next__
    outcome = linearizable(REGISTER, budget_s=len(calls) // 100, clock=looks)(calls)
    assert outcome.status == "valid"
    assert outcome.order == tuple(calls)


@pytest.mark.parametrize(("seen", "counts"), [("1", {}), ("", {"lost update": 1})])
def test_a_list_append_history_of_single_lists_is_judged_as_turns(seen, counts):
    operations = operations_of(LIST_APPEND.replace("SEEN", seen))
    verdict = check(operations)
    assert verdict.counts == counts
    assert (verdict.evidence.turns, verdict.evidence.crashes) == (2, 1)


def test_elements_are_unique_in_their_list_only():
    both = LIST_APPEND.replace("SEEN", "1")
    other = both.replace(":r 8", ":r 9").replace(":append 8", ":append 9")
    verdict = check(operations_of(both) + operations_of(other))
    assert verdict.counts == {}
    assert (verdict.evidence.turns, verdict.evidence.sessions) == (4, 2)
    text_and_number = both.replace(":append 8 2", ':append 8 "1"').replace("[1 2]", '[1 "1"]')
    assert check(operations_of(text_and_number)).counts == {}


def test_a_register_may_hold_pairs():
    history = """
        {:process 0 :type :invoke :f :write :value [1 2]} {:process 0 :type :ok :value [1 2]}
        {:process 0 :type :invoke :f :read :value nil} {:process 0 :type :ok :value [1 2]}
    """
    assert linearizable(REGISTER)(calls_of(history)).status == "valid"


def test_transactions_that_are_no_turns_are_refused():
    for value in (
        "[[:r 1 nil] [:append 2 3]]",
        "[[:append 1 2] [:append 1 3]]",
        "[[:w 1 2]]",
        "7",
        "[[:r 1 5]]",
        "[[:r {:a 1} nil]]",
        "[[:append 1 {:a 1}]]",
    ):
        text = f"{{:type :invoke :process 0 :f :txn :value {value}}}"
        with pytest.raises(InvalidRecord, match="a turn is"):
            operations_of(text)


@pytest.mark.parametrize("name", SPECS)
def test_a_history_that_was_written_as_edn_and_read_back_has_the_same_verdict(name):
    spec = SPECS[name]
    operations = drawn(spec.picture)
    again = operations_of(edn_of(operations))
    verdict = check(again, None, spec.guarantees, overtaking_limit=spec.limit)
    assert (verdict.status, dict(verdict.counts)) == (spec.expected, spec.counts)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(values)
@settings(max_examples=100)
def test_whatever_is_written_reads_the_same(value):
    assert read_edn(write_edn(value)) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\a \newline \u0041", ["a", "\n", "A"]),
        ("#{1 2} (3 4) #inst 5", [(1, 2), (3, 4), 5]),
        ("1 #_ 2 [3 #_ [4 5] 6] ; the rest", [1, (3, 6)]),
        ("12N 1.5M -7 2e3 ##Inf", [12, 1.5, -7, 2000.0, float("inf")]),
        (":a/b sym true nil", ["a/b", "sym", True, None]),
        ('"a \\" b\nc"', ['a " b\nc']),
        ("", []),
    ],
)
def test_edn_s_own_notation(text, value):
    assert read_edn(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "]",
        "1" * 5_000,
        "{:a}",
        "{:a 1]",
        '"',
        "\\",
        "#_",
        "#tag",
        "[" * 5_000,
        "{{} 1}",
        '"\\q"',
    ],
)
def test_what_is_no_edn_is_refused_by_its_line(text):
    with pytest.raises(InvalidRecord, match=r"^line 2: "):
        read_edn(f"7\n{text}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("7", "value 1 is no event"),
        ("{:type :ok :process 0}", "process 0 never invoked"),
        ("{:type :invoke :process 0} {:type :invoke :process 0}", "process 0 invokes twice"),
        ("{:type :maybe :process 0}", ":type maybe is unknown"),
        ('{:type :invoke :process 0 :time "now"}', ":time is no whole number"),
        ("{:type :invoke :process 0 :f :read :value [k nil]} {:type :ok :process 0 :value 7}",
         "without its key"),
        ("{:type :invoke :process 0 :f :read :value [1 nil]} {:type :ok :process 0 :value [2 5]}",
         "without its key"),
        ("{:type :invoke :process {:a 1}}", "is no name"),
        ("{:type :invoke :process 0 :f :cas :value nil}", "no value for cas"),
        ("{:type :invoke :process 0 :f :write :value {:a 1}}", "no value for write"),
    ],
)  # fmt: skip
def test_what_is_no_history_is_refused(text, told):
    with pytest.raises(InvalidRecord, match=told):
        calls_of(text)


EVENTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from([Keyword("invoke"), Keyword("ok"), Keyword("info")])},
        optional={
            "process": st.integers(0, 1) | values,
            "f": st.sampled_from([Keyword("txn"), Keyword("read"), Keyword("cas")]) | values,
            "value": st.just(((Keyword("r"), 1, None), (Keyword("append"), 1, 2))) | values,
            "time": st.integers() | values,
            "seen": values,
            "effects": values,
            "turn-id": values,
            "foreign": values,
        },
    ),
    max_size=4,
)


@given(EVENTS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_events_whatever_do_more_than_to_be_refused(events):
    text = "\n".join(map(write_edn, events))
    for read in (operations_of, lambda text: linearizable(REGISTER)(calls_of(text))):
        try:
            read(text)
        except InvalidRecord as refused:
            assert str(refused)  # noqa: PT017 - either outcome is right
        except ValueError as refused:
            assert "a register knows" in str(refused)  # noqa: PT017


@given(st.text(alphabet='[](){}#_":\\ nil1a\n', max_size=40))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_text_whatever_does_more_than_to_be_refused(text):
    try:
        calls_of(text)
    except InvalidRecord as refused:
        assert str(refused)  # noqa: PT017 - either outcome is right
