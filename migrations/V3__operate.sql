-- outboxd: the order of keys, and what an operator, a handler or a consumer can do. Each function writes rows; the daemon
-- reacts to rows. `outbox.dead_letters` and the two bulk functions take the same filters; a null filter lets everything pass.

-- Whether a row keeps later deliveries of its key from beginning. A delayed event that has not begun does not: it takes its
-- place when its time has come. `ordered` is the handler's: with 'skip' a dead one lets the others pass.
CREATE FUNCTION outbox.holds_key(state text, attempt integer, ordered text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE state WHEN 'scheduled' THEN attempt > 0 WHEN 'dead' THEN ordered = 'block' ELSE true END
$$;

-- A row that is to be blocked, and a dead one that is to run again, look whether somebody of their key is before them. Nobody
-- is: it may go on at once. The row before it stays locked until the commit, so that its end cannot pass unseen.
CREATE FUNCTION outbox.take_turn() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    policy text := (SELECT h.ordered FROM outbox.handler h WHERE h.name = NEW.handler);
    revived boolean := TG_OP = 'UPDATE' AND NEW.state <> 'blocked';
BEGIN
    IF policy IS NULL THEN
        NEW.due_at := coalesce(NEW.due_at, clock_timestamp());
        RETURN NEW;
    END IF;
    LOOP
        PERFORM FROM outbox.open o
        WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.event_id <> NEW.event_id
          AND outbox.holds_key(o.state, o.attempt, policy)
          -- Those that wait behind a dead one do not keep it from running again.
          AND NOT (revived AND o.state = 'blocked' AND o.due_at IS NULL AND o.n > NEW.n)
        ORDER BY o.n DESC LIMIT 1 FOR SHARE;
        IF FOUND THEN
            NEW.state := 'blocked';
            NEW.due_at := NULL;
            RETURN NEW;
        END IF;
        -- Locking drops a row that ended meanwhile; then there may be another one.
        IF NOT EXISTS (
            SELECT FROM outbox.open o
            WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.event_id <> NEW.event_id
              AND outbox.holds_key(o.state, o.attempt, policy)
              AND NOT (revived AND o.state = 'blocked' AND o.due_at IS NULL AND o.n > NEW.n)
        ) THEN
            NEW.due_at := coalesce(NEW.due_at, clock_timestamp());
            RETURN NEW;
        END IF;
    END LOOP;
END
$$;

CREATE TRIGGER take_turn_insert BEFORE INSERT ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'blocked')
    EXECUTE FUNCTION outbox.take_turn();
CREATE TRIGGER take_turn_update BEFORE UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.key IS NOT NULL AND ((NEW.state = 'blocked' AND OLD.state <> 'blocked')
                                   OR (OLD.state = 'dead' AND NEW.state IN ('retrying', 'scheduled'))))
    EXECUTE FUNCTION outbox.take_turn();

-- A row that held its key and does so no more lets the next one go on.
CREATE FUNCTION outbox.pass_turn() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    policy text := (SELECT h.ordered FROM outbox.handler h WHERE h.name = OLD.handler);
    next   record;
BEGIN
    IF policy IS NULL OR (TG_OP = 'UPDATE' AND policy = 'block') THEN
        RETURN NULL;
    END IF;
    LOOP
        SELECT o.event_id, o.state, o.due_at INTO next FROM outbox.open o
        WHERE o.handler = OLD.handler AND o.key = OLD.key AND outbox.holds_key(o.state, o.attempt, policy)
        ORDER BY o.n LIMIT 1 FOR UPDATE;
        IF FOUND THEN
            IF next.state = 'blocked' AND next.due_at IS NULL THEN
                UPDATE outbox.open o SET due_at = clock_timestamp(), updated_at = clock_timestamp()
                WHERE o.event_id = next.event_id AND o.handler = OLD.handler;
            END IF;
            RETURN NULL;
        END IF;
        EXIT WHEN NOT EXISTS (
            SELECT FROM outbox.open o
            WHERE o.handler = OLD.handler AND o.key = OLD.key AND outbox.holds_key(o.state, o.attempt, policy)
        );
    END LOOP;
    RETURN NULL;
END
$$;

CREATE TRIGGER pass_turn_delete AFTER DELETE ON outbox.open FOR EACH ROW
    WHEN (OLD.key IS NOT NULL)
    EXECUTE FUNCTION outbox.pass_turn();
CREATE TRIGGER pass_turn_dead AFTER UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.key IS NOT NULL AND NEW.state = 'dead' AND OLD.state <> 'dead')
    EXECUTE FUNCTION outbox.pass_turn();

