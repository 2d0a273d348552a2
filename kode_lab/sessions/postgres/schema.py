"""The schema of the PostgreSQL store: tables, server-side functions, and their migration.

What must be one atomic step is one function on the server. Who holds a session, who waits for it
and in which order is decided by these functions alone, each under the lock of the session's row;
the workers only ask. A worker is a process with a store. It is gone when its row is, when its time
is up, or when its advisory lock is free: the server frees that lock as soon as it sees the
worker's connection end.

    meta           one row: the format, and the settings that all workers share
    worker         who works here, where it answers, and until when it counts as alive
    session        one row for each userId:sessionId: fence, holder, the ticket it was granted for
    ticket         who waits for a session that another worker holds, in order of arrival
    conversation   one row for each agent in a session
    turn           one row for each finished turn; one that a rewind removed keeps its row without
                   its messages; a rewind has a row, too, and what a fork copied outside a turn
    step           the journal of a conversation's unfinished turn
    memory         what the sessions of a user share

Ids may be longer than an index takes: they are found by a SHA-256 that the worker computes.

A fence is ``epoch * FENCES + mark``. Each taking of a session starts a new epoch, at least the
database's clock in seconds, so that no fence repeats after a restore. Within its epoch the holder
raises the mark with each load and each deletion. A statement of an older epoch or mark is refused
whenever it arrives. The row keeps the newest fence.

Source: fencing tokens, Kleppmann 2016; tickets: Lamport's bakery (1974), the database as the baker.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from kode_lab.errors import InvalidConfig, NewerFormat, StoreError

__all__ = [
    "FENCES",
    "FORMAT",
    "SCHEMA",
    "checked_name",
    "migrate",
    "read_meta",
]

FORMAT = 3
SCHEMA = "kode_lab"
# Room for so many holds within an epoch; epoch * FENCES stays below 2**53, for readers in
# JavaScript, until the year 2255.
FENCES = 1_000_000
# One migration at a time in a database; the number has no meaning.
_MIGRATION_LOCK = 0x6B6F6465
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
# What PostgreSQL 15 reserves, system_user of 16, and a schema that it has already. Most of them
# would work in quotes, but then everywhere, and for people who query the database by hand.
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
_HAS_META = """
    SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'meta')"""
_LEAST_TTL_S, _MOST_TTL_S = 0.5, 3600.0


class Meta(NamedTuple):
    """What a schema records about itself."""

    format: int
    settings: dict[str, Any]


async def migrate(
    connection: Any,
    *,
    schema: str = SCHEMA,
    ttl_s: float | None = None,
    only_if_missing: bool = False,
) -> str:
    """Make the schema, or bring it to this format; doing it twice changes nothing.

    Args:
        connection: of asyncpg, with the right to make a schema.
        ttl_s: the setting that all workers share; None leaves it, 30 s where there is none.
        only_if_missing: leave a schema that another worker made in the meantime as it is.

    Returns:
        What was done, as a sentence.

    Raises:
        NewerFormat: a newer kode_lab made it.
        StoreError: what it says of itself cannot be read.
        InvalidConfig: the name of the schema, or the time, makes no sense.
    """
    checked_name(schema)
    if ttl_s is not None and not _LEAST_TTL_S <= ttl_s <= _MOST_TTL_S:
        raise InvalidConfig(
            f"ttl_s={ttl_s:g} is not valid: choose {_LEAST_TTL_S:g} to {_MOST_TTL_S:g} s"
        )
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
        found = await read_meta(connection, schema)
        if found is not None and only_if_missing:
            return f"schema {schema}: there already, format {found.format}"
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute(f"SET LOCAL search_path = {schema}")
        settings = {"ttl_s": 30.0, **(found.settings if found else {})}
        if ttl_s is not None:
            settings["ttl_s"] = float(ttl_s)
        if found is None:
            await connection.execute(_TABLES + _MEMORY)
            await connection.execute("INSERT INTO meta VALUES ($1, '{}')", FORMAT)
        elif found.format == 1:
            await connection.execute(_FROM_1 + _FROM_2 + _MEMORY)
        elif found.format == 2:
            await connection.execute(_FROM_2 + _MEMORY)
        await connection.execute(
            "UPDATE meta SET format = $1, settings = $2::text::jsonb", FORMAT, json.dumps(settings)
        )
        await connection.execute(_DROP)
        await connection.execute(
            _FUNCTIONS.replace("@SCHEMA@", schema).replace("@FENCES@", str(FENCES))
        )
    did = "made" if found is None else "up to date"
    return f"schema {schema}: {did}, format {FORMAT}, ttl_s={settings['ttl_s']:g}"


async def read_meta(connection: Any, schema: str) -> Meta | None:
    """Return what the schema records about itself, or None where there is no schema.

    Raises:
        NewerFormat: a newer kode_lab made it.
        StoreError: it cannot be read.
    """
    # Not to_regclass: it may answer from a cache that is older than a wait for a lock.
    if not await connection.fetchval(_HAS_META, schema):
        return None
    row = await connection.fetchval(f"SELECT to_jsonb(m)::text FROM {schema}.meta m")  # noqa: S608
    meta = _meta_of(schema, None if row is None else json.loads(row))
    if meta.format > FORMAT:
        raise NewerFormat(
            f"schema {schema} has format {meta.format}, this kode_lab knows {FORMAT}: update it"
        )
    return meta


def _meta_of(schema: str, row: dict[str, Any] | None) -> Meta:
    """Return the row of the table; a newer format may have other settings."""
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
    """Return the name of a schema unchanged; it is written into SQL without quotes.

    Raises:
        InvalidConfig: it holds more than a to z, 0 to 9 and _, or PostgreSQL reserves it.
    """
    if not _NAME.fullmatch(schema):
        raise InvalidConfig(
            f"schema {schema!r:.60} is not valid: use a to z, 0 to 9 and _, 40 at most"
        )
    if schema in _RESERVED.split() or schema.startswith("pg_"):
        raise InvalidConfig(
            f"schema {schema!r}: PostgreSQL keeps this name for itself: choose another"
        )
    return schema


_TABLES = """
CREATE TABLE meta (format int NOT NULL, settings jsonb NOT NULL);
CREATE TABLE worker (
    id          bigint PRIMARY KEY,
    name        text NOT NULL,
    address     text,
    alive_until timestamptz NOT NULL
);
CREATE TABLE session (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    hash       bytea NOT NULL,
    fence      bigint NOT NULL DEFAULT 0,
    holder     bigint,
    granted    bigint
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX session_of_user ON session (md5(user_id), hash);
CREATE TABLE conversation (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session  bigint NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    hash     bytea NOT NULL,
    revision int NOT NULL DEFAULT 0  -- grows when turns that are there change
);
CREATE UNIQUE INDEX conversation_of_session ON conversation (session, hash);
CREATE TABLE ticket (
    session    bigint NOT NULL,
    place      bigint GENERATED ALWAYS AS IDENTITY,
    worker     bigint NOT NULL,
    number     bigint NOT NULL,
    is_patient boolean NOT NULL,
    PRIMARY KEY (session, place)
);
CREATE UNIQUE INDEX ticket_of_worker ON ticket (worker, number);
CREATE TABLE turn (
    conversation  bigint NOT NULL,
    number        int NOT NULL,
    turn_id       text NOT NULL,
    fence         bigint NOT NULL,
    first         int NOT NULL,
    last          int NOT NULL,
    is_sealed     boolean NOT NULL,
    version       text NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    messages      json NOT NULL,
    facts         json NOT NULL DEFAULT '{}',
    is_rewound    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (conversation, number)
);
CREATE TABLE step (
    conversation bigint NOT NULL,
    turn         int NOT NULL,
    number       int NOT NULL,
    fence        bigint NOT NULL,
    entry        json NOT NULL,
    PRIMARY KEY (conversation, turn, number)
);
"""

# Since format 3, as the next one.
_FROM_2 = "ALTER TABLE conversation ADD revision int NOT NULL DEFAULT 0;"
# Each write has a token of its own: one that is sent twice finds it, and is no
# conflict with itself.
_MEMORY = """
CREATE TABLE memory (
    hash    bytea PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    token   text NOT NULL,
    entries json NOT NULL
);
"""

# Format 1 identified workers by a sequence, which a restore sets back, and ids by their MD5.
_FROM_1 = """
ALTER TABLE worker ALTER id DROP IDENTITY;
ALTER TABLE worker ALTER id TYPE bigint;
ALTER TABLE session ALTER holder TYPE bigint;
ALTER TABLE ticket ALTER worker TYPE bigint;
DELETE FROM worker;
DELETE FROM ticket;
ALTER TABLE session ADD hash bytea;
UPDATE session SET holder = NULL, granted = NULL, hash = sha256(
    convert_to(user_id, 'UTF8') || '\\x00'::bytea || convert_to(session_id, 'UTF8'));
ALTER TABLE session ALTER hash SET NOT NULL;
DROP INDEX session_of_user;
CREATE UNIQUE INDEX session_of_user ON session (md5(user_id), hash);
ALTER TABLE conversation ADD hash bytea;
UPDATE conversation SET hash = sha256(convert_to(agent_id, 'UTF8'));
ALTER TABLE conversation ALTER hash SET NOT NULL;
DROP INDEX conversation_of_session;
CREATE UNIQUE INDEX conversation_of_session ON conversation (session, hash);
ALTER TABLE turn ADD facts json NOT NULL DEFAULT '{}',
    ADD is_rewound boolean NOT NULL DEFAULT false;
ALTER TABLE step ADD turn int NOT NULL DEFAULT 0;
UPDATE step s SET turn = (SELECT count(*) FROM turn t WHERE t.conversation = s.conversation);
ALTER TABLE step ALTER turn DROP DEFAULT;
ALTER TABLE step DROP CONSTRAINT step_pkey, ADD PRIMARY KEY (conversation, turn, number);
"""
_FUNCTION_NAMES = (
    "is_gone", "tell", "grant_next", "ask", "pass_on", "refuse", "sweep", "load", "save", "forget",
    "refusal", "next_epoch", "rewind", "fill", "amend", "write_memory", "raise_fence",
)  # fmt: skip
_DROP = f"""
DO $$ DECLARE f regprocedure; BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
        AND proname = ANY('{{{",".join(_FUNCTION_NAMES)}}}') LOOP
        EXECUTE 'DROP FUNCTION ' || f;
    END LOOP;
END $$;
"""  # noqa: S608 - names of this module

# The functions are made anew by each migration; @FENCES@ is a number, @SCHEMA@ a name.
_FUNCTIONS = """
CREATE FUNCTION is_gone(who bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE
        WHEN EXISTS (SELECT FROM worker WHERE id = who AND alive_until >= clock_timestamp())
        THEN pg_try_advisory_xact_lock_shared(who)
        ELSE true
    END;
END $$;

CREATE FUNCTION next_epoch(fence bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN greatest(fence / @FENCES@ + 1, extract(epoch FROM clock_timestamp())::bigint) * @FENCES@;
END $$;

-- Give a session, whose row is locked, to the oldest ticket of a living worker; return whether.
CREATE FUNCTION grant_next(which bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    t ticket;
    new_fence bigint;
    is_wanted boolean;
BEGIN
    FOR t IN SELECT * FROM ticket WHERE session = which ORDER BY place LOOP
        DELETE FROM ticket WHERE session = which AND place = t.place;
        CONTINUE WHEN NOT FOUND OR is_gone(t.worker);
        UPDATE session SET holder = t.worker, granted = t.number, fence = next_epoch(fence)
            WHERE id = which RETURNING fence INTO new_fence;
        is_wanted := EXISTS (SELECT FROM ticket WHERE session = which);
        PERFORM pg_notify('@SCHEMA@_' || t.worker,
            concat_ws(' ', 'granted', which, t.number, new_fence, is_wanted::int));
        RETURN true;
    END LOOP;
    RETURN false;
END $$;

-- Ask for sessions. "granted": it is yours now; "queued": a notice will come; "full": refused.
-- The holder draws a ticket, too: a grant to it may be on its way. Rows are locked in the order
-- of their ids, as in every function.
CREATE FUNCTION ask(
    me bigint, users text[], sessions text[], hashes bytea[], numbers bigint[], limits int[]
) RETURNS TABLE (number bigint, session bigint, fence bigint, outcome text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ids bigint[];
    which bigint;
    s session;
    ahead bigint;
    i int;
BEGIN
    FOR i IN 1 .. cardinality(users) LOOP
        LOOP
            SELECT id INTO which FROM session
                WHERE md5(user_id) = md5(users[i]) AND hash = hashes[i];
            EXIT WHEN FOUND;
            INSERT INTO session (user_id, session_id, hash)
                VALUES (users[i], sessions[i], hashes[i])
                ON CONFLICT DO NOTHING RETURNING id INTO which;
            EXIT WHEN FOUND;
        END LOOP;
        ids[i] := which;
    END LOOP;
    FOR i IN SELECT u.i FROM unnest(ids) WITH ORDINALITY AS u (id, i) ORDER BY u.id, u.i LOOP
        SELECT * INTO s FROM session WHERE id = ids[i] FOR NO KEY UPDATE;
        SELECT count(*) INTO ahead FROM ticket t
            WHERE t.session = s.id AND (t.worker, t.number) IS DISTINCT FROM (me, numbers[i]);
        IF s.holder = me AND s.granted = numbers[i] THEN  -- asked again: the answer was lost
            RETURN QUERY SELECT numbers[i], s.id, s.fence / @FENCES@ * @FENCES@, 'granted';
        ELSIF ahead = 0 AND s.holder IS DISTINCT FROM me AND is_gone(s.holder) THEN
            UPDATE session SET holder = me, granted = numbers[i], fence = next_epoch(s.fence)
                WHERE id = s.id RETURNING session.fence INTO s.fence;
            RETURN QUERY SELECT numbers[i], s.id, s.fence, 'granted';
        ELSIF ahead >= greatest(limits[i], 1) OR (limits[i] = 0 AND ahead > 0) THEN
            RETURN QUERY SELECT numbers[i], s.id, 0::bigint, 'full';
        ELSE
            INSERT INTO ticket (session, worker, number, is_patient)
                VALUES (s.id, me, numbers[i], limits[i] > 0)
                ON CONFLICT (worker, number) DO NOTHING;
            RETURN QUERY SELECT numbers[i], s.id, 0::bigint, 'queued';
            IF s.holder IS DISTINCT FROM me AND is_gone(s.holder) THEN
                PERFORM grant_next(s.id);
            ELSE
                PERFORM pg_notify('@SCHEMA@_' || s.holder,
                    concat_ws(' ', 'wanted', s.id, (limits[i] > 0)::int));
            END IF;
        END IF;
    END LOOP;
END $$;

-- Pass sessions on to the next ticket. Without one they are kept, or freed if the worker leaves.
CREATE FUNCTION pass_on(
    me bigint, sessions bigint[], fences bigint[], is_leaving boolean[]
) RETURNS TABLE (session bigint, is_kept boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    FOR i IN 1 .. cardinality(sessions) LOOP
        PERFORM FROM session WHERE id = sessions[i] AND holder = me
            AND fence <= fences[i] AND fence / @FENCES@ = fences[i] / @FENCES@
            FOR NO KEY UPDATE;
        IF NOT FOUND OR grant_next(sessions[i]) THEN
            RETURN QUERY SELECT sessions[i], false;
        ELSE
            IF is_leaving[i] THEN
                UPDATE session SET holder = NULL, granted = NULL WHERE id = sessions[i];
            END IF;
            RETURN QUERY SELECT sessions[i], NOT is_leaving[i];
        END IF;
    END LOOP;
END $$;

-- Refuse those who wait for an answer but not for a turn.
CREATE FUNCTION refuse(sessions bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t ticket;
BEGIN
    FOR t IN DELETE FROM ticket WHERE session = ANY(sessions) AND NOT is_patient RETURNING * LOOP
        PERFORM pg_notify('@SCHEMA@_' || t.worker,
            concat_ws(' ', 'refused', t.session, t.number));
    END LOOP;
END $$;

-- Take what dead workers held and this one waits for; return which of these sessions it holds.
CREATE FUNCTION sweep(me bigint, sessions bigint[])
RETURNS TABLE (session bigint, number bigint, fence bigint, is_wanted boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    gone bigint[];
    which bigint;
BEGIN
    SELECT array_agg(holder) INTO gone FROM (
        SELECT DISTINCT holder FROM session
            WHERE id = ANY(sessions) AND holder IS DISTINCT FROM me
    ) h WHERE is_gone(holder);
    IF gone IS NOT NULL THEN
        FOR which IN SELECT id FROM session WHERE id = ANY(sessions) ORDER BY id LOOP
            PERFORM FROM session WHERE id = which
                AND (holder IS NULL OR holder = ANY(gone)) FOR NO KEY UPDATE;
            IF FOUND THEN
                PERFORM grant_next(which);
            END IF;
        END LOOP;
    END IF;
    RETURN QUERY SELECT s.id, s.granted, s.fence / @FENCES@ * @FENCES@,
        EXISTS (SELECT FROM ticket t WHERE t.session = s.id)
        FROM session s WHERE s.id = ANY(sessions) AND s.holder = me;
END $$;

-- Return what is stored of conversations, each made if it is new: a row for each (kind null), then
-- its turns ('t') and the steps of its open turn ('s') in their order; nothing where the session
-- is another worker's. What an earlier statement of this worker still has to bring is void then.
-- Who knows the first turns up to one with the fence "before", in this revision, gets only the
-- turns after them: the first row says from which number on, and the revision in "last".
CREATE FUNCTION load(
    me bigint, sessions bigint[], fences bigint[], agents text[], hashes bytea[], counts int[],
    befores bigint[], revisions int[]
) RETURNS TABLE (
    place int, conversation bigint, kind text, number int, turn_id text, fence bigint, first int,
    last int, is_sealed boolean, version text, input_tokens bigint, output_tokens bigint,
    body text, facts text, is_rewound boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    c bigint;
    turns int;
    start int;
    newest int;
BEGIN
    FOR i IN 1 .. cardinality(sessions) LOOP
        PERFORM FROM session WHERE id = sessions[i] AND holder = me AND fence = fences[i];
        IF NOT FOUND THEN
            UPDATE session SET fence = fences[i] WHERE id = sessions[i] AND holder = me
                AND fence < fences[i] AND fence / @FENCES@ = fences[i] / @FENCES@;
            CONTINUE WHEN NOT FOUND;
        END IF;
        LOOP
            SELECT id, revision INTO c, newest FROM conversation
                WHERE session = sessions[i] AND hash = hashes[i];
            EXIT WHEN FOUND;
            INSERT INTO conversation (session, agent_id, hash)
                VALUES (sessions[i], agents[i], hashes[i])
                ON CONFLICT DO NOTHING RETURNING id, revision INTO c, newest;
            EXIT WHEN FOUND;
        END LOOP;
        start := 0;
        IF counts[i] > 0 AND revisions[i] = newest AND EXISTS (SELECT FROM turn t
                WHERE t.conversation = c AND t.number = counts[i] - 1 AND t.fence = befores[i]) THEN
            start := counts[i];
        END IF;
        place := i;
        conversation := c;
        kind := NULL;
        number := start;
        last := newest;
        RETURN NEXT;
        RETURN QUERY SELECT i, c, 't', t.number, t.turn_id, t.fence, t.first, t.last, t.is_sealed,
            t.version, t.input_tokens, t.output_tokens, t.messages::text, t.facts::text,
            t.is_rewound FROM turn t WHERE t.conversation = c AND t.number >= start
            ORDER BY t.number;
        GET DIAGNOSTICS turns = ROW_COUNT;
        turns := turns + start;
        RETURN QUERY SELECT i, c, 's', t.number, NULL, t.fence, 0, 0, false, NULL, 0::bigint,
            0::bigint, t.entry::text, NULL, false
            FROM step t WHERE t.conversation = c AND t.turn = turns ORDER BY t.number;
    END LOOP;
END $$;

-- Return why a write was refused: its first sending "saved" it; it is "stale"; the database is
-- "older" than the grant; or turns before it are "missing". And how many turns there are.
CREATE FUNCTION refusal(
    me bigint, which bigint, under bigint, what bigint, at_turn int, at_step int, id text,
    written text
) RETURNS TABLE (reason text, turns int) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT CASE
        WHEN id IS NOT NULL AND EXISTS (SELECT FROM turn t WHERE t.conversation = what
            AND t.number = at_turn AND t.turn_id = id AND t.fence = under
            AND t.messages::text = written) THEN 'saved'
        WHEN id IS NULL AND EXISTS (SELECT FROM step t WHERE t.conversation = what
            AND t.turn = at_turn AND t.number = at_step AND t.fence = under
            AND t.entry::text = written) THEN 'saved'
        WHEN EXISTS (SELECT FROM session s WHERE s.id = which AND s.holder = me
            AND s.fence <= under AND s.fence / @FENCES@ = under / @FENCES@) THEN 'missing'
        WHEN EXISTS (SELECT FROM session s WHERE s.id = which
            AND s.fence / @FENCES@ >= under / @FENCES@) THEN 'stale'
        ELSE 'older'
    END, (SELECT count(*)::int FROM turn t WHERE t.conversation = what);
END $$;

-- Raise the fence of a session for a change that is sent once; return NULL for a second copy of the
-- statement, and false where the fence does not allow it.
CREATE FUNCTION raise_fence(me bigint, which bigint, under bigint, becomes bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE session SET fence = becomes WHERE id = which AND holder = me AND fence <= under
        AND fence / @FENCES@ = under / @FENCES@;
    IF FOUND THEN
        RETURN true;
    ELSIF EXISTS (SELECT FROM session WHERE id = which AND holder = me AND fence = becomes) THEN
        RETURN NULL;
    END IF;
    RETURN false;
END $$;

-- Forget the unfinished turn of a conversation, or all of it; return whether the fence allowed it.
CREATE FUNCTION forget(
    me bigint, which bigint, under bigint, becomes bigint, what bigint, is_all boolean
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    is_first boolean := raise_fence(me, which, under, becomes);
BEGIN
    IF is_first THEN
        DELETE FROM step WHERE conversation = what;
        IF is_all THEN
            UPDATE conversation v SET revision = v.revision + 1 WHERE v.id = what;
            DELETE FROM turn WHERE conversation = what;
        END IF;
    END IF;
    RETURN coalesce(is_first, true);
END $$;

-- Remove the messages from number "count" on, with the unfinished turn, and add the rewind's own
-- row as the turn "at_turn", if the turn before it has the fence "before"; return whether.
CREATE FUNCTION rewind(
    me bigint, which bigint, under bigint, becomes bigint, what bigint, at_turn int, before bigint,
    count int, id text, about text
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    is_first boolean;
BEGIN
    IF at_turn > 0 AND NOT EXISTS (SELECT FROM turn t WHERE t.conversation = what
            AND t.number = at_turn - 1 AND t.fence = before) THEN
        RETURN EXISTS (SELECT FROM turn t WHERE t.conversation = what AND t.number = at_turn
            AND t.fence = becomes);
    END IF;
    is_first := raise_fence(me, which, under, becomes);
    IF is_first THEN
        DELETE FROM step WHERE conversation = what;
        UPDATE conversation v SET revision = v.revision + 1 WHERE v.id = what;
        UPDATE turn SET is_rewound = true, messages = '[]'
            WHERE conversation = what AND first >= count AND NOT is_rewound;
        INSERT INTO turn VALUES (what, at_turn, id, becomes, count, count - 1, false, '', 0, 0,
            '[]', about::json, true);
    END IF;
    RETURN coalesce(is_first, true);
END $$;

-- Save all turns of a conversation that has none; return whether the fence allowed it.
CREATE FUNCTION fill(
    me bigint, which bigint, under bigint, becomes bigint, what bigint, ids text[], firsts int[],
    lasts int[], sealed boolean[], versions text[], inputs bigint[], outputs bigint[],
    bodies text[], about text[]
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    is_first boolean := raise_fence(me, which, under, becomes);
BEGIN
    IF is_first THEN
        INSERT INTO turn SELECT what, w.number - 1, w.id, becomes, w.first, w.last, w.is_sealed,
                w.version, w.input, w.output, w.body::json, w.facts::json, false
            FROM unnest(ids, firsts, lasts, sealed, versions, inputs, outputs, bodies, about)
                WITH ORDINALITY AS w (id, first, last, is_sealed, version, input, output, body,
                    facts, number);
    END IF;
    RETURN coalesce(is_first, true);
END $$;

-- Replace the message with number "place"; return whether the fence allowed it.
CREATE FUNCTION amend(
    me bigint, which bigint, under bigint, becomes bigint, what bigint, place int, changed text
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    is_first boolean := raise_fence(me, which, under, becomes);
BEGIN
    IF is_first THEN
        UPDATE conversation v SET revision = v.revision + 1 WHERE v.id = what;
        UPDATE turn t SET messages = (
            SELECT json_agg(CASE WHEN t.first + e.n - 1 = place THEN changed::json ELSE e.m END
                ORDER BY e.n)
            FROM json_array_elements(t.messages) WITH ORDINALITY AS e (m, n))
        WHERE t.conversation = what AND place BETWEEN t.first AND t.last AND NOT t.is_rewound;
    END IF;
    RETURN coalesce(is_first, true);
END $$;

-- Replace a user's memory if it has the version "old"; return whether it had.
CREATE FUNCTION write_memory(who text, found_by bytea, old bigint, own text, new text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF old = 0 THEN
        INSERT INTO memory VALUES (found_by, who, 1, own, new::json) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE memory SET version = version + 1, token = own, entries = new::json
            WHERE hash = found_by AND version = old;
    END IF;
    RETURN EXISTS (SELECT FROM memory WHERE hash = found_by AND token = own);
END $$;
"""
