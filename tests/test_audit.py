"""An audit proves what traces show and nothing else, in every format that it reads."""

import asyncio
import gzip
import json
from base64 import b64encode

import aiohttp
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.audit_logs import FAULTS, ODDITIES, damaged, long_sessions, make_log
from kode_lab import cli
from kode_lab.audit import Log, audit, verdict_on
from kode_lab.audit.items import Unreadable, items_of
from kode_lab.audit.live import Receiver, Watch, follow
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
    for seed in range(4):
        assert proved(verdict(make_log(seed, faults=[], oddities=[oddity]).lines)) == set()


def test_damage_makes_no_fault():
    for seed in range(30):
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


def three_turns(second, **fields):
    """Return a session whose third request holds the second answer as given here."""
    history, lines = [], []
    kept = ["Noted the first.", second, "Noted the third."]
    for number, word in enumerate(("first", "second", "third")):
        history.append({"role": "user", "content": f"Please note the {word} item."})
        times = {"start_time": 2.0 * number + 1, "end_time": 2.0 * number + 2}
        lines.append(chat(list(history), f"Noted the {word}.", **times, **fields))
        history.append({"role": "assistant", "content": kept[number]})
    return lines


def test_a_log_of_requests_is_judged():
    fields = {"session_id": "trip", "user_id": "ada"}
    assert verdict(three_turns("Noted the second.", **fields)).status == "valid"
    torn = verdict(three_turns("Noted the", **fields))
    assert [(one.name, one.is_proved) for one in torn.findings] == [("torn turn", True)]
    assert [turn.calls[0][1] for turn in torn.findings[0].turns] == [2, 3]


def test_an_answer_that_the_client_may_have_shortened_is_only_suspected():
    short = verdict(two_turns("Noted", session_id="trip"))
    assert [(one.name, one.is_proved) for one in short.findings] == [("torn turn", False)]
    assert "answers that the client may have shortened" in short.recognised


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


# --- what is read, and what it costs ---------------------------------------------------------


def test_a_list_is_read_once_however_it_is_written():
    """The beginnings that were read before are found in escaped, plain and OTLP lists alike."""
    log = Log()
    calls = []
    for number in range(12):
        calls.append({"role": "user", "content": f"Question {number}, with some words {'x' * 400}"})
        log.read_line(chat(calls, f"Answer {number}.", session_id="s").encode(), "log", number)
        calls.append({"role": "assistant", "content": f"Answer {number}."})
    log.close()
    assert len(log.conversations.turns) == 12
    assert len(log.tree) == 1 + len(calls)  # each item once, below the one before it
    assert log.tree.start_of(log.tree.item_of[1]).startswith("Question 0")


def test_a_beginning_that_changed_is_never_taken_for_the_old_one():
    log = Log()
    long = "x" * 5000
    for number, first in enumerate(("Answer one.", "Answer two.")):
        messages = [{"role": "user", "content": f"Please do it. {long}"},
                    {"role": "assistant", "content": first},
                    {"role": "user", "content": "And now the next."}]  # fmt: skip
        log.read_line(chat(messages, f"Done {number}.").encode(), "log", number)
    log.close()
    assert len({turn.base for turn in log.conversations.turns}) == 2


def test_cache_marks_that_move_change_nothing():
    def marked(texts):
        blocks = [[{"type": "text", "text": text}] for text in texts]
        blocks[-1][0]["cache_control"] = {"type": "ephemeral"}
        roles = ("user", "assistant")
        return [{"role": roles[at % 2], "content": one} for at, one in enumerate(blocks)]

    log = Log()
    for number, texts in enumerate((["Hello there."], ["Hello there.", "Hi.", "How are you?"])):
        log.read_line(chat(marked(texts), "Hi.", session_id="s").encode(), "log", number)
    log.close()
    assert len(log.tree) == 5


