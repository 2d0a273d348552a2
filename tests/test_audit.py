"""An audit proves what traces show and nothing else, in every format that it reads."""

import gzip
import json

import pytest

from benchmarks.audit_logs import FAULTS, ODDITIES, damaged, make_log
from kode_lab import cli
from kode_lab.audit import Log, audit, verdict_on
from kode_lab.audit.items import Unreadable, items_of
from kode_lab.errors import InvalidRecord


def verdict(lines, **options):
    log = Log()
    for number, line in enumerate(lines, 1):
        log.read_line(line if isinstance(line, bytes) else line.encode(), "log", number)
    return verdict_on(log, **options)


def proved(judged):
    return {finding.name for finding in judged.findings if finding.is_proved}


# --- logs with known truth -------------------------------------------------------------------


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "tool twice"])
def test_each_fault_is_proved_by_its_name_in_nine_of_ten_logs_and_its_twin_acquitted(fault):
    found = 0
    for seed in range(10):
        played = make_log(seed, faults=[fault], oddities=[])
        found += played.faults <= proved(verdict(played.lines))
        assert proved(verdict(played.lines)) <= played.faults
        twin = make_log(seed, faults=[], oddities=[])
        assert verdict(twin.lines).status == "valid"
    assert found >= 9


@pytest.mark.parametrize("oddity", ODDITIES)
def test_what_is_legitimate_is_never_proved_to_be_wrong(oddity):
    for seed in range(8):
        assert proved(verdict(make_log(seed, faults=[], oddities=[oddity]).lines)) == set()


def test_damage_makes_no_fault():
    for seed in range(60):
        played = make_log(seed)
        assert proved(verdict(damaged(played.lines, seed))) <= played.faults


def test_a_tool_call_that_ran_twice_within_one_turn_is_only_suspected():
    judged = verdict(make_log(3, faults=["tool twice"], oddities=[]).lines)
    assert [finding.name for finding in judged.findings] == ["tool call run twice"]
    assert judged.status == "unknown"


# --- formats ---------------------------------------------------------------------------------

ASKS = ("Please note the first item.", "Please note the second item.")


def chat(history, answer, **fields):
    """Return one line of a request log in the shape of Chat Completions."""
    reply = {"id": answer, "choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
    return json.dumps({"request": {"model": "m", "messages": history}, "response": reply, **fields})


def two_turns(first, **fields):
    opened = [{"role": "user", "content": ASKS[0]}]
    later = [*opened, {"role": "assistant", "content": first}, {"role": "user", "content": ASKS[1]}]
    return [
        chat(opened, "Noted the first.", start_time=1.0, end_time=2.0, **fields),
        chat(later, "Noted the second.", start_time=3.0, end_time=4.0, **fields),
    ]


def test_a_log_of_requests_is_judged():
    fields = {"session_id": "trip", "user_id": "ada"}
    assert verdict(two_turns("Noted the first.", **fields)).status == "valid"
    torn = verdict(two_turns("Noted", **fields))
    assert [(one.name, one.is_proved) for one in torn.findings] == [("torn turn", True)]
    assert [turn.calls[0][1] for turn in torn.findings[0].turns] == [1, 2]


def test_anthropic_bedrock_style_and_responses_logs_hold_the_same_items():
    messages = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}]}
    responses = [{"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "Hello."}]}]  # fmt: skip
    gemini = [{"role": "user", "parts": [{"text": "Hello."}]}]
    langchain = [{"type": "human", "data": {"content": "Hello."}}]
    constructor = [{"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"],
                    "kwargs": {"content": "Hello.", "type": "human"}}]  # fmt: skip
    expected = items_of("Hello.")
    for dialect in (messages["messages"], responses, gemini, langchain, constructor):
        assert items_of(dialect) == expected


def test_tool_calls_and_results_are_the_same_in_every_dialect():
    chat_call = [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b":1,"a":2}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"}]  # fmt: skip
    messages_call = [
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "2", "name": "f", "input": {"a": 2, "b": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "2", "content": [
                {"type": "text", "text": "done"}]}]}]  # fmt: skip
    responses_call = [
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": '{"a":2,"b":1}'},
        {"type": "function_call_output", "call_id": "3", "output": "done"}]  # fmt: skip
    items = [
        [item[:3] for item in items_of(messages)]
        for messages in (chat_call, messages_call, responses_call)
    ]
    assert items[0] == items[1] == items[2]


def test_a_request_that_continues_a_response_is_judged_with_what_the_api_holds():
    def logged(ask, answer, number, **request):
        output = [{"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": answer}]}]  # fmt: skip
        said = {"request": {"input": [{"role": "user", "content": ask}], **request},
                "response": {"id": f"resp_{number}", "output": output},
                "session_id": "trip", "start_time": number, "end_time": number + 0.5}  # fmt: skip
        return json.dumps(said)

    first = logged(ASKS[0], "Noted the first.", 1)
    judged = verdict([first, logged(ASKS[1], "Noted.", 2, previous_response_id="resp_1")])
    assert judged.counts["turns seen again in a later history"] == 1
    assert judged.status == "valid"
    lost = verdict([first, logged(ASKS[1], "Noted.", 2, previous_response_id="resp_0")])
    assert lost.status == "unknown"
    assert any("holds" in reason for reason in lost.skipped)


