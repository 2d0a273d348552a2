"""The tables of the PostgreSQL store, and the functions that its server runs.

It owns every sentence of SQL that runs on the server, so that what must be one atomic step is one
function there. Who holds a session, who waits for it and in which order is decided by these
functions alone, each under the lock of the session's row; the processes only ask. A worker is a
process with a store. It is gone when its row is, when its time is up, or when its advisory lock
is free: the server frees that lock in the moment in which it sees the process's connection end.

    meta      one row: the format, and the settings that all workers must share
    worker    who works here, where it answers, and until when it is believed to be alive
    session   one row for each userId:sessionId: its fence, its holder, the ticket that it came by
    ticket    who waits for a session that another worker holds, in the order of their coming
    conversation   one row for each agent in a session
    turn      what was said: one row a turn
    step      the journal of the one unfinished turn of a conversation

Ids may be longer than an index takes: they are found by their MD5, and compared as they are. A
fence is a multiple of ``FENCES``; the holder counts its own holds between two of them.

Source: leases and fencing as in the store's own prologue; tickets: Lamport's bakery (1974), with
the database as the baker.
"""

from __future__ import annotations

__all__ = ["FUNCTIONS", "TABLES"]

TABLES = """
CREATE TABLE meta (format int NOT NULL, settings jsonb NOT NULL);
CREATE TABLE worker (
    id          int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    address     text,
    alive_until timestamptz NOT NULL
);
CREATE TABLE session (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    fence      bigint NOT NULL DEFAULT 0,
    holder     int,
    granted    bigint
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX session_of_user ON session (md5(user_id), md5(session_id));
CREATE TABLE conversation (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session  bigint NOT NULL,
    agent_id text COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX conversation_of_session ON conversation (session, md5(agent_id));
CREATE TABLE ticket (
    session    bigint NOT NULL,
    place      bigint GENERATED ALWAYS AS IDENTITY,
    worker     int NOT NULL,
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
    PRIMARY KEY (conversation, number)
);
CREATE TABLE step (
    conversation bigint NOT NULL,
    number       int NOT NULL,
    fence        bigint NOT NULL,
    entry        json NOT NULL,
    PRIMARY KEY (conversation, number)
);
"""

