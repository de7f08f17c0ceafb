-- outboxd: answers that come from outside, and waiting for them.

-- The event that tells of a delivery that has succeeded, if its handler names a topic for that; as the daemon does it for a handler's
-- own success (emit::of_done).
CREATE FUNCTION outbox.tell_done(ended outbox.open, result jsonb) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO outbox.event (topic, key, payload, headers)
    SELECT h.on_done, ended.key,
           jsonb_build_object('event_id', ended.event_id, 'handler', ended.handler, 'topic', ended.topic, 'key', ended.key,
                              'attempts', ended.attempt, 'result', tell_done.result,
                              'payload', CASE WHEN pg_column_size(ended.payload) <= 983040 THEN ended.payload END),
           outbox.caused_by(ended.event_id, ended.headers) || jsonb_build_object('outbox-done-of', ended.event_id::text)
    FROM outbox.handler h
    WHERE h.name = ended.handler AND h.on_done IS NOT NULL AND NOT ended.headers ? 'outbox-done-of'
$$;

-- Finishes a delivery whose answer has come. What outbox.complete says, without a note: a callback is nobody's doing by hand.
CREATE FUNCTION outbox.answer_done(event_id bigint, handler text, result jsonb) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    ended outbox.open;
BEGIN
    -- One statement: the row of a step must not be gone before it is done.
    WITH gone AS (
        DELETE FROM outbox.open AS o
        WHERE o.event_id = answer_done.event_id AND o.handler = answer_done.handler AND o.attempt >= 1 AND o.state <> 'dead'
          AND o.flow_version IS NULL
        RETURNING o.*
    ), done AS (
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
        SELECT g.event_id, g.handler, 'done', g.attempt, coalesce(g.started_at, g.updated_at), clock_timestamp(), answer_done.result
        FROM gone g
    )
    SELECT g.* INTO ended FROM gone g;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.tell_done(ended, answer_done.result);
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Finishes a delivery whose answer has come, or that was done by other means: one that has begun and is not finished or dead. What
-- a running attempt still does counts no more. Returns whether there was one; an attempt younger than a second has no row yet, unless
-- its handler says `record = "start"` or `callback = true`.
CREATE FUNCTION outbox.complete(event_id bigint, handler text, result jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT outbox.answer_done(complete.event_id, complete.handler, complete.result) THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('complete', complete.handler, complete.event_id, NULL, VARIADIC '{}');
    RETURN true;
END
$$;

-- The pause after so many failures by a handler's settings: at random up to a ceiling, as after any other failure
-- (RetryPolicy::pause is its twin).
CREATE FUNCTION outbox.retry_pause(retry jsonb, failures integer) RETURNS interval
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(random() * least(
        (retry->>'max_seconds')::double precision,
        CASE WHEN jsonb_typeof(retry->'backoff') = 'array' THEN coalesce((retry->'backoff'->>least(failures, jsonb_array_length(retry->'backoff')) - 1)::double precision, 0)
             ELSE (retry->>'base_seconds')::double precision * CASE retry->>'backoff'
                 WHEN 'fixed' THEN 1 WHEN 'linear' THEN failures ELSE 2 ^ least(failures - 1, 63)::double precision END
        END
    ), 0) * interval '1 second'
$$;

-- Fails a delivery whose answer is no. What outbox.fail says, without a note.
CREATE FUNCTION outbox.answer_failed(event_id bigint, handler text, error text, dead boolean) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    retry jsonb := (SELECT h.settings->'retry' FROM outbox.handler h WHERE h.name = answer_failed.handler);
    most  integer := CASE WHEN answer_failed.dead THEN 0 ELSE (retry->>'max_attempts')::integer END;
BEGIN
    UPDATE outbox.open AS o SET
        state      = CASE WHEN o.failures + 1 >= most THEN 'dead' ELSE 'retrying' END,
        due_at     = CASE WHEN o.failures + 1 >= most THEN NULL ELSE clock_timestamp() + outbox.retry_pause(retry, o.failures + 1) END,
        failures   = o.failures + 1,
        started_at = NULL,
        polls      = 0,
        answer_by  = NULL,
        last_error = left(coalesce(nullif(answer_failed.error, ''), 'failed by outbox.fail'), 4096),
        updated_at = clock_timestamp()
    WHERE o.event_id = answer_failed.event_id AND o.handler = answer_failed.handler AND o.attempt >= 1
      AND o.state IN ('waiting', 'running', 'scheduled') AND o.failures < o.attempt AND o.flow_version IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('outbox', '');
    RETURN true;
END
$$;

-- Fails a delivery whose answer is no: one that runs, waits for its answer or is to be asked again. It runs again after the pause
-- of its handler's retries, or is dead if that was its last failure, or if `dead` says that it will never succeed. What a running
-- attempt still does counts no more. Returns whether there was one; see outbox.complete.
CREATE FUNCTION outbox.fail(event_id bigint, handler text, error text, dead boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT outbox.answer_failed(fail.event_id, fail.handler, fail.error, fail.dead) THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('fail', fail.handler, fail.event_id, NULL, 'error', fail.error, 'dead', fail.dead::text);
    RETURN true;
END
$$;

-- Whether a delivery in this state goes on only if somebody sees to it.
CREATE FUNCTION outbox.has_ended(state text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT state IN ('done', 'cancelled', 'expired', 'discarded', 'compensated', 'dead')
$$;

-- Waits until nothing of an event runs any more or waits to run. Returns whether that came within the time: look into
-- outbox.delivery how it ended. For an event that is committed, outside of REPEATABLE READ. It looks again and again, ever more
-- slowly up to ten times a second: no event pays for a notification that somebody might wait for.
CREATE FUNCTION outbox.wait_for(event_id bigint, timeout interval DEFAULT '30 seconds') RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    until timestamptz := clock_timestamp() + wait_for.timeout;
    pause double precision := 0.002;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE feature_not_supported USING
            MESSAGE = format('outbox.wait_for cannot see anything happen in a transaction that is %s', current_setting('transaction_isolation')),
            HINT = 'Use READ COMMITTED.';
    END IF;
    IF wait_for.timeout IS NULL OR wait_for.timeout < interval '0' OR wait_for.timeout > interval '1 day' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('timeout is %s; it must be from 0 to 1 day', coalesce(wait_for.timeout::text, 'null'));
    END IF;
    IF EXISTS (SELECT FROM outbox.event e WHERE e.id = wait_for.event_id AND e.xid = pg_current_xact_id_if_assigned()) THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = format('event %s was inserted in this transaction: nobody else can see it before it is committed', wait_for.event_id),
            HINT = 'Commit first, then wait.';
    END IF;
    IF NOT EXISTS (SELECT FROM outbox.event e WHERE e.id = wait_for.event_id)
       AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = wait_for.event_id) THEN
        RAISE no_data_found USING MESSAGE = format('there is no event %s, or no more', wait_for.event_id);
    END IF;
    LOOP
        IF coalesce((SELECT bool_and(outbox.has_ended(d.state)) FROM outbox.delivery d WHERE d.event_id = wait_for.event_id), true) THEN
            RETURN true;
        END IF;
        IF clock_timestamp() >= until THEN
            RETURN false;
        END IF;
        PERFORM pg_sleep(least(pause, extract(epoch FROM until - clock_timestamp())::double precision));
        pause := least(pause * 1.5, 0.1);
    END LOOP;
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
