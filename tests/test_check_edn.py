"""Histories in EDN are read as Jepsen writes them, written to read the same, and judged."""

from collections import defaultdict
from itertools import combinations, permutations
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge_spec import SPECS

from kode_lab.check import check
from kode_lab.check.ascii_history import drawn
from kode_lab.check.edn import (
    Keyword,
    calls_of,
    edn_of,
    operations_of,
    read_edn,
    transactions_of,
    verdict_of,
    write_edn,
)
from kode_lab.check.search import KEY_VALUE, REGISTER, Call, linearizable
from kode_lab.check.transactions import judge_transactions
from kode_lab.cli import main
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
    calls = [Call(0, "write", "ok", 2 * n, 2 * n + 1, n) for n in range(4_000)]
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
@settings(max_examples=30, deadline=None)
def test_all_that_is_written_reads_the_same(value):
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
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_events_do_more_than_to_be_refused(events):
    text = "\n".join(map(write_edn, events))
    for read in (operations_of, verdict_of, transactions_of):
        try:
            assert read(text) is not None
        except InvalidRecord as refused:
            assert str(refused)  # noqa: PT017 - either outcome is right


@given(st.text(alphabet='[](){}#_":\\ nil1a\n', max_size=40))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_text_does_more_than_to_be_refused(text):
    try:
        calls_of(text)
    except InvalidRecord as refused:
        assert str(refused)  # noqa: PT017 - either outcome is right


# ---- what a command says of a file


def keyed(key, answer):
    return f"""
        {{:process 0, :type :invoke, :f :put, :key "0", :value "a"}}
        {{:process 0, :type :ok, :f :put, :key "0", :value "a"}}
        {{:process 0, :type :invoke, :f :get, :key "{key}", :value nil}}
        {{:process 0, :type :ok, :f :get, :key "{key}", :value {answer}}}
    """


MUTEX = """
{:process 0, :type :invoke, :f :acquire} {:process 0, :type :ok, :f :acquire}
{:process 1, :type :invoke, :f :acquire} {:process 1, :type :KIND, :f :acquire}
{:process 0, :type :invoke, :f :release} {:process 0, :type :ok, :f :release}
"""


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (keyed("0", '"a"'), "valid"),
        (keyed("1", '"a"'), "invalid"),
        (keyed("1", "nil"), "valid"),
        (keyed("1", '""'), "valid"),
        (keyed("0", "nil"), "invalid"),
        (MUTEX.replace("KIND", "ok"), "invalid"),
        (MUTEX.replace("KIND", "fail"), "valid"),
        (LIST_APPEND.replace("SEEN", "1"), "valid"),
        (LIST_APPEND.replace("SEEN", ""), "invalid"),
        ("", "unknown"),
    ],
)
def test_the_command_judges_a_file_in_edn(tmp_path, capsys, text, status):
    path = tmp_path / "history.edn"
    path.write_text(text)
    code = {"valid": 0, "invalid": 1, "unknown": 2}[status]
    assert main(["check", str(path)]) == code
    word = {"valid": "PASS", "invalid": "FAIL", "unknown": "UNKNOWN"}[status]
    assert capsys.readouterr().out.startswith(f"{word}: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{:process 0 :type :invoke :f :enqueue :value 1}", "calls enqueue are of no known object"),
        (
            "{:process 0 :type :invoke :f :txn :value [[:w 1 2] [:r 3 nil]]}",
            "only :r and :append leave lists",
        ),
        (
            "{:process 0 :type :invoke :f :read :value nil} {:process 1 :type :invoke :f :acquire}",
            "are of no known object",
        ),
        (
            "{:process 0 :type :invoke :f :get :key 1} {:process 0 :type :ok :f :get :key 2}",
            "answers for another :key",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_sentence(text, told):
    with pytest.raises(InvalidRecord, match=told):
        verdict_of(text)


def transactions(*lines):
    """Each line is ``process type invoke-complete: step, step``; a read is ``x=1 2``."""
    events = []
    for line in lines:
        head, _, body = line.partition(": ")
        process, kind, times = head.split()
        begun, ended = map(int, times.split("-"))
        steps, asked = [], []
        for step in body.split(", "):
            if "+" in step:
                name, element = step.split("+")
                steps.append(f"[:append {name} {element}]")
                asked.append(steps[-1])
            else:
                name, shown = step.split("=")
                steps.append(f"[:r {name} [{shown}]]")
                asked.append(f"[:r {name} nil]")
        told = f":process {process} :f :txn"
        begin = f"{{:type :invoke {told} :time {begun} :value [{' '.join(asked)}]}}"
        events += [(begun, 0, begin)]
        events += [(ended, 1, f"{{:type :{kind} {told} :time {ended} :value [{' '.join(steps)}]}}")]
    return "\n".join(text for _, _, text in sorted(events))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["0 ok 0-9: x+1, y+1", "1 ok 1-8: x=1, y=1"], ""),
        (["0 ok 0-9: x+1, y+1", "1 ok 1-8: x=, y="], ""),
        (["0 ok 0-9: x+1, y+1", "1 ok 1-8: x=1, y="], "G-single"),
        (["0 ok 0-9: x+1, y=", "1 ok 1-8: y+1, x="], "G2"),
        (["0 ok 0-9: x=1, y+1", "1 ok 1-8: y=1, x+1"], "G1c"),
        (["0 ok 0-3: x+1", "1 ok 5-8: x="], "G-single-realtime"),
        (["0 ok 0-6: x+1", "1 ok 5-8: x="], ""),
        (["0 ok 0-3: x+1, y+1", "1 ok 5-8: x+2, y+2", "2 ok 9-10: x=2 1, y=1 2"], "G0"),
        (["0 ok 0-3: x+1, x+2", "1 ok 1-8: x=1, y+1"], "intermediate read"),
        (["0 fail 0-3: x+1, y+1", "1 ok 1-8: x=1, y="], "aborted read"),
        (["0 info 0-3: x+1, y+1", "1 ok 5-8: x=1, y=1"], ""),
        (["0 info 0-3: x+1, y+1", "1 ok 5-8: x=, y="], ""),
        (["0 info 0-3: x+1, y+1", "1 ok 5-8: x=1, y="], "G-single"),
        (["0 ok 0-3: x+1, y+1", "1 ok 1-8: x=1 1, y="], "duplicate"),
        (["0 ok 0-3: x+1, y+1", "1 ok 1-8: x=9, y="], "garbage"),
        (
            ["0 ok 0-9: x+1", "1 ok 0-9: x+2", "2 ok 0-9: x=1 2", "3 ok 0-9: x=2, y="],
            "incompatible",
        ),
        (["0 ok 0-9: x+1, x=1", "1 ok 0-9: x=, y="], ""),
        (["0 ok 0-9: x+1, x=", "1 ok 0-9: x=, y="], "internal"),
    ],
)
def test_transactions_on_several_lists_have_a_serial_order_or_a_named_cycle(lines, found):
    outcome = judge_transactions(transactions_of(transactions(*lines)))
    assert (outcome.status == "invalid") is bool(found), outcome.reason
    assert found in outcome.reason
    assert verdict_of(transactions(*lines)).status in (outcome.status, "unknown")