def transcript(answer):
    def line(number, parent, kind, content, **message):
        return json.dumps({
            "uuid": f"u{number}", "parentUuid": parent and f"u{parent}", "type": kind,
            "sessionId": "s", "timestamp": f"2026-01-01T00:00:0{number}Z",
            "message": {"role": kind, "content": content, **message},
        })  # fmt: skip

    said = [{"type": "text", "text": answer}]
    return [
        line(1, 0, "user", ASKS[0]),
        line(2, 1, "assistant", [{"type": "text", "text": "Noted the first."}], id="m1"),
        line(3, 1, "assistant", said, id="m3") if answer != "Noted the first." else "",
        line(4, 3 if answer != "Noted the first." else 2, "user", ASKS[1]),
        line(5, 4, "assistant", [{"type": "text", "text": "Noted the second."}], id="m2"),
    ]


def test_a_transcript_is_read_as_the_chain_of_its_parents():
    judged = verdict(transcript("Noted the first."))
    assert judged.counts["turns"] == 2
    assert judged.counts["turns seen again in a later history"] == 1
    assert judged.status == "valid"


def test_two_records_of_one_call_are_one_call():
    lines = two_turns("Noted the first.", session_id="trip")
    judged = verdict([*lines, lines[0]])
    assert judged.counts["calls"] == 2


def test_a_gzip_file_is_read_and_a_broken_one_is_read_as_far_as_it_goes(tmp_path):
    lines = "\n".join(two_turns("Noted the first.", session_id="trip")).encode()
    whole = tmp_path / "log.jsonl.gz"
    whole.write_bytes(gzip.compress(lines))
    assert audit(whole).status == "valid"
    whole.write_bytes(gzip.compress(lines * 50)[:-20])
    assert audit(whole).skipped["files that break off"] == 1


# --- what cannot be judged -------------------------------------------------------------------


def test_what_cannot_be_read_is_counted_with_its_reason():
    judged = verdict(["no json", "[1]", "{}", "7", '{"resourceSpans": [{"scopeSpans": 3}]}'])
    assert judged.status == "unknown"
    assert sum(judged.skipped.values()) == 5
    assert "lines that are no JSON" in str(judged)
    assert all(one.status == "not judged" for one in judged.guarantees)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"llm.input_messages.1.message.role": "user"}, "gaps in the numbering"),
        ({"gen_ai.input.messages": '[{"role": "user", "par'}, "cut off"),
        ({"gen_ai.input.messages": "__REDACTED__"}, "redacted"),
        ({"gen_ai.input.messages": "[ResponseOutputMessage(id='x')]"}, "Python reprs"),
        ({}, "no recorded messages"),
    ],
)
def test_a_model_call_without_usable_messages_says_why(attributes, why):
    pairs = {"openinference.span.kind": "LLM", **attributes}.items()
    span = {
        "traceId": "1", "spanId": "2", "name": "chat",
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in pairs],
    }  # fmt: skip
    judged = verdict([json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})])
    assert judged.status == "unknown"
    (reason,) = judged.skipped
    assert why in reason


def test_dropped_attributes_are_never_taken_for_a_history():
    played = make_log(1, faults=["lost update"], oddities=[])
    lines = [line.replace('"name": "chat', '"droppedAttributesCount": 9, "name": "chat')
             for line in played.lines]  # fmt: skip
    judged = verdict(lines)
    assert judged.findings == ()
    assert "dropped attributes" in str(judged)


def test_unreadable_messages_raise_one_error():
    with pytest.raises(Unreadable, match="role 'judge'"):
        items_of([{"role": "judge", "content": "x"}])


def test_one_name_with_two_users_is_proof_only_if_the_operator_says_so():
    shared = [*two_turns("Noted the first.", session_id="trip", user_id="ada")]
    shared[1] = shared[1].replace('"ada"', '"bob"')
    assert proved(verdict(shared)) == set()
    assert proved(verdict(shared, sessions_per_user=True)) == {"cross-session leak"}


# --- the command -----------------------------------------------------------------------------


def test_the_command_hides_words_and_ends_with_the_status_of_check(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(two_turns("Noted", session_id="trip", user_id="ada")))
    assert cli.main(["audit", str(log)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("FAIL: 1 torn turn")
    assert f"{log}:1" in told
    assert "first item" not in told
    assert cli.main(["audit", str(log), "--show-words"]) == 1
    assert "first item" in capsys.readouterr().out
    assert cli.main(["audit", str(log), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "invalid"
    assert "first item" not in json.dumps(found)
    assert cli.main(["audit", str(tmp_path / "none.jsonl")]) == 3
    with pytest.raises(InvalidRecord, match=r"none\.jsonl cannot be read"):
        audit(tmp_path / "none.jsonl")