# The functions are replaced at each migration; @FENCES@ and @CLASS@ are numbers, @SCHEMA@ a name.
FUNCTIONS = """
CREATE OR REPLACE FUNCTION is_gone(who int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF who IS NULL OR NOT EXISTS (
        SELECT FROM worker WHERE id = who AND alive_until >= clock_timestamp()
    ) THEN
        RETURN true;
    END IF;
    RETURN pg_try_advisory_xact_lock_shared(@CLASS@, who);
END $$;

CREATE OR REPLACE FUNCTION tell(who int, what text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('@SCHEMA@_' || who, what)
$$;

-- Give a session, whose row is locked, to the oldest ticket of a living worker; say whether.
CREATE OR REPLACE FUNCTION grant_next(which bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    t ticket;
    new_fence bigint;
    is_wanted boolean;
BEGIN
    FOR t IN SELECT * FROM ticket WHERE session = which ORDER BY place LOOP
        DELETE FROM ticket WHERE session = which AND place = t.place;
        CONTINUE WHEN NOT FOUND OR is_gone(t.worker);
        UPDATE session SET holder = t.worker, granted = t.number,
            fence = (fence / @FENCES@ + 1) * @FENCES@
            WHERE id = which RETURNING fence INTO new_fence;
        is_wanted := EXISTS (SELECT FROM ticket WHERE session = which);
        PERFORM tell(t.worker, concat_ws(' ', 'granted', which, t.number, new_fence,
            is_wanted::int));
        RETURN true;
    END LOOP;
    RETURN false;
END $$;

-- Ask for sessions. "granted": it is ours now; "queued": we shall be told; "full": no.
-- Who holds it already draws a ticket, too: a grant to him may be on its way.
CREATE OR REPLACE FUNCTION ask(
    me int, users text[], sessions text[], numbers bigint[], limits int[]
) RETURNS TABLE (number bigint, session bigint, fence bigint, outcome text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    s session;
    ahead bigint;
BEGIN
    FOR i IN 1 .. cardinality(users) LOOP
        LOOP
            SELECT * INTO s FROM session WHERE md5(user_id) = md5(users[i])
                AND md5(session_id) = md5(sessions[i])
                AND user_id = users[i] AND session_id = sessions[i] FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
            INSERT INTO session (user_id, session_id) VALUES (users[i], sessions[i])
                ON CONFLICT DO NOTHING;
        END LOOP;
        SELECT count(*) INTO ahead FROM ticket t
            WHERE t.session = s.id AND (t.worker, t.number) IS DISTINCT FROM (me, numbers[i]);
        IF s.holder = me AND s.granted = numbers[i] THEN  -- asked again: the answer got lost
            RETURN QUERY SELECT numbers[i], s.id, s.fence, 'granted';
        ELSIF ahead = 0 AND s.holder IS DISTINCT FROM me AND is_gone(s.holder) THEN
            UPDATE session SET holder = me, granted = numbers[i],
                fence = (s.fence / @FENCES@ + 1) * @FENCES@
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
                PERFORM tell(s.holder, concat_ws(' ', 'wanted', s.id, (limits[i] > 0)::int));
            END IF;
        END IF;
    END LOOP;
END $$;

-- Pass sessions on to whoever waits. Those that nobody wants stay, or become free if asked.
CREATE OR REPLACE FUNCTION pass_on(
    me int, sessions bigint[], fences bigint[], is_leaving boolean[]
) RETURNS TABLE (session bigint, is_kept boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    FOR i IN 1 .. cardinality(sessions) LOOP
        PERFORM FROM session WHERE id = sessions[i] AND holder = me AND fence = fences[i]
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

-- Send away those who wait but will not wait for a turn.
CREATE OR REPLACE FUNCTION refuse(sessions bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t ticket;
BEGIN
    FOR t IN DELETE FROM ticket WHERE session = ANY(sessions) AND NOT is_patient RETURNING * LOOP
        PERFORM tell(t.worker, concat_ws(' ', 'refused', t.session, t.number));
    END LOOP;
END $$;

-- Take what dead workers held and we wait for; give what is ours of these sessions.
CREATE OR REPLACE FUNCTION sweep(me int, sessions bigint[])
RETURNS TABLE (session bigint, number bigint, fence bigint, is_wanted boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    gone int[];
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
    RETURN QUERY SELECT s.id, s.granted, s.fence,
        EXISTS (SELECT FROM ticket t WHERE t.session = s.id)
        FROM session s WHERE s.id = ANY(sessions) AND s.holder = me;
END $$;

-- Give what rests of conversations, each made if it is new: a row for each (kind null), then its
-- turns ('t') and steps ('s') in their order.
CREATE OR REPLACE FUNCTION load(sessions bigint[], agents text[]) RETURNS TABLE (
    place int, conversation bigint, kind text, number int, turn_id text, first int, last int,
    is_sealed boolean, version text, input_tokens bigint, output_tokens bigint, body text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    c bigint;
BEGIN
    FOR i IN 1 .. cardinality(sessions) LOOP
        LOOP
            SELECT id INTO c FROM conversation WHERE session = sessions[i]
                AND md5(agent_id) = md5(agents[i]) AND agent_id = agents[i];
            EXIT WHEN FOUND;
            INSERT INTO conversation (session, agent_id) VALUES (sessions[i], agents[i])
                ON CONFLICT DO NOTHING;
        END LOOP;
        place := i;
        conversation := c;
        kind := NULL;
        RETURN NEXT;
        RETURN QUERY SELECT i, c, 't', t.number, t.turn_id, t.first, t.last, t.is_sealed,
            t.version, t.input_tokens, t.output_tokens, t.messages::text
            FROM turn t WHERE t.conversation = c ORDER BY t.number;
        RETURN QUERY SELECT i, c, 's', t.number, NULL, 0, 0, false, NULL, 0::bigint, 0::bigint,
            t.entry::text FROM step t WHERE t.conversation = c ORDER BY t.number;
    END LOOP;
END $$;

-- Save steps and turns of many sessions, each only if its fence is still the newest. A step has
-- no turn_id; a turn ends the steps before it. Gives the places, from 1, of those refused.
CREATE OR REPLACE FUNCTION save(
    sessions bigint[], fences bigint[], conversations bigint[], numbers int[], turn_ids text[],
    firsts int[], lasts int[], sealed boolean[], versions text[], inputs bigint[],
    outputs bigint[], bodies text[], steps int[]
) RETURNS SETOF int LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY WITH w AS MATERIALIZED (
        SELECT * FROM unnest(sessions, fences, conversations, numbers, turn_ids, firsts, lasts,
            sealed, versions, inputs, outputs, bodies, steps) WITH ORDINALITY
            AS w (session, fence, conversation, number, turn_id, first, last, is_sealed, version,
                input_tokens, output_tokens, body, steps, place)
    ), held AS MATERIALIZED (
        SELECT s.id, s.fence FROM session s WHERE s.id = ANY(sessions)
            ORDER BY s.id FOR NO KEY UPDATE
    ), good AS MATERIALIZED (
        SELECT w.* FROM w JOIN held ON held.id = w.session
            AND w.fence / @FENCES@ = held.fence / @FENCES@
    ), turns AS (
        INSERT INTO turn SELECT g.conversation, g.number, g.turn_id, g.fence, g.first,
            g.last, g.is_sealed, g.version, g.input_tokens, g.output_tokens, g.body::json
            FROM good g WHERE g.turn_id IS NOT NULL ON CONFLICT DO NOTHING
    ), added AS (
        INSERT INTO step SELECT g.conversation, g.number, g.fence, g.body::json
            FROM good g WHERE g.turn_id IS NULL ON CONFLICT DO NOTHING
    ), forgotten AS (
        DELETE FROM step t USING good g WHERE g.turn_id IS NOT NULL AND g.steps > 0
            AND t.conversation = g.conversation
    )
    SELECT w.place::int FROM w WHERE w.place NOT IN (SELECT g.place FROM good g);
END $$;

-- Forget the unfinished turn of a conversation, or all of it; say whether the fence allowed it.
CREATE OR REPLACE FUNCTION forget(
    which bigint, under bigint, what bigint, is_all boolean
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM session WHERE id = which AND fence / @FENCES@ = under / @FENCES@
        FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM step WHERE conversation = what;
    IF is_all THEN
        DELETE FROM turn WHERE conversation = what;
    END IF;
    RETURN true;
END $$;
"""
