"""Stale writes as the database itself sees them: refused, or accepted from an overtaken holder.

Before any worker starts, triggers look at each turn and step that is saved, and a wrapper around
``refusal`` notes what was refused. So the fence is checked from the rows, by other statements than
those that keep it. Neither changes an answer. This file needs the database only; the judge does
not read it.
"""

from __future__ import annotations

from typing import NamedTuple

from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.schema import FENCES

__all__ = ["Watched", "install", "watched"]


class Watched(NamedTuple):
    """What was seen.

    Attributes:
        refused: writes that came too late, and that no earlier sending had saved.
        accepted: writes of an overtaken holder that were saved all the same.
        backward: turns that follow one of a later holder.
    """

    refused: int = 0
    accepted: int = 0
    backward: int = 0


async def install(connection: PostgresConnection) -> None:
    """Add the triggers and the wrapper."""
    for statement in _INSTALL:
        await connection.fetch(statement)


async def watched(connection: PostgresConnection) -> Watched:
    """Return what was seen until now."""
    rows = await connection.fetch(_WATCHED)
    return Watched(*rows[0])


_ARGUMENTS = """
    me bigint, which bigint, under bigint, what bigint, at_turn int, at_step int, id text,
    written text"""
_NAMES = ", ".join(words.split()[0] for words in _ARGUMENTS.split(","))
_INSTALL = (
    "CREATE TABLE seen (is_accepted boolean, conversation bigint, fence bigint)",
    f"""CREATE FUNCTION note_saved() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO seen SELECT true, NEW.conversation, NEW.fence
            FROM conversation c JOIN session s ON s.id = c.session
            WHERE c.id = NEW.conversation AND s.fence / {FENCES} > NEW.fence / {FENCES};
        RETURN NULL;
    END $$""",  # noqa: S608 - a number
    "CREATE TRIGGER note AFTER INSERT ON turn FOR EACH ROW EXECUTE FUNCTION note_saved()",
    "CREATE TRIGGER note AFTER INSERT ON step FOR EACH ROW EXECUTE FUNCTION note_saved()",
    "ALTER FUNCTION refusal RENAME TO refusal_itself",
    f"""CREATE FUNCTION refusal({_ARGUMENTS}) RETURNS TABLE (reason text, turns int)
    LANGUAGE plpgsql AS $$
    BEGIN
        SELECT r.reason, r.turns INTO reason, turns FROM refusal_itself({_NAMES}) AS r;
        INSERT INTO seen SELECT false, what, under WHERE reason <> 'saved';
        RETURN NEXT;
    END $$""",  # noqa: S608 - names of this module
)
_WATCHED = """
    SELECT
        (SELECT count(*) FROM seen WHERE NOT is_accepted),
        (SELECT count(*) FROM seen WHERE is_accepted),
        (SELECT count(*) FROM (SELECT fence, max(fence) OVER (
            PARTITION BY conversation ORDER BY number
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM turn) t
            WHERE fence < before)"""
