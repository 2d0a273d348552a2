"""A session user whose turns change the world, and who asks it at the end what was changed.

Each turn enters one schedule whose title is its marker. So each schedule in the book names the turn
that made it: one id for two turns, two schedules of one turn, or a schedule in another user's book
are plain to see. What was made is told twice: by each session's own record of its tools, and by the
book, which each user asks in a session of its own that nobody else uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

from kode_lab.history.operation import Effect
from kode_lab.key import SessionKey
from kode_lab.load.probe import Told, messages_of, told_by
from kode_lab.load.session_user import JSON, TURNS, SessionUser

__all__ = ["ToolUser"]

# The assistant asks for eight days in one turn, and is shown at most fifty schedules a day: so
# many of one user's turns are told of as these days hold.
DAYS, DAYS_ASKED = 64, 8
_FIRST_DAY = date(2031, 1, 1)
_AUDIT = "audit"
_CREATED, _QUERIED = "create_schedule", "query_schedules"


class ToolUser(SessionUser):
    """One whose turns each make one schedule."""

    abstract = True

    def prompt(self, marker: str) -> str:
        """Ask for a schedule with the turn's marker as its title, on one of the days."""
        day = _FIRST_DAY + timedelta(days=self.draw.randrange(DAYS))
        return f'Create "plan {marker[1:]}" on {day} at 10:00 {marker}'

    def effects_of(self, key: SessionKey, told: Told) -> tuple[Effect, ...]:  # noqa: ARG002 - the session is not in doubt here
        """Return the schedules that a session's own tools say they made."""
        return tuple(
            Effect(str(result["schedule_id"]), _CREATED, _marker_of(result), "", "")
            for _, name, result in told.results
            if name == _CREATED and isinstance(result, dict) and "schedule_id" in result
        )

    def world_of(self, keys: list[SessionKey]) -> list[SessionKey]:
        """Return a session for each user of the run, to ask in."""
        users = dict.fromkeys((key.user_id, key.agent_id) for key in keys)
        return [SessionKey.of(user_id, agent_id, _AUDIT) for user_id, agent_id in users]

    def effects_told(self, key: SessionKey) -> tuple[Effect, ...] | None:
        """Return every schedule in this user's book, day by day."""
        for at in range(0, DAYS, DAYS_ASKED):
            day = _FIRST_DAY + timedelta(days=at)
            words = f"List my schedules for {DAYS_ASKED} days from {day}"
            body = key.to_json() | {"message": words, "turnId": f"{_AUDIT}-{at}"}
            answer = self.client.post(TURNS, data=json.dumps(body), headers=JSON, name="audit")
            if answer.status_code != 200:
                return None
        messages = messages_of(self.client, key)
        if messages is None:
            return None
        queried = [result for _, name, result in told_by(messages).results if name == _QUERIED]
        if any(not isinstance(result, dict) or "note" in result for result in queried):
            return None
        return tuple(
            Effect(str(one["schedule_id"]), _CREATED, _marker_of(one), key.user_id, "")
            for one in _schedules(queried)
        )


def _schedules(queried: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for result in queried:
        yield from result["schedules"]


def _marker_of(schedule: dict[str, Any]) -> str:
    return "#" + str(schedule["title"]).removeprefix("plan ")
