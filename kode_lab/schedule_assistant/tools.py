"""The schedule assistant's tools: thin words over the book, in the shape the model reads.

Whose book it is, and under which idempotency key a change is made, comes from the context alone:
no argument of the model can name another user.
"""

from __future__ import annotations

from typing import Any

from kode_lab.schedule_assistant.book import ScheduleBook
from kode_lab.schedule_assistant.postgres_book import PostgresBook
from kode_lab.schedule_assistant.schedule import Schedule
from kode_lab.sessions.tool import Toolbox, ToolContext

__all__ = ["SHOWN_LIMIT", "toolbox"]

# Schedules in one answer; more of them only fill the model's context.
SHOWN_LIMIT = 50


def toolbox(book: ScheduleBook | PostgresBook) -> Toolbox:
    """Return the toolbox whose tools work on ``book``.

    Results are JSON: a schedule is ``{"schedule_id", "title", "start", "end"}``.
    """
    box = Toolbox()
    tools = _Tools(book)
    for tool in (
        tools.create_schedule,
        tools.query_schedules,
        tools.update_schedule,
        tools.delete_schedule,
    ):
        box.tool(tool)
    return box


class _Tools:
    """What the model reads of each tool is its signature and its docstring."""

    __slots__ = ("_book",)

    def __init__(self, book: ScheduleBook | PostgresBook) -> None:
        self._book = book

    def create_schedule(
        self, title: str, start: str, context: ToolContext, end: str | None = None
    ) -> dict[str, Any]:
        """Create one schedule for the user and return it with its new schedule_id.

        Args:
            title: What it is, in a few words.
            start: When it begins, local time, as 2026-07-15T15:00.
            end: When it ends, local time; an hour after its start if it is not given.
            context: Whose book it is, and the key of this change.
        """
        return _shown(
            self._book.create(
                context.key.user_id, title, start, end, idempotency_key=context.idempotency_key
            )
        )

    def query_schedules(
        self, context: ToolContext, day: str | None = None, text: str | None = None
    ) -> dict[str, Any]:
        """Look up the user's own schedules, earliest first; without arguments, all of them.

        Args:
            day: Only those on this day, as 2026-07-15.
            text: Only those with this text in their title.
            context: Whose book it is.
        """
        found = self._book.query(context.key.user_id, day, text)
        answer: dict[str, Any] = {
            "count": len(found),
            "schedules": [_shown(schedule) for schedule in found[:SHOWN_LIMIT]],
        }
        if len(found) > SHOWN_LIMIT:
            answer["note"] = f"only the first {SHOWN_LIMIT} are shown: ask for one day"
        return answer

    def update_schedule(
        self,
        schedule_id: int,
        context: ToolContext,
        title: str | None = None,
        start: str | None = None,
        end: str | None = None,
    ) -> dict[str, Any]:
        """Change one of the user's schedules and return it as it is now.

        Args:
            schedule_id: Which one; query_schedules tells the ids.
            title: The new title, if it changes.
            start: The new start, if it changes; without an end the length stays.
            end: The new end, if it changes.
            context: Whose book it is, and the key of this change.
        """
        return _shown(
            self._book.update(
                context.key.user_id,
                schedule_id,
                title=title,
                start=start,
                end=end,
                idempotency_key=context.idempotency_key,
            )
        )

    def delete_schedule(self, schedule_id: int, context: ToolContext) -> dict[str, Any]:
        """Delete one of the user's schedules and return what it was.

        Args:
            schedule_id: Which one; query_schedules tells the ids.
            context: Whose book it is, and the key of this change.
        """
        deleted = self._book.delete(
            context.key.user_id, schedule_id, idempotency_key=context.idempotency_key
        )
        return {"deleted": _shown(deleted)}


def _shown(schedule: Schedule) -> dict[str, Any]:
    return {
        "schedule_id": schedule.id,
        "title": schedule.title,
        "start": schedule.start,
        "end": schedule.end,
    }