def test_printed_spans_and_printed_json_are_read(tmp_path):
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps([{"role": "user", "content": ASKS[0]}]),
    }
    span = {
        "name": "chat", "context": {"trace_id": "0x01", "span_id": "0x02"}, "parent_id": None,
        "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:01Z",
        "status": {"status_code": "UNSET"}, "attributes": attributes, "resource": {},
    }  # fmt: skip
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(span, indent=4) + "\n" + json.dumps(span, indent=2) + "\n{\nbroken")
    judged = audit(path)
    assert judged.counts["turns"] == 1  # one span, exported twice
    assert judged.skipped["lines that are no JSON"] == 2


def test_langsmith_runs_are_spans_by_another_name():
    def run(number, kind, parent, **fields):
        return json.dumps({
            "id": f"r{number}", "run_type": kind, "trace_id": "t", "parent_run_id": parent,
            "name": kind, "start_time": "2026-01-01T00:00:00", "end_time": "2026-01-01T00:00:02",
            **fields,
        })  # fmt: skip

    judged = verdict([
        run(1, "chain", None, extra={"metadata": {"thread_id": "trip", "user_id": "ada"}}),
        run(2, "llm", "r1", inputs={"messages": [[{"lc": 1, "type": "constructor",
            "id": ["HumanMessage"], "kwargs": {"type": "human", "content": ASKS[0]}}]]},
            outputs={"generations": [[{"message": {"kwargs": {"type": "ai", "content": "Ok."},
            "lc": 1, "type": "constructor"}}]]}),
    ])  # fmt: skip
    (turn,) = judged.turns
    assert (turn.who, turn.root, turn.is_rooted) == (("ada", "trip"), "chain", True)
    assert judged.tree.start_of(turn.answer) == "Ok."


def test_a_stub_that_gives_every_answer_one_id_is_no_single_call():
    lines = [
        line.replace('"id": "', '"id": "same", "was": "')
        for line in three_turns("Noted the second.")
    ]
    assert verdict(lines).counts["calls"] == 3


# --- live ------------------------------------------------------------------------------------


def test_a_watch_forgets_the_oldest_and_keeps_what_it_found():
    watch = Watch(turns_limit=200)
    most = 0
    lines = make_log(11, faults=["lost update"], oddities=[]).lines
    lines += long_sessions(5, 500)
    for number, line in enumerate(lines, 1):
        watch.read_line(line.encode(), "log", number)
        if number % 100 == 0:
            watch.verdict()
            most = max(most, len(watch.log.conversations.turns))
    last = watch.verdict(is_last=True)
    assert most < 500
    assert len(watch.log.tree) < 4_000
    assert watch.log.conversations.forgotten > 1_500
    assert proved(last) == {"fork", "lost update"}
    assert 'name="lost update",proof="proved"} 1' in watch.metrics()


def test_what_was_asked_and_forgotten_is_never_taken_for_asked_once():
    watch = Watch(turns_limit=100)
    script = [chat([{"role": "user", "content": ASKS[0]}], "Noted.", user_id="ada", session_id="a")]
    for number, line in enumerate([*script, *long_sessions(2, 120)]):
        watch.read_line(line.encode(), "log", number)
    watch.verdict(is_last=True)
    watch.log.forget(20)
    item = watch.log.tree.item("user", "text", ASKS[0])
    assert watch.log.was_asked_before(item)
    assert not watch.log.was_asked_before(watch.log.tree.item("user", "text", "Never asked."))


async def lines_of(watch, number):
    while watch.log.lines < number:  # noqa: ASYNC110 - a file has no event
        await asyncio.sleep(0.01)


