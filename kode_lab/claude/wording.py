"""Reads what a prompt asks for, in English or Chinese: the intent, titles, days, hours, ids.

A few dozen words, not a language: enough for the scripted schedule assistant to act on what it is
really sent. Pure; it must never know messages or tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta

__all__ = [
    "CREATIONS_LIMIT",
    "QUERY_DAYS",
    "clauses_of",
    "day_of",
    "days_asked",
    "ids_in",
    "intent_of",
    "is_chinese",
    "start_of",
    "title_of",
]

CREATIONS_LIMIT = 8
# The report's query took eight tool calls.
QUERY_DAYS = 8
_TITLE_LIMIT_CHARS = 80
_VERBS = {
    "create": r"\b(?:create|add|book|arrange|set up|schedule (?=an? |the |my ))\b|"
    r"创建|新建|新增|添加|安排|预约",
    "query": r"\b(?:query|list|look up)\b|查询|查看|查一下|看看|列出|有什么|有哪些|"
    r"\b(?:what|which|show|find|check)\b(?=.*\b(?:schedules?|calendar|appointments?|events?)\b)",
    "update": r"\b(?:update|change|move|reschedule|postpone|rename)\b|"
    r"修改|更新|改到|改为|改成|推迟",
    "delete": r"\b(?:delete|cancel|remove)\b|删除|取消",
}
_VERB = {
    intent: re.compile(pattern, re.IGNORECASE | re.DOTALL) for intent, pattern in _VERBS.items()
}
_QUOTED = re.compile(r"[\"“「《']([^\"”」》']{1,200})[\"”」》']")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_SPLIT = re.compile(r"\s+and\s+|\s*[;；、]\s*|以及|和(?=[^\"”]*)", re.IGNORECASE)
_LEAD = re.compile(
    r"^[\s:,：，]*(?:(?:an?|the|my|new|one)\s+|me\b|(?:schedules?|events?|appointments?|entry)\b\s*|"
    r"(?:called|named|titled|for|to)\s+|[一两三]?[个场次]|日程|帮我|请)",
    re.IGNORECASE,
)
_WHEN = re.compile(
    r"\s*\b(?:today|tonight|tomorrow|this|next|at|on|from|until|in|by|the day after)\b.*|"
    r"\s*\d{4}-\d{2}-\d{2}.*|\s*\b\d{1,2}(?::\d{2})?\s*(?:am|pm)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_WHEN_CHINESE = re.compile(
    r"大后天|后天|明天|今天|明早|今晚|凌晨|早上|上午|中午|下午|晚上|"
    r"\d{1,2}[点时:：](?:\d{1,2}分?|半)?|\d{4}-\d{2}-\d{2}|的|[，。：,:]"
)
_ISO_DAY = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_CLOCK = re.compile(r"(?<![\d-])(\d{1,2}):(\d{2})(?!\d)")
_HOUR = re.compile(r"\b(\d{1,2})\s*(am|pm)\b", re.IGNORECASE)
_HOUR_CHINESE = re.compile(r"(\d{1,2})[点时](?:(\d{1,2})分?|(半))?")
# What a part of the day means when no hour is given, and whether an hour in it is past noon.
_PARTS = (
    (("afternoon", "下午"), 15, True),
    (("evening", "tonight", "晚上", "今晚"), 19, True),
    (("noon", "中午"), 12, True),
    (("morning", "上午", "早上", "明早"), 9, False),
)
_DAYS_ASKED = re.compile(r"\b(\d{1,2})\s+days?\b|(\d{1,2})\s*天", re.IGNORECASE)
_ID = re.compile(r"(?<![\w.:#-])(\d{4,12})(?![\w:-])")


def intent_of(prompt: str) -> str:
    """Return what the prompt wants done: ``create query update delete``, or ``chat``.

    The verb that comes first decides.
    """
    found = [
        (match.start(), intent)
        for intent, pattern in _VERB.items()
        if (match := pattern.search(prompt)) is not None
    ]
    return min(found)[1] if found else "chat"


def clauses_of(prompt: str) -> list[str]:
    """Return the things that a creating prompt asks for, at most ``CREATIONS_LIMIT``."""
    match = _VERB["create"].search(prompt)
    wanted = prompt[match.end() :] if match else prompt
    return list(_split(wanted))[:CREATIONS_LIMIT] or [wanted]


def title_of(clause: str) -> str:
    """Return the title in one clause: what is quoted, else what is left without the time words."""
    quoted = _QUOTED.search(clause)
    if quoted:
        return quoted[1].strip()[:_TITLE_LIMIT_CHARS]
    title = _VERB["create"].sub("", clause)
    title = _WHEN_CHINESE.sub("", title) if is_chinese(title) else _WHEN.sub("", title)
    for _ in range(6):
        shorter = _LEAD.sub("", title)
        if shorter == title:
            break
        title = shorter
    return title.strip(" .,;:!?。，；：！？\n\t")[:_TITLE_LIMIT_CHARS]


def start_of(text: str, today: date) -> datetime | None:
    """Return the moment that the text names, or None when it names neither day nor hour."""
    day, clock = day_of(text, today), _clock_of(text)
    if day is None and clock is None:
        return None
    return datetime.combine(day or today, clock or time(9))


def day_of(text: str, today: date) -> date | None:
    """Return the day that the text names, or None."""
    iso = _ISO_DAY.search(text)
    if iso:
        try:
            return date(int(iso[1]), int(iso[2]), int(iso[3]))
        except ValueError:
            return None
    lower = text.lower()
    for words, ahead in (
        (("大后天",), 3),
        (("day after tomorrow", "后天"), 2),
        (("tomorrow", "明天", "明早"), 1),
        (("today", "tonight", "this morning", "this afternoon", "this evening"), 0),
        (("今天", "今晚"), 0),
    ):
        if any(word in lower for word in words):
            return today + timedelta(days=ahead)
    return None


def days_asked(prompt: str) -> int:
    """Return how many days a query is about: what it says, else ``QUERY_DAYS``."""
    match = _DAYS_ASKED.search(prompt)
    return max(1, int(match[1] or match[2])) if match else QUERY_DAYS


def ids_in(text: str) -> list[int]:
    """Return the schedule ids that a text names: whole numbers of four digits or more."""
    return [int(found) for found in _ID.findall(_ISO_DAY.sub(" ", text))]


def is_chinese(text: str) -> bool:
    """Whether the text should be answered in Chinese."""
    return _CHINESE.search(text) is not None


def _split(wanted: str) -> Iterator[str]:
    """The parts between "and"s, but for those inside quotation marks."""
    holes = [match.span() for match in _QUOTED.finditer(wanted)]
    begin = 0
    for match in _SPLIT.finditer(wanted):
        if any(low <= match.start() < high for low, high in holes):
            continue
        if wanted[begin : match.start()].strip():
            yield wanted[begin : match.start()]
        begin = match.end()
    if wanted[begin:].strip():
        yield wanted[begin:]


def _clock_of(text: str) -> time | None:
    lower = text.lower()
    part = next((p for p in _PARTS if any(word in lower for word in p[0])), None)
    is_late = part is not None and part[2]
    if match := _CLOCK.search(text):
        return _time(int(match[1]), int(match[2]), is_late)
    if match := _HOUR.search(text):
        return _time(int(match[1]) % 12 + (12 if match[2].lower() == "pm" else 0), 0, False)
    if match := _HOUR_CHINESE.search(text):
        return _time(int(match[1]), 30 if match[3] else int(match[2] or 0), is_late)
    return None if part is None else time(part[1])


def _time(hour: int, minute: int, is_late: bool) -> time | None:
    if is_late and hour < 12:
        hour += 12
    return time(hour, minute) if hour < 24 and minute < 60 else None
