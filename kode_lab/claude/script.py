"""The scripted schedule assistant: a pure function from a request to what the model would answer.

It acts on the conversation that it is sent: on the last prompt, on the tools that are offered, and
on the results that its tool calls got. So a backend that shows it the wrong conversation gets the
wrong answer. It must never know sockets, clocks, or the schedule book.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

from kode_lab.claude import wording
from kode_lab.history.operation import Read, markers_in, read_of
from kode_lab.message import Block

__all__ = ["Planned", "looped", "plan_of", "shown_to"]

_TOOLS = {
    "create": "create_schedule",
    "query": "query_schedules",
    "update": "update_schedule",
    "delete": "delete_schedule",
}
_LISTED_LIMIT = 20
_QUOTE_LIMIT_CHARS = 60


class Planned(NamedTuple):
    """What the model answers to one request.

    Attributes:
        intent: what the turn is about: ``create query update delete chat``.
        call: which model call of the turn this is, from 0.
        prompt: the last prompt.
        calls: the tool calls asked for, as blocks without ids; none in a final reply.
        text: what is said.
    """

    intent: str
    call: int
    prompt: str
    text: str
    calls: tuple[Block, ...] = ()


class _Result(NamedTuple):
    tool: str
    text: str
    is_error: bool


class _Turn(NamedTuple):
    """The last turn of a conversation as the model sees it."""

    prompt: str
    earlier: int
    call: int
    results: tuple[_Result, ...]
    before: Sequence[Mapping[str, Any]]


def plan_of(body: Mapping[str, Any], today: date) -> Planned:
    """Return the answer to a legal request.

    Args:
        body: the request's JSON.
        today: what "today" and "tomorrow" in a prompt are counted from.
    """
    turn = _turn_of(body["messages"])
    prompt = _unmarked(turn.prompt)
    intent = wording.intent_of(prompt)
    tool = _TOOLS.get(intent)
    choice = body.get("tool_choice") or {}
    offered = () if choice.get("type") == "none" else tuple(_names(body.get("tools", ())))
    if tool is None or tool not in offered:
        return Planned("chat", turn.call, turn.prompt, _small_talk(prompt, turn.earlier))
    failed = next((result for result in turn.results if result.is_error), None)
    if failed is not None:
        calls: list[Block] = []
        text = _failure(prompt, failed)
    elif intent == "create":
        calls, text = _create(prompt, turn, today)
    elif intent == "query":
        calls, text = _query(prompt, turn, today)
    else:
        calls, text = _change(intent, prompt, turn, today, "query_schedules" in offered)
    return Planned(intent, turn.call, turn.prompt, text, tuple(calls))


def shown_to(messages: Sequence[Mapping[str, Any]]) -> tuple[str, Read] | None:
    """Return the newest marker among a request's prompts and what came with it, or None.

    Only text blocks of user messages count: an echo in an assistant's message is no prompt. A turn
    of the same session whose prompt is followed by the next one, without a final reply between,
    was shown by half.
    """
    markers: list[str] = []
    half: list[str] = []
    unanswered: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            if _is_final(message):
                unanswered = []
            continue
        found = [marker for text in _texts(message["content"]) for marker in markers_in(text)]
        if found:
            markers += found
            half += unanswered
            unanswered = found
    if not markers:
        return None
    own = markers[-1]
    session = own.partition("-")[0]
    torn = (m for m in half if m != own and m.partition("-")[0] == session)
    return own, read_of(own, markers)._replace(half=tuple(dict.fromkeys(torn)))


def looped(plan: Planned, tools: Sequence[Mapping[str, Any]], today: date) -> Planned:
    """Return the plan of an assistant that only ever asks for the first tool it is offered."""
    name = next(_names(tools), None)
    if name is None:
        return plan
    call = _call(name, day=today.isoformat()) if name == _TOOLS["query"] else _call(name)
    return plan._replace(text="", calls=(call,))


def _turn_of(messages: Sequence[Mapping[str, Any]]) -> _Turn:
    prompts = [index for index, message in enumerate(messages) if _is_prompt(message)]
    at = prompts[-1] if prompts else 0
    asked: dict[str, str] = {}
    results: list[_Result] = []
    call = 0
    for message in messages[at + 1 :]:
        call += message["role"] == "assistant"
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_use":
                asked[block["id"]] = block["name"]
            elif block["type"] == "tool_result":
                results.append(
                    _Result(
                        asked.get(block["tool_use_id"], ""),
                        "\n".join(_texts(block.get("content", ""))),
                        bool(block.get("is_error")),
                    )
                )
    prompt = "\n".join(_texts(messages[at]["content"]))
    return _Turn(prompt, max(0, len(prompts) - 1), call, tuple(results), messages[:at])


def _is_prompt(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return message["role"] == "user" and (
        isinstance(content, str) or not any(b["type"] == "tool_result" for b in content)
    )


def _is_final(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return isinstance(content, str) or all(block["type"] != "tool_use" for block in content)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        for block in content:
            if block["type"] == "text":
                yield block["text"]


def _unmarked(prompt: str) -> str:
    for marker in markers_in(prompt):
        prompt = prompt.replace(marker, " ")
    return prompt.strip()


def _names(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (tool["name"] for tool in tools)


def _call(name: str, **arguments: Any) -> Block:
    return {"type": "tool_use", "name": name, "input": arguments}


def _create(prompt: str, turn: _Turn, today: date) -> tuple[list[Block], str]:
    if not turn.results:
        calls = []
        for clause in wording.clauses_of(prompt):
            start = wording.start_of(clause, today) or wording.start_of(prompt, today)
            title = wording.title_of(clause) or ("日程" if wording.is_chinese(prompt) else "event")
            moment = f"{start:%Y-%m-%dT%H:%M}" if start else f"{today}T09:00"
            calls.append(_call(_TOOLS["create"], title=title, start=moment))
        return calls, _say(prompt, "I will write that down.", "好的，我来创建。")
    made = [_described(found) for result in turn.results for found in _schedules_in(result.text)]
    listed = "; ".join(made) or "; ".join(result.text for result in turn.results)
    return [], _say(prompt, f"Created schedule {listed}.", f"已创建日程 {listed}。")


def _query(prompt: str, turn: _Turn, today: date) -> tuple[list[Block], str]:
    days = wording.days_asked(prompt)
    first = wording.day_of(prompt, today) or today
    done = len(turn.results)
    if done < days:
        day = first + timedelta(days=done)
        return [_call(_TOOLS["query"], day=day.isoformat())], ""
    found = [_described(one) for result in turn.results for one in _schedules_in(result.text)]
    unique = list(dict.fromkeys(found))
    listed = "; ".join(unique[:_LISTED_LIMIT])
    if len(unique) > _LISTED_LIMIT:
        listed += f"; +{len(unique) - _LISTED_LIMIT}"
    return [], _say(
        prompt,
        f"{len(unique)} schedules in the {days} days from {first}: {listed or 'none'}.",
        f"从 {first} 起 {days} 天内有 {len(unique)} 个日程：{listed or '无'}。",
    )


def _change(
    intent: str, prompt: str, turn: _Turn, today: date, can_query: bool
) -> tuple[list[Block], str]:
    """Update or delete: the schedule named in the prompt, else the last one it was told of."""
    if any(result.tool == _TOOLS[intent] for result in turn.results):
        said = turn.results[-1].text
        return [], _say(prompt, f"Done: {said}", f"已完成：{said}")
    ids = wording.ids_in(prompt) or [
        one["id"] for result in turn.results for one in _schedules_in(result.text)
    ]
    if not ids and not turn.results:
        ids = [one["id"] for one in _remembered(turn.before)]
        if not ids and can_query:
            day = wording.day_of(prompt, today) or today
            return [_call(_TOOLS["query"], day=day.isoformat())], ""
    if not ids:
        return [], _say(prompt, "I found no schedule to change.", "没有找到要修改的日程。")
    arguments: dict[str, Any] = {"schedule_id": ids[-1]}
    if intent == "update":
        start = wording.start_of(prompt, today)
        quoted = wording.title_of(prompt) if any(mark in prompt for mark in "\"“「《'") else ""
        if start:
            arguments["start"] = f"{start:%Y-%m-%dT%H:%M}"
        if quoted:
            arguments["title"] = quoted
    return [_call(_TOOLS[intent], **arguments)], ""


def _remembered(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The schedules that earlier tool results of the conversation told of, in order."""
    for message in messages:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "tool_result":
                yield from _schedules_in("\n".join(_texts(block.get("content", ""))))


