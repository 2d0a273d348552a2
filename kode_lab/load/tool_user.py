"""A session user whose turns change the world, and who asks it at the end what was changed.

Each turn enters one schedule whose title is its marker. So each schedule in the book names the turn
that made it: one id for two turns, two schedules of one turn, or a schedule in another user's book
are plain to see. What was made is told twice: by each session's own record of its tools (the
target's ``history``), and by the book, which each user asks in a session that nothing else uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from kode_lab.errors import KodeLabError
from kode_lab.history.operation import Effect
from kode_lab.key import SessionKey
from kode_lab.load.session_user import SessionUser
from kode_lab.targets.target import History

__all__ = ["ToolUser"]

# The assistant asks for eight days in one turn, and is shown at most fifty schedules a day: so
# many of one user's turns are told of as these days hold.
DAYS, DAYS_ASKED = 64, 8
_FIRST_DAY = date(2031, 1, 1)
_AUDIT = "audit"


class ToolUser(SessionUser):
    """One whose turns each make one schedule."""

    abstract = True
    has_tools = True

    def prompt(self, marker: str) -> str:
        """Ask for a schedule with the turn's marker as its title, on one of the days."""
        day = _FIRST_DAY + timedelta(days=self.draw.randrange(DAYS))
        return f'Create "plan {marker[1:]}" on {day} at 10:00 {marker}'

    async def effects(self, user_id: str) -> Sequence[Effect]:
        """Return every schedule in this user's book, asked for day by day.

        Raises:
            KodeLabError: the book was not shown whole.
        """
        key = SessionKey.of(user_id, self.agent_id, _AUDIT)
        for at in range(0, DAYS, DAYS_ASKED):
            day = _FIRST_DAY + timedelta(days=at)
            words = f"List my schedules for {DAYS_ASKED} days from {day}"
            answer = await self.target.turn(key, words, f"{_AUDIT}-{at}")
            if answer.kind != "reply":
                raise KodeLabError(f"the book was not told: {answer.error}")
        told = await self.target.history(key)
        if not isinstance(told, History) or told.listed is None:
            raise KodeLabError("the book was not told whole")
        return [effect._replace(user_id=user_id) for effect in told.listed]