-- A dead delivery becomes an event of its own, if its handler names a topic for that. The death of such an event does not.
CREATE FUNCTION outbox.tell_dead() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO outbox.event (topic, key, payload, headers)
    SELECT h.on_dead, NEW.key,
           jsonb_build_object('event_id', NEW.event_id, 'handler', NEW.handler, 'topic', NEW.topic, 'key', NEW.key,
                              'attempts', NEW.attempt, 'error', NEW.last_error,
                              -- The copy must fit into an event, too.
                              'payload', CASE WHEN pg_column_size(NEW.payload) < 15728640 THEN NEW.payload END),
           jsonb_strip_nulls(jsonb_build_object('outbox-dead-of', NEW.event_id::text, 'traceparent', NEW.headers->'traceparent'))
    FROM outbox.handler h
    WHERE h.name = NEW.handler AND h.on_dead IS NOT NULL AND NOT NEW.headers ? 'outbox-dead-of';
    RETURN NULL;
END
$$;

CREATE TRIGGER tell_dead_insert AFTER INSERT ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'dead')
    EXECUTE FUNCTION outbox.tell_dead();
CREATE TRIGGER tell_dead_update AFTER UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'dead' AND OLD.state <> 'dead')
    EXECUTE FUNCTION outbox.tell_dead();

