"""One schedule, and what may stand in it: the same in every kind of book.

Times are local and end at the minute. Nothing here knows where a book is kept.

Source: ids from 13039 on are those of the concurrency report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import NamedTuple

from kode_lab.errors import InvalidSchedule

__all__ = [
    "FIRST_ID",
    "SCHEDULE_LIMIT",
    "TITLE_LIMIT_CHARS",
    "Schedule",
    "check_order",
    "checked_change",
    "checked_entry",
    "day_bounds",
    "having",
    "moved_end",
]

FIRST_ID = 13_039
TITLE_LIMIT_CHARS = 200
SCHEDULE_LIMIT = 10_000  # of one user
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Schedule(NamedTuple):
    """One entry of a user's book; times are local, ``2026-07-15T15:00``."""

    id: int
    title: str
    start: str
    end: str


def checked_entry(title: str, start: str, end: str | None) -> tuple[str, str, str]:
    """Return title, start and end as they are entered; without ``end`` it lasts an hour.

    Raises:
        InvalidSchedule: the title is empty, too long, or holds control characters; a time is none,
            or the end does not come after the start.
    """
    title, start = _checked_title(title), _checked_time("start", start)
    end = _shifted(start, timedelta(hours=1)) if end is None else _checked_time("end", end)
    check_order(start, end)
    return title, start, end


def checked_change(
    title: str | None, start: str | None, end: str | None
) -> tuple[str | None, str | None, str | None]:
    """Return what is to be changed as it is entered, None for what stays.

    Raises:
        InvalidSchedule: all of it stays, or one of them cannot be used.
    """
    if title is None and start is None and end is None:
        raise InvalidSchedule("nothing to change: send a title, a start or an end")
    return (
        None if title is None else _checked_title(title),
        None if start is None else _checked_time("start", start),
        None if end is None else _checked_time("end", end),
    )


def having(text: str | None, schedules: Iterable[Schedule]) -> list[Schedule]:
    """Return those with this text in their title, ignoring case; None returns all."""
    wanted = "" if text is None else text.casefold()
    return [schedule for schedule in schedules if wanted in schedule.title.casefold()]


def _checked_title(title: str) -> str:
    """Return the title with single spaces."""
    title = " ".join(title.split())
    if _CONTROL.search(title) or not 1 <= len(title) <= TITLE_LIMIT_CHARS:
        raise InvalidSchedule(
            f"the title is {title!r:.60}: use 1 to {TITLE_LIMIT_CHARS} printable characters"
            f" (TITLE_LIMIT_CHARS={TITLE_LIMIT_CHARS})"
        )
    return title


def _checked_time(name: str, value: str) -> str:
    """Return a moment of local time, to the minute."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is not None or len(value) < len("2026-07-15T15"):
        raise InvalidSchedule(f"{name} is {value!r:.60}: use local time, as 2026-07-15T15:00")
    return moment.isoformat(timespec="minutes")


def day_bounds(value: str) -> tuple[str, str]:
    """Return the minute a day begins at and that at which the next one does."""
    try:
        day = date.fromisoformat(value)
        after = day + timedelta(days=1)
    except (ValueError, OverflowError):
        raise InvalidSchedule(f"day is {value!r:.60}: use a date, as 2026-07-15") from None
    return f"{day}T00:00", f"{after}T00:00"


def moved_end(old: Schedule, start: str) -> str:
    """Return the end that keeps the length with a new start."""
    return _shifted(start, datetime.fromisoformat(old.end) - datetime.fromisoformat(old.start))


def _shifted(moment: str, by: timedelta) -> str:
    try:
        return (datetime.fromisoformat(moment) + by).isoformat(timespec="minutes")
    except OverflowError:
        raise InvalidSchedule("it would end after the year 9999: choose an earlier start") from None


def check_order(start: str, end: str) -> None:
    """Refuse an end that does not come after its start."""
    if start >= end:
        raise InvalidSchedule(f"it would end at {end}, not after its start at {start}")