def test_a_file_is_followed_through_its_growth_and_its_replacement(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = three_turns("Noted the", session_id="trip", user_id="ada")
    path.write_text(lines[0] + "\n" + lines[1][:20])
    found = []

    async def grow():
        watch = Watch(on_finding=lambda finding: found.append(finding.name))
        ended = asyncio.Event()
        task = asyncio.create_task(follow(path, watch, ended))
        await lines_of(watch, 1)
        with path.open("a") as file:
            file.write(lines[1][20:] + "\n")
        await lines_of(watch, 2)
        (tmp_path / "new").write_text(lines[2] + "\n")
        (tmp_path / "new").replace(path)
        await lines_of(watch, 3)
        ended.set()
        await task
        watch.verdict(is_last=True)

    asyncio.run(asyncio.wait_for(grow(), 60))
    assert found == ["torn turn"]


def test_a_receiver_takes_json_and_protobuf_and_refuses_what_a_web_page_could_send():
    lines = make_log(7, faults=["torn turn"], oddities=[]).lines

    async def send():
        watch = Watch()
        async with Receiver(watch, port=0) as receiver, aiohttp.ClientSession() as client:

            async def post(body, kind="application/json", path="/v1/traces", **headers):
                asked = {"content-type": kind, **headers}
                url = receiver.base_url + path
                async with client.post(url, data=body, headers=asked) as answer:
                    return answer.status, await answer.read()

            half = len(lines) // 2
            for line in lines[:half]:
                record = json.loads(line)
                body = gzip.compress(line.encode())
                headers = {"content-encoding": "gzip"}
                assert await post(body, **headers) == (200, b"{}")
            for line in lines[half:]:
                record = json.loads(line)
                for resource in record["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        for span in scope["spans"]:
                            for name in ("traceId", "spanId", "parentSpanId"):
                                span[name] = b64encode(bytes.fromhex(span[name])).decode()
                body = ParseDict(record, ExportTraceServiceRequest()).SerializeToString()
                assert await post(body, "application/x-protobuf") == (200, b"")
            assert (await post(b"{", "application/json"))[0] == 400
            assert (await post(b"xyz", "application/x-protobuf"))[0] == 400
            packed = {"content-encoding": "gzip"}
            assert (await post(b"xyz", **packed))[0] == 400
            assert (await post(b"{}", "text/plain"))[0] == 415
            assert (await post(b"{}", origin="http://evil.example"))[0] == 403
            assert (await post(b"{}", path="/v1/other"))[0] == 405
            zeros = gzip.compress(bytes(70_000_000), 1)
            assert (await post(zeros, **packed))[0] == 413
            watch.verdict()
            async with client.get(receiver.base_url + "/summary") as answer:
                summary = await answer.json()
            async with client.get(receiver.base_url + "/metrics") as answer:
                metrics = await answer.text()
            return summary, metrics

    summary, metrics = asyncio.run(send())
    assert summary["status"] == "invalid"
    assert 'kode_audit_findings_total{name="torn turn",proof="proved"} 1' in metrics


def test_the_frames_hold_a_row_a_turn_a_session_and_a_finding():
    frames = verdict(three_turns("Noted the", session_id="trip", user_id="ada")).frames()
    assert list(frames["turns"]["session_id"]) == ["trip"] * 3
    assert list(frames["sessions"]["proved"]) == [1]
    assert list(frames["findings"]["name"]) == ["torn turn"]
    empty = verdict([]).frames()
    assert [len(frame) for frame in empty.values()] == [0, 0, 0]


# --- the command -----------------------------------------------------------------------------


def test_the_command_hides_words_and_ends_with_the_status_of_check(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(three_turns("Noted the", session_id="trip", user_id="ada")))
    assert cli.main(["audit", str(log)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("FAIL: 1 torn turn")
    assert f"{log}:2" in told
    assert "second item" not in told
    assert cli.main(["audit", str(log), "--show-words"]) == 1
    assert "second item" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert cli.main(["audit", str(log), "--json", "--page", str(page)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "invalid"
    assert "second item" not in json.dumps(found)
    assert "torn turn" in page.read_text()
    assert "second item" not in page.read_text()
    assert cli.main(["audit"]) == 3
    assert cli.main(["audit", str(tmp_path / "none.jsonl")]) == 3
    with pytest.raises(InvalidRecord, match=r"none\.jsonl cannot be read"):
        audit(tmp_path / "none.jsonl")