-- Runs a delivery again now: a dead one with its failures forgotten, one that waits for its time or for an answer at once.
-- Returns whether there was such a delivery.
CREATE FUNCTION outbox.retry(event_id bigint, handler text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.open AS o SET
        state      = CASE WHEN o.state IN ('dead', 'retrying') THEN 'retrying' ELSE 'scheduled' END,
        failures   = CASE o.state WHEN 'dead' THEN 0 ELSE o.failures END,
        due_at     = clock_timestamp(),
        updated_at = clock_timestamp()
    WHERE o.event_id = retry.event_id AND o.handler = retry.handler
      AND o.state IN ('dead', 'retrying', 'scheduled', 'waiting');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Puts a delivery that waits for its time or for an answer off, from now. Returns whether there was such a delivery.
CREATE FUNCTION outbox.snooze(event_id bigint, handler text, after interval) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.open AS o SET due_at = clock_timestamp() + snooze.after, updated_at = clock_timestamp()
    WHERE o.event_id = snooze.event_id AND o.handler = snooze.handler AND o.state IN ('retrying', 'scheduled', 'waiting');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Ends a delivery for good before it has an outcome of its own: one that is pending, scheduled, retrying, waiting, blocked or
-- running. The attempt of a running one is ended too; what it did until then is done. Returns whether there was such a
-- delivery. A dead one is discarded instead.
CREATE FUNCTION outbox.cancel(event_id bigint, handler text, reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    attempts integer := 0;
    began    timestamptz;
BEGIN
    DELETE FROM outbox.open AS o
    WHERE o.event_id = cancel.event_id AND o.handler = cancel.handler AND o.state <> 'dead'
    RETURNING o.attempt, o.started_at INTO attempts, began;
    IF NOT FOUND AND (
        EXISTS (SELECT FROM outbox.open o WHERE o.event_id = cancel.event_id AND o.handler = cancel.handler)
        OR NOT EXISTS (
            SELECT FROM outbox.event e JOIN outbox.handler h ON h.name = cancel.handler
            WHERE e.id = cancel.event_id AND e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex)
    ) THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
    VALUES (cancel.event_id, cancel.handler, 'cancelled', coalesce(attempts, 0), began, clock_timestamp(),
            jsonb_strip_nulls(jsonb_build_object('reason', left(cancel.reason, 4096), 'by', session_user)))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.cancelling (event_id, handler) VALUES (cancel.event_id, cancel.handler);
    PERFORM pg_notify('outbox', '');
    RETURN true;
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
    IF dead_letters.topic !~ '^([A-Za-z0-9_:-]+|\*|#)(\.([A-Za-z0-9_:-]+|\*|#))*$' THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('%L is not a topic pattern', dead_letters.topic),
            HINT = 'Words of letters, digits, _, : and -, separated by dots; "*" is one word, "#" any number of words.';
    END IF;
    RETURN QUERY
    SELECT o.* FROM outbox.open o
    WHERE o.state = 'dead'
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
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    redriven bigint;
BEGIN
    IF redrive.per_second <= 0 OR redrive.per_second > 1e6 THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('per_second is %s; it must be above 0 and at most 1,000,000', redrive.per_second);
    END IF;
    IF redrive.dry_run THEN
        RETURN (SELECT count(*) FROM outbox.dead_letters(redrive.handler, redrive.topic, redrive.since, redrive.until, redrive.error));
    END IF;
    WITH dead AS (
        SELECT d.event_id, d.handler, row_number() OVER (ORDER BY d.n) - 1 AS place
        FROM outbox.dead_letters(redrive.handler, redrive.topic, redrive.since, redrive.until, redrive.error) d
    )
    UPDATE outbox.open AS o SET
        state = 'retrying', failures = 0, updated_at = clock_timestamp(),
        due_at = clock_timestamp() + coalesce(d.place / redrive.per_second, 0) * interval '1 second'
    FROM dead d
    WHERE o.event_id = d.event_id AND o.handler = d.handler AND o.state = 'dead';
    GET DIAGNOSTICS redriven = ROW_COUNT;
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
LANGUAGE plpgsql
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
           jsonb_build_object('reason', left(discard.reason, 4096), 'by', session_user, 'error', left(g.last_error, 4096))
    FROM gone g;
    GET DIAGNOSTICS discarded = ROW_COUNT;
    PERFORM pg_notify('outbox', '');
    RETURN discarded;
END
$$;

-- The same for one delivery. Returns whether it was dead.
CREATE FUNCTION outbox.discard(event_id bigint, handler text, reason text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    gone outbox.open;
BEGIN
    DELETE FROM outbox.open AS o
    WHERE o.event_id = discard.event_id AND o.handler = discard.handler AND o.state = 'dead'
    RETURNING o.* INTO gone;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
    VALUES (gone.event_id, gone.handler, 'discarded', gone.attempt, clock_timestamp(),
            jsonb_build_object('reason', left(discard.reason, 4096), 'by', session_user, 'error', left(gone.last_error, 4096)));
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Begins nothing more for a handler, until it is resumed or the time has come; what runs goes on. Returns whether there is such a
-- handler.
CREATE FUNCTION outbox.pause(handler text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pause.until <= clock_timestamp() THEN
        RAISE invalid_parameter_value USING MESSAGE = format('until is %s; it must lie ahead', pause.until);
    END IF;
    UPDATE outbox.handler AS h SET paused_at = clock_timestamp(), paused_until = nullif(pause.until, 'infinity'),
        paused_by = session_user, pause_reason = left(pause.reason, 1024)
    WHERE h.name = pause.handler;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Ends a handler's pause. Returns whether it was paused.
CREATE FUNCTION outbox.resume(handler text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE outbox.handler AS h SET paused_at = NULL, paused_until = NULL, paused_by = NULL, pause_reason = NULL
    WHERE h.name = resume.handler AND h.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Says that an attempt is alive, and how far it is. Its time-out begins again, up to the handler's max_timeout. Returns false
-- when the row is not there: the attempt was taken away, or is so young that it has none.
CREATE FUNCTION outbox.heartbeat(event_id bigint, handler text, attempt integer, progress jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql
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

-- Finishes a delivery that waits for an answer. Returns whether there was one.
CREATE FUNCTION outbox.complete(event_id bigint, handler text, result jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    ended outbox.open;
BEGIN
    DELETE FROM outbox.open AS o
    WHERE o.event_id = complete.event_id AND o.handler = complete.handler AND o.state = 'waiting'
    RETURNING o.* INTO ended;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
    VALUES (ended.event_id, ended.handler, 'done', ended.attempt, ended.updated_at, clock_timestamp(), complete.result);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Fails a delivery that waits for an answer: it runs again now, or is dead if that was its last failure. Returns whether there
-- was one.
CREATE FUNCTION outbox.fail(event_id bigint, handler text, error text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.open AS o SET
        state      = CASE WHEN o.failures + 1 >= (h.settings->'retry'->>'max_attempts')::integer THEN 'dead' ELSE 'retrying' END,
        due_at     = CASE WHEN o.failures + 1 >= (h.settings->'retry'->>'max_attempts')::integer THEN NULL ELSE clock_timestamp() END,
        failures   = o.failures + 1,
        last_error = left(coalesce(fail.error, 'failed by outbox.fail'), 4096),
        updated_at = clock_timestamp()
    FROM outbox.handler h
    WHERE o.event_id = fail.event_id AND o.handler = fail.handler AND o.state = 'waiting' AND h.name = o.handler;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- True the first time for this consumer and key, and then no more for once_window (30 days). For a consumer that lives in
-- PostgreSQL: what it does in the same transaction happens once, however often it is called. Runs as the owner: consumers need
-- no right on outbox.consumed.
CREATE FUNCTION outbox.once(consumer text, key text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO outbox.consumed AS c (consumer, key, expires_at)
    SELECT once.consumer, once.key, clock_timestamp() + i.once_window FROM outbox.installation i
    ON CONFLICT (consumer, key) DO UPDATE SET expires_at = excluded.expires_at
        WHERE c.expires_at <= clock_timestamp();
    RETURN FOUND;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
