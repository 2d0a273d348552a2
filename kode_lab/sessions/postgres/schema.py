"""The schema of the PostgreSQL store: looked at, made, and brought to this format.

It owns the one idempotent command for all three, and what a schema says of itself. What stands in
it is ``postgres_sql``'s.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, NamedTuple

from kode_lab.errors import InvalidConfig, NewerFormat, StoreError
from kode_lab.sessions.postgres.sql import FUNCTIONS, TABLES

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
# What PostgreSQL 15 reserves, system_user of 16, and a schema that it has already. In quotes most
# of them would do, but then everywhere, and for whoever looks at the database by hand, too.
_RESERVED = """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast
    check collate collation column concurrently constraint create cross current_catalog
    current_date current_role current_schema current_time current_timestamp current_user default
    deferrable desc distinct do else end except false fetch for foreign freeze from full grant
    group having ilike in information_schema initially inner intersect into is isnull join
    lateral leading left like limit localtime localtimestamp natural not notnull null offset on
    only or order outer overlaps placing primary references returning right select session_user
    similar some symmetric system_user table tablesample then to trailing true union unique user
    using variadic verbose when where window with
"""
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
        StoreError: what it says of itself cannot be read.
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
    """Return what the schema says of itself; None where there is none.

    Raises:
        NewerFormat: a newer kode_lab made it.
        StoreError: it cannot be read.
    """
    if await connection.fetchval("SELECT to_regclass($1)", f"{schema}.meta") is None:
        return None
    row = await connection.fetchval(f"SELECT to_jsonb(m)::text FROM {schema}.meta m")  # noqa: S608
    meta = _meta_of(schema, None if row is None else json.loads(row))
    if meta.format > FORMAT:
        raise NewerFormat(
            f"schema {schema} has format {meta.format}, this kode_lab knows {FORMAT}: update it"
        )
    return meta


def _meta_of(schema: str, row: dict[str, Any] | None) -> Meta:
    """Return what the row of the table says; a newer format may say it in other words."""
    fields = row or {}
    form, settings = fields.get("format"), fields.get("settings")
    is_newer = isinstance(form, int) and form > FORMAT
    ttl_s = settings.get("ttl_s") if isinstance(settings, dict) else None
    if row is None:
        lacks = "has no row"
    elif not isinstance(form, int):
        lacks = "says no format"
    elif not isinstance(ttl_s, int | float) and not is_newer:
        lacks = "says no ttl_s in its settings"
    else:
        return Meta(form, settings if isinstance(settings, dict) else {})
    raise StoreError(
        f"schema {schema} is damaged: its table meta {lacks}: put back the row that kode-lab "
        "migrate made, or name another schema"
    )


def checked_name(schema: str) -> str:
    """Return the name of a schema as it is: it stands in SQL without quotes.

    Raises:
        InvalidConfig: it holds something else than a to z, 0 to 9 and _, or is PostgreSQL's own.
    """
    if not _NAME.fullmatch(schema):
        raise InvalidConfig(f"schema {schema!r:.60}: use a to z, 0 to 9 and _, 40 at most")
    if schema in _RESERVED.split() or schema.startswith("pg_"):
        raise InvalidConfig(
            f"schema {schema!r}: PostgreSQL keeps this name for itself: choose another"
        )
    return schema


def lock_class(schema: str) -> int:
    """Return the first number of the workers' advisory locks: two schemas must not share it."""
    return zlib.crc32(schema.encode()) >> 1
