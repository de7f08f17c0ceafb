-- outboxd: what an operator, a handler or a consumer can do. Each function writes rows; the daemon reacts to rows. `outbox.dead_letters`
-- and the two bulk functions take the same filters; a null filter lets everything pass. They run as the owner: who may call one needs
-- no right on the tables, and has none. What they have done stands in outbox.operation, with the role that asked for it.

-- Who did what by hand. What is about one event goes when the event is old, the rest after a year (trim_operation).
CREATE TABLE outbox.operation (
    n          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    role       text        NOT NULL,
    action     text        NOT NULL,
    handler    text,
    event_id   bigint,
    -- Of an action on many.
    deliveries bigint,
    detail     jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT detail_is_at_most_64_kibibytes CHECK (pg_column_size(detail) <= 65536)
);
CREATE INDEX operation_event ON outbox.operation (event_id, n) WHERE event_id IS NOT NULL;
CREATE INDEX operation_at ON outbox.operation (at);

-- The role that has called, also inside a function that runs as the owner: that of SET ROLE, else the one that has logged in.
CREATE FUNCTION outbox.caller() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(nullif(current_setting('role'), 'none'), session_user)
$$;

-- Notes that somebody has done something. Texts are cut: a reason may be as long as its writer wants.
CREATE FUNCTION outbox.note(action text, handler text, event_id bigint, deliveries bigint, VARIADIC details text[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO outbox.operation (role, action, handler, event_id, deliveries, detail)
    SELECT outbox.caller(), note.action, note.handler, note.event_id, note.deliveries,
           coalesce(jsonb_object_agg(note.details[i], left(note.details[i + 1], 2048)) FILTER (WHERE note.details[i + 1] IS NOT NULL), '{}')
    FROM generate_series(1, cardinality(note.details), 2) AS i
$$;

-- The headers of what came of an event: its id, that of the first event of all, and the trace (Emit::caused_by is its twin).
CREATE FUNCTION outbox.caused_by(event_id bigint, headers jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object('correlation_id', event_id::text) || coalesce(jsonb_object_agg(h.key, h.value), '{}')
           || jsonb_build_object('causation_id', event_id::text)
    FROM jsonb_each_text(headers) AS h (key, value)
    WHERE h.key IN ('correlation_id', 'traceparent', 'tracestate') AND octet_length(h.value) <= 512
$$;

-- Everything that came of the same first event as this one, and that event, in the order of their ids.
CREATE FUNCTION outbox.related(event_id bigint) RETURNS SETOF outbox.event
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH first AS (
        SELECT coalesce(e.headers->>'correlation_id', e.id::text) AS correlation FROM outbox.event e WHERE e.id = related.event_id
    )
    SELECT e.* FROM first f JOIN outbox.event e ON e.headers ? 'correlation_id' AND e.headers->>'correlation_id' = f.correlation
    UNION ALL
    SELECT e.* FROM first f JOIN outbox.event e ON e.id = CASE WHEN f.correlation ~ '^[0-9]{1,18}$' THEN f.correlation::bigint END
    WHERE NOT e.headers ? 'correlation_id'
    ORDER BY id
$$;

-- A dead delivery becomes an event of its own, if its handler names a topic for that. The death of such an event does not. An
-- event has no room for a payload of 16 MiB and what is said about it: then the payload is null, and stands in outbox.open.
CREATE FUNCTION outbox.tell_dead() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    on_dead text := (SELECT h.on_dead FROM outbox.handler h WHERE h.name = NEW.handler);
    about   jsonb;
    told    jsonb;
BEGIN
    IF on_dead IS NULL OR NEW.headers ? 'outbox-dead-of' THEN
        RETURN NULL;
    END IF;
    about := jsonb_build_object('event_id', NEW.event_id, 'handler', NEW.handler, 'topic', NEW.topic, 'key', NEW.key,
                                'attempts', NEW.attempt, 'error', NEW.last_error, 'payload', NULL);
    BEGIN
        told := jsonb_set(about, '{payload}', NEW.payload);
    EXCEPTION WHEN program_limit_exceeded THEN
        -- It came into the log compressed, and is larger than any jsonb around it could be.
        told := about;
    END;
    INSERT INTO outbox.event (topic, key, payload, headers)
    VALUES (on_dead, NEW.key, CASE WHEN pg_column_size(told) <= 16777216 THEN told ELSE about END,
            outbox.caused_by(NEW.event_id, NEW.headers) || jsonb_build_object('outbox-dead-of', NEW.event_id::text));
    RETURN NULL;
END
$$;

CREATE TRIGGER tell_dead_insert AFTER INSERT ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'dead')
    EXECUTE FUNCTION outbox.tell_dead();
CREATE TRIGGER tell_dead_update AFTER UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'dead' AND OLD.state <> 'dead')
    EXECUTE FUNCTION outbox.tell_dead();

-- Runs a delivery again now: a dead one with its failures forgotten, one that waits for its time or for an answer at once; a flow
-- from its dead steps. Returns whether there was such a delivery.
CREATE FUNCTION outbox.retry(event_id bigint, handler text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF EXISTS (SELECT FROM outbox.open o WHERE o.event_id = retry.event_id AND o.handler = retry.handler AND o.flow_version IS NOT NULL) THEN
        RETURN (SELECT coalesce(bool_or(outbox.retry(o.event_id, o.handler)), false) FROM outbox.open o
                WHERE o.event_id = retry.event_id AND o.flow = retry.handler AND o.state = 'dead');
    END IF;
    UPDATE outbox.open AS o SET
        state      = CASE WHEN o.state IN ('dead', 'retrying') THEN 'retrying' ELSE 'scheduled' END,
        failures   = CASE o.state WHEN 'dead' THEN 0 ELSE o.failures END,
        polls      = CASE o.state WHEN 'dead' THEN 0 ELSE o.polls END,
        answer_by  = CASE o.state WHEN 'dead' THEN NULL ELSE o.answer_by END,
        due_at     = clock_timestamp(),
        updated_at = clock_timestamp()
    WHERE o.event_id = retry.event_id AND o.handler = retry.handler
      AND o.state IN ('dead', 'retrying', 'scheduled', 'waiting');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('retry', retry.handler, retry.event_id, NULL, VARIADIC '{}');
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Puts a delivery that waits for its time or for an answer off, from now. Returns whether there was such a delivery.
CREATE FUNCTION outbox.snooze(event_id bigint, handler text, after interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.open AS o SET
        due_at     = clock_timestamp() + snooze.after,
        -- One that waits for its answer may wait as long.
        answer_by  = CASE o.state WHEN 'waiting' THEN greatest(o.answer_by, clock_timestamp() + snooze.after) ELSE o.answer_by END,
        updated_at = clock_timestamp()
    WHERE o.event_id = snooze.event_id AND o.handler = snooze.handler AND o.state IN ('retrying', 'scheduled', 'waiting')
      AND o.flow_version IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('snooze', snooze.handler, snooze.event_id, NULL, 'after', snooze.after::text);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Ends a delivery for good before it has an outcome of its own: one that is pending, scheduled, retrying, waiting, blocked or
-- running. The attempt of a running one is ended too; what it did until then is done. Of a flow, nothing more begins: what runs may
-- end, then what is done is compensated. Returns whether there was such a delivery. A dead one is discarded instead.
CREATE FUNCTION outbox.cancel(event_id bigint, handler text, reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    is_flow boolean := EXISTS (SELECT FROM outbox.handler h WHERE h.name = cancel.handler AND h.kind = 'flow');
BEGIN
    IF is_flow AND outbox.undo_flow(cancel.event_id, cancel.handler, cancel.reason) THEN
        PERFORM outbox.note('cancel', cancel.handler, cancel.event_id, NULL, 'reason', cancel.reason);
        PERFORM pg_notify('outbox', '');
        RETURN true;
    END IF;
    -- One statement: the row of a step must not be gone before it has ended.
    WITH gone AS (
        DELETE FROM outbox.open AS o
        WHERE o.event_id = cancel.event_id AND o.handler = cancel.handler AND o.state <> 'dead' AND o.flow_version IS NULL
        RETURNING o.attempt, o.started_at, o.last_error
    ), pending AS (
        SELECT 0, NULL::timestamptz, NULL::text
        FROM outbox.event e JOIN outbox.handler h ON h.name = cancel.handler
        WHERE e.id = cancel.event_id AND e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
          AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = cancel.event_id AND o.handler = cancel.handler)
    )
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
    SELECT cancel.event_id, cancel.handler, 'cancelled', x.attempt, x.started_at, clock_timestamp(),
           jsonb_strip_nulls(jsonb_build_object('reason', left(cancel.reason, 4096), 'by', outbox.caller(), 'error', left(x.last_error, 4096)))
    FROM (SELECT * FROM gone UNION ALL SELECT * FROM pending) AS x (attempt, started_at, last_error)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.cancelling (event_id, handler, flow) VALUES (cancel.event_id, cancel.handler, is_flow);
    PERFORM outbox.note('cancel', cancel.handler, cancel.event_id, NULL, 'reason', cancel.reason);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Refuses what is no topic pattern; null is none, and lets everything pass.
CREATE FUNCTION outbox.check_patterns(topics text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wrong text := (SELECT t FROM unnest(topics) AS t
                   WHERE t !~ '^([A-Za-z0-9_:-]+|\*|#)(\.([A-Za-z0-9_:-]+|\*|#))*$' OR octet_length(t) > 255 LIMIT 1);
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('%L is not a topic pattern', wrong),
            HINT = 'Words of letters, digits, _, : and -, separated by dots, 255 bytes at most; "*" is one word, "#" any number of words.';
    END IF;
END
$$;

-- The dead deliveries that fit: of a handler, of topics ("*" is one word, "#" any number of words), given up within a time,
-- with a text in their last error. The longest dead first.
CREATE FUNCTION outbox.dead_letters(
    handler text DEFAULT NULL, topic text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,
    error text DEFAULT NULL
) RETURNS SETOF outbox.open
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM outbox.check_patterns(ARRAY[dead_letters.topic]);
    RETURN QUERY
    SELECT o.* FROM outbox.open o
    -- A flow is dead by its steps.
    WHERE o.state = 'dead' AND o.flow_version IS NULL
      AND (dead_letters.handler IS NULL OR o.handler = dead_letters.handler)
      AND (dead_letters.topic IS NULL OR (o.topic || '.') ~ outbox.topic_regex(ARRAY[dead_letters.topic]))
      AND (dead_letters.since IS NULL OR o.updated_at >= dead_letters.since)
      AND (dead_letters.until IS NULL OR o.updated_at < dead_letters.until)
      AND (dead_letters.error IS NULL OR position(lower(dead_letters.error) IN lower(o.last_error)) > 0)
    ORDER BY o.n;
END
$$;

-- Runs the dead deliveries that fit again, their failures forgotten: now, or so many a second. Returns how many; with dry_run
-- it only counts.
CREATE FUNCTION outbox.redrive(
    handler text DEFAULT NULL, topic text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,
    error text DEFAULT NULL, per_second double precision DEFAULT NULL, dry_run boolean DEFAULT false
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    redriven bigint := 0;
    began    timestamptz := clock_timestamp();
    dead     record;
BEGIN
    IF redrive.per_second <= 0 OR redrive.per_second > 1e6 THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('per_second is %s; it must be above 0 and at most 1,000,000', redrive.per_second);
    END IF;
    IF redrive.dry_run THEN
        RETURN (SELECT count(*) FROM outbox.dead_letters(redrive.handler, redrive.topic, redrive.since, redrive.until, redrive.error));
    END IF;
    -- One after the other, the longest dead first: the first of a key goes first.
    FOR dead IN
        SELECT d.event_id, d.handler
        FROM outbox.dead_letters(redrive.handler, redrive.topic, redrive.since, redrive.until, redrive.error) d
        ORDER BY d.n
    LOOP
        UPDATE outbox.open AS o SET
            state = 'retrying', failures = 0, polls = 0, answer_by = NULL, updated_at = clock_timestamp(),
            due_at = began + coalesce(redriven / redrive.per_second, 0) * interval '1 second'
        WHERE o.event_id = dead.event_id AND o.handler = dead.handler AND o.state = 'dead';
        IF FOUND THEN
            redriven := redriven + 1;
        END IF;
    END LOOP;
    IF redriven > 0 THEN
        PERFORM outbox.note('redrive', redrive.handler, NULL, redriven, 'topic', redrive.topic, 'since', redrive.since::text,
                            'until', redrive.until::text, 'error', redrive.error, 'per_second', redrive.per_second::text);
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN redriven;
END
$$;

-- Gives the dead deliveries that fit up for good: they become discarded, with the reason. Returns how many; with dry_run it only
-- counts.
CREATE FUNCTION outbox.discard(
    reason text, handler text DEFAULT NULL, topic text DEFAULT NULL, since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL, error text DEFAULT NULL, dry_run boolean DEFAULT false
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    discarded bigint;
BEGIN
    IF discard.dry_run THEN
        RETURN (SELECT count(*) FROM outbox.dead_letters(discard.handler, discard.topic, discard.since, discard.until, discard.error));
    END IF;
    WITH gone AS (
        DELETE FROM outbox.open AS o
        USING outbox.dead_letters(discard.handler, discard.topic, discard.since, discard.until, discard.error) d
        WHERE o.event_id = d.event_id AND o.handler = d.handler AND o.state = 'dead'
        RETURNING o.event_id, o.handler, o.attempt, o.last_error
    )
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
    SELECT g.event_id, g.handler, 'discarded', g.attempt, clock_timestamp(),
           jsonb_build_object('reason', left(discard.reason, 4096), 'by', outbox.caller(), 'error', left(g.last_error, 4096))
    FROM gone g;
    GET DIAGNOSTICS discarded = ROW_COUNT;
    IF discarded > 0 THEN
        PERFORM outbox.note('discard', discard.handler, NULL, discarded, 'reason', discard.reason, 'topic', discard.topic,
                            'since', discard.since::text, 'until', discard.until::text, 'error', discard.error);
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN discarded;
END
$$;

-- The same for one delivery, or for the dead steps of a flow. Returns whether it was dead.
CREATE FUNCTION outbox.discard(event_id bigint, handler text, reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF EXISTS (SELECT FROM outbox.open o WHERE o.event_id = discard.event_id AND o.handler = discard.handler AND o.flow_version IS NOT NULL) THEN
        RETURN (SELECT coalesce(bool_or(outbox.discard(o.event_id, o.handler, discard.reason)), false) FROM outbox.open o
                WHERE o.event_id = discard.event_id AND o.flow = discard.handler AND o.state = 'dead');
    END IF;
    WITH gone AS (
        DELETE FROM outbox.open AS o
        WHERE o.event_id = discard.event_id AND o.handler = discard.handler AND o.state = 'dead'
        RETURNING o.event_id, o.handler, o.attempt, o.last_error
    )
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
    SELECT g.event_id, g.handler, 'discarded', g.attempt, clock_timestamp(),
           jsonb_build_object('reason', left(discard.reason, 4096), 'by', outbox.caller(), 'error', left(g.last_error, 4096))
    FROM gone g;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('discard', discard.handler, discard.event_id, NULL, 'reason', discard.reason);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Hands events that are in the log to a handler again: those that have ended for it, and those from before its time. What is pending or
-- open is left alone. They have a header more, outbox-replay, which counts, and an idempotency key of their own; what they had come
-- to is in outbox.attempt. A range of ids is found at once, one of times by reading the log. Returns how many; with dry_run it only
-- counts. More than `most` are refused, and nothing happens.
CREATE FUNCTION outbox.replay(
    handler text, topic text DEFAULT NULL, key text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,
    from_id bigint DEFAULT NULL, to_id bigint DEFAULT NULL, reason text DEFAULT NULL,
    per_second double precision DEFAULT NULL, dry_run boolean DEFAULT false, most integer DEFAULT 100000
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    began timestamptz := clock_timestamp();
    fit   bigint[];
    h     outbox.handler;
BEGIN
    SELECT * INTO h FROM outbox.handler x WHERE x.name = replay.handler;
    IF NOT FOUND OR h.kind = 'flow' OR h.flow IS NOT NULL THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('%L is not a handler that events can be replayed to', replay.handler),
            HINT = 'A flow begins with an event: publish it again.';
    END IF;
    PERFORM outbox.check_patterns(ARRAY[replay.topic]);
    IF replay.per_second <= 0 OR replay.per_second > 1e6 THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('per_second is %s; it must be above 0 and at most 1,000,000', replay.per_second);
    END IF;
    SELECT array_agg(f.id ORDER BY f.id) INTO fit FROM (
        SELECT e.id FROM outbox.event e
        WHERE (replay.from_id IS NULL OR e.id >= replay.from_id) AND (replay.to_id IS NULL OR e.id <= replay.to_id)
          AND (replay.since IS NULL OR e.created_at >= replay.since) AND (replay.until IS NULL OR e.created_at < replay.until)
          AND (replay.topic IS NULL OR (e.topic || '.') ~ outbox.topic_regex(ARRAY[replay.topic]))
          AND (replay.key IS NULL OR e.key = replay.key)
          AND (e.topic || '.') ~ h.topic_regex
          AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = h.name)
          AND (e.id < h.first_id OR EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = h.name))
        ORDER BY e.id LIMIT replay.most + 1
    ) f;
    IF replay.dry_run THEN
        RETURN least(coalesce(cardinality(fit), 0), replay.most);
    END IF;
    IF cardinality(fit) > replay.most THEN
        RAISE program_limit_exceeded USING
            MESSAGE = format('more than %s events fit', replay.most),
            HINT = 'Narrow the range of ids or times, or raise `most`.';
    END IF;
    WITH again AS (
        DELETE FROM outbox.done d USING unnest(fit) AS f (id) WHERE d.event_id = f.id AND d.handler = h.name
        RETURNING d.*
    ), history AS (
        INSERT INTO outbox.attempt AS a (event_id, handler, attempt, started_at, finished_at, outcome, error)
        SELECT g.event_id, g.handler, g.attempt, coalesce(g.started_at, g.finished_at), g.finished_at, 'replayed',
               left(concat_ws(': ', format('it was %s; replayed by %s', g.outcome, outbox.caller()), replay.reason), 4096)
        FROM again g
        ON CONFLICT (event_id, handler, attempt) DO UPDATE SET outcome = excluded.outcome, error = excluded.error
    )
    INSERT INTO outbox.open (event_id, handler, state, due_at, attempt, topic, key, payload, headers, priority, created_at)
    SELECT e.id, h.name, 'scheduled', began + coalesce((f.place - 1) / replay.per_second, 0) * interval '1 second',
           coalesce(g.attempt, 0), e.topic, e.key, e.payload,
           e.headers || jsonb_build_object('outbox-replay', ((
               SELECT count(*) FROM outbox.attempt a WHERE a.event_id = e.id AND a.handler = h.name AND a.outcome = 'replayed'
           ) + 1)::text),
           e.priority, e.created_at
    FROM unnest(fit) WITH ORDINALITY AS f (id, place)
    JOIN outbox.event e ON e.id = f.id
    LEFT JOIN again g ON g.event_id = f.id
    ORDER BY f.place;
    IF fit IS NOT NULL THEN
        PERFORM outbox.note('replay', replay.handler, CASE WHEN replay.from_id = replay.to_id THEN replay.from_id END, cardinality(fit),
                            'topic', replay.topic, 'key', replay.key, 'since', replay.since::text, 'until', replay.until::text,
                            'from_id', replay.from_id::text, 'to_id', replay.to_id::text, 'reason', replay.reason,
                            'per_second', replay.per_second::text);
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN coalesce(cardinality(fit), 0);
END
$$;

-- Begins nothing more for a handler, until it is resumed or the time has come; what runs goes on. Returns whether there is such a
-- handler.
CREATE FUNCTION outbox.pause(handler text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pause.until <= clock_timestamp() THEN
        RAISE invalid_parameter_value USING MESSAGE = format('until is %s; it must lie ahead', pause.until);
    END IF;
    UPDATE outbox.handler AS h SET paused_at = clock_timestamp(), paused_until = nullif(pause.until, 'infinity'),
        paused_by = outbox.caller(), pause_reason = left(pause.reason, 1024)
    WHERE h.name = pause.handler;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('pause', pause.handler, NULL, NULL, 'reason', pause.reason, 'until', pause.until::text);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Ends a handler's pause. Returns whether it was paused.
CREATE FUNCTION outbox.resume(handler text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE outbox.handler AS h SET paused_at = NULL, paused_until = NULL, paused_by = NULL, pause_reason = NULL
    WHERE h.name = resume.handler AND h.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('resume', resume.handler, NULL, NULL, VARIADIC '{}');
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Lets other limits count for a handler than those in its configuration, from the next moment on and until they are taken back, which
-- null does: so many attempts at the same time, and so many in a second, a minute or an hour ('50/s', '10/m', '1000/h'). What runs goes
-- on. Returns whether there is such a handler.
CREATE FUNCTION outbox.set_limits(handler text, concurrency integer DEFAULT NULL, rate text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    none boolean := set_limits.concurrency IS NULL AND set_limits.rate IS NULL;
BEGIN
    UPDATE outbox.handler AS h SET limit_concurrency = set_limits.concurrency, limit_rate = set_limits.rate,
        limited_at = CASE WHEN none THEN NULL ELSE clock_timestamp() END, limited_by = CASE WHEN none THEN NULL ELSE outbox.caller() END
    WHERE h.name = set_limits.handler;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('limit', set_limits.handler, NULL, NULL, 'concurrency', set_limits.concurrency::text, 'rate', set_limits.rate);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Forgets a handler that left the configuration, with its position and its open deliveries; of a flow, its steps too. Returns the open
-- deliveries given up with it, null if no absent handler has this name.
CREATE FUNCTION outbox.forget(handler text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    gone  text[];
    given bigint;
BEGIN
    WITH forgotten AS (
        DELETE FROM outbox.handler h WHERE (h.name = forget.handler OR h.flow = forget.handler) AND h.absent RETURNING h.name
    )
    SELECT array_agg(f.name) INTO gone FROM forgotten f;
    IF forget.handler <> ALL (coalesce(gone, '{}')) THEN
        RETURN NULL;
    END IF;
    DELETE FROM outbox.open o WHERE o.handler = ANY (gone);
    GET DIAGNOSTICS given = ROW_COUNT;
    DELETE FROM outbox.flow_version v WHERE v.flow = ANY (gone);
    PERFORM outbox.note('forget', forget.handler, NULL, given, VARIADIC '{}');
    RETURN given;
END
$$;

-- Says that an attempt is alive, and how far it is. Its time-out begins again, up to the handler's max_timeout. Returns false
-- when the row is not there: the attempt was taken away, or is so young that it has none.
CREATE FUNCTION outbox.heartbeat(event_id bigint, handler text, attempt integer, progress jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.open AS o SET heartbeat_at = clock_timestamp(), progress = coalesce(heartbeat.progress, o.progress)
    WHERE o.event_id = heartbeat.event_id AND o.handler = heartbeat.handler AND o.attempt = heartbeat.attempt
      AND o.state = 'running';
    RETURN FOUND;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
