"""Every option of the four APIs does something, changes nothing by nature, or is refused."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from simulated_http import HEADERS, TOOL, answer_to, asked, http, serving

from kode_lab.claude.formats.edits import CLEARED, edited
from kode_lab.claude.formats.options import OPTIONS, options_table
from kode_lab.message import user

BETAS = HEADERS | {
    "anthropic-beta": "context-management-2025-06-27,mcp-client-2025-11-20,compact-2026-01-12"
}
OPENAI = {"authorization": "Bearer any"}
GOOGLE = {"x-goog-api-key": "any"}
WORDS = {"role": "user", "content": "hello"}
BODIES = {
    "messages": ("/v1/messages", HEADERS, asked(user("hello"))),
    "chat": ("/v1/chat/completions", OPENAI, {"model": "m", "messages": [WORDS]}),
    "responses": ("/v1/responses", OPENAI, {"model": "m", "input": "hello"}),
    "gemini": (
        "/v1beta/models/m:generateContent",
        GOOGLE,
        {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ),
}


def known(api):
    return {name for _, _, names in OPTIONS[api] for name in names.split()}


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def documented(package, path, name):
    """Return the fields of a class in an SDK's source; importing it costs seconds."""
    (found,) = find_spec(package).submodule_search_locations
    source = (Path(found) / path).read_text("utf-8")
    body = re.search(rf"^class {name}\(.*?(?=^class |\Z)", source, re.DOTALL | re.MULTILINE)[0]
    return set(re.findall(r"^  {1,3}(\w+): ", body, re.MULTILINE)) - {"stream"}


def test_the_table_has_every_parameter_of_the_sdks():
    chat = "types/chat/completion_create_params.py"
    responses = "types/responses/response_create_params.py"
    assert documented("openai", chat, "CompletionCreateParamsBase") <= known("chat")
    assert documented("openai", responses, "ResponseCreateParamsBase") <= known("responses")
    beta = "types/beta/message_create_params.py"
    headers = {"betas", "user_profile_id", "workspace_id"}
    messages = documented("anthropic", beta, "MessageCreateParamsBase")
    assert messages - headers <= known("messages")
    gemini = known("gemini")
    config = documented("google", "genai/types.py", "GenerationConfig")
    assert {f"generationConfig.{camel(name)}" for name in config} <= gemini
    of_the_sdk = {"http_options", "should_return_http_response", "automatic_function_calling"}
    of_vertex = {"automatic_continuation", "generation_output_config"}
    whole = documented("google", "genai/types.py", "GenerateContentConfig")
    for name in map(camel, whole - of_the_sdk - of_vertex):
        assert {name, f"generationConfig.{name}"} & gemini, name


def test_the_documentation_shows_the_table():
    page = (Path(__file__).parent.parent / "docs/simulated-model.md").read_text("utf-8")
    assert "\n".join(options_table()) in page


def test_what_is_not_simulated_is_refused_and_what_is_harmless_is_not():
    typed = {"labels": {}, "store": True, "safetySettings": [], "stream_options": {}}
    values = {"modalities": ["audio"]}

    async def scenario(simulated):
        wrong = []
        for api, groups in OPTIONS.items():
            path, headers, plain = BODIES[api]
            for verdict, _, names in groups:
                for name in names.split() if verdict != "effect" else ():
                    _, _, inner = name.rpartition(".")
                    value = values.get(inner, {"a": 1})
                    if verdict == "harmless":
                        value = typed.get(inner, 1)
                    fields = {"generationConfig": {inner: value}} if "." in name else {name: value}
                    if name in ("billing_policy", "fallbacks"):
                        continue  # behind a beta header of their own
                    body = {**plain, **fields}
                    status, _, content = await http(simulated, "POST", path, body, headers)
                    expected = 200 if verdict == "harmless" else 400
                    is_told = verdict == "harmless" or b"not simulated" in content
                    is_beta = b"Extra inputs" in content and api == "messages"
                    if not is_beta and (status != expected or not is_told):
                        wrong.append((api, name, status, content))
            colour = {**plain, "colour": "blue"}
            status, _, content = await http(simulated, "POST", path, colour, headers)
            assert status == 400
            assert b"colour" in content
        return wrong

    assert serving(scenario) == []