def _schedules_in(text: str) -> Iterator[dict[str, Any]]:
    """The schedules in a tool's result: JSON objects with an id, or else the ids in its prose."""
    try:
        value = json.loads(text)
    except ValueError:
        yield from ({"id": number} for number in wording.ids_in(text))
        return
    pending = [value]
    while pending:
        value = pending.pop(0)
        if isinstance(value, list):
            pending[:0] = value
        elif isinstance(value, dict):
            number = value.get("schedule_id", value.get("id"))
            if isinstance(number, int):
                yield {**value, "id": number}
            else:
                pending[:0] = [inner for inner in value.values() if isinstance(inner, (dict, list))]


def _described(schedule: Mapping[str, Any]) -> str:
    facts = (str(schedule[name]) for name in ("title", "start") if schedule.get(name))
    return f"{schedule['id']} ({', '.join(facts)})" if "title" in schedule else f"{schedule['id']}"


def _failure(prompt: str, failed: _Result) -> str:
    return _say(
        prompt,
        f"The tool {failed.tool} failed: {failed.text}",
        f"工具 {failed.tool} 出错：{failed.text}",
    )


def _small_talk(prompt: str, earlier: int) -> str:
    said = prompt[:_QUOTE_LIMIT_CHARS]
    return _say(
        prompt,
        f"You said: {said}. I was shown {earlier} earlier prompts of this conversation.",
        f"你说：{said}。这次对话中我看到了之前的 {earlier} 条消息。",
    )


def _say(prompt: str, english: str, chinese: str) -> str:
    return chinese if wording.is_chinese(prompt) else english
