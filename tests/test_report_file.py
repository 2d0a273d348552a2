"""Report files: what they can say, what contradicts itself, and how they are reproduced."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from kode_lab.errors import InvalidScenario
from kode_lab.key import SessionKey
from kode_lab.reports.claims import check_claims, claims_of, contradictions
from kode_lab.reports.evidence import Evidence, SeenTool, SeenTurn, evidence_in
from kode_lab.reports.measures import MEASURES, percentile
from kode_lab.reports.report import REPORT_TURNS_LIMIT, built_in, parsed, read_report, schema
from kode_lab.reports.reproduce import reproduce, scenario_of
from kode_lab.reports.timeline import placed_turns

ROOT = Path(__file__).parent.parent
TURN = {"userId": "ada", "arrived_s": 0, "took_s": 2.0}


class Unseen:
    """A card for runs that are not watched."""

    def draw(self, progress):
        pass

    def close(self):
        pass


def turns_of(report):
    return report.tests[0].turns


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "seconds"),
    [(2.19, 2.19), ("2.19 s", 2.19), ("850 ms", 0.85), ("1m30s", 90), ("2 min", 120),
     ("1.5h", 5400), ("3秒", 3), ("250us", 0.00025), ("~4 seconds", 4)],
)  # fmt: skip
def test_times_are_read_as_people_write_them(told, seconds):
    (turn,) = turns_of(parsed({"turns": [TURN | {"took_s": told}]}))
    assert turn.took == pytest.approx(seconds)


def test_clock_times_count_from_the_first_and_pass_midnight():
    turns = [
        {"user": "a", "arrived": "23:59:58", "ended": "00:00:08.5"},
        {"user": "b", "arrived": "23:59:59", "took": 3},
    ]
    first, second = placed_turns(parsed({"turns": turns}).tests[0])
    assert (first.at_s, first.took_s) == (0.0, pytest.approx(10.5))
    assert second.at_s == 1.0
    dated = [{"user": "a", "arrived": "2026-03-02T15:02:22Z", "ended": "2026-03-02T15:02:24Z"}]
    (one,) = placed_turns(parsed({"turns": dated}).tests[0])
    assert one.took_s == 2.0


def test_a_table_of_turns_is_a_report_in_csv_jsonl_and_toml(tmp_path):
    (tmp_path / "t.csv").write_text(
        "user,session,arrived,took,tools,outcome\n"
        "ada,main,10:00:00,2.5 s,web_search;sum_up,\n"
        "ben,main,10:00:01,0.3 s,,429\n"
    )
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(TURN | {"took_s": n}) for n in (1, 2)))
    (tmp_path / "t.toml").write_text('[[turns]]\nuser = "ada"\narrived = 10:00:00\ntook = "1 s"\n')
    first, second = turns_of(read_report(tmp_path / "t.csv"))
    assert [tool.name for tool in first.tools] == ["web_search", "sum_up"]
    assert second.outcome == "refused"
    assert [turn.took for turn in turns_of(read_report(tmp_path / "t.jsonl"))] == [1, 2]
    assert read_report(tmp_path / "t.toml").name == "t"


def test_a_report_survives_json_and_the_built_in_one_fits_the_schema():
    report = built_in()
    assert parsed(json.loads(json.dumps(report.to_json()))) == report
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    path = ROOT / "kode_lab/reports/concurrency-report.toml"
    jsonschema.validate(tomllib.loads(path.read_text("utf-8")), made)
    jsonschema.validate({"turns": [TURN]}, made)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"turns": [TURN | {"colour": "red"}]}, made)


def test_the_schema_and_the_page_of_the_format_are_those_of_the_code():
    assert json.loads((ROOT / "docs/report.schema.json").read_text("utf-8")) == schema()
    page = (ROOT / "docs/report-format.md").read_text("utf-8")
    for name in (*MEASURES, "users_within"):
        assert f"`{name}`" in page, f"docs/report-format.md does not tell of {name}"


def test_the_examples_of_the_page_are_reports(tmp_path):
    page = (ROOT / "docs/report-format.md").read_text("utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```toml\n")[1:]]
    assert len(blocks) >= 3
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.toml").write_text(block)
        report = read_report(tmp_path / f"{number}.toml")
        check_claims(report)
        jsonschema.validate(tomllib.loads(block), schema())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arrived_s": -1}, r"turns\[1\]\.arrived_s=-1"),
        ({"took_s": float("nan")}, r"turns\[1\]\.took_s=nan"),
        ({"took_s": 1e9}, "TIME_LIMIT_S=86400"),
        ({"took_s": "long"}, "took_s='long'"),
        ({"tool_calls": -1}, "tool_calls=-1"),
        ({"tool_calls": 5, "calls_s": [0.1] * 7}, "7 model calls cannot be with 5 tool calls"),
        ({"tool_calls": 0, "calls_s": [0.1, 0.1]}, "there are 1 to 1"),
        ({"tools": ["a", "b"], "tool_calls": 3}, "tool_calls is 3 and 2 tools are listed"),
        ({"prompt": "\ud800"}, "half a surrogate"),
        ({"userId": ""}, "userId is empty"),
        ({"agentId": "../x"}, "is no name"),
        ({"tokens": 3}, "no 'tokens'"),
        ({"outcome": "sad"}, "outcome='sad'"),
        ({"userId": "x", "user": "y"}, "are one field"),
    ],
)
def test_impossible_values_and_unknown_words_are_refused_by_turn_and_field(change, told):
    with pytest.raises(InvalidScenario, match=told):
        parsed({"turns": [TURN, TURN | change]})


@pytest.mark.parametrize(
    "fields",
    [[], {}, {"turns": []}, {"turns": [3]}, {"kode_lab_report": 9, "turns": [{}]}, 3, None,
     {"turns": 3}, {"tests": [{"name": "a"}]}, {"load": {}}, {"load": {"users": 1}},
     {"tests": [{"name": "a", "turns": [TURN]}] * 2},
     {"turns": [TURN] * (REPORT_TURNS_LIMIT + 1)}],
)  # fmt: skip
def test_what_is_no_report_is_refused(fields):
    with pytest.raises(InvalidScenario):
        parsed(fields)


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({"measure": "speed"}, "no measure 'speed'"),
        ({"measure": "answer", "statistic": "p999"}, "no statistic 'p999'"),
        ({"measure": "answer", "at_most": "soon"}, "'soon' is no amount of answer"),
        ({"measure": "users_within", "at_least": 5}, "needs slo"),
        ({"measure": "answer", "is": 1, "at_most": 2}, "one of is, at_most"),
    ],
)
def test_a_claim_that_says_nothing_is_refused_before_anything_runs(claim, told, tmp_path):
    with pytest.raises(InvalidScenario, match=told):
        reproduce(parsed({"turns": [TURN], "claims": [claim]}), results=tmp_path, card=Unseen())
    assert list(tmp_path.iterdir()) == []


# --- contradictions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([("ada", 0, 20, {}), ("ben", 0, 39.5, {})], "looks like waiting"),
        ([("ada", 0, 38, {"tool_calls": 8}), ("ben", 1, 40, {"tool_calls": 0})], "like waiting"),
        ([("ada", 0, 5, {}), ("ben", 0, 5, {"waited": 3.0})], "no turn of its session ran"),
        ([("ada", 0, 20, {}), ("ben", 0, 39.5, {"waited": 19.5, "waited_for": "another session"})],
         "the lock of a session does not explain it"),
        ([("ada", 0, 10, {}), ("ada", 2, 3, {})], "came second and ended 5.000 s earlier"),
        ([("ada", 0, 10, {}), ("ada", 2, 12, {"waited": 1.0})], "the session was taken for 8.000"),
        ([("ada", 0, 10, {}), ("ada", 5, 10, {})], "seem to overlap"),
        ([("ada", 0, 5, {"calls": [9.0]})], "its model calls 9.000 s"),
        ([("ada", 0, 5, {"first_token": 6})], "its first token 6.000 s"),
        ([("ada", 0, 5, {"waited": 3, "model": 4})], "7.000 s together"),
        ([("ada", 0, 5, {"ended": 9})], "between its arrival and its end are 9.000 s"),
    ],
)  # fmt: skip
def test_what_a_reports_turns_say_against_each_other_is_told(turns, told):
    fields = [{"user": u, "arrived": a, "took": t, **more} for u, a, t, more in turns]
    found = contradictions(parsed({"turns": fields}))
    assert any(told in one.what for one in found), found


@pytest.mark.parametrize(
    "turns",
    [
        [("ada", 0, 2.19, {"tool_calls": 1}), ("ben", 0, 16.73, {"tool_calls": 8})],
        [("ada", 0, 10, {}), ("ada", 2, 18, {})],
        [("ada", 0, 10, {}), ("ada", 2, 18, {"waited": 8, "model": 10})],
        [("ada", 0, 20, {}), ("ben", 0, 39.5, {"waited": 0})],
        [("ada", 0, 20, {}), ("ben", 1, 21, {})],
    ],
)
def test_turns_side_by_side_and_turns_that_wait_for_their_own_session_are_no_contradiction(turns):
    fields = [{"user": u, "arrived": a, "took": t, **more} for u, a, t, more in turns]
    assert contradictions(parsed({"turns": fields})) == ()
    assert contradictions(built_in()) == ()


def test_claims_that_the_reports_own_turns_or_claims_deny_are_told():
    claims = [
        {"measure": "answer", "statistic": "median", "is": "5 s"},
        {"measure": "error_rate", "is": "0 %"},
        {"measure": "first_token", "statistic": "p50", "is": 3},
        {"measure": "first_token", "statistic": "p95", "is": 2},
    ]
    turns = [TURN, TURN | {"userId": "b"}, TURN | {"userId": "c", "outcome": "failed"}]
    found = [one.what for one in contradictions(parsed({"turns": turns, "claims": claims}))]
    assert any("median answer: 5 s, and its own turns give 2.000 s" in text for text in found)
    assert any("error rate" in text for text in found)
    assert any("a higher percentile cannot be smaller" in text for text in found)
    load = {
        "load": {"users": 10, "for": "60 s"},
        "claims": [{"measure": "throughput", "is": 10}, {"measure": "answer", "is": "5 s"}],
    }
    (little,) = contradictions(parsed(load))
    assert "50.0 at once, and there are 10" in little.what


# --- judging -----------------------------------------------------------------------------------


def seen(number, answer_s, **changes):
    turn = SeenTurn(
        name=f"t{number}", key=SessionKey.of(f"u{number % 4}", "a"), phase="", prompt="hi",
        number=1 + number // 4, outcome="ok", error="", sent_s=number * 0.5, answer_s=answer_s,
        at_work_s=number * 0.5, work_s=answer_s, planned_s=answer_s, first_token_s=answer_s / 4,
        wait_own_s=0.0, wait_other_s=0.0, model_s=answer_s, model_calls=(answer_s,),
        tools=(SeenTool("web", 0.1, number % 10 == 0),), input_tokens=100, output_tokens=11,
        foreign=0, pieces_s=tuple(answer_s / 4 + 0.1 * piece for piece in range(6)), retries=0,
    )  # fmt: skip
    return turn._replace(**changes)


MANY = tuple(
    seen(n, 1 + n / 100) if n % 20 else seen(n, 1.0)._replace(outcome="failed", answer_s=None)
    for n in range(200)
)


def judged(claim, turns=MANY, **changes):
    fields = {"load": {"users": 4, "turns": 1}, "claims": [claim], "prices": {"output": 1e6}}
    report = parsed(fields)
    check_claims(report)
    (test,) = report.tests
    evidence = Evidence(test, turns, prices=(0.0, 1e6), **changes)
    (found,) = claims_of(evidence)
    return found


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"measure": "answer", "statistic": "p95", "at_most": "2.9 s"}, "holds"),
        ({"measure": "answer", "statistic": "p95", "at_most": "1 s"}, "violated"),
        ({"measure": "answer", "statistic": "median", "is": "2 s"}, "holds"),
        ({"measure": "answer", "statistic": "median", "is": "3 s"}, "violated"),
        ({"measure": "answer", "statistic": "p99.9", "is": "3 s"}, "inconclusive"),
        ({"measure": "answer", "between": [1, 3]}, "holds"),
        ({"measure": "first_token", "statistic": "p50", "at_most": "600 ms"}, "holds"),
        ({"measure": "per_output_token", "at_most": "200 ms"}, "holds"),
        ({"measure": "error_rate", "is": "5 %"}, "holds"),
        ({"measure": "error_rate", "at_most": 1, "unit": "%"}, "violated"),
        ({"measure": "success_rate", "at_least": "90 %"}, "holds"),
        ({"measure": "refusal_rate", "is": 0}, "holds"),
        ({"measure": "throughput", "is": "1.9/s"}, "holds"),
        ({"measure": "throughput", "at_least": "100/min"}, "holds"),
        ({"measure": "throughput", "at_least": "100/s"}, "violated"),
        ({"measure": "concurrency", "at_most": 8}, "holds"),
        ({"measure": "tool_calls", "is": 1}, "holds"),
        ({"measure": "tool", "name": "web", "is": "100 ms"}, "holds"),
        ({"measure": "tool_error_rate", "is": "10 %"}, "holds"),
        ({"measure": "tool", "name": "sql", "is": "100 ms"}, "inconclusive"),
        ({"measure": "fairness", "at_most": "1.5x"}, "holds"),
        ({"measure": "fairness_index", "at_least": 0.99}, "holds"),
        ({"measure": "sessions", "is": 4}, "holds"),
        ({"measure": "turns", "is": 200}, "holds"),
        ({"measure": "cost", "statistic": "mean", "is": "$11"}, "holds"),
        ({"measure": "output_tokens", "statistic": "sum", "is": 2090}, "holds"),
        ({"measure": "wait_other", "statistic": "max", "at_most": "1 ms"}, "holds"),
        ({"measure": "wait_other", "statistic": "max", "at_least": "1 s"}, "violated"),
        ({"measure": "answer", "where": {"index_from": 40}, "at_least": "2.5 s"}, "holds"),
        ({"measure": "answer", "where": {"user": "stranger"}, "is": 1}, "inconclusive"),
        ({"measure": "answer", "where": {"index": 50}, "compared_with": {"index": 2},
          "at_least": "2x"}, "holds"),
        ({"measure": "answer", "where": {"index": 50}, "compared_with": {"index": 2},
          "difference": True, "at_least": "3 s"}, "violated"),
        ({"measure": "memory", "at_most": "1 GB"}, "inconclusive"),
        # In the words of other tools and other languages.
        ({"measure": "TTFT", "statistic": "p50", "at_most": "600 毫秒"}, "holds"),
        ({"measure": "E2E latency", "statistic": "p95", "below": "2.95秒"}, "holds"),
        ({"measure": "ITL", "statistic": "p99", "is": "100 ms", "tolerance": "5 ms"}, "holds"),
        ({"measure": "time to second token", "is": 1}, "refused"),
        ({"measure": "second_token", "statistic": "max", "below": "1 s"}, "holds"),
        ({"measure": "QPS", "is": "1.9 req/s"}, "holds"),
        ({"measure": "output token throughput", "is": "20.9 tok/s"}, "holds"),
        ({"measure": "throughput", "statistic": "max", "at_most": "4/s"}, "holds"),
        ({"measure": "throughput", "per": "user", "is": "0.475/s"}, "holds"),
        ({"measure": "token_speed", "statistic": "min", "at_least": 4}, "holds"),
        ({"measure": "cost", "per": "session", "is": "$522.5"}, "holds"),
        ({"measure": "cost_rate", "at_most": "$100000/h"}, "holds"),
        ({"measure": "turns", "where": {"start": "50 s"}, "is": 100}, "holds"),
        ({"measure": "answer", "where": {"start": "50 s"}, "compared_with": {"end": "50 s"},
          "is": "+67 %"}, "holds"),
        ({"measure": "answer", "where": {"end": "50 s"}, "compared_with": {"start": "50 s"},
          "is": "-40 %"}, "holds"),
        ({"measure": "request_rate", "is": "114 rpm", "tolerance": "10 %"}, "holds"),
        ({"measure": "token_rate", "is": "0.21k tok/s"}, "holds"),
        ({"measure": "token_rate", "is": "12,660 tokens per minute"}, "holds"),
        ({"measure": "output_tokens", "statistic": "sum", "is": "2.09k tokens"}, "holds"),
        ({"measure": "turns", "is": "200 次"}, "holds"),
        ({"measure": "success_rate", "is": "190 of 200"}, "holds"),
        ({"measure": "answer", "statistic": "median", "is": "约 2 秒"}, "holds"),
        ({"measure": "not_measured", "name": "hardware", "is": "4 containers"}, "not applicable"),
        # Against an objective.
        ({"measure": "within", "slo": {"measure": "ttft", "at_most": "500 ms"},
          "is": "48 %"}, "holds"),
        ({"measure": "within", "slo": [{"measure": "answer", "below": "2 s"},
          {"measure": "ttft", "at_most": "10 s"}], "at_least": "90 %"}, "violated"),
        ({"measure": "goodput", "slo": {"measure": "answer", "below": "2 s"},
          "at_least": "0.9/s"}, "holds"),
        ({"measure": "apdex", "slo": {"measure": "answer", "at_most": "1 s"},
          "between": [0.4, 0.6]}, "holds"),
        ({"measure": "apdex", "at_least": 0.9}, "refused"),
        # Of the whole.
        ({"measure": "in_order", "is": "100 %"}, "holds"),
        ({"measure": "longest_gap", "at_most": "3 s"}, "holds"),
        ({"measure": "session_time", "at_least": "90 s"}, "holds"),
        ({"measure": "queue depth", "is": 0}, "inconclusive"),
        ({"measure": "running", "statistic": "mean", "between": [2, 6]}, "holds"),
        ({"measure": "retries", "statistic": "sum", "is": 0}, "holds"),
        ({"measure": "until_end", "statistic": "max", "at_most": "5 s"}, "holds"),
        ({"measure": "GPU utilization", "is": "100 %"}, "not applicable"),
        ({"measure": "not_measured", "name": "4 containers", "is": 4}, "not applicable"),
    ],
)  # fmt: skip
def test_a_claim_is_judged_by_its_measure_statistic_and_tolerance(claim, verdict):
    if verdict == "refused":
        with pytest.raises(InvalidScenario, match=r"no measure|needs slo"):
            judged(claim)
        return
    found = judged(claim)
    assert found.verdict == verdict, found


def test_a_claim_can_compare_two_tests_of_the_report():
    claim = {"measure": "throughput", "compared_with": {"test": "before"}, "is": "2x"}
    load = {"users": 4, "turns": 1}
    fields = [{"name": "before", "load": load}, {"name": "after", "load": load, "claims": [claim]}]
    before, after = parsed({"tests": fields}).tests
    late = tuple(turn._replace(sent_s=2 * turn.sent_s) for turn in MANY)
    slow, fast = Evidence(before, late), Evidence(after, MANY)
    assert [one.verdict for one in claims_of(fast, (slow, fast))] == ["holds"]
    claim["compared_with"] = {"test": "never"}
    with pytest.raises(InvalidScenario, match="there is no test 'never'"):
        check_claims(parsed({"tests": fields}))


@pytest.mark.parametrize(
    ("load", "clients", "turns"),
    [
        ({"users": 4, "requests": 10}, 4, 10),
        ({"users": 3, "sessions": 2, "turns": 5}, 6, 30),
        ({"users": 50, "turns": {"median": 3, "max": 9}}, 50, range(100, 250)),
        ({"session_rate": 5, "for": "20 s", "turns": 2}, range(60, 150), range(120, 300)),
    ],
)
def test_how_much_is_asked_is_told_in_turns_requests_or_conversations(load, clients, turns):
    report = parsed({"load": load | {"prompts": [{"text": "Hi", "model": 1}]}})
    scenario = scenario_of(report, report.tests[0])
    found = len(scenario.clients_given), scenario.turns_total
    for told, value in zip((clients, turns), found, strict=True):
        assert value in told if isinstance(told, range) else value == told, found


def trace(tmp_path, *rows):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_report(path).tests[0].turns


def test_a_mooncake_trace_is_a_report_of_turns(tmp_path):
    one, two, three = trace(
        tmp_path,
        {"timestamp": 27_000, "input_length": 655, "output_length": 50, "hash_ids": [0, 1]},
        {"session_id": "s", "timestamp": 27_105, "input_tokens": 1800, "output_tokens": 25},
        {"session_id": "s", "delay": 2_000, "output_length": 100,
         "messages": [{"role": "user", "content": "How are you?"}]},
    )  # fmt: skip
    assert (one.arrived.at_s, one.model, one.input_tokens) == (0, 1.5, 655)
    assert (two.arrived.at_s, two.output_tokens, two.user) == (0.105, 25, three.user)
    assert (three.think, three.prompt, three.arrived) == (2, "How are you?", None)
    talk = {"session_id": "s", "turns": [{"text": "Hi"}, {"text": "And?", "delay": 500}]}
    assert [turn.think for turn in trace(tmp_path, talk)] == [None, 0.5]


def test_the_requests_of_a_coding_agent_are_turns_with_tools_and_sub_agents(tmp_path):
    inner = [{"t": 0, "type": "n", "out": 10, "api_time": 1}, {"t": 3, "out": 5, "api_time": 2}]
    steps = [
        {"t": 0, "type": "n", "in": 900, "out": 10, "api_time": 2, "stop": "tool_use"},
        {"t": 2.5, "type": "s", "in": 1000, "out": 20, "api_time": 3},
        {"t": 5.5, "type": "subagent", "subagent_type": "Explore", "requests": inner},
        {"t": 12, "type": "n", "in": 1200, "out": 30, "api_time": 1, "stop": "end_turn"},
        {"t": 60, "type": "n", "in": 1300, "out": 40, "api_time": 2},
    ]
    first, second = trace(tmp_path, {"id": "trace_1", "requests": steps})
    assert (first.calls, first.input_tokens, first.output_tokens) == ((2, 3, 1), 3100, 60)
    assert [(tool.name, tool.took_s) for tool in first.tools] == [("tool", 0.5), ("Explore", 5)]
    assert first.tools[1].calls == (1, 2)
    assert (second.arrived.at_s, second.calls) == (60, (2,))


def test_what_a_benchmark_exported_is_a_report_with_its_own_times(tmp_path):
    row = {"metadata": {"session_num": 3, "request_start_ns": 5 * 10**9, "turn_index": 0},
           "metrics": {"request_latency": {"value": 812.5, "unit": "ms"},
                       "time_to_first_token": {"value": 52, "unit": "ms"},
                       "output_sequence_length": {"value": 128, "unit": "tokens"}}}  # fmt: skip
    (turn,) = trace(tmp_path, row)
    assert (turn.user, turn.took, turn.first_token) == ("user-3", 0.8125, 0.052)
    assert turn.output_tokens == 128
    with pytest.raises(InvalidScenario, match="lacks a field"):
        trace(tmp_path, {"metadata": {}, "metrics": {}})


def test_a_phase_has_its_own_prompts_and_a_user_goes_on_after_its_last_turn():
    phases = [
        {"name": level, "for": "3 s", "users": users,
         "prompts": [{"text": level, "model": f"{users} s", "output_tokens": 9}]}
        for level, users in (("one", 1), ("two", 2))
    ]  # fmt: skip
    report = parsed({"load": {"phases": phases}})
    first, second, other = scenario_of(report, report.tests[0]).clients_given
    assert (first.asks[0].script.took_s, second.asks[0].script.took_s) == (1, 2)
    assert (second.follows, other.follows) == (first.name, "")


def test_the_most_users_within_an_objective_are_those_of_the_last_phase_that_holds():
    turns = tuple(seen(n, 1.0 + (n >= 100) * 4, phase="a" if n < 100 else "b") for n in range(200))
    slo = {"measure": "answer", "statistic": "p95", "at_most": "3 s"}
    claim = {"measure": "users_within", "slo": slo, "at_least": 10}
    found = judged(claim, turns, users={"a": 10, "b": 20})
    assert (found.verdict, found.measured.startswith("10 (")) == ("holds", True)
    assert judged(claim | {"at_least": 20}, turns, users={"a": 10, "b": 20}).verdict == "violated"


def test_a_real_models_times_are_not_applicable_and_a_services_missing_steps_neither():
    claim = {"measure": "answer", "is": "9 s"}
    assert judged(claim, is_simulated=False).verdict == "not applicable"
    untraced = tuple(turn._replace(is_traced=False, load_s=None) for turn in MANY)
    found = judged({"measure": "load", "at_most": 1}, untraced[1:2])
    assert found.verdict == "not applicable"


def test_percentiles_are_values_that_were_measured():
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile([1, 2, 3, 4], 0.95) == 4


# --- doing it again ----------------------------------------------------------------------------


def test_a_serialised_service_is_not_reproduced_as_model_time(tmp_path):
    turns = [
        {"user": "ada", "arrived": 0, "took": 20, "tool_calls": 2},
        {"user": "ben", "arrived": 0, "took": 39.5, "waited": 19.5,
         "waited_for": "another session"},
    ]  # fmt: skip
    report = parsed({"turns": turns})
    found = reproduce(report, speed=200, results=tmp_path, card=Unseen()).result()
    verdicts = {claim.what: claim.verdict for claim in found.claims}
    assert verdicts["ada answered in"] == "holds"
    assert verdicts["ben answered in"] == "violated"
    assert verdicts["ben waited for another session"] == "violated"
    silent = parsed({"turns": [turns[0] | {"tool_calls": 0}, turns[1] | {"waited": None}]})
    found = reproduce(silent, speed=200, results=tmp_path, card=Unseen()).result()
    assert found.verdict == "inconclusive"
    assert "looks like waiting" in found.contradictions[0].what


def test_any_agent_any_tools_failures_refusals_and_two_tests_of_one_session(tmp_path):
    turns = [
        {"user": "ada", "agent": "research-bot", "arrived": 0, "took": 4, "first_token": 3.5,
         "tools": [{"name": "web_search", "took": 1}, {"name": "sql", "took": 0.5, "failed": True},
                   {"name": "writer", "calls": [0.5], "tools": [{"name": "lint", "took": 0.2}]}],
         "output_tokens": 50},
        {"user": "ben", "agent": "research-bot", "arrived": 0.1, "took": 1, "outcome": "failed"},
        {"user": "cyd", "agent": "research-bot", "arrived": 0.2, "took": 0.1, "outcome": "refused"},
        {"user": "dot", "agent": "research-bot", "arrived": 0.2, "took": 1, "outcome": "cancelled"},
        {"user": "ada", "agent": "research-bot", "arrived": 5, "took": 2},
    ]  # fmt: skip
    more = [{"user": "ada", "agent": "research-bot", "arrived": 0, "took": 2}]
    report = parsed({"tests": [{"name": "a", "turns": turns}, {"name": "b", "turns": more}]})
    assert contradictions(report) == ()
    found = reproduce(report, speed=100, results=tmp_path, card=Unseen()).result()
    missed = [claim for claim in found.claims if claim.verdict == "violated"]
    # Only times may be missed, where other work takes the cores.
    assert all(" in" in claim.what or " after" in claim.what for claim in missed), missed
    verdicts = {claim.what: claim for claim in found.claims}
    assert verdicts["ada tool calls"].measured.startswith("3, 1 failed")
    assert [verdicts[f"{who} ended"].measured for who in ("ben", "cyd", "dot")] == [
        "failed", "refused", "cancelled",
    ]  # fmt: skip
    assert found.run.verdict().status != "invalid"
    assert {path.name for path in (found.run.path / "figures").glob("*.png")} == {"a.png", "b.png"}


def test_load_with_phases_think_times_and_faults_is_done_and_judged(tmp_path):
    fields = {
        "name": "bench",
        "load": {
            "think": {"mean": "0.5 s"},
            "agents": ["support-bot"],
            "faults": {"refused": 0.1},
            "prompts": [
                {"text": "Question", "weight": 3, "model": {"median": "0.5 s", "p95": "1 s"}},
                {"text": "Research", "model": "1 s", "tools": [{"name": "web", "took": "0.3 s"}]},
            ],
            "phases": [
                {"name": "few", "for": "5 s", "users": 3},
                {"name": "more", "for": "5 s", "users": 6, "ramp": "1 s"},
            ],
        },
        "claims": [
            {"measure": "answer", "statistic": "median", "where": {"prompt": "Research"},
             "at_least": "2.2 s"},
            {"measure": "refusal_rate", "between": ["0.1 %", "40 %"]},
            {"measure": "guarantee", "name": "apart"},
            {"measure": "users", "where": {"phase": "more"}, "is": 6},
            {"measure": "memory", "at_most": "4 GB"},
        ],
    }  # fmt: skip
    report = parsed(fields)
    scenario = scenario_of(report, report.tests[0], speed=10)
    assert {client.name.split("/")[1] for client in scenario.clients_given} == {"few", "more"}
    found = reproduce(report, speed=10, results=tmp_path, card=Unseen()).result()
    assert {claim.verdict for claim in found.claims} <= {"holds", "inconclusive"}, found.claims
    again = evidence_in(report, report.tests[0])
    assert again.turns == ()
    assert (found.run.path / "figures" / "test-latency.png").is_file()
