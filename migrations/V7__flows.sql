-- outboxd: flows that have rows.
--
-- An instance of a flow is the delivery of its event to the flow. As long as its steps simply succeed, the daemon knows how far it is, and
-- outbox.done has a row for each step that is done. As soon as one of them has a row in outbox.open, so has the instance, and from
-- there on it is moved on in here: in the transaction in which a step ends, whoever ends it.

-- The functions that others call ask for plans that are made once, and without sequential scans, for themselves and what they call:
-- to plan a statement on a partitioned table takes longer than to do it, and a plan that was made while a table was empty would be kept.

-- A step of an instance by its place in the definition, and what became of it: `outcome` when it has ended, `state` when it has a row.
-- The same of its compensation. `undo`: whether it is to be compensated when the flow fails.
CREATE TYPE outbox.flow_step AS (
    place bigint, name text, after jsonb, outcome text, state text, error text, undo boolean,
    undo_outcome text, undo_state text, undo_error text
);

-- The steps of an instance. PL/pgSQL here and below, because PostgreSQL plans what is written in SQL anew for every call.
CREATE FUNCTION outbox.flow_steps(instance outbox.open) RETURNS outbox.flow_step[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(
        SELECT ROW (s.place, s.step->>'name', s.step->'after', instance.ended->(s.step->>'name')->>'outcome', o.state, o.last_error,
            CASE s.step->>'compensate'
                WHEN 'done' THEN coalesce(instance.ended->(s.step->>'name')->>'outcome' = 'done', false)
                WHEN 'begun' THEN coalesce(o.attempt, (instance.ended->(s.step->>'name')->>'attempt')::integer, 0) >= 1
                ELSE false
            END,
            instance.ended->(s.step->>'name' || '/compensate')->>'outcome', c.state, c.last_error)::outbox.flow_step
        FROM outbox.flow_version v
        CROSS JOIN jsonb_array_elements(v.steps) WITH ORDINALITY AS s (step, place)
        LEFT JOIN outbox.open o ON o.event_id = instance.event_id AND o.handler = instance.handler || '/' || (s.step->>'name')
        LEFT JOIN outbox.open c ON c.event_id = instance.event_id
                               AND c.handler = instance.handler || '/' || (s.step->>'name') || '/compensate'
        WHERE v.flow = instance.handler AND v.version = instance.flow_version
        ORDER BY s.place
    );
END
$$;

-- The results of the steps that are done, by name; null for one without.
CREATE FUNCTION outbox.flow_results(ended jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(e.key, e.value->'result'), '{}') FROM jsonb_each(ended) AS e (key, value)
            WHERE e.value->>'outcome' = 'done' AND e.key NOT LIKE '%/%');
END
$$;

