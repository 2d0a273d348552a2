"""The schema of the PostgreSQL store: looked at, made, and brought to this format.

It owns the one idempotent command for all three, and what a schema says of itself. What stands in
it is ``postgres_sql``'s.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, NamedTuple

from kode_lab.errors import InvalidConfig, NewerFormat
from kode_lab.sessions.postgres_sql import FUNCTIONS, TABLES

__all__ = [
    "FENCES",
    "FORMAT",
    "SCHEMA",
    "Meta",
    "checked_name",
    "lock_class",
    "migrate",
    "read_meta",
]

FORMAT = 1
SCHEMA = "kode_lab"
# So many holds of one session fit between two takings by a worker: enough for 11 days at 1,000/s.
FENCES = 1_000_000_000
# One migration at a time in a database; the number says nothing.
_MIGRATION_LOCK = 0x6B6F6465
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_LEAST_TTL_S, _MOST_TTL_S = 0.5, 3600.0


class Meta(NamedTuple):
    """What a schema says of itself."""

    format: int
    settings: dict[str, Any]


async def migrate(connection: Any, *, schema: str = SCHEMA, ttl_s: float | None = None) -> str:
    """Make the schema, or bring it to this format; doing it twice changes nothing.

    Args:
        connection: of asyncpg, with the right to make a schema.
        ttl_s: the setting that all workers share; None leaves it, 30 s where there is none.

    Returns:
        What was done, as a sentence.

    Raises:
        NewerFormat: a newer kode_lab made it.
        InvalidConfig: the name of the schema, or the time, makes no sense.
    """
    checked_name(schema)
    if ttl_s is not None and not _LEAST_TTL_S <= ttl_s <= _MOST_TTL_S:
        raise InvalidConfig(f"ttl_s={ttl_s:g}: between {_LEAST_TTL_S:g} and {_MOST_TTL_S:g} s")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        found = await read_meta(connection, schema)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute(f"SET LOCAL search_path = {schema}")
        settings = {"ttl_s": 30.0, **(found.settings if found else {})}
        if ttl_s is not None:
            settings["ttl_s"] = float(ttl_s)
        if found is None:
            await connection.execute(TABLES)
            await connection.execute("INSERT INTO meta VALUES ($1, '{}')", FORMAT)
        await connection.execute(
            "UPDATE meta SET format = $1, settings = $2::text::jsonb", FORMAT, json.dumps(settings)
        )
        functions = FUNCTIONS.replace("@SCHEMA@", schema).replace("@FENCES@", str(FENCES))
        await connection.execute(functions.replace("@CLASS@", str(lock_class(schema))))
    did = "made" if found is None else "up to date"
    return f"schema {schema}: {did}, format {FORMAT}, ttl_s={settings['ttl_s']:g}"


async def read_meta(connection: Any, schema: str) -> Meta | None:
    """Give what the schema says of itself; None where there is none.

    Raises:
        NewerFormat: a newer kode_lab made it.
    """
    if await connection.fetchval("SELECT to_regclass($1)", f"{schema}.meta") is None:
        return None
    row = await connection.fetchrow(f"SELECT format, settings::text FROM {schema}.meta")  # noqa: S608
    meta = Meta(row[0], json.loads(row[1]))
    if meta.format > FORMAT:
        raise NewerFormat(
            f"schema {schema} has format {meta.format}, this kode_lab knows {FORMAT}: update it"
        )
    return meta


def checked_name(schema: str) -> str:
    """Give the name of a schema as it is: it stands in SQL without quotes.

    Raises:
        InvalidConfig: it holds something else than a to z, 0 to 9 and _.
    """
    if not _NAME.fullmatch(schema):
        raise InvalidConfig(f"schema {schema!r:.60}: use a to z, 0 to 9 and _, 40 at most")
    return schema


def lock_class(schema: str) -> int:
    """Give the first number of the workers' advisory locks: two schemas must not share it."""
    return zlib.crc32(schema.encode()) >> 1
