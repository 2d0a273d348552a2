"""The scripted model: a pure function from a request to what the model would answer.

It obeys: what a request forces comes first (``tool_choice``, a schema of the answer), then the tool
that the prompt names (``use tool NAME``), then the schedule assistant, then small talk. It acts on
the conversation that it is shown, so a backend that shows it the wrong one gets the wrong answer.
It must never know wire formats, sockets, clocks, or the schedule book.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

import orjson

from kode_lab.claude import wording
from kode_lab.claude.conversation import Conversation, ToolAnswer, schedules_in
from kode_lab.claude.formats.seam import GenerationRequest, ServerCall, ToolOffer
from kode_lab.claude.schemas import fitting
from kode_lab.history.operation import markers_in

__all__ = ["Planned", "looped", "plan_of"]

_TOOLS = {
    "create": "create_schedule",
    "query": "query_schedules",
    "update": "update_schedule",
    "delete": "delete_schedule",
}
_LISTED_LIMIT = 20
_QUOTE_LIMIT_CHARS = 60
_READ_LIMIT_CHARS = 10_000
_ARGUMENT_LIMIT_CHARS = 200
# How often one prompt may ask for one tool.
_TIMES_LIMIT = 16
_USE = re.compile(
    r"\b(?:use|call|invoke|run)\s+(?:the\s+|both\s+)?(tools?\b)?|(使用|调用)(?:工具)?",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:use|call)\s+(?:the\s+)?tool\s+[`'\"]?([\w-]{2,64})", re.IGNORECASE)
# A client with many tools offers one that finds the others.
_SEARCH_TOOLS = ("ToolSearch", "tool_search")
_TIMES = re.compile(r"\W*(\d{1,2})\s+times", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[\n;]|[.。](?:\s|$)")


class Planned(NamedTuple):
    """What the model answers to one request.

    Attributes:
        intent: what the turn is about: ``create query update delete chat``, ``tool`` when the
            prompt or the request asks for a tool, ``answer`` for a shape that the request demands.
        call: which model call of the turn this is, from 0.
        prompt: the last prompt.
        calls: of each tool call the tool's name and its arguments; none in a final reply.
        text: what is said.
        is_shaped: whether the text must stay as it is, to fit a schema.
        server_calls: tools that the API calls itself before it answers.
    """

    intent: str
    call: int
    prompt: str
    text: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    is_shaped: bool = False
    server_calls: tuple[ServerCall, ...] = ()


def plan_of(request: GenerationRequest, today: date) -> Planned:
    """Return the answer to a legal request.

    Args:
        request: in neutral words.
        today: what "today" and "tomorrow" in a prompt are counted from.
    """
    conversation = request.conversation
    prompt = _ends_of(_unmarked(conversation.prompt))
    intent = wording.intent_of(prompt)
    offers = {} if request.choice == "none" else {offer.name: offer for offer in request.tools}
    plan = _demanded(request, offers, prompt, today)
    if plan is None:
        plan = _assistance(request, offers, intent, prompt, today)
    is_forced = request.choice in ("any", "tool") or (
        plan.intent == "chat" and _is_shape(request, offers)
    )
    if is_forced and not plan.calls and not plan.server_calls:
        plan = _forced(request, offers, plan)
    if not request.is_parallel and len(plan.calls) > 1:
        plan = plan._replace(calls=plan.calls[:1])
    if request.schema is not None and not plan.calls:
        hints = _hints(prompt, conversation, today)
        value = fitting(request.schema, hints, text=_said(conversation.prompt), is_full=True)
        text = orjson.dumps(value).decode()
        plan = plan._replace(intent=plan.intent, text=text, is_shaped=True)
    return plan


def looped(plan: Planned, tools: Sequence[ToolOffer], today: date) -> Planned:
    """Return the plan of an assistant that only ever asks for the first tool it is offered."""
    if not tools:
        return plan
    hints = {"day": today.isoformat()} if tools[0].name == _TOOLS["query"] else {}
    return plan._replace(text="", calls=((tools[0].name, _arguments(tools[0], hints)),))


def _demanded(
    request: GenerationRequest, offers: Mapping[str, ToolOffer], prompt: str, today: date
) -> Planned | None:
    """What follows from a prompt that names tools: their calls, then a word about the results."""
    conversation = request.conversation
    wanted = list(_tools_named(prompt, tuple(offers))) or _searched(prompt, offers, conversation)
    named = _NAMED.search(prompt)
    if not wanted and named and request.servers and request.choice != "none":
        offers = {**offers, named[1]: ToolOffer(named[1], None, request.servers[0])}
        wanted = [named[1]]
    if not wanted:
        return None
    done = list(conversation.called)
    open_ = [name for name in wanted if not _took(done, name)]
    plan = Planned("tool", conversation.call, conversation.prompt, "")
    if open_:
        hints = _hints(prompt, conversation, today)
        said = _said(conversation.prompt)
        if named and open_[0] in _SEARCH_TOOLS:
            said = named[1]
        calls = tuple((name, _arguments(offers[name], hints, said)) for name in open_)
        return _ran_by_servers(plan._replace(calls=calls), offers)
    failed = next((result for result in conversation.results if result.is_error), None)
    if failed is not None:
        return plan._replace(text=_failure(prompt, failed))
    told = "; ".join(result.text for result in conversation.results)
    return plan._replace(text=_say(prompt, f"The tools answered: {told}", f"工具的结果：{told}"))


def _searched(
    prompt: str, offers: Mapping[str, ToolOffer], conversation: Conversation
) -> list[str]:
    """The tool that finds others, when the prompt names one that is not offered yet."""
    search = next((name for name in _SEARCH_TOOLS if name in offers), None)
    return [search] if search and _NAMED.search(prompt) and not conversation.called else []


def _forced(request: GenerationRequest, offers: Mapping[str, ToolOffer], plan: Planned) -> Planned:
    """The call that the request demands although nothing in the prompt does."""
    name = request.forced
    if not name:
        # Frameworks that want an answer in a shape offer a tool for it, after all others.
        unused = [name for name in offers if name not in request.conversation.called]
        name = next(reversed(unused or list(offers)), "")
    if name not in offers:
        return plan
    said = _said(request.conversation.prompt)
    arguments = _arguments(offers[name], {}, said, is_full=True)
    intent = plan.intent if plan.intent != "chat" else "tool"
    plan = plan._replace(intent=intent, text="", calls=((name, arguments),))
    return _ran_by_servers(plan, offers)


def _ran_by_servers(plan: Planned, offers: Mapping[str, ToolOffer]) -> Planned:
    """Call the tools of tool servers here, as the API does before it answers; none is asked."""
    ran = tuple(
        ServerCall(
            offers[name].server,
            name,
            arguments,
            f"simulated result of {name}: {orjson.dumps(arguments).decode()}",
        )
        for name, arguments in plan.calls
        if offers[name].server
    )
    if not ran:
        return plan
    calls = tuple(call for call in plan.calls if not offers[call[0]].server)
    told = "; ".join(call.result for call in ran)
    text = "" if calls else _say(plan.prompt, f"The tools answered: {told}", f"工具的结果：{told}")
    return plan._replace(calls=calls, text=text, server_calls=ran)


def _is_shape(request: GenerationRequest, offers: Mapping[str, ToolOffer]) -> bool:
    """Whether the only tool is the shape of the answer: named like a class, and not yet called.

    Frameworks that may not force a tool offer such a one and rely on the model to call it.
    """
    name = next(iter(offers), "")
    is_class = name[:1].isupper() and name.isalnum() and not name.isupper()
    return len(offers) == 1 and is_class and not request.conversation.called


def _tools_named(prompt: str, offered: Sequence[str]) -> Iterator[str]:
    """Yield the offered tools that a prompt asks for, in its order and as often as it says."""
    by_name = {name: name for name in offered}
    for name in offered:
        # A client that knows a tool from a server of tools puts the server's name before it.
        by_name.setdefault(name.rpartition("__")[2], name)
    for match in _USE.finditer(prompt):
        rest = _SENTENCE_END.split(prompt[match.end() :], maxsplit=1)[0]
        is_plain = not (match[1] or match[2])
        found = sorted(
            (word.start(), word.end(), name)
            for short, name in by_name.items()
            for word in re.finditer(rf"(?<![\w-]){re.escape(short)}(?![\w-])", rest)
            # Without the word "tool", a name counts where it follows the verb or cannot be prose.
            if not is_plain or not rest[: word.start()].strip(" `'\"") or "_" in short
        )
        for at, (_, end, name) in enumerate(found):
            if at and found[at - 1][2] == name and found[at - 1][1] >= end:
                continue
            times = _TIMES.match(rest, end)
            yield from [name] * min(int(times[1]) if times else 1, _TIMES_LIMIT)
        if found:
            return


def _took(done: list[str], name: str) -> bool:
    if name in done:
        done.remove(name)
        return True
    return False


def _arguments(
    offer: ToolOffer, hints: Mapping[str, Any], text: str = "", *, is_full: bool = False
) -> Mapping[str, Any]:
    """Arguments that fit the offered schema; a schema that names no property takes the hints."""
    schema = offer.schema
    if not isinstance(schema, Mapping) or not (schema.keys() - {"type"}):
        return {**hints, "text": text} if offer.server else dict(hints)
    made = fitting(schema, hints, text=text, is_full=is_full)
    return made if isinstance(made, dict) else {}


def _assistance(
    request: GenerationRequest,
    offers: Mapping[str, ToolOffer],
    intent: str,
    prompt: str,
    today: date,
) -> Planned:
    """The schedule assistant, where its tools are offered; else small talk."""
    conversation = request.conversation
    plan = Planned("chat", conversation.call, conversation.prompt, "")
    tool = _TOOLS.get(intent)
    if tool is None or tool not in offers:
        return plan._replace(text=_small_talk(prompt, conversation.prompts - 1))
    failed = next((result for result in conversation.results if result.is_error), None)
    calls: list[tuple[str, dict[str, Any]]] = []
    if failed is not None:
        text = _failure(prompt, failed)
    elif intent == "create":
        calls, text = _create(prompt, conversation, today)
    elif intent == "query":
        calls, text = _query(prompt, conversation, today)
    else:
        calls, text = _change(intent, prompt, conversation, today, _TOOLS["query"] in offers)
    if not request.is_parallel and calls:
        calls = calls[:1]
    fitted = tuple((name, _arguments(offers[name], wanted, prompt)) for name, wanted in calls)
    return plan._replace(intent=intent, text=text, calls=fitted)


def _create(
    prompt: str, turn: Conversation, today: date
) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    calls = []
    for clause in wording.clauses_of(prompt)[len(turn.results) :]:
        start = wording.start_of(clause, today) or wording.start_of(prompt, today)
        title = wording.title_of(clause) or ("日程" if wording.is_chinese(prompt) else "event")
        moment = f"{start:%Y-%m-%dT%H:%M}" if start else f"{today}T09:00"
        calls.append((_TOOLS["create"], {"title": title, "start": moment}))
    if calls:
        return calls, _say(prompt, "I will write that down.", "好的，我来创建。")
    made = [_described(found) for result in turn.results for found in schedules_in(result.text)]
    listed = "; ".join(made) or "; ".join(result.text for result in turn.results)
    return [], _say(prompt, f"Created schedule {listed}.", f"已创建日程 {listed}。")


def _query(
    prompt: str, turn: Conversation, today: date
) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    days = wording.days_asked(prompt)
    first = wording.day_of(prompt, today) or today
    done = len(turn.results)
    if done < days:
        day = first + timedelta(days=done)
        return [(_TOOLS["query"], {"day": day.isoformat()})], ""
    found = [_described(one) for result in turn.results for one in schedules_in(result.text)]
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
    intent: str, prompt: str, turn: Conversation, today: date, can_query: bool
) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    """Update or delete: the schedule named in the prompt, else the last one it was told of."""
    if any(result.tool == _TOOLS[intent] for result in turn.results):
        said = turn.results[-1].text
        return [], _say(prompt, f"Done: {said}", f"已完成：{said}")
    ids = wording.ids_in(prompt) or [
        one["id"] for result in turn.results for one in schedules_in(result.text)
    ]
    if not ids and not turn.results:
        ids = [] if turn.schedule_id is None else [turn.schedule_id]
        if not ids and can_query:
            day = wording.day_of(prompt, today) or today
            return [(_TOOLS["query"], {"day": day.isoformat()})], ""
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
    return [(_TOOLS[intent], arguments)], ""


def _hints(prompt: str, turn: Conversation, today: date) -> dict[str, Any]:
    """What the prompt says about arguments of common names."""
    start = wording.start_of(prompt, today)
    day = wording.day_of(prompt, today)
    hints: dict[str, Any] = {}
    if start:
        hints["start"] = f"{start:%Y-%m-%dT%H:%M}"
    if day:
        hints["day"] = hints["date"] = day.isoformat()
    ids = wording.ids_in(prompt) or ([] if turn.schedule_id is None else [turn.schedule_id])
    if ids:
        hints["schedule_id"] = ids[-1]
    return hints


def _said(prompt: str) -> str:
    """What a free text argument says: the prompt with its marker, which names the turn."""
    return prompt.strip()[:_ARGUMENT_LIMIT_CHARS]


def _unmarked(prompt: str) -> str:
    for marker in markers_in(prompt):
        prompt = prompt.replace(marker, " ")
    return prompt.strip()


def _ends_of(prompt: str) -> str:
    """Return what is read of a prompt: of a long one its beginning and its end.

    Searching a million characters blocks the event loop for a quarter of a second.
    """
    if len(prompt) <= 2 * _READ_LIMIT_CHARS:
        return prompt
    return f"{prompt[:_READ_LIMIT_CHARS]}\n{prompt[-_READ_LIMIT_CHARS:]}"


def _described(schedule: Mapping[str, Any]) -> str:
    facts = (str(schedule[name]) for name in ("title", "start") if schedule.get(name))
    return f"{schedule['id']} ({', '.join(facts)})" if "title" in schedule else f"{schedule['id']}"


def _failure(prompt: str, failed: ToolAnswer) -> str:
    return _say(
        prompt,
        f"The tool {failed.tool} failed: {failed.text}",
        f"工具 {failed.tool} 出错：{failed.text}",
    )


def _small_talk(prompt: str, earlier: int) -> str:
    said = prompt[:_QUOTE_LIMIT_CHARS]
    return _say(
        prompt,
        f"You said: {said}. I was shown {max(earlier, 0)} earlier prompts of this conversation.",
        f"你说：{said}。这次对话中我看到了之前的 {max(earlier, 0)} 条消息。",
    )


def _say(prompt: str, english: str, chinese: str) -> str:
    return chinese if wording.is_chinese(prompt) else english