def test_an_element_that_is_appended_twice_cannot_be_judged():
    with pytest.raises(InvalidRecord, match="is appended to list 'x' twice"):
        judge_transactions(transactions_of(transactions("0 ok 0-9: x+1, y+1", "1 ok 0-9: x+1")))


@given(st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_the_cycles_agree_with_a_search_of_serial_orders(seed):
    random = Random(seed)
    state, lines = {"x": [], "y": []}, []
    for number in range(random.randint(2, 5)):
        before = {name: list(shown) for name, shown in state.items()}
        old = {name: shown[: random.randint(0, len(shown))] for name, shown in before.items()}
        source = old if random.random() < 0.3 else before
        steps = []
        for name in random.sample("xy", 2):
            if random.random() < 0.5:
                steps.append(f"{name}+{number}")
                state[name].append(number)
            else:
                steps.append(f"{name}={' '.join(map(str, source[name]))}")
        begun = 3 * number - random.randrange(5) + 10
        kind = random.choice(["ok", "ok", "ok", "info"])
        lines.append(
            f"{number} {kind} {begun}-{begun + random.randrange(1, 8)}: {', '.join(steps)}"
        )
    told = transactions_of(transactions(*lines))
    outcome = judge_transactions(told)
    if outcome.status != "unknown":
        assert (outcome.status == "valid") is has_serial_order(told)


def has_serial_order(told):
    """Whether some order, each transaction at once, explains all reads within real time."""
    acknowledged = [one for one in told if one.type == "ok"]
    unknown = [one for one in told if one.type == "info"]
    for count in range(len(unknown) + 1):
        for some in combinations(unknown, count):
            for order in permutations([*acknowledged, *some]):
                if all(
                    not later.complete_ns < one.invoke_ns
                    for at, one in enumerate(order)
                    for later in order[at + 1 :]
                ) and explains(order):
                    return True
    return False


def explains(order):
    lists = defaultdict(tuple)
    for one in order:
        for f, name, value in one.steps:
            if f == "append":
                lists[name] += (value,)
            elif one.type == "ok" and lists[name] != value:
                return False
    return True
