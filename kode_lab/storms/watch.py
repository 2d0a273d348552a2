"""What the database itself tells of stale writes: refused, or accepted though overtaken.

Before any worker comes, ``save`` gets a wrapper that notes what ``save`` refuses, and looks once
more, under the locks that it holds, whether what was accepted came from the session's last holder.
So the fence is proved from the rows, by other words than those that keep it. The wrapper changes no
answer. It needs the database only; the judge knows nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple

from kode_lab.sessions.postgres.connection import PostgresLink
from kode_lab.sessions.postgres.schema import FENCES

__all__ = ["Watched", "install", "watched"]


class Watched(NamedTuple):
    """What was seen.

    Attributes:
        refused: writes that came too late, and were not saved before either.
        accepted: writes of a holder that was overtaken and that were saved all the same.
        backward: turns that stand behind one of a later holder.
    """

    refused: int = 0
    accepted: int = 0
    backward: int = 0


async def install(link: PostgresLink) -> None:
    """Put the wrapper around ``save``."""
    for statement in _INSTALL:
        await link.fetch(statement)


async def watched(link: PostgresLink) -> Watched:
    """Return what was seen until now."""
    rows = await link.fetch(_WATCHED)
    return Watched(*rows[0])


_ARGUMENTS = """
    sessions bigint[], fences bigint[], conversations bigint[], numbers int[], turn_ids text[],
    firsts int[], lasts int[], sealed boolean[], versions text[], inputs bigint[],
    outputs bigint[], bodies text[], steps int[]"""
_NAMES = ", ".join(words.split()[0] for words in _ARGUMENTS.split(","))
_INSTALL = (
    """CREATE TABLE seen (
        is_accepted boolean, session bigint, fence bigint, conversation bigint, number int,
        is_turn boolean)""",
    "ALTER FUNCTION save RENAME TO save_itself",
    f"""CREATE FUNCTION save({_ARGUMENTS}) RETURNS SETOF int LANGUAGE plpgsql AS $$
    DECLARE
        refused int[];
    BEGIN
        SELECT coalesce(array_agg(place), '{{}}') INTO refused
            FROM save_itself({_NAMES}) AS place;
        INSERT INTO seen SELECT w.place <> ALL (refused), w.session, w.fence, w.conversation,
                w.number, w.turn_id IS NOT NULL
            FROM unnest(sessions, fences, conversations, numbers, turn_ids) WITH ORDINALITY
                AS w (session, fence, conversation, number, turn_id, place)
            WHERE w.place = ANY (refused) OR EXISTS (SELECT FROM session s
                WHERE s.id = w.session AND s.fence / {FENCES} > w.fence / {FENCES});
        RETURN QUERY SELECT unnest(refused);
    END $$""",  # noqa: S608 - words of this module
)
_WATCHED = """
    SELECT
        (SELECT count(*) FROM seen WHERE NOT is_accepted AND NOT EXISTS (
            SELECT FROM turn t WHERE is_turn AND t.conversation = seen.conversation
                AND t.number = seen.number AND t.fence = seen.fence)),
        (SELECT count(*) FROM seen WHERE is_accepted),
        (SELECT count(*) FROM (SELECT fence, max(fence) OVER (
            PARTITION BY conversation ORDER BY number
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM turn) t
            WHERE fence < before)"""