@pytest.mark.parametrize(
    ("api", "fields", "said"),
    [
        ("chat", {"tools": [TOOL], "tool_choice": 7}, "tool_choice"),
        ("chat", {"response_format": {"json_schema": True}}, "response_format: a value in it"),
        ("chat", {"stop": [1]}, "stop"),
        ("responses", {"text": {"format": 5}}, "text: a value in it"),
        ("responses", {"context_management": [None]}, "context_management: a value in it"),
        ("gemini", {"toolConfig": {"functionCallingConfig": 3}}, "toolConfig: a value in it"),
        ("gemini", {"tools": [{"functionDeclarations": [None]}]}, "tools: a value in it"),
        ("messages", {"tools": [{"name": "f", "input_schema": {"type": "object",
                                 "properties": 7}}]}, "JSON schema"),
        ("messages", {"tool_choice": {"type": "auto"}, "tools": [{"type": "bash_20250124",
                                      "name": "bash"}]}, None),
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_is_refused_by_the_name_of_its_option(api, fields, said):
    path, headers, plain = BODIES[api]
    use = {"messages": [user("use tool f")]} if api == "messages" else {}
    status, _, told = answer_to({**plain, **use, **fields}, path, headers)
    assert status == (400 if said else 200)
    assert not said or said in told["error"]["message"]
    assert "object has no attribute" not in str(told)


def test_several_replies_are_given_when_several_are_asked_for():
    path, headers, plain = BODIES["chat"]
    use = {"role": "user", "content": "use tool lookup"}
    offer = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
    body = {**plain, "messages": [use], "tools": [offer], "n": 3}
    _, _, whole = answer_to(body, path, headers)
    choices = whole["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in choices}
    assert len(ids) == 3
    _, _, stream = serving(
        lambda s: http(s, "POST", path, {**plain, "n": 2, "stream": True}, headers)
    )
    pieces = {0: "", 1: ""}
    for line in stream.split(b"\n\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                pieces[choice["index"]] += choice["delta"].get("content") or ""
    assert pieces[0] == pieces[1] != ""
    path, headers, plain = BODIES["gemini"]
    _, _, told = answer_to({**plain, "generationConfig": {"candidateCount": 2}}, path, headers)
    assert [candidate["index"] for candidate in told["candidates"]] == [0, 1]


def test_a_gemini_stream_without_alt_sse_is_one_json_array():
    _, headers, plain = BODIES["gemini"]
    path = "/v1beta/models/m:streamGenerateContent"
    _, told, content = serving(lambda s: http(s, "POST", path, plain, headers))
    chunks = json.loads(content)
    assert told["content-type"] == "application/json"
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
    assert "hello" in "".join(part["text"] for part in parts)


# ---- context editing


def tool_turns(count, text="x" * 400):
    for number in range(count):
        call = {
            "type": "tool_use",
            "id": f"t{number}",
            "name": f"tool{number % 2}",
            "input": {"a": 1},
        }
        yield user(f"prompt {number}")
        yield {"role": "assistant", "content": [call]}
        result = {"type": "tool_result", "tool_use_id": f"t{number}", "content": text}
        yield {"role": "user", "content": [result]}
        yield {"role": "assistant", "content": [{"type": "text", "text": "done"}]}
    yield user("next")


def results_in(messages):
    blocks = [b for m in messages if isinstance(m["content"], list) for b in m["content"]]
    return [b["content"] == CLEARED for b in blocks if b["type"] == "tool_result"]


def uses(value):
    return {"type": "tool_uses", "value": value}


def tokens(value):
    return {"type": "input_tokens", "value": value}


@pytest.mark.parametrize(
    ("edit", "cleared"),
    [
        ({"trigger": uses(5)}, 0),
        ({"trigger": uses(4)}, 2),  # three are kept
        ({"trigger": tokens(99), "keep": uses(1)}, 4),
        ({"trigger": tokens(9_999)}, 0),
        ({"trigger": uses(0), "exclude_tools": ["tool0"], "keep": uses(0)}, 2),
        ({"trigger": uses(0), "clear_at_least": tokens(9_999)}, 0),
    ],
)
def test_old_tool_results_are_cleared_beyond_the_trigger(edit, cleared):
    edit = {"type": "clear_tool_uses_20250919", **edit}
    messages = list(tool_turns(5))
    shown, applied = edited(messages, [edit], 600)
    assert sum(results_in(shown)) == cleared
    assert [one["cleared_tool_uses"] for one in applied] == ([cleared] if cleared else [])
    assert shown[-1] == messages[-1]


def test_tool_inputs_are_cleared_when_asked():
    edit = {"type": "clear_tool_uses_20250919", "trigger": uses(1)}
    for inputs, expected in ((None, 0), (True, 2), (["tool1"], 1)):
        shown, _ = edited(list(tool_turns(5)), [{**edit, "clear_tool_inputs": inputs}], 600)
        calls = [m["content"][0] for m in shown if m["role"] == "assistant"]
        assert sum(c.get("input") == {} for c in calls) == expected


def test_thinking_of_older_turns_is_cleared():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    messages = []
    for number in range(3):
        messages += [
            user(f"p{number}"),
            {"role": "assistant", "content": [thought, *user("a")["content"]]},
        ]
    messages.append(user("next"))
    for keep, turns in ((None, 2), ({"type": "thinking_turns", "value": 2}, 1), ("all", 0)):
        edit = {"type": "clear_thinking_20251015", **({} if keep is None else {"keep": keep})}
        shown, applied = edited(messages, [edit], 100)
        assert [one["cleared_thinking_turns"] for one in applied] == ([turns] if turns else [])
        assert sum(b["type"] == "thinking" for m in shown for b in m["content"]) == 3 - turns


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_reply_tells_what_was_cleared_and_counts_without_it(is_stream):
    edit = {"type": "clear_tool_uses_20250919", "trigger": uses(4)}
    body = asked(*tool_turns(30), context_management={"edits": [edit]}, tools=[TOOL])

    async def scenario(simulated):
        unedited = {name: value for name, value in body.items() if name != "context_management"}
        before = json.loads((await http(simulated, "POST", "/v1/messages", unedited, BETAS))[2])
        asking = {**body, "stream": is_stream}
        first = await http(simulated, "POST", "/v1/messages", asking, BETAS)
        again = await http(simulated, "POST", "/v1/messages", asking, BETAS)  # its prefix is known
        counted = {name: body[name] for name in body if name != "max_tokens"}
        count = await http(simulated, "POST", "/v1/messages/count_tokens", counted, BETAS)
        return before, first[2], again[2], json.loads(count[2])

    before, first, again, count = serving(scenario)
    for content in (first, again):
        if is_stream:
            events = [json.loads(e.partition(b"data: ")[2]) for e in content.split(b"\n\n") if e]
            count_tokens = events[0]["message"]["usage"]["input_tokens"]
            told = events[-2]["context_management"]
        else:
            count_tokens = json.loads(content)["usage"]["input_tokens"]
            told = json.loads(content)["context_management"]
        (applied,) = told["applied_edits"]
        assert applied["cleared_tool_uses"] == 27
        assert count_tokens == before["usage"]["input_tokens"] - applied["cleared_input_tokens"]
    assert count["input_tokens"] == count_tokens
    original = count["context_management"]["original_input_tokens"]
    assert original == before["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ([{"type": "clear_everything"}], "edits.0.type: Input tag"),
        ([{"type": "clear_thinking_20251015"}], "requires `thinking`"),
        ([{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses"}}], "keep.value"),
        (
            [{"type": "compact_20260112", "trigger": tokens(5)}],
            "compact",
        ),
    ],
)
def test_an_edit_that_cannot_be_done_is_refused(edits, sentence):
    body = asked(user("hello"), context_management={"edits": edits})
    status, _, told = answer_to(body, headers=BETAS)
    assert status == 400
    assert sentence in told["error"]["message"]


# ---- tool servers


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_prompt_can_have_a_tool_server_used(is_listed):
    server = {"type": "url", "url": "https://example.org/mcp", "name": "wiki"}
    toolset = {"type": "mcp_toolset", "mcp_server_name": "wiki"}
    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    if is_listed:
        toolset["tools"] = [{"name": "search", "input_schema": schema}]
    body = asked(user("use tool search"), mcp_servers=[server], tools=[toolset])

    async def scenario(simulated):
        _, _, content = await http(simulated, "POST", "/v1/messages", body, BETAS)
        message = json.loads(content)
        following = asked(
            user("use tool search"),
            {"role": "assistant", "content": message["content"]},
            user("thanks"),
        )
        second = await http(simulated, "POST", "/v1/messages", following, BETAS)
        streamed = await http(simulated, "POST", "/v1/messages", {**body, "stream": True}, BETAS)
        return message, second[0], streamed[2]

    message, second, stream = serving(scenario)
    use, result, text = message["content"]
    assert (use["type"], use["server_name"], use["name"]) == ("mcp_tool_use", "wiki", "search")
    assert use["input"] == {"q" if is_listed else "text": "use tool search"}
    assert (result["type"], result["tool_use_id"]) == ("mcp_tool_result", use["id"])
    assert "simulated result of search" in text["text"]
    assert message["stop_reason"] == "end_turn"
    assert second == 200
    assert stream.count(b'"type":"mcp_tool_use"') == 1
    assert stream.count(b'"type":"mcp_tool_result"') == 1


def test_a_toolset_of_an_unknown_server_is_refused():
    body = asked(user("hello"), tools=[{"type": "mcp_toolset", "mcp_server_name": "wiki"}])
    status, _, told = answer_to(body, headers=BETAS)
    assert status == 400
    assert "'wiki' not found in mcp_servers" in told["error"]["message"]


def test_no_tokens_are_written_when_none_are_asked_for():
    _, _, told = answer_to(asked(user("use tool create_schedule"), tools=[TOOL], max_tokens=0))
    assert (told["content"], told["stop_reason"]) == ([], "max_tokens")
    assert told["usage"]["output_tokens"] == 0