-- Lets a step of an instance, or a compensation, begin.
CREATE FUNCTION outbox.begin_step(instance outbox.open, step text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO outbox.open (event_id, handler, state, due_at, flow, results, topic, key, payload, headers, priority, created_at)
    VALUES (instance.event_id, instance.handler || '/' || begin_step.step, 'scheduled', clock_timestamp(), instance.handler,
            outbox.flow_results(instance.ended), instance.topic, instance.key, instance.payload, instance.headers, instance.priority,
            instance.created_at)
    ON CONFLICT DO NOTHING;
END
$$;

-- Ends an instance. A dead step of one that was undone needs nobody any more.
CREATE FUNCTION outbox.end_flow(instance outbox.open, outcome text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    result jsonb;
BEGIN
    IF outcome = 'done' THEN
        SELECT jsonb_object_agg(r.key, r.value) INTO result
        FROM jsonb_each(outbox.flow_results(instance.ended)) AS r (key, value) WHERE r.value <> 'null';
        IF pg_column_size(result) > 65536 THEN
            result := jsonb_build_object('outboxd', 'the results of the steps are too large together; each is with its step');
        END IF;
    ELSE
        -- Whoever wants to hear of dead deliveries is told that it has failed.
        IF outcome IN ('compensated', 'discarded') THEN
            UPDATE outbox.open o SET state = 'dead' WHERE o.event_id = instance.event_id AND o.handler = instance.handler;
        END IF;
        result := jsonb_build_object('reason', instance.last_error, 'compensated', (
            SELECT coalesce(jsonb_agg(s.name ORDER BY s.place DESC) FILTER (WHERE s.undo_outcome = 'done'), '[]')
            FROM unnest(outbox.flow_steps(instance)) s));
    END IF;
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
    SELECT instance.event_id, instance.handler, end_flow.outcome, instance.attempt,
           coalesce((SELECT min((e.value->>'started_at')::timestamptz) FROM jsonb_each(instance.ended) AS e (key, value)), instance.updated_at),
           clock_timestamp(), result
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        -- Somebody has cancelled it who did not see its row, and has just committed.
        PERFORM outbox.advance_flow(instance.event_id, instance.handler);
        RETURN;
    END IF;
    DELETE FROM outbox.open o WHERE o.event_id = instance.event_id AND o.handler = instance.handler;
    WITH gone AS (
        DELETE FROM outbox.open o WHERE o.event_id = instance.event_id AND o.flow = instance.handler AND o.state = 'dead'
        RETURNING o.handler, o.attempt, o.last_error
    )
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
    SELECT instance.event_id, g.handler, 'discarded', g.attempt, clock_timestamp(),
           jsonb_build_object('reason', format('the flow was %s', end_flow.outcome), 'error', left(g.last_error, 4096))
    FROM gone g;
    IF outcome = 'done' THEN
        PERFORM outbox.tell_done(instance, result);
    END IF;
END
$$;

-- Undoes an instance, one step after the other, the last one of the definition first. What runs may end before; what waits or is to
-- run again is cancelled. A compensation that dies stops it, until somebody retries or discards it.
CREATE FUNCTION outbox.undo_steps(instance outbox.open) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    steps  outbox.flow_step[] := outbox.flow_steps(instance);
    failed text;
    next   text;
BEGIN
    WITH cut AS (
        DELETE FROM outbox.open o
        USING unnest(steps) s
        WHERE o.event_id = instance.event_id AND o.handler = instance.handler || '/' || s.name AND o.state NOT IN ('running', 'dead')
        RETURNING o.handler, o.attempt, o.last_error
    )
    INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
    SELECT instance.event_id, c.handler, 'cancelled', c.attempt, clock_timestamp(),
           jsonb_strip_nulls(jsonb_build_object('reason', 'the flow is being undone', 'error', left(c.last_error, 4096)))
    FROM cut c;
    -- Their triggers have gone on from here.
    IF FOUND OR EXISTS (SELECT FROM unnest(steps) s WHERE s.state = 'running') THEN
        RETURN;
    END IF;
    SELECT format('compensation of %s: %s; it undoes: %s', s.name, s.undo_error, instance.last_error) INTO failed
    FROM unnest(steps) s WHERE s.undo_state = 'dead';
    IF FOUND THEN
        -- Why it is undone stays what it was, when the compensation has been seen to.
        UPDATE outbox.open o SET state = 'dead', last_error = left(failed, 4096), progress = to_jsonb(instance.last_error), updated_at = clock_timestamp()
        WHERE o.event_id = instance.event_id AND o.handler = instance.handler AND o.state <> 'dead';
        RETURN;
    END IF;
    IF instance.state = 'dead' THEN
        instance.last_error := coalesce(instance.progress #>> '{}', instance.last_error);
        UPDATE outbox.open o SET state = 'waiting', last_error = instance.last_error, progress = NULL, updated_at = clock_timestamp()
        WHERE o.event_id = instance.event_id AND o.handler = instance.handler;
    END IF;
    IF EXISTS (SELECT FROM unnest(steps) s WHERE s.undo_state IS NOT NULL) THEN
        RETURN;
    END IF;
    SELECT s.name || '/compensate' INTO next FROM unnest(steps) s
    WHERE s.undo AND s.undo_outcome IS NULL ORDER BY s.place DESC LIMIT 1;
    IF FOUND THEN
        PERFORM outbox.begin_step(instance, next);
    ELSE
        PERFORM outbox.end_flow(instance, CASE
            WHEN instance.compensating = 'cancelled' THEN 'cancelled'
            WHEN EXISTS (SELECT FROM unnest(steps) s WHERE s.undo_outcome = 'done') THEN 'compensated'
            ELSE 'discarded'
        END);
    END IF;
END
$$;

-- Moves an instance that has a row on, as far as it can: lets the steps begin that may, begins to undo it, or ends it. In the
-- transaction in which one of its steps has ended or died, after that is written.
CREATE FUNCTION outbox.advance_flow(event_id bigint, flow text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    instance  outbox.open;
    steps     outbox.flow_step[];
    cancelled jsonb;
    failed    record;
BEGIN
    -- The lock of the instance: two steps that end at the same time take turns here, and the second one sees what the first has done.
    SELECT o.* INTO instance FROM outbox.open o
    WHERE o.event_id = advance_flow.event_id AND o.handler = advance_flow.flow AND o.flow_version IS NOT NULL
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM outbox.needs_read_committed('the flow ' || instance.handler);
    -- What has ended is kept with the instance: its rows in outbox.done may go before the flow has ended.
    instance.ended := instance.ended || coalesce((
        SELECT jsonb_object_agg(substr(d.handler, length(instance.handler) + 2), jsonb_build_object(
                   'outcome', d.outcome, 'attempt', d.attempt, 'started_at', d.started_at, 'result', d.result))
        FROM outbox.done d WHERE d.event_id = instance.event_id AND d.handler ^@ (instance.handler || '/')
    ), '{}');
    -- It was cancelled before it had a row.
    DELETE FROM outbox.done AS d
    WHERE d.event_id = instance.event_id AND d.handler = instance.handler AND d.outcome = 'cancelled'
    RETURNING d.result INTO cancelled;
    IF FOUND AND instance.compensating IS NULL THEN
        instance.compensating := 'cancelled';
        instance.state := 'waiting';
        instance.last_error := cancelled->>'reason';
    END IF;
    steps := outbox.flow_steps(instance);
    IF instance.compensating IS NULL THEN
        SELECT s.outcome IS NOT NULL AS given_up, format('%s: %s', s.name, coalesce(s.error, s.outcome)) AS error INTO failed
        FROM unnest(steps) s WHERE s.state = 'dead' OR s.outcome <> 'done' ORDER BY s.outcome IS NULL, s.place LIMIT 1;
        IF FOUND THEN
            instance.last_error := left('step ' || failed.error, 4096);
            -- Where there is nothing to undo, the dead step can be retried.
            IF failed.given_up OR (
                EXISTS (SELECT FROM unnest(steps) s WHERE s.undo)
                AND EXISTS (SELECT FROM outbox.flow_version v WHERE v.flow = instance.handler AND v.version = instance.flow_version
                            AND v.on_dead_step = 'compensate')
            ) THEN
                instance.compensating := 'dead';
                instance.state := 'waiting';
            ELSE
                instance.state := 'dead';
            END IF;
        ELSE
            instance.state := 'waiting';
        END IF;
    END IF;
    UPDATE outbox.open o SET state = instance.state, ended = instance.ended, compensating = instance.compensating,
        last_error = instance.last_error, updated_at = clock_timestamp()
    WHERE o.event_id = instance.event_id AND o.handler = instance.handler
      AND (o.state, o.ended, o.compensating, o.last_error)
          IS DISTINCT FROM (instance.state, instance.ended, instance.compensating, instance.last_error);
    IF instance.compensating IS NOT NULL THEN
        PERFORM outbox.undo_steps(instance);
    ELSIF instance.state = 'waiting' THEN
        PERFORM outbox.begin_step(instance, s.name) FROM unnest(steps) s
        WHERE s.outcome IS NULL AND s.state IS NULL
          AND NOT EXISTS (SELECT FROM jsonb_array_elements_text(s.after) AS a (name)
                          WHERE instance.ended->a.name->>'outcome' IS DISTINCT FROM 'done');
        IF NOT EXISTS (SELECT FROM unnest(steps) s WHERE s.outcome IS NULL) THEN
            PERFORM outbox.end_flow(instance, 'done');
        END IF;
    END IF;
END
$$;

CREATE FUNCTION outbox.step_changed() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM outbox.advance_flow(OLD.event_id, OLD.flow);
    RETURN NULL;
END
$$;

CREATE TRIGGER step_ended AFTER DELETE ON outbox.open FOR EACH ROW
    WHEN (OLD.flow IS NOT NULL)
    EXECUTE FUNCTION outbox.step_changed();
CREATE TRIGGER step_changed AFTER UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (OLD.flow IS NOT NULL AND OLD.state <> NEW.state AND (NEW.state = 'dead' OR OLD.state IN ('dead', 'running')))
    EXECUTE FUNCTION outbox.step_changed();

-- A dead step of an instance that is being undone does not run again.
CREATE FUNCTION outbox.keep_dead_step() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF OLD.handler NOT LIKE '%/%/compensate' AND EXISTS (
        SELECT FROM outbox.open o WHERE o.event_id = OLD.event_id AND o.handler = OLD.flow AND o.compensating IS NOT NULL
    ) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER keep_dead_step BEFORE UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (OLD.flow IS NOT NULL AND OLD.state = 'dead' AND NEW.state <> 'dead')
    EXECUTE FUNCTION outbox.keep_dead_step();

-- Gives an instance its row, by the newest definition of its flow, and moves it on. Nothing of it may be in the daemon's memory any
-- more. One that was cancelled before it had a row is undone, if something of it has begun.
CREATE FUNCTION outbox.begin_flow(event_id bigint, flow text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    version integer := (SELECT max(v.version) FROM outbox.flow_version v WHERE v.flow = begin_flow.flow);
BEGIN
    UPDATE outbox.open AS o SET state = 'waiting', started_at = NULL, flow_version = version, ended = '{}', updated_at = clock_timestamp()
    WHERE o.event_id = begin_flow.event_id AND o.handler = begin_flow.flow AND o.state = 'running';
    IF NOT FOUND THEN
        INSERT INTO outbox.open (event_id, handler, state, attempt, flow_version, ended, topic, key, payload, headers, priority, created_at)
        SELECT e.id, begin_flow.flow, 'waiting', 1, version, '{}', e.topic, e.key, e.payload, e.headers, e.priority, e.created_at
        FROM outbox.event e
        LEFT JOIN outbox.done d ON d.event_id = e.id AND d.handler = begin_flow.flow
        WHERE e.id = begin_flow.event_id
          AND (d.outcome IS NULL
               -- Cancelled, and there is something to undo. What has been undone already stays so.
               OR d.outcome = 'cancelled' AND (
                   EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.flow = begin_flow.flow)
                   OR EXISTS (SELECT FROM outbox.done s WHERE s.event_id = e.id AND s.handler ^@ (begin_flow.flow || '/'))))
        ON CONFLICT DO NOTHING;
    END IF;
    DELETE FROM outbox.cancelling AS c WHERE c.event_id = begin_flow.event_id AND c.handler = begin_flow.flow AND c.flow;
    -- Whoever is ending one of its steps does not see the row yet that was made here, and what he does is not seen here: he is waited
    -- for, or waits and sees it.
    PERFORM FROM outbox.open o WHERE o.event_id = begin_flow.event_id AND o.flow = begin_flow.flow ORDER BY o.handler FOR SHARE;
    PERFORM outbox.advance_flow(begin_flow.event_id, begin_flow.flow);
END
$$;

-- Cancels an instance that has a row. Returns whether there was one that could be.
CREATE FUNCTION outbox.undo_flow(event_id bigint, flow text, reason text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    -- Its steps first, as everybody does who ends one of them.
    PERFORM FROM outbox.open o WHERE o.event_id = undo_flow.event_id AND o.flow = undo_flow.flow ORDER BY o.handler FOR UPDATE;
    UPDATE outbox.open AS o SET compensating = 'cancelled', last_error = left(undo_flow.reason, 4096), updated_at = clock_timestamp()
    WHERE o.event_id = undo_flow.event_id AND o.handler = undo_flow.flow AND o.flow_version IS NOT NULL
      AND o.state = 'waiting' AND o.compensating IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM outbox.advance_flow(undo_flow.event_id, undo_flow.flow);
    RETURN true;
END
$$;

-- Notes the definition of a flow. When it has changed, instances that an earlier daemon has begun and not written down get their
-- rows first, by the definition they began with. Returns the version.
CREATE FUNCTION outbox.define_flow(flow text, steps jsonb, on_dead_step text) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    newest   outbox.flow_version;
    instance bigint;
BEGIN
    SELECT v.* INTO newest FROM outbox.flow_version v WHERE v.flow = define_flow.flow ORDER BY v.version DESC LIMIT 1;
    IF (newest.steps, newest.on_dead_step) IS NOT DISTINCT FROM (define_flow.steps, define_flow.on_dead_step) THEN
        RETURN newest.version;
    END IF;
    IF newest.version IS NOT NULL THEN
        FOR instance IN
            SELECT e.id FROM outbox.newest_position p
            JOIN outbox.event e ON e.xid >= pg_snapshot_xmin(p.position) AND NOT pg_visible_in_snapshot(e.xid, p.position)
            WHERE p.handler = define_flow.flow
              -- What lies above has not begun: a backlog is not looked at.
              AND e.id <= greatest((SELECT max(d.event_id) FROM outbox.done d),
                                   (SELECT max(o.event_id) FROM outbox.open o WHERE o.flow = define_flow.flow))
              AND (EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler ^@ (define_flow.flow || '/'))
                   OR EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.flow = define_flow.flow))
              AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = define_flow.flow)
              AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = define_flow.flow)
        LOOP
            PERFORM outbox.begin_flow(instance, define_flow.flow);
        END LOOP;
    END IF;
    INSERT INTO outbox.flow_version (flow, version, steps, on_dead_step)
    VALUES (define_flow.flow, coalesce(newest.version, 0) + 1, define_flow.steps, define_flow.on_dead_step);
    RETURN coalesce(newest.version, 0) + 1;
END
$$;

-- The instances of flows, but for those that have begun a moment ago: where each stands, and what became of its steps. `state` is
-- running, compensating, dead (somebody must see to a step, see last_error), done, compensated, discarded (given up, with nothing to
-- undo) or cancelled. Filter by event_id, or by state and flow; those that have ended are as many as the log keeps.
CREATE VIEW outbox.flow AS
SELECT f.event_id, f.flow, f.state, f.version, f.topic, f.key, f.last_error, s.stands_at, s.steps, f.created_at, f.finished_at
FROM (
    SELECT o.event_id, o.handler AS flow,
           CASE WHEN o.state = 'dead' THEN 'dead' WHEN o.compensating IS NULL THEN 'running' ELSE 'compensating' END AS state,
           o.flow_version AS version, o.topic, o.key, o.last_error, o.created_at, NULL::timestamptz AS finished_at
    FROM outbox.open o WHERE o.flow_version IS NOT NULL
    UNION ALL
    SELECT d.event_id, d.handler, CASE WHEN d.outcome = 'cancelled' AND EXISTS (
               SELECT FROM outbox.cancelling c WHERE c.event_id = d.event_id AND c.handler = d.handler AND c.flow
           ) THEN 'compensating' ELSE d.outcome END, NULL, e.topic, e.key, d.result->>'reason', e.created_at, d.finished_at
    FROM outbox.done d
    JOIN outbox.handler h ON h.name = d.handler AND h.kind = 'flow'
    LEFT JOIN outbox.event e ON e.id = d.event_id
) f
CROSS JOIN LATERAL (
    SELECT array_agg(x.name ORDER BY x.name) FILTER (WHERE x.is_open) AS stands_at,
           jsonb_object_agg(x.name, x.step) AS steps
    FROM (
        SELECT substr(d.handler, length(f.flow) + 2) AS name, false AS is_open,
               jsonb_strip_nulls(jsonb_build_object('state', d.outcome, 'attempts', d.attempt, 'started_at', d.started_at,
                                                    'finished_at', d.finished_at, 'result', d.result)) AS step
        FROM outbox.done d WHERE d.event_id = f.event_id AND d.handler ^@ (f.flow || '/')
        UNION ALL
        SELECT substr(o.handler, length(f.flow) + 2), true,
               jsonb_strip_nulls(jsonb_build_object('state', o.state, 'attempts', o.attempt, 'started_at', o.started_at, 'due_at', o.due_at,
                                                    'error', o.last_error, 'progress', o.progress))
        FROM outbox.open o WHERE o.event_id = f.event_id AND o.flow = f.flow
    ) x
) s;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
