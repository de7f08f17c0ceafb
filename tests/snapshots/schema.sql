-- `UPDATE_EXPECT=1 cargo test --test it schema` writes this file.

-- Name: outbox; Type: SCHEMA; Schema: -; Owner: -

CREATE SCHEMA outbox;

-- Name: SCHEMA outbox; Type: COMMENT; Schema: -; Owner: -

COMMENT ON SCHEMA outbox IS 'outboxd: events, and what becomes of them. Begin with \d+ outbox.event, SELECT * FROM outbox.stuck, and outboxd doctor.';

-- Name: flow_step; Type: TYPE; Schema: outbox; Owner: -

CREATE TYPE outbox.flow_step AS (
	place bigint,
	name text,
	after jsonb,
	outcome text,
	state text,
	error text,
	undo boolean,
	undo_outcome text,
	undo_state text,
	undo_error text
);

-- Name: add_partitions(integer, interval, bigint); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.add_partitions(ahead integer DEFAULT 4, lasting interval DEFAULT '1 day'::interval, smallest bigint DEFAULT 1000000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
DECLARE
    last   bigint := coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0);
    next   bigint;
    size   bigint;
    wanted double precision;
    there  bigint;
    made   integer := 0;
    parent text;
    part   text;
BEGIN
    -- One maker at a time; the lock ends with the transaction.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('outbox.add_partitions', 0)) THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE p.first_id > last) INTO there FROM outbox.partitions() p;
    IF there >= ahead THEN
        RETURN 0;
    END IF;
    SELECT p.next_id, p.next_id - p.first_id INTO next, size FROM outbox.partitions() p ORDER BY p.next_id DESC LIMIT 1;
    IF next IS NULL OR next <= last THEN
        -- Ids up to `last` (and a page of them still on their way) may lie in the default partition.
        next := CASE WHEN last = 0 THEN 0 ELSE ((last + smallest / 10) / smallest + 1) * smallest END;
    END IF;
    SELECT (last - e.id) / nullif(extract(epoch FROM clock_timestamp() - e.created_at)::double precision, 0) * extract(epoch FROM lasting)
    INTO wanted
    FROM outbox.event e WHERE e.id > last - smallest ORDER BY e.id LIMIT 1;
    WHILE there < ahead LOOP
        -- A whole number of the smallest ones, a thousand of them at most.
        size := greatest(1, ceil(least(coalesce(wanted, 0) / smallest, 4 * coalesce(size, smallest) / smallest, 1000)))::bigint * smallest;
        FOREACH parent IN ARRAY ARRAY['event', 'done'] LOOP
            part := format('%s_p%s', parent, next);
            EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part, parent);
            EXECUTE format('ALTER TABLE outbox.%I ATTACH PARTITION outbox.%I FOR VALUES FROM (%s) TO (%s)', parent, part, next, next + size);
        END LOOP;
        made := made + 1;
        there := there + (next > last)::integer;
        next := next + size;
    END LOOP;
    RETURN made;
EXCEPTION WHEN lock_not_available OR check_violation THEN
    -- A reader of the default partition, or a row that reached it meanwhile: the default partition serves until the next call.
    RETURN 0;
END
$$;

-- Name: add_roles(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.add_roles() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['outbox_producer', 'outbox_reader', 'outbox_operator', 'outbox_daemon'] LOOP
        BEGIN
            IF to_regrole(role) IS NULL THEN
                EXECUTE format('CREATE ROLE %I', role);
            END IF;
        EXCEPTION
            -- Another database of this cluster gets its roles at the same moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE insufficient_privilege USING
                    MESSAGE = format('%I may not create the role %I', current_user, role),
                    HINT = 'Let a role with CREATEROLE run: CREATE ROLE outbox_producer; CREATE ROLE outbox_reader; CREATE ROLE outbox_operator; CREATE ROLE outbox_daemon. Then call this again.';
        END;
    END LOOP;

    PERFORM outbox.let_publish('outbox_producer');

    GRANT USAGE ON SCHEMA outbox TO outbox_reader, outbox_operator, outbox_daemon;
    -- Not the key of callbacks: who reads it can answer for every delivery.
    GRANT SELECT ON outbox.event, outbox.done, outbox.open, outbox.attempt, outbox.handler, outbox.flow_version, outbox.position, outbox.dedup,
                    outbox.consumed, outbox.cancelling, outbox.installation, outbox.schedule, outbox.alert, outbox.operation, outbox.publish_right,
                    outbox.full_handler,
                    outbox.delivery, outbox.backlog, outbox.flow, outbox.newest_position, outbox.stuck, outbox.slow, outbox.failed,
                    outbox.refinery_schema_history
    TO outbox_reader, outbox_operator, outbox_daemon;
    -- The default partitions, which somebody looks into who wants to know whether they are used.
    GRANT SELECT ON outbox.event_default, outbox.done_default TO outbox_reader, outbox_operator, outbox_daemon;
    GRANT SELECT ON ALL SEQUENCES IN SCHEMA outbox TO outbox_reader, outbox_operator, outbox_daemon;
    GRANT EXECUTE ON FUNCTION outbox.related, outbox.dead_letters, outbox.check_patterns, outbox.topic_regex, outbox.partitions, outbox.has_ended, outbox.wait_for,
                              outbox.caller
    TO outbox_reader, outbox_operator;

    GRANT EXECUTE ON FUNCTION outbox.retry, outbox.snooze, outbox.cancel, outbox.redrive, outbox.replay, outbox.pause, outbox.resume,
                              outbox.set_limits, outbox.heartbeat, outbox.complete, outbox.fail, outbox.forget,
                              outbox.discard(bigint, text, text),
                              outbox.discard(text, text, text, timestamptz, timestamptz, text, boolean)
    TO outbox_operator;

    GRANT INSERT ON outbox.event, outbox.done, outbox.open, outbox.attempt, outbox.handler, outbox.flow_version, outbox.position, outbox.cancelling,
                    outbox.dedup, outbox.consumed, outbox.schedule, outbox.alert, outbox.full_handler
    TO outbox_daemon;
    GRANT UPDATE, DELETE ON outbox.open, outbox.handler, outbox.position, outbox.flow_version, outbox.cancelling, outbox.dedup, outbox.consumed, outbox.schedule,
                            outbox.alert, outbox.full_handler, outbox.done, outbox.attempt
    TO outbox_daemon;
    GRANT UPDATE ON outbox.installation, outbox.event, outbox.bell TO outbox_daemon;
    -- What was done by hand is noted by the functions; the daemon only takes away what is old.
    GRANT UPDATE, DELETE ON outbox.operation TO outbox_daemon;
    GRANT SELECT ON outbox.callback_key TO outbox_daemon;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO outbox_daemon;
    REVOKE EXECUTE ON FUNCTION outbox.add_roles, outbox.let_publish, outbox.allow_publish, outbox.forbid_publish FROM outbox_daemon;
END
$$;

-- Name: advance_flow(bigint, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.advance_flow(event_id bigint, flow text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
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

-- Name: allow_publish(name, text[]); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.allow_publish(role name, VARIADIC topics text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '2s'
    AS $$
#variable_conflict use_column
BEGIN
    IF array_position(allow_publish.topics, NULL) IS NOT NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'a topic pattern is null; name the topics, or GRANT outbox_producer for every topic';
    END IF;
    PERFORM outbox.check_patterns(allow_publish.topics);
    IF to_regrole(quote_ident(allow_publish.role)) IS NULL THEN
        RAISE undefined_object USING MESSAGE = format('role %I does not exist', allow_publish.role);
    END IF;
    PERFORM outbox.add_roles();
    IF pg_has_role(allow_publish.role, 'outbox_producer', 'USAGE') THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('role %I is a member of outbox_producer, which may publish every topic', allow_publish.role),
            HINT = format('REVOKE outbox_producer FROM %I first.', allow_publish.role);
    END IF;
    IF NOT (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = 'outbox.event'::regclass) THEN
        -- Rights on tables and columns say who reads and writes at all. Of what is inserted, the topic must be allowed.
        CREATE POLICY whoever_may_read ON outbox.event FOR SELECT USING (true);
        CREATE POLICY publishes_every_topic ON outbox.event FOR INSERT TO outbox_producer, outbox_daemon WITH CHECK (true);
        CREATE POLICY publishes_its_topics ON outbox.event FOR INSERT WITH CHECK (outbox.check_publish(current_user, topic));
        CREATE POLICY the_daemon_changes ON outbox.event FOR UPDATE TO outbox_daemon USING (true);
        ALTER TABLE outbox.event ENABLE ROW LEVEL SECURITY;
        GRANT EXECUTE ON FUNCTION outbox.check_publish TO PUBLIC;
    END IF;
    PERFORM outbox.let_publish(allow_publish.role);
    INSERT INTO outbox.publish_right AS r (role, topics, topic_regex, granted_by)
    VALUES (allow_publish.role, allow_publish.topics, outbox.topic_regex(allow_publish.topics), outbox.caller())
    ON CONFLICT (role) DO UPDATE SET topics = excluded.topics, topic_regex = excluded.topic_regex, granted_by = excluded.granted_by, granted_at = now();
    PERFORM outbox.note('allow_publish', NULL, NULL, NULL, 'role', allow_publish.role, 'topics', array_to_string(allow_publish.topics, ', '));
END
$$;

-- Name: answer_done(bigint, text, jsonb); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.answer_done(event_id bigint, handler text, result jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: answer_failed(bigint, text, text, boolean); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.answer_failed(event_id bigint, handler text, error text, dead boolean) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: begin_flow(bigint, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.begin_flow(event_id bigint, flow text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
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

-- Name: open; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.open (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    state text NOT NULL,
    due_at timestamp with time zone,
    attempt integer DEFAULT 0 NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    started_at timestamp with time zone,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb NOT NULL,
    priority smallint NOT NULL,
    expires_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    polls integer DEFAULT 0 NOT NULL,
    answer_by timestamp with time zone,
    flow text,
    flow_version integer,
    ended jsonb,
    compensating text,
    results jsonb,
    progress jsonb,
    heartbeat_at timestamp with time zone,
    last_error text,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    n bigint NOT NULL,
    CONSTRAINT an_instance_of_a_flow_waits_or_is_dead CHECK (((flow_version IS NULL) OR (state = ANY (ARRAY['waiting'::text, 'dead'::text])))),
    CONSTRAINT compensating_says_why CHECK (((compensating IS NULL) OR ((compensating = ANY (ARRAY['dead'::text, 'cancelled'::text])) AND (flow_version IS NOT NULL)))),
    CONSTRAINT due_at_says_when_it_goes_on CHECK (
CASE
    WHEN (flow_version IS NOT NULL) THEN (due_at IS NULL)
    WHEN (state = ANY (ARRAY['scheduled'::text, 'retrying'::text, 'waiting'::text])) THEN (due_at IS NOT NULL)
    WHEN (state = ANY (ARRAY['running'::text, 'dead'::text])) THEN (due_at IS NULL)
    ELSE true
END),
    CONSTRAINT failures_are_among_the_attempts CHECK (((failures >= 0) AND (failures <= attempt))),
    CONSTRAINT last_error_is_at_most_16_kibibytes CHECK ((octet_length(last_error) <= 16384)),
    CONSTRAINT only_what_has_a_key_is_blocked CHECK (((state <> 'blocked'::text) OR (key IS NOT NULL))),
    CONSTRAINT progress_is_at_most_64_kibibytes CHECK ((pg_column_size(progress) <= 65536)),
    CONSTRAINT retrying_and_dead_have_an_error CHECK (((state <> ALL (ARRAY['retrying'::text, 'dead'::text])) OR (last_error IS NOT NULL))),
    CONSTRAINT running_has_started_an_attempt CHECK ((((state = 'running'::text) = (started_at IS NOT NULL)) AND ((state <> 'running'::text) OR (attempt >= 1)))),
    CONSTRAINT state_is_one_of_the_six CHECK ((state = ANY (ARRAY['scheduled'::text, 'retrying'::text, 'running'::text, 'waiting'::text, 'blocked'::text, 'dead'::text])))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='500');

-- Name: TABLE open; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.open IS 'Deliveries that need attention or wait: what does not simply succeed. Changes only by the daemon and the functions of this schema.';

-- Name: COLUMN open.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.event_id IS 'The event. The row has a copy of it, so it can be retried when the log has gone.';

-- Name: COLUMN open.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.handler IS 'The handler; for a step of a flow FLOW/STEP.';

-- Name: COLUMN open.state; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.state IS 'scheduled or retrying (until due_at), running, waiting (for an answer), blocked (behind its key), dead (outbox.retry, outbox.redrive, outbox.discard).';

-- Name: COLUMN open.due_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.due_at IS 'When it goes on.';

-- Name: COLUMN open.attempt; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.attempt IS 'The attempts that have begun.';

-- Name: COLUMN open.failures; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.failures IS 'Those among them that failed and counted.';

-- Name: COLUMN open.started_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.started_at IS 'Since when it runs.';

-- Name: COLUMN open.topic; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.topic IS 'Of the event.';

-- Name: COLUMN open.key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.key IS 'Of the event.';

-- Name: COLUMN open.payload; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.payload IS 'Of the event.';

-- Name: COLUMN open.headers; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.headers IS 'Of the event.';

-- Name: COLUMN open.priority; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.priority IS 'Of the event.';

-- Name: COLUMN open.expires_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.expires_at IS 'Of the event.';

-- Name: COLUMN open.created_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.created_at IS 'Of the event.';

-- Name: COLUMN open.polls; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.polls IS 'How often it has answered that it is not done yet.';

-- Name: COLUMN open.answer_by; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.answer_by IS 'No answer by then is a failure.';

-- Name: COLUMN open.flow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.flow IS 'The flow that it is a step or a compensation of.';

-- Name: COLUMN open.flow_version; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.flow_version IS 'Of an instance of a flow: the definition that it began with.';

-- Name: COLUMN open.ended; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.ended IS 'Of an instance of a flow: what has ended of it.';

-- Name: COLUMN open.compensating; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.compensating IS 'Of an instance of a flow: why it is being undone, dead or cancelled.';

-- Name: COLUMN open.results; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.results IS 'Of a step: the results of those before it.';

-- Name: COLUMN open.progress; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.progress IS 'What the running attempt said last.';

-- Name: COLUMN open.heartbeat_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.heartbeat_at IS 'When it said so.';

-- Name: COLUMN open.last_error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.last_error IS 'Why the last attempt failed. outbox.attempt has them all.';

-- Name: COLUMN open.updated_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.updated_at IS 'When its state changed last: since when it is dead.';

-- Name: COLUMN open.n; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.open.n IS 'The order of a key.';

-- Name: begin_step(outbox.open, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.begin_step(instance outbox.open, step text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO outbox.open (event_id, handler, state, due_at, flow, results, topic, key, payload, headers, priority, created_at)
    VALUES (instance.event_id, instance.handler || '/' || begin_step.step, 'scheduled', clock_timestamp(), instance.handler,
            outbox.flow_results(instance.ended), instance.topic, instance.key, instance.payload, instance.headers, instance.priority,
            instance.created_at)
    ON CONFLICT DO NOTHING;
END
$$;

-- Name: caller(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.caller() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT coalesce(nullif(current_setting('role'), 'none'), session_user)
$$;

-- Name: cancel(bigint, text, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.cancel(event_id bigint, handler text, reason text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: caused_by(bigint, jsonb); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.caused_by(event_id bigint, headers jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT jsonb_build_object('correlation_id', event_id::text) || coalesce(jsonb_object_agg(h.key, h.value), '{}')
           || jsonb_build_object('causation_id', event_id::text)
    FROM jsonb_each_text(headers) AS h (key, value)
    WHERE h.key IN ('correlation_id', 'traceparent', 'tracestate') AND octet_length(h.value) <= 512
$$;

-- Name: change_key_order(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.change_key_order() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    UPDATE outbox.open o SET due_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE o.handler = NEW.name AND o.state = 'blocked' AND o.due_at IS NULL
      AND (NEW.ordered IS NULL OR NOT EXISTS (
          SELECT FROM outbox.open x
          WHERE x.handler = o.handler AND x.key = o.key
            AND (outbox.has_turn(x.state, x.attempt, x.due_at, NEW.ordered) OR x.state = 'blocked' AND x.n < o.n)
      ));
    RETURN NULL;
END
$$;

-- Name: check_patterns(text[]); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.check_patterns(topics text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

-- Name: check_publish(name, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.check_publish(role name, topic text) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_variable
DECLARE
    may     boolean;
    allowed text;
BEGIN
    SELECT bool_or((topic || '.') ~ r.topic_regex), string_agg(array_to_string(r.topics, ', '), ', ' ORDER BY r.role) INTO may, allowed
    FROM outbox.publish_right r
    -- One that was dropped has no members, and to ask for them is an error.
    WHERE CASE WHEN to_regrole(quote_ident(r.role)) IS NULL THEN false ELSE pg_has_role(check_publish.role, r.role::name, 'USAGE') END;
    IF may THEN
        RETURN true;
    END IF;
    RAISE insufficient_privilege USING
        MESSAGE = format('role %I may not publish topic %L', check_publish.role, topic),
        DETAIL = format('It may publish: %s.', coalesce(allowed, 'nothing')),
        HINT = format('The owner of the schema can allow it: SELECT outbox.allow_publish(%L, ...), or GRANT outbox_producer TO %I for every topic.', check_publish.role, check_publish.role);
END
$$;

-- Name: complete(bigint, text, jsonb); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.complete(event_id bigint, handler text, result jsonb DEFAULT NULL::jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF NOT outbox.answer_done(complete.event_id, complete.handler, complete.result) THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('complete', complete.handler, complete.event_id, NULL, VARIADIC '{}');
    RETURN true;
END
$$;

-- Name: dead_letters(text, text, timestamp with time zone, timestamp with time zone, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.dead_letters(handler text DEFAULT NULL::text, topic text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, error text DEFAULT NULL::text) RETURNS SETOF outbox.open
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: dedup_holder(text, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.dedup_holder(topic text, dedup_key text) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT d.event_id FROM outbox.dedup d
    WHERE d.topic = dedup_holder.topic AND d.dedup_key = dedup_holder.dedup_key AND d.expires_at > clock_timestamp()
$$;

-- Name: define_flow(text, jsonb, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.define_flow(flow text, steps jsonb, on_dead_step text) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: discard(bigint, text, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.discard(event_id bigint, handler text, reason text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: discard(text, text, text, timestamp with time zone, timestamp with time zone, text, boolean); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.discard(reason text, handler text DEFAULT NULL::text, topic text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, error text DEFAULT NULL::text, dry_run boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: drop_partitions(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.drop_partitions() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '50ms'
    AS $_$
DECLARE
    last  bigint := coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0);
    part  bigint;
    parts bigint[];
    gone  integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('outbox.add_partitions', 0)) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(p.first_id) INTO parts FROM outbox.partitions() p
    WHERE p.next_id <= last AND pg_relation_size(to_regclass(format('outbox.event_p%s', p.first_id))) = 0
      AND pg_relation_size(to_regclass(format('outbox.done_p%s', p.first_id))) = 0;
    IF parts IS NULL THEN
        RETURN 0;
    END IF;
    -- Everything that a drop locks. That for which producers would wait comes last.
    FOREACH part IN ARRAY parts LOOP
        EXECUTE format('LOCK TABLE ONLY outbox.done_p%1$s, ONLY outbox.event_p%1$s IN ACCESS EXCLUSIVE MODE', part);
    END LOOP;
    LOCK TABLE ONLY outbox.done_default, ONLY outbox.done, ONLY outbox.event_default, ONLY outbox.event IN ACCESS EXCLUSIVE MODE;
    FOREACH part IN ARRAY parts LOOP
        IF pg_relation_size(format('outbox.event_p%s', part)::regclass) = 0
           AND pg_relation_size(format('outbox.done_p%s', part)::regclass) = 0 THEN
            EXECUTE format('DROP TABLE outbox.event_p%1$s, outbox.done_p%1$s', part);
            gone := gone + 1;
        END IF;
    END LOOP;
    RETURN gone;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END
$_$;

-- Name: empty_partition(bigint, pg_snapshot); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.empty_partition(first_id bigint, checked pg_snapshot) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET lock_timeout TO '50ms'
    AS $_$
DECLARE
    event text := format('outbox.event_p%s', first_id);
    done  text := format('outbox.done_p%s', first_id);
    later boolean;
BEGIN
    EXECUTE format('LOCK TABLE ONLY %s, ONLY %s IN ACCESS EXCLUSIVE MODE', event, done);
    EXECUTE format($query$
        SELECT EXISTS (SELECT FROM %1$s WHERE xid >= pg_snapshot_xmax($1) AND xid < pg_snapshot_xmax(pg_current_snapshot()))
            OR EXISTS (SELECT FROM pg_snapshot_xip($1) AS x (xid) JOIN %1$s e ON e.xid = x.xid)
        $query$, event) INTO later USING checked;
    IF later OR NOT outbox.is_past(event::regclass) THEN
        RETURN false;
    END IF;
    EXECUTE format('TRUNCATE TABLE ONLY %s, ONLY %s', event, done);
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        RETURN NULL;
    WHEN undefined_table THEN
        -- Somebody else has emptied and dropped it.
        RETURN false;
END
$_$;

-- Name: end_flow(outbox.open, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.end_flow(instance outbox.open, outcome text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: fail(bigint, text, text, boolean); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.fail(event_id bigint, handler text, error text, dead boolean DEFAULT false) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF NOT outbox.answer_failed(fail.event_id, fail.handler, fail.error, fail.dead) THEN
        RETURN false;
    END IF;
    PERFORM outbox.note('fail', fail.handler, fail.event_id, NULL, 'error', fail.error, 'dead', fail.dead::text);
    RETURN true;
END
$$;

-- Name: flow_results(jsonb); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.flow_results(ended jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(e.key, e.value->'result'), '{}') FROM jsonb_each(ended) AS e (key, value)
            WHERE e.value->>'outcome' = 'done' AND e.key NOT LIKE '%/%');
END
$$;

-- Name: flow_steps(outbox.open); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.flow_steps(instance outbox.open) RETURNS outbox.flow_step[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: forbid_publish(name); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.forbid_publish(role name) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    DELETE FROM outbox.publish_right r WHERE r.role = forbid_publish.role;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF to_regrole(quote_ident(forbid_publish.role)) IS NOT NULL THEN
        -- Of the columns, too.
        EXECUTE format('REVOKE ALL ON outbox.event FROM %I', forbid_publish.role);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION outbox.publish, outbox.dedup_holder FROM %I', forbid_publish.role);
    END IF;
    PERFORM outbox.note('forbid_publish', NULL, NULL, NULL, 'role', forbid_publish.role);
    RETURN true;
END
$$;

-- Name: forget(text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.forget(handler text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: has_ended(text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.has_ended(state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT state IN ('done', 'cancelled', 'expired', 'discarded', 'compensated', 'dead')
$$;

-- Name: has_turn(text, integer, timestamp with time zone, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.has_turn(state text, attempt integer, due_at timestamp with time zone, ordered text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT outbox.holds_key(state, attempt, ordered) AND (state <> 'blocked' OR due_at IS NOT NULL)
$$;

-- Name: heartbeat(bigint, text, integer, jsonb); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.heartbeat(event_id bigint, handler text, attempt integer, progress jsonb DEFAULT NULL::jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
BEGIN
    UPDATE outbox.open AS o SET heartbeat_at = clock_timestamp(), progress = coalesce(heartbeat.progress, o.progress)
    WHERE o.event_id = heartbeat.event_id AND o.handler = heartbeat.handler AND o.attempt = heartbeat.attempt
      AND o.state = 'running';
    RETURN FOUND;
END
$$;

-- Name: holds_key(text, integer, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.holds_key(state text, attempt integer, ordered text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE state WHEN 'scheduled' THEN attempt > 0 WHEN 'dead' THEN ordered = 'block' ELSE true END
$$;

-- Name: is_past(regclass); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.is_past(part regclass) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $_$
DECLARE
    past boolean;
BEGIN
    EXECUTE format($query$
        SELECT count(*) > 0 AND bool_and(p.position IS NOT NULL
            AND NOT EXISTS (SELECT FROM %1$s e WHERE e.xid >= pg_snapshot_xmax(p.position) AND e.xid < pg_snapshot_xmax(pg_current_snapshot()))
            AND NOT EXISTS (SELECT FROM pg_snapshot_xip(p.position) AS x (xid) JOIN %1$s e ON e.xid = x.xid))
        FROM outbox.newest_position p
        $query$, part) INTO past;
    RETURN past;
END
$_$;

-- Name: keep_dead_step(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.keep_dead_step() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: key_order(text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.key_order(handler text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    policy text := (SELECT h.ordered FROM outbox.handler h WHERE h.name = key_order.handler);
BEGIN
    IF policy IS NOT NULL THEN
        PERFORM outbox.needs_read_committed(format('deliveries of %s, which keeps the order of keys,', key_order.handler));
    END IF;
    RETURN policy;
END
$$;

-- Name: let_publish(text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.let_publish(role text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', role);
    EXECUTE format('GRANT INSERT (topic, key, payload, headers, dedup_key, due_at, expires_at, priority), SELECT (id) ON outbox.event TO %I', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.publish, outbox.dedup_holder TO %I', role);
END
$$;

-- Name: merge_earlier(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.merge_earlier() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM outbox.handler h WHERE h.name = NEW.handler AND h."coalesce") THEN
        WITH merged AS (
            DELETE FROM outbox.open o
            WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.n < NEW.n AND o.state IN ('blocked', 'retrying')
            RETURNING o.event_id, o.attempt
        )
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
        SELECT m.event_id, NEW.handler, 'done', m.attempt, clock_timestamp(), jsonb_build_object('merged_into', NEW.event_id) FROM merged m
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NEW;
END
$$;

-- Name: merge_failed(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.merge_failed() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    later bigint;
BEGIN
    IF EXISTS (SELECT FROM outbox.handler h WHERE h.name = NEW.handler AND h."coalesce") THEN
        SELECT o.event_id INTO later FROM outbox.open o
        WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.n > NEW.n AND o.state <> 'dead' ORDER BY o.n DESC LIMIT 1;
        IF FOUND THEN
            WITH merged AS (
                DELETE FROM outbox.open o WHERE o.event_id = NEW.event_id AND o.handler = NEW.handler AND o.state = NEW.state RETURNING o.attempt
            )
            INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
            SELECT NEW.event_id, NEW.handler, 'done', m.attempt, clock_timestamp(), jsonb_build_object('merged_into', later) FROM merged m
            ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- Name: needs_read_committed(text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.needs_read_committed(what text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE feature_not_supported USING
            MESSAGE = format('%s cannot be changed in a transaction that is %s', what, current_setting('transaction_isolation')),
            HINT = 'Use READ COMMITTED.';
    END IF;
END
$$;

-- Name: note(text, text, bigint, bigint, text[]); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.note(action text, handler text, event_id bigint, deliveries bigint, VARIADIC details text[]) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    INSERT INTO outbox.operation (role, action, handler, event_id, deliveries, detail)
    SELECT outbox.caller(), note.action, note.handler, note.event_id, note.deliveries,
           coalesce(jsonb_object_agg(note.details[i], left(note.details[i + 1], 2048)) FILTER (WHERE note.details[i + 1] IS NOT NULL), '{}')
    FROM generate_series(1, cardinality(note.details), 2) AS i
$$;

-- Name: old_partitions(interval); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.old_partitions(retention interval) RETURNS TABLE(first_id bigint, next_id bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    last   bigint := coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0);
    event  regclass;
    newest timestamptz;
BEGIN
    FOR first_id, next_id IN SELECT p.first_id, p.next_id FROM outbox.partitions() p WHERE p.next_id <= last ORDER BY 1 LOOP
        BEGIN
            event := format('outbox.event_p%s', first_id)::regclass;
            CONTINUE WHEN pg_relation_size(event) = 0 AND pg_relation_size(format('outbox.done_p%s', first_id)::regclass) = 0;
            EXECUTE format('SELECT created_at FROM %s ORDER BY id DESC LIMIT 1', event) INTO newest;
            CONTINUE WHEN newest > clock_timestamp() - retention OR NOT outbox.is_past(event);
        EXCEPTION WHEN undefined_table THEN
            -- Another daemon, which has lost the lead without knowing it, has dropped it.
            CONTINUE;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Name: once(text, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.once(consumer text, key text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: partitions(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.partitions(OUT first_id bigint, OUT next_id bigint) RETURNS SETOF record
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT bound[1]::bigint, bound[2]::bigint
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid), $re$FROM \('(\d+)'\) TO \('(\d+)'\)$re$) AS bound
    WHERE i.inhparent = 'outbox.event'::regclass AND bound IS NOT NULL
$_$;

-- Name: pass_turn(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.pass_turn() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    policy text := outbox.key_order(OLD.handler);
    next   bigint;
BEGIN
    IF policy IS NULL OR NOT outbox.has_turn(OLD.state, OLD.attempt, OLD.due_at, policy)
       OR (TG_OP = 'UPDATE' AND policy = 'block') THEN
        RETURN NULL;
    END IF;
    LOOP
        -- It passes the turn on itself. Locked, so that its end cannot pass unseen.
        PERFORM FROM outbox.open o
        WHERE o.handler = OLD.handler AND o.key = OLD.key AND outbox.has_turn(o.state, o.attempt, o.due_at, policy)
        LIMIT 1 FOR SHARE;
        EXIT WHEN FOUND;
        SELECT o.event_id INTO next FROM outbox.open o
        WHERE o.handler = OLD.handler AND o.key = OLD.key AND o.state = 'blocked'
        ORDER BY o.n LIMIT 1 FOR UPDATE;
        IF NOT FOUND THEN
            -- Locking drops a row that ended meanwhile; then there may be another one, come meanwhile, too.
            EXIT WHEN NOT EXISTS (
                SELECT FROM outbox.open o WHERE o.handler = OLD.handler AND o.key = OLD.key AND o.state = 'blocked'
            );
            CONTINUE;
        END IF;
        -- Nothing, if somebody else has given it the turn while its lock was waited for.
        UPDATE outbox.open o SET due_at = clock_timestamp(), updated_at = clock_timestamp()
        WHERE o.event_id = next AND o.handler = OLD.handler AND o.state = 'blocked' AND o.due_at IS NULL;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN NULL;
END
$$;

-- Name: pause(text, text, timestamp with time zone); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.pause(handler text, reason text DEFAULT NULL::text, until timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: publish(text, jsonb, text, text, interval, jsonb, timestamp with time zone, smallint); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.publish(topic text, payload jsonb, key text DEFAULT NULL::text, dedup_key text DEFAULT NULL::text, delay interval DEFAULT NULL::interval, headers jsonb DEFAULT '{}'::jsonb, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, priority smallint DEFAULT (0)::smallint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    published bigint;
BEGIN
    IF publish.dedup_key IS NOT NULL THEN
        -- Two publishers of one key take turns: the second one sees what the first one committed.
        PERFORM pg_advisory_xact_lock(hashtextextended(publish.topic || ' ' || publish.dedup_key, 0));
        published := outbox.dedup_holder(publish.topic, publish.dedup_key);
        IF published IS NOT NULL THEN
            RETURN published;
        END IF;
    END IF;
    INSERT INTO outbox.event (topic, payload, key, dedup_key, due_at, headers, expires_at, priority)
    VALUES (publish.topic, publish.payload, publish.key, publish.dedup_key, clock_timestamp() + publish.delay,
            coalesce(publish.headers, '{}'), publish.expires_at, coalesce(publish.priority, 0::smallint))
    RETURNING id INTO published;
    RETURN published;
END
$$;

-- Name: redrive(text, text, timestamp with time zone, timestamp with time zone, text, double precision, boolean); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.redrive(handler text DEFAULT NULL::text, topic text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, error text DEFAULT NULL::text, per_second double precision DEFAULT NULL::double precision, dry_run boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: event; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
)
PARTITION BY RANGE (id);

-- Name: TABLE event; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.event IS 'The log: an app inserts a row in its own transaction. Never updated; partitioned by id; old partitions go when all has ended.';

-- Name: COLUMN event.id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.id IS 'Given out by a sequence; not the order of commits.';

-- Name: COLUMN event.topic; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.topic IS 'What it is about: dotted words, 255 bytes. Handlers select by patterns: * is one word, # any number.';

-- Name: COLUMN event.key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.key IS 'What it belongs to, 512 bytes; the order of handlers with ordered = true. Null: nothing.';

-- Name: COLUMN event.payload; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.payload IS 'What the handlers get: any JSON, 16 MiB.';

-- Name: COLUMN event.headers; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.headers IS 'An object of strings, 64 KiB; traceparent, correlation_id and causation_id mean something to outboxd.';

-- Name: COLUMN event.dedup_key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.dedup_key IS 'A second event of the topic with this key is refused (23505) for dedup_window, a day.';

-- Name: COLUMN event.due_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.due_at IS 'Handlers do not get it before. Null: at once.';

-- Name: COLUMN event.expires_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.expires_at IS 'A delivery that has not begun by then is expired. Null: never.';

-- Name: COLUMN event.priority; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.priority IS 'Among those that wait in a handler, the higher goes first.';

-- Name: COLUMN event.created_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.created_at IS 'When it was inserted.';

-- Name: COLUMN event.xid; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.event.xid IS 'The transaction that inserted it: the log is read in this order.';

-- Name: related(bigint); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.related(event_id bigint) RETURNS SETOF outbox.event
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH first AS (
        SELECT coalesce(e.headers->>'correlation_id', e.id::text) AS correlation FROM outbox.event e WHERE e.id = related.event_id
    )
    SELECT e.* FROM first f JOIN outbox.event e ON e.headers ? 'correlation_id' AND e.headers->>'correlation_id' = f.correlation
    UNION ALL
    SELECT e.* FROM first f JOIN outbox.event e ON e.id = CASE WHEN f.correlation ~ '^[0-9]{1,18}$' THEN f.correlation::bigint END
    WHERE NOT e.headers ? 'correlation_id'
    ORDER BY id
$_$;

-- Name: remember_dedup_key(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.remember_dedup_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO outbox.dedup AS d (topic, dedup_key, event_id, expires_at)
    SELECT NEW.topic, NEW.dedup_key, NEW.id, clock_timestamp() + dedup_window FROM outbox.installation
    ON CONFLICT (topic, dedup_key) DO UPDATE SET event_id = excluded.event_id, expires_at = excluded.expires_at
        WHERE d.expires_at <= clock_timestamp();
    IF NOT FOUND THEN
        RAISE unique_violation USING
            MESSAGE = 'duplicate key value violates unique constraint "dedup_pkey"',
            DETAIL = format('Key (topic, dedup_key)=(%s, %s) already exists.', NEW.topic, NEW.dedup_key),
            HINT = 'outbox.publish(...) returns the id of the first event instead.',
            SCHEMA = 'outbox', TABLE = 'dedup', CONSTRAINT = 'dedup_pkey';
    END IF;
    RETURN NULL;
END
$$;

-- Name: replay(text, text, text, timestamp with time zone, timestamp with time zone, bigint, bigint, text, double precision, boolean, integer); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.replay(handler text, topic text DEFAULT NULL::text, key text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, from_id bigint DEFAULT NULL::bigint, to_id bigint DEFAULT NULL::bigint, reason text DEFAULT NULL::text, per_second double precision DEFAULT NULL::double precision, dry_run boolean DEFAULT false, most integer DEFAULT 100000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: resume(text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.resume(handler text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: retry(bigint, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.retry(event_id bigint, handler text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: retry_pause(jsonb, integer); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.retry_pause(retry jsonb, failures integer) RETURNS interval
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT coalesce(random() * least(
        (retry->>'max_seconds')::double precision,
        CASE WHEN jsonb_typeof(retry->'backoff') = 'array' THEN coalesce((retry->'backoff'->>least(failures, jsonb_array_length(retry->'backoff')) - 1)::double precision, 0)
             ELSE (retry->>'base_seconds')::double precision * CASE retry->>'backoff'
                 WHEN 'fixed' THEN 1 WHEN 'linear' THEN failures ELSE 2 ^ least(failures - 1, 63)::double precision END
        END
    ), 0) * interval '1 second'
$$;

-- Name: ring(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.ring() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    hit record;
BEGIN
    IF pg_sequence_last_value('outbox.bell'::regclass) = 3 AND current_setting('outbox.max_backlog', true) IS DISTINCT FROM 'off' THEN
        SELECT f.handler, f.events, f.refuses, e.topic INTO hit
        FROM (
            -- Written so that the index on (xid, id) is the only one that fits: with xid = ..., that on id would be read backwards to its end.
            SELECT i.topic FROM outbox.event i WHERE (i.xid, i.id) > (pg_current_xact_id(), 0) AND i.xid <= pg_current_xact_id()
            ORDER BY i.xid DESC, i.id DESC LIMIT 1000
        ) e
        JOIN outbox.full_handler f ON (e.topic || '.') ~ f.topic_regex
        ORDER BY f.refuses DESC LIMIT 1;
        IF hit.refuses THEN
            RAISE configuration_limit_exceeded USING
                MESSAGE = format('topic %L takes no more events: %s deliveries wait for handler %s', hit.topic, hit.events, hit.handler),
                HINT = 'It takes them again when a tenth of them has ended. outboxd doctor says what holds the handler up.';
        ELSIF FOUND THEN
            RAISE WARNING USING
                MESSAGE = format('%s deliveries wait for handler %s, which wants topic %L', hit.events, hit.handler, hit.topic),
                HINT = 'outboxd doctor says what holds the handler up.';
        END IF;
    END IF;
    IF current_setting('outbox.bell', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('outbox', '');
    END IF;
    RETURN NULL;
END
$$;

-- Name: set_limits(text, integer, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.set_limits(handler text, concurrency integer DEFAULT NULL::integer, rate text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: snooze(bigint, text, interval); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.snooze(event_id bigint, handler text, after interval) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: step_changed(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.step_changed() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM outbox.advance_flow(OLD.event_id, OLD.flow);
    RETURN NULL;
END
$$;

-- Name: take_turn(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.take_turn() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    policy  text := outbox.key_order(NEW.handler);
    revived boolean := TG_OP = 'UPDATE' AND NEW.state <> 'blocked';
BEGIN
    IF policy IS NULL THEN
        IF revived OR NOT EXISTS (SELECT FROM outbox.handler h WHERE h.name = NEW.handler AND h.concurrency_per_key IS NOT NULL) THEN
            NEW.due_at := coalesce(NEW.due_at, clock_timestamp());
        END IF;
        RETURN NEW;
    END IF;
    LOOP
        PERFORM FROM outbox.open o
        WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.event_id <> NEW.event_id
          AND outbox.has_turn(o.state, o.attempt, o.due_at, policy)
          -- One that died behind a dead one does not keep it from running again.
          AND NOT (revived AND o.n > NEW.n AND o.state = 'dead')
        ORDER BY o.n DESC LIMIT 1 FOR SHARE;
        IF FOUND THEN
            NEW.state := 'blocked';
            NEW.due_at := NULL;
            RETURN NEW;
        END IF;
        -- Nobody is there who could be locked. Two that find nobody take turns, and the second one looks again.
        PERFORM pg_advisory_xact_lock(hashtextextended('outbox.take_turn ' || NEW.handler, 0));
        -- Locking drops a row that ended meanwhile; then there may be another one.
        IF NOT EXISTS (
            SELECT FROM outbox.open o
            WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.event_id <> NEW.event_id
              AND outbox.has_turn(o.state, o.attempt, o.due_at, policy)
              AND NOT (revived AND o.n > NEW.n AND o.state = 'dead')
        ) THEN
            NEW.due_at := coalesce(NEW.due_at, clock_timestamp());
            RETURN NEW;
        END IF;
    END LOOP;
END
$$;

-- Name: tell_dead(); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.tell_dead() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: tell_done(outbox.open, jsonb); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.tell_done(ended outbox.open, result jsonb) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: topic_regex(text[]); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.topic_regex(topics text[]) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT '^(' || coalesce(string_agg(CASE WHEN pattern ~ '^[*#]' THEN '(?!outboxd\.)' ELSE '' END || regex, '|'), '') || ')$'
    FROM (
        SELECT pattern, (
            SELECT string_agg(CASE word WHEN '#' THEN '([^.]+\.)*' WHEN '*' THEN '[^.]+\.' ELSE word || '\.' END, '' ORDER BY i)
            FROM regexp_split_to_table(pattern, '\.') WITH ORDINALITY AS w (word, i)
        ) AS regex
        FROM unnest(topics) AS t (pattern)
    ) AS p
$_$;

-- Name: trim_log(bigint, bigint, interval); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.trim_log(first_id bigint, next_id bigint, older interval) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '50ms'
    AS $$
DECLARE
    past    timestamptz := clock_timestamp() - older;
    gone    bigint[];
    trimmed bigint;
    more    bigint;
BEGIN
    -- Nobody is registered meanwhile who would begin before what goes: who comes next does not see it.
    LOCK TABLE outbox.handler IN SHARE MODE;
    gone := ARRAY(
        SELECT e.id FROM outbox.event e
        WHERE e.id >= trim_log.first_id AND e.id < trim_log.next_id AND e.created_at < past
          AND EXISTS (SELECT FROM outbox.handler)
          -- Every handler is past it,
          AND NOT EXISTS (
              SELECT FROM outbox.newest_position p
              WHERE NOT coalesce(pg_visible_in_snapshot(e.xid, p.position) OR e.xid >= pg_snapshot_xmax(pg_current_snapshot()), false))
          -- nothing of it is pending, whatever the positions say,
          AND NOT EXISTS (
              SELECT FROM outbox.handler h
              WHERE e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
                AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = h.name)
                AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = h.name))
          -- and what has finished has done so long ago.
          AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.finished_at >= past)
        ORDER BY e.id LIMIT 500);
    WITH events AS (DELETE FROM outbox.event e WHERE e.id = ANY (gone))
    DELETE FROM outbox.done d WHERE d.event_id = ANY (gone);
    DELETE FROM outbox.done d USING (
        SELECT o.event_id, o.handler FROM outbox.done o
        WHERE o.event_id >= trim_log.first_id AND o.event_id < trim_log.next_id AND o.finished_at < past
          AND NOT EXISTS (SELECT FROM outbox.event e WHERE e.id = o.event_id)
        LIMIT 1000) o
    WHERE d.event_id = o.event_id AND d.handler = o.handler;
    GET DIAGNOSTICS trimmed = ROW_COUNT;
    DELETE FROM outbox.attempt a USING (
        SELECT t.event_id, t.handler, t.attempt FROM outbox.attempt t
        WHERE t.event_id >= trim_log.first_id AND t.event_id < trim_log.next_id
          AND NOT EXISTS (SELECT FROM outbox.event e WHERE e.id = t.event_id)
          AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = t.event_id AND o.handler = t.handler)
          AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = t.event_id AND d.handler = t.handler)
        LIMIT 1000) t
    WHERE a.event_id = t.event_id AND a.handler = t.handler AND a.attempt = t.attempt;
    GET DIAGNOSTICS more = ROW_COUNT;
    RETURN cardinality(gone) + trimmed + more;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END
$$;

-- Name: undo_flow(bigint, text, text); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.undo_flow(event_id bigint, flow text, reason text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
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

-- Name: undo_steps(outbox.open); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.undo_steps(instance outbox.open) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: wait_for(bigint, interval); Type: FUNCTION; Schema: outbox; Owner: -

CREATE FUNCTION outbox.wait_for(event_id bigint, timeout interval DEFAULT '00:00:30'::interval) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

-- Name: alert; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.alert (
    name text NOT NULL,
    handler text NOT NULL,
    raised_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

-- Name: TABLE alert; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.alert IS 'The alerts that are raised now.';

-- Name: COLUMN alert.name; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.alert.name IS 'As in the configuration.';

-- Name: COLUMN alert.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.alert.handler IS 'The handler that it is about; empty: the daemon.';

-- Name: COLUMN alert.raised_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.alert.raised_at IS 'Since when.';

-- Name: attempt; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.attempt (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    outcome text NOT NULL,
    error text,
    response text,
    CONSTRAINT error_is_at_most_16_kibibytes CHECK ((octet_length(error) <= 16384)),
    CONSTRAINT outcome_is_how_an_attempt_can_end CHECK ((outcome = ANY (ARRAY['done'::text, 'retry'::text, 'unreachable'::text, 'snooze'::text, 'wait'::text, 'dead'::text, 'lost'::text, 'cancelled'::text, 'paused'::text, 'replayed'::text]))),
    CONSTRAINT response_is_at_most_16_kibibytes CHECK ((octet_length(response) <= 16384))
);

-- Name: TABLE attempt; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.attempt IS 'The attempts of deliveries that did not succeed the first time; of a simple success, outbox.done says all.';

-- Name: COLUMN attempt.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.event_id IS 'The event.';

-- Name: COLUMN attempt.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.handler IS 'The handler.';

-- Name: COLUMN attempt.attempt; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.attempt IS 'Its number, from 1.';

-- Name: COLUMN attempt.started_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.started_at IS 'When it began.';

-- Name: COLUMN attempt.finished_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.finished_at IS 'When it ended.';

-- Name: COLUMN attempt.outcome; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.outcome IS 'done, retry, unreachable (failed, and spent nothing), snooze, wait, paused (410), dead, cancelled, lost (with its daemon), replayed (it had ended, see error).';

-- Name: COLUMN attempt.error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.error IS 'Why it failed.';

-- Name: COLUMN attempt.response; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.attempt.response IS 'The beginning of what the target answered.';

-- Name: done; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
)
PARTITION BY RANGE (event_id);

-- Name: TABLE done; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.done IS 'Deliveries that have ended, a row each. Appended only; goes with its event.';

-- Name: COLUMN done.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.event_id IS 'The event; it may have gone, if only this outcome is kept.';

-- Name: COLUMN done.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.handler IS 'The handler; for a step of a flow FLOW/STEP.';

-- Name: COLUMN done.outcome; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.outcome IS 'done, cancelled, expired, discarded or, of a flow, compensated.';

-- Name: COLUMN done.attempt; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.attempt IS 'The attempt that ended it; 0 if none has begun.';

-- Name: COLUMN done.started_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.started_at IS 'When that attempt began.';

-- Name: COLUMN done.finished_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.finished_at IS 'When it ended.';

-- Name: COLUMN done.result; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.done.result IS 'What the handler answered, 64 KiB; {"merged_into": ID} if a later one does its work; by whom and why, if by hand.';

-- Name: handler; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.handler (
    name text NOT NULL,
    topics text[] NOT NULL,
    topic_regex text NOT NULL,
    kind text NOT NULL,
    settings jsonb NOT NULL,
    flow text,
    absent boolean DEFAULT false NOT NULL,
    first_id bigint NOT NULL,
    ordered text,
    "coalesce" boolean DEFAULT false NOT NULL,
    concurrency_per_key integer,
    on_done text,
    on_dead text,
    paused_at timestamp with time zone,
    paused_until timestamp with time zone,
    paused_by text,
    pause_reason text,
    limit_concurrency integer,
    limit_rate text,
    limited_at timestamp with time zone,
    limited_by text,
    breaker text DEFAULT 'closed'::text NOT NULL,
    breaker_since timestamp with time zone,
    breaker_error text,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT breaker_is_closed_or_open CHECK ((breaker = ANY (ARRAY['closed'::text, 'open'::text]))),
    CONSTRAINT concurrency_per_key_is_1_to_1000_and_without_order CHECK (((concurrency_per_key IS NULL) OR (((concurrency_per_key >= 1) AND (concurrency_per_key <= 1000)) AND (ordered IS NULL)))),
    CONSTRAINT limit_concurrency_is_1_to_1000 CHECK (((limit_concurrency >= 1) AND (limit_concurrency <= 1000))),
    CONSTRAINT limit_rate_is_1_to_100000_in_a_second_minute_or_hour CHECK (((limit_rate ~ '^[1-9][0-9]{0,5}/[smh]$'::text) AND ((split_part(limit_rate, '/'::text, 1))::integer <= 100000))),
    CONSTRAINT name_is_1_to_63_letters_digits_underscores_dashes CHECK ((name ~ '^[A-Za-z0-9_-]{1,63}(/[A-Za-z0-9_-]{1,63}(/compensate)?)?$'::text)),
    CONSTRAINT only_a_step_has_no_topics CHECK (((cardinality(topics) = 0) = (flow IS NOT NULL))),
    CONSTRAINT ordered_is_block_or_skip CHECK ((ordered = ANY (ARRAY['block'::text, 'skip'::text]))),
    CONSTRAINT pause_reason_is_at_most_4_kibibytes CHECK ((octet_length(pause_reason) <= 4096)),
    CONSTRAINT what_is_merged_is_ordered_and_skips CHECK (((NOT "coalesce") OR (ordered = 'skip'::text)))
);

-- Name: TABLE handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.handler IS 'The handlers that a daemon has registered, and what holds them up.';

-- Name: COLUMN handler.name; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.name IS 'As in the configuration; steps of flows are FLOW/STEP and FLOW/STEP/compensate.';

-- Name: COLUMN handler.topics; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.topics IS 'The patterns of the topics that it wants.';

-- Name: COLUMN handler.topic_regex; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.topic_regex IS 'The same as a regular expression for a topic with a dot behind it.';

-- Name: COLUMN handler.kind; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.kind IS 'http, command, sql, rust or flow.';

-- Name: COLUMN handler.settings; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.settings IS 'How it is run, without secrets.';

-- Name: COLUMN handler.flow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.flow IS 'The flow that it is a step or a compensation of.';

-- Name: COLUMN handler.absent; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.absent IS 'It has left the configuration; outboxd forget takes it away.';

-- Name: COLUMN handler.first_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.first_id IS 'Events with lower ids are not meant for it.';

-- Name: COLUMN handler.ordered; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.ordered IS 'One delivery of a key at a time; block or skip says what a dead one does to the next. Null: no order.';

-- Name: COLUMN handler."coalesce"; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler."coalesce" IS 'Of those of a key that wait only the latest is handed over.';

-- Name: COLUMN handler.concurrency_per_key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.concurrency_per_key IS 'So many of a key run at the same time, in no order. Null: any number, or one, in order.';

-- Name: COLUMN handler.on_done; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.on_done IS 'The topic of the event that tells of a success.';

-- Name: COLUMN handler.on_dead; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.on_dead IS 'The topic of the event that tells of a death.';

-- Name: COLUMN handler.paused_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.paused_at IS 'Since when nothing begins (outbox.pause).';

-- Name: COLUMN handler.paused_until; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.paused_until IS 'When that ends by itself. Null: when it is resumed.';

-- Name: COLUMN handler.paused_by; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.paused_by IS 'The role that paused it.';

-- Name: COLUMN handler.pause_reason; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.pause_reason IS 'Why.';

-- Name: COLUMN handler.limit_concurrency; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.limit_concurrency IS 'Attempts at the same time, instead of the configured number (outbox.set_limits). Null: that counts.';

-- Name: COLUMN handler.limit_rate; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.limit_rate IS 'Attempts in a time, as 10/m, instead of the configured rate. Null: that counts.';

-- Name: COLUMN handler.limited_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.limited_at IS 'Since when.';

-- Name: COLUMN handler.limited_by; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.limited_by IS 'By whom.';

-- Name: COLUMN handler.breaker; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.breaker IS 'open: its target cannot be reached or fails, and nothing but probes is sent.';

-- Name: COLUMN handler.breaker_since; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.breaker_since IS 'Since when.';

-- Name: COLUMN handler.breaker_error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.breaker_error IS 'What failed.';

-- Name: COLUMN handler.updated_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.handler.updated_at IS 'When it was registered last.';

-- Name: position; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox."position" (
    n bigint NOT NULL,
    handler text NOT NULL,
    "position" pg_snapshot NOT NULL,
    finished bigint DEFAULT 0 NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);

-- Name: TABLE "position"; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox."position" IS 'How far each handler has come in the log; the newest row counts.';

-- Name: COLUMN "position".n; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox."position".n IS 'The order of the rows.';

-- Name: COLUMN "position".handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox."position".handler IS 'The handler.';

-- Name: COLUMN "position"."position"; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox."position"."position" IS 'Every delivery of what this snapshot sees has a row in outbox.done or outbox.open.';

-- Name: COLUMN "position".finished; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox."position".finished IS 'Deliveries that have ended since the handler was registered.';

-- Name: COLUMN "position".at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox."position".at IS 'When it was written.';

-- Name: backlog; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.backlog AS
 SELECT h.name AS handler,
    h.kind,
    h.absent,
    ((h.paused_at IS NOT NULL) AND COALESCE((h.paused_until > now()), true)) AS paused,
    h.paused_at,
    h.paused_until,
    h.paused_by,
    h.pause_reason,
    h.breaker,
    h.breaker_since,
    h.breaker_error,
    h.limit_concurrency,
    h.limit_rate,
    h.limited_at,
    h.limited_by,
    COALESCE(p.pending, (0)::bigint) AS pending,
    COALESCE(o.scheduled, (0)::bigint) AS scheduled,
    COALESCE(o.retrying, (0)::bigint) AS retrying,
    COALESCE(o.running, (0)::bigint) AS running,
    COALESCE(o.waiting, (0)::bigint) AS waiting,
    COALESCE(o.blocked, (0)::bigint) AS blocked,
    COALESCE(o.dead, (0)::bigint) AS dead,
    (now() - LEAST(p.oldest, o.oldest)) AS oldest_age,
    c.finished,
    r.per_second AS finished_per_second,
    c.at AS position_at
   FROM ((((outbox.handler h
     LEFT JOIN LATERAL ( SELECT "position"."position",
            "position".finished,
            "position".at
           FROM outbox."position"
          WHERE ("position".handler = h.name)
          ORDER BY "position".n DESC
         LIMIT 1) c ON (true))
     LEFT JOIN LATERAL ( SELECT (((max(x.finished) - min(x.finished)))::double precision / (NULLIF(EXTRACT(epoch FROM (max(x.at) - min(x.at))), (0)::numeric))::double precision) AS per_second
           FROM outbox."position" x
          WHERE ((x.handler = h.name) AND (x.at > (now() - '00:02:00'::interval)))) r ON (true))
     LEFT JOIN LATERAL ( SELECT count(*) AS pending,
            min(e.created_at) AS oldest
           FROM outbox.event e
          WHERE ((h.flow IS NULL) AND (e.xid >= pg_snapshot_xmin(c."position")) AND (NOT pg_visible_in_snapshot(e.xid, c."position")) AND (e.id >= h.first_id) AND ((e.topic || '.'::text) ~ h.topic_regex) AND (NOT (EXISTS ( SELECT
                   FROM outbox.done d
                  WHERE ((d.event_id = e.id) AND (d.handler = h.name))))) AND (NOT (EXISTS ( SELECT
                   FROM outbox.open o_1
                  WHERE ((o_1.event_id = e.id) AND (o_1.handler = h.name))))))) p ON (true))
     LEFT JOIN LATERAL ( SELECT count(*) FILTER (WHERE (open.state = 'scheduled'::text)) AS scheduled,
            count(*) FILTER (WHERE (open.state = 'retrying'::text)) AS retrying,
            count(*) FILTER (WHERE (open.state = 'running'::text)) AS running,
            count(*) FILTER (WHERE (open.state = 'waiting'::text)) AS waiting,
            count(*) FILTER (WHERE (open.state = 'blocked'::text)) AS blocked,
            count(*) FILTER (WHERE (open.state = 'dead'::text)) AS dead,
            min(open.created_at) FILTER (WHERE (open.state = ANY (ARRAY['retrying'::text, 'running'::text]))) AS oldest
           FROM outbox.open
          WHERE (open.handler = h.name)) o ON (true));

-- Name: VIEW backlog; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.backlog IS 'What has not ended, by handler. Reads the log behind the position: as much as is pending.';

-- Name: COLUMN backlog.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.handler IS 'The handler.';

-- Name: COLUMN backlog.kind; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.kind IS 'Its kind.';

-- Name: COLUMN backlog.absent; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.absent IS 'It has left the configuration.';

-- Name: COLUMN backlog.paused; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.paused IS 'Nothing begins.';

-- Name: COLUMN backlog.paused_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.paused_at IS 'Since when.';

-- Name: COLUMN backlog.paused_until; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.paused_until IS 'Until when; null: until it is resumed.';

-- Name: COLUMN backlog.paused_by; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.paused_by IS 'By whom.';

-- Name: COLUMN backlog.pause_reason; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.pause_reason IS 'Why.';

-- Name: COLUMN backlog.breaker; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.breaker IS 'open: nothing but probes is sent.';

-- Name: COLUMN backlog.breaker_since; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.breaker_since IS 'Since when.';

-- Name: COLUMN backlog.breaker_error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.breaker_error IS 'What failed.';

-- Name: COLUMN backlog.limit_concurrency; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.limit_concurrency IS 'Attempts at the same time, instead of the configured number.';

-- Name: COLUMN backlog.limit_rate; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.limit_rate IS 'Attempts in a time, instead of the configured rate.';

-- Name: COLUMN backlog.limited_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.limited_at IS 'Since when.';

-- Name: COLUMN backlog.limited_by; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.limited_by IS 'By whom.';

-- Name: COLUMN backlog.pending; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.pending IS 'Deliveries without a row.';

-- Name: COLUMN backlog.scheduled; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.scheduled IS 'Rows in outbox.open, by state.';

-- Name: COLUMN backlog.retrying; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.retrying IS 'Rows in outbox.open, by state.';

-- Name: COLUMN backlog.running; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.running IS 'Rows in outbox.open, by state; an attempt has one after a second.';

-- Name: COLUMN backlog.waiting; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.waiting IS 'Rows in outbox.open, by state.';

-- Name: COLUMN backlog.blocked; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.blocked IS 'Rows in outbox.open, by state.';

-- Name: COLUMN backlog.dead; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.dead IS 'Rows in outbox.open, by state.';

-- Name: COLUMN backlog.oldest_age; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.oldest_age IS 'Since the oldest event was created that is pending, running or retrying.';

-- Name: COLUMN backlog.finished; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.finished IS 'Deliveries that have ended since the handler was registered.';

-- Name: COLUMN backlog.finished_per_second; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.finished_per_second IS 'Over the last two minutes.';

-- Name: COLUMN backlog.position_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.backlog.position_at IS 'When its position was written.';

-- Name: bell; Type: SEQUENCE; Schema: outbox; Owner: -

CREATE SEQUENCE outbox.bell
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    MAXVALUE 3
    CACHE 1
    CYCLE;

-- Name: SEQUENCE bell; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON SEQUENCE outbox.bell IS '1: the daemon sleeps, an INSERT notifies it. 2: it is awake. 3: some handler is full, an INSERT looks whose topic it is.';

-- Name: callback_key; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.callback_key (
    singleton boolean DEFAULT true NOT NULL,
    key bytea DEFAULT sha256((((gen_random_uuid())::text || (gen_random_uuid())::text))::bytea) NOT NULL,
    CONSTRAINT there_is_one_key CHECK (singleton)
);

-- Name: TABLE callback_key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.callback_key IS 'What callback tokens are made with. Who reads it can answer for every delivery.';

-- Name: COLUMN callback_key.singleton; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.callback_key.singleton IS 'There is one row.';

-- Name: COLUMN callback_key.key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.callback_key.key IS 'The key.';

-- Name: cancelling; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.cancelling (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    flow boolean DEFAULT false NOT NULL
);

-- Name: TABLE cancelling; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.cancelling IS 'Deliveries that were cancelled and may run in the daemon; it takes the rows away.';

-- Name: COLUMN cancelling.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.cancelling.event_id IS 'The event.';

-- Name: COLUMN cancelling.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.cancelling.handler IS 'The handler.';

-- Name: COLUMN cancelling.flow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.cancelling.flow IS 'It is a flow, of which the daemon knows how far it is.';

-- Name: consumed; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.consumed (
    consumer text NOT NULL,
    key text NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT consumer_is_1_to_255_bytes CHECK (((octet_length(consumer) >= 1) AND (octet_length(consumer) <= 255))),
    CONSTRAINT key_is_1_to_512_bytes CHECK (((octet_length(key) >= 1) AND (octet_length(key) <= 512)))
);

-- Name: TABLE consumed; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.consumed IS 'What outbox.once remembers.';

-- Name: COLUMN consumed.consumer; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.consumed.consumer IS 'Who did it.';

-- Name: COLUMN consumed.key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.consumed.key IS 'What was done.';

-- Name: COLUMN consumed.expires_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.consumed.expires_at IS 'When it is forgotten.';

-- Name: dedup; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.dedup (
    topic text NOT NULL,
    dedup_key text NOT NULL,
    event_id bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

-- Name: TABLE dedup; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.dedup IS 'The dedup keys within their window.';

-- Name: COLUMN dedup.topic; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.dedup.topic IS 'Of the event.';

-- Name: COLUMN dedup.dedup_key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.dedup.dedup_key IS 'Of the event.';

-- Name: COLUMN dedup.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.dedup.event_id IS 'The event that has it.';

-- Name: COLUMN dedup.expires_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.dedup.expires_at IS 'From then on it may come again.';

-- Name: delivery; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.delivery AS
 SELECT d.event_id,
    d.handler,
    e.topic,
    e.key,
        CASE
            WHEN ((d.outcome = 'cancelled'::text) AND (EXISTS ( SELECT
               FROM outbox.cancelling c
              WHERE ((c.event_id = d.event_id) AND (c.handler = d.handler) AND c.flow)))) THEN 'waiting'::text
            ELSE d.outcome
        END AS state,
    d.attempt AS attempts,
    NULL::timestamp with time zone AS due_at,
    d.started_at,
    d.finished_at,
    NULL::text AS last_error,
    NULL::jsonb AS progress,
    d.result
   FROM (outbox.done d
     LEFT JOIN outbox.event e ON ((e.id = d.event_id)))
UNION ALL
 SELECT o.event_id,
    o.handler,
    o.topic,
    o.key,
    o.state,
    o.attempt AS attempts,
    o.due_at,
    o.started_at,
    NULL::timestamp with time zone AS finished_at,
    o.last_error,
    o.progress,
    NULL::jsonb AS result
   FROM outbox.open o
UNION ALL
 SELECT e.id AS event_id,
    h.name AS handler,
    e.topic,
    e.key,
    'pending'::text AS state,
    0 AS attempts,
    e.due_at,
    NULL::timestamp with time zone AS started_at,
    NULL::timestamp with time zone AS finished_at,
    NULL::text AS last_error,
    NULL::jsonb AS progress,
    NULL::jsonb AS result
   FROM (outbox.event e
     JOIN outbox.handler h ON (((e.id >= h.first_id) AND ((e.topic || '.'::text) ~ h.topic_regex))))
  WHERE ((NOT (EXISTS ( SELECT
           FROM outbox.done d
          WHERE ((d.event_id = e.id) AND (d.handler = h.name))))) AND (NOT (EXISTS ( SELECT
           FROM outbox.open o
          WHERE ((o.event_id = e.id) AND (o.handler = h.name))))));

-- Name: VIEW delivery; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.delivery IS 'Every delivery and its state. Filter by event_id or handler.';

-- Name: COLUMN delivery.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.event_id IS 'The event.';

-- Name: COLUMN delivery.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.handler IS 'The handler.';

-- Name: COLUMN delivery.topic; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.topic IS 'Of the event.';

-- Name: COLUMN delivery.key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.key IS 'Of the event.';

-- Name: COLUMN delivery.state; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.state IS 'pending, a state of outbox.open, or an outcome of outbox.done.';

-- Name: COLUMN delivery.attempts; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.attempts IS 'Attempts that have begun.';

-- Name: COLUMN delivery.due_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.due_at IS 'When it goes on.';

-- Name: COLUMN delivery.started_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.started_at IS 'When the last attempt began.';

-- Name: COLUMN delivery.finished_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.finished_at IS 'When it ended.';

-- Name: COLUMN delivery.last_error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.last_error IS 'Why the last attempt failed.';

-- Name: COLUMN delivery.progress; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.progress IS 'What a running attempt said last.';

-- Name: COLUMN delivery.result; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.delivery.result IS 'What it answered.';

-- Name: done_default; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done_default (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
);

-- Name: done_p0; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done_p0 (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
);

-- Name: done_p1000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done_p1000000 (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
);

-- Name: done_p2000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done_p2000000 (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
);

-- Name: done_p3000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done_p3000000 (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
);

-- Name: done_p4000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.done_p4000000 (
    event_id bigint NOT NULL,
    handler text NOT NULL,
    outcome text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    result jsonb,
    CONSTRAINT done_took_an_attempt CHECK (((outcome <> 'done'::text) OR ((attempt >= 1) AND (started_at IS NOT NULL)) OR (result ? 'merged_into'::text))),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated CHECK ((outcome = ANY (ARRAY['done'::text, 'cancelled'::text, 'expired'::text, 'discarded'::text, 'compensated'::text]))),
    CONSTRAINT result_is_at_most_64_kibibytes CHECK ((pg_column_size(result) <= 65536))
);

-- Name: event_default; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event_default (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
);

-- Name: event_id_seq; Type: SEQUENCE; Schema: outbox; Owner: -

ALTER TABLE outbox.event ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: event_p0; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event_p0 (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
);

-- Name: event_p1000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event_p1000000 (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
);

-- Name: event_p2000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event_p2000000 (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
);

-- Name: event_p3000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event_p3000000 (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
);

-- Name: event_p4000000; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.event_p4000000 (
    id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb DEFAULT '{}'::jsonb NOT NULL,
    dedup_key text,
    due_at timestamp with time zone,
    expires_at timestamp with time zone,
    priority smallint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT created_at_is_between_years_1970_and_9999 CHECK (((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT dedup_key_is_1_to_512_bytes CHECK (((octet_length(dedup_key) >= 1) AND (octet_length(dedup_key) <= 512))),
    CONSTRAINT due_at_is_between_years_1970_and_9999 CHECK (((due_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (due_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT expires_at_is_after_due_at CHECK ((expires_at > due_at)),
    CONSTRAINT expires_at_is_between_years_1970_and_9999 CHECK (((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '9999-01-01 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT headers_are_an_object_of_strings CHECK (((jsonb_typeof(headers) = 'object'::text) AND (NOT jsonb_path_exists(headers, '$.*?(@.type() != "string")'::jsonpath)))),
    CONSTRAINT headers_are_at_most_64_kibibytes CHECK ((pg_column_size(headers) <= 65536)),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters CHECK ((((octet_length(key) >= 1) AND (octet_length(key) <= 512)) AND (key !~ '[[:cntrl:]]'::text))),
    CONSTRAINT payload_is_at_most_16_mebibytes CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT topic_is_at_most_255_bytes CHECK ((octet_length(topic) <= 255)),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash CHECK ((topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'::text))
);

-- Name: failed; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.failed AS
 SELECT a.handler,
    a.outcome,
    count(*) AS attempts,
    count(DISTINCT a.event_id) AS events,
    max(a.finished_at) AS last_at,
    max(a.event_id) AS last_event_id,
    (array_agg(a.error ORDER BY a.finished_at DESC))[1] AS last_error
   FROM ( SELECT t.event_id,
            t.handler,
            t.attempt,
            t.started_at,
            t.finished_at,
            t.outcome,
            t.error,
            t.response
           FROM outbox.attempt t
          WHERE ((t.finished_at >= date_trunc('day'::text, now())) AND (t.outcome = ANY (ARRAY['retry'::text, 'unreachable'::text, 'dead'::text, 'lost'::text, 'paused'::text])))
          ORDER BY t.finished_at DESC
         LIMIT 10000) a
  GROUP BY a.handler, a.outcome, (regexp_replace(split_part(a.error, '
'::text, 1), '[0-9]+'::text, '#'::text, 'g'::text))
  ORDER BY (count(*)) DESC;

-- Name: VIEW failed; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.failed IS 'What failed today and why, by handler and error, the most frequent first: SELECT * FROM outbox.failed.';

-- Name: COLUMN failed.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.handler IS 'The handler.';

-- Name: COLUMN failed.outcome; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.outcome IS 'As in outbox.attempt.';

-- Name: COLUMN failed.attempts; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.attempts IS 'How many.';

-- Name: COLUMN failed.events; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.events IS 'Of how many events.';

-- Name: COLUMN failed.last_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.last_at IS 'When the last of them ended.';

-- Name: COLUMN failed.last_event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.last_event_id IS 'The newest event among them: outboxd show ID.';

-- Name: COLUMN failed.last_error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.failed.last_error IS 'The error of the last of them.';

-- Name: flow; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.flow AS
 SELECT f.event_id,
    f.flow,
    f.state,
    f.version,
    f.topic,
    f.key,
    f.last_error,
    s.stands_at,
    s.steps,
    f.created_at,
    f.finished_at
   FROM (( SELECT o.event_id,
            o.handler AS flow,
                CASE
                    WHEN (o.state = 'dead'::text) THEN 'dead'::text
                    WHEN (o.compensating IS NULL) THEN 'running'::text
                    ELSE 'compensating'::text
                END AS state,
            o.flow_version AS version,
            o.topic,
            o.key,
            o.last_error,
            o.created_at,
            NULL::timestamp with time zone AS finished_at
           FROM outbox.open o
          WHERE (o.flow_version IS NOT NULL)
        UNION ALL
         SELECT d.event_id,
            d.handler,
                CASE
                    WHEN ((d.outcome = 'cancelled'::text) AND (EXISTS ( SELECT
                       FROM outbox.cancelling c
                      WHERE ((c.event_id = d.event_id) AND (c.handler = d.handler) AND c.flow)))) THEN 'compensating'::text
                    ELSE d.outcome
                END AS outcome,
            NULL::integer,
            e.topic,
            e.key,
            (d.result ->> 'reason'::text),
            e.created_at,
            d.finished_at
           FROM ((outbox.done d
             JOIN outbox.handler h ON (((h.name = d.handler) AND (h.kind = 'flow'::text))))
             LEFT JOIN outbox.event e ON ((e.id = d.event_id)))) f
     CROSS JOIN LATERAL ( SELECT array_agg(x.name ORDER BY x.name) FILTER (WHERE x.is_open) AS stands_at,
            jsonb_object_agg(x.name, x.step) AS steps
           FROM ( SELECT substr(d.handler, (length(f.flow) + 2)) AS name,
                    false AS is_open,
                    jsonb_strip_nulls(jsonb_build_object('state', d.outcome, 'attempts', d.attempt, 'started_at', d.started_at, 'finished_at', d.finished_at, 'result', d.result)) AS step
                   FROM outbox.done d
                  WHERE ((d.event_id = f.event_id) AND (d.handler ^@ (f.flow || '/'::text)))
                UNION ALL
                 SELECT substr(o.handler, (length(f.flow) + 2)) AS substr,
                    true,
                    jsonb_strip_nulls(jsonb_build_object('state', o.state, 'attempts', o.attempt, 'started_at', o.started_at, 'due_at', o.due_at, 'error', o.last_error, 'progress', o.progress)) AS jsonb_strip_nulls
                   FROM outbox.open o
                  WHERE ((o.event_id = f.event_id) AND (o.flow = f.flow))) x) s);

-- Name: VIEW flow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.flow IS 'The instances of flows: where each stands. Filter by event_id, or by state and flow.';

-- Name: COLUMN flow.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.event_id IS 'The event that it began with.';

-- Name: COLUMN flow.flow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.flow IS 'The flow.';

-- Name: COLUMN flow.state; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.state IS 'running, compensating, dead, done, compensated, discarded or cancelled.';

-- Name: COLUMN flow.version; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.version IS 'The definition that it goes by.';

-- Name: COLUMN flow.topic; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.topic IS 'Of the event.';

-- Name: COLUMN flow.key; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.key IS 'Of the event.';

-- Name: COLUMN flow.last_error; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.last_error IS 'Why it is dead or undone.';

-- Name: COLUMN flow.stands_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.stands_at IS 'The steps that have not ended.';

-- Name: COLUMN flow.steps; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.steps IS 'Its steps and compensations: state, attempts, times, result or error.';

-- Name: COLUMN flow.created_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.created_at IS 'Of the event.';

-- Name: COLUMN flow.finished_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow.finished_at IS 'When it ended.';

-- Name: flow_version; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.flow_version (
    flow text NOT NULL,
    version integer NOT NULL,
    steps jsonb NOT NULL,
    on_dead_step text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT on_dead_step_is_compensate_or_hold CHECK ((on_dead_step = ANY (ARRAY['compensate'::text, 'hold'::text])))
);

-- Name: TABLE flow_version; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.flow_version IS 'The definitions of flows: an instance ends by the one that it began with.';

-- Name: COLUMN flow_version.flow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow_version.flow IS 'The flow.';

-- Name: COLUMN flow_version.version; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow_version.version IS 'From 1.';

-- Name: COLUMN flow_version.steps; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow_version.steps IS 'Its steps: name, after, and when each is compensated.';

-- Name: COLUMN flow_version.on_dead_step; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow_version.on_dead_step IS 'compensate or hold.';

-- Name: COLUMN flow_version.created_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.flow_version.created_at IS 'When it was first configured.';

-- Name: full_handler; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.full_handler (
    handler text NOT NULL,
    topic_regex text NOT NULL,
    events bigint NOT NULL,
    refuses boolean NOT NULL,
    since timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

-- Name: TABLE full_handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.full_handler IS 'The handlers for which as many deliveries wait as may: their topics take no more events, or warn.';

-- Name: COLUMN full_handler.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.full_handler.handler IS 'The handler.';

-- Name: COLUMN full_handler.topic_regex; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.full_handler.topic_regex IS 'Its topics.';

-- Name: COLUMN full_handler.events; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.full_handler.events IS 'How many may wait.';

-- Name: COLUMN full_handler.refuses; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.full_handler.refuses IS 'Events are refused; otherwise their sessions are warned.';

-- Name: COLUMN full_handler.since; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.full_handler.since IS 'Since when.';

-- Name: installation; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.installation (
    singleton boolean DEFAULT true NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    rebuilt_id bigint DEFAULT 0 NOT NULL,
    dedup_window interval DEFAULT '24:00:00'::interval NOT NULL,
    once_window interval DEFAULT '30 days'::interval NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT dedup_window_is_positive CHECK ((dedup_window > '00:00:00'::interval)),
    CONSTRAINT once_window_is_positive CHECK ((once_window > '00:00:00'::interval)),
    CONSTRAINT there_is_one_row CHECK (singleton)
);

-- Name: TABLE installation; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.installation IS 'What this installation is; one row.';

-- Name: COLUMN installation.singleton; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.singleton IS 'There is one row.';

-- Name: COLUMN installation.id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.id IS 'A part of every idempotency key.';

-- Name: COLUMN installation.system_identifier; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.system_identifier IS 'The cluster in which the positions mean something.';

-- Name: COLUMN installation.timeline; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.timeline IS 'And its timeline: another one is a restore or a failover.';

-- Name: COLUMN installation.rebuilt_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.rebuilt_id IS 'Events up to this id were read again after a restore or a failover.';

-- Name: COLUMN installation.dedup_window; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.dedup_window IS 'How long a dedup key is remembered.';

-- Name: COLUMN installation.once_window; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.once_window IS 'How long outbox.once remembers.';

-- Name: COLUMN installation.created_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.installation.created_at IS 'When the schema was made.';

-- Name: newest_position; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.newest_position AS
 SELECT h.name AS handler,
    h.absent,
    ((h.paused_at IS NOT NULL) AND COALESCE((h.paused_until > now()), true)) AS paused,
    p."position"
   FROM (outbox.handler h
     LEFT JOIN LATERAL ( SELECT "position"."position"
           FROM outbox."position"
          WHERE ("position".handler = h.name)
          ORDER BY "position".n DESC
         LIMIT 1) p ON (true))
  WHERE (h.flow IS NULL);

-- Name: VIEW newest_position; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.newest_position IS 'How far each handler has come.';

-- Name: COLUMN newest_position.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.newest_position.handler IS 'The handler.';

-- Name: COLUMN newest_position.absent; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.newest_position.absent IS 'It has left the configuration.';

-- Name: COLUMN newest_position.paused; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.newest_position.paused IS 'Nothing begins.';

-- Name: COLUMN newest_position."position"; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.newest_position."position" IS 'As in outbox.position.';

-- Name: open_n_seq; Type: SEQUENCE; Schema: outbox; Owner: -

ALTER TABLE outbox.open ALTER COLUMN n ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.open_n_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: operation; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.operation (
    n bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    role text NOT NULL,
    action text NOT NULL,
    handler text,
    event_id bigint,
    deliveries bigint,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT detail_is_at_most_64_kibibytes CHECK ((pg_column_size(detail) <= 65536))
);

-- Name: TABLE operation; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.operation IS 'What was done by hand: who, when, what. What is about one event goes when it is old, the rest after a year.';

-- Name: COLUMN operation.n; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.n IS 'The order of the rows.';

-- Name: COLUMN operation.at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.at IS 'When.';

-- Name: COLUMN operation.role; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.role IS 'The role that did it: that of SET ROLE, or the one that had logged in.';

-- Name: COLUMN operation.action; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.action IS 'The function of the schema that did it; limit is outbox.set_limits.';

-- Name: COLUMN operation.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.handler IS 'The handler; null: all of them.';

-- Name: COLUMN operation.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.event_id IS 'The event; null: many, or none.';

-- Name: COLUMN operation.deliveries; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.deliveries IS 'Of an action on many: how many.';

-- Name: COLUMN operation.detail; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.operation.detail IS 'What else was said, the reason for example.';

-- Name: operation_n_seq; Type: SEQUENCE; Schema: outbox; Owner: -

ALTER TABLE outbox.operation ALTER COLUMN n ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.operation_n_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: position_n_seq; Type: SEQUENCE; Schema: outbox; Owner: -

ALTER TABLE outbox."position" ALTER COLUMN n ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.position_n_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

-- Name: publish_right; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.publish_right (
    role text NOT NULL,
    topics text[] NOT NULL,
    topic_regex text NOT NULL,
    granted_by text NOT NULL,
    granted_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT topics_are_1_to_100 CHECK (((cardinality(topics) >= 1) AND (cardinality(topics) <= 100)))
);

-- Name: TABLE publish_right; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.publish_right IS 'The topics that roles may publish which may not publish all of them; see outbox.allow_publish.';

-- Name: COLUMN publish_right.role; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.publish_right.role IS 'The role; its members may do the same.';

-- Name: COLUMN publish_right.topics; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.publish_right.topics IS 'The patterns of the topics.';

-- Name: COLUMN publish_right.topic_regex; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.publish_right.topic_regex IS 'The same as a regular expression for a topic with a dot behind it.';

-- Name: COLUMN publish_right.granted_by; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.publish_right.granted_by IS 'By whom.';

-- Name: COLUMN publish_right.granted_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.publish_right.granted_at IS 'Since when.';

-- Name: refinery_schema_history; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.refinery_schema_history (
    version integer NOT NULL,
    name character varying(255),
    applied_on character varying(255),
    checksum character varying(255)
);

-- Name: schedule; Type: TABLE; Schema: outbox; Owner: -

CREATE TABLE outbox.schedule (
    name text NOT NULL,
    cron text NOT NULL,
    timezone text NOT NULL,
    topic text NOT NULL,
    ticked_at timestamp with time zone NOT NULL,
    next_at timestamp with time zone
);

-- Name: TABLE schedule; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON TABLE outbox.schedule IS 'The schedules of the configuration.';

-- Name: COLUMN schedule.name; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.schedule.name IS 'As in the configuration.';

-- Name: COLUMN schedule.cron; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.schedule.cron IS 'When it ticks.';

-- Name: COLUMN schedule.timezone; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.schedule.timezone IS 'Where.';

-- Name: COLUMN schedule.topic; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.schedule.topic IS 'The topic of its events.';

-- Name: COLUMN schedule.ticked_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.schedule.ticked_at IS 'When it ticked last.';

-- Name: COLUMN schedule.next_at; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.schedule.next_at IS 'When it ticks next.';

-- Name: slow; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.slow AS
 SELECT d.handler,
    count(*) AS deliveries,
    percentile_cont((0.5)::double precision) WITHIN GROUP (ORDER BY x.ran) AS ran_p50,
    percentile_cont((0.99)::double precision) WITHIN GROUP (ORDER BY x.ran) AS ran_p99,
    percentile_cont((0.5)::double precision) WITHIN GROUP (ORDER BY x.waited) AS waited_p50,
    percentile_cont((0.99)::double precision) WITHIN GROUP (ORDER BY x.waited) AS waited_p99,
    (array_agg(d.event_id ORDER BY x.ran DESC))[1] AS slowest_event_id
   FROM ((( SELECT n.event_id,
            n.handler,
            n.started_at,
            n.finished_at
           FROM outbox.done n
          WHERE (n.started_at IS NOT NULL)
          ORDER BY n.event_id DESC
         LIMIT 10000) d
     CROSS JOIN LATERAL ( SELECT GREATEST(e_1.created_at, e_1.due_at) AS since
           FROM outbox.event e_1
          WHERE (e_1.id = d.event_id)
         LIMIT 1) e)
     CROSS JOIN LATERAL ( SELECT (EXTRACT(epoch FROM (d.finished_at - d.started_at)))::double precision AS ran,
            (GREATEST((0)::numeric, EXTRACT(epoch FROM (d.started_at - e.since))))::double precision AS waited) x)
  GROUP BY d.handler
  ORDER BY (percentile_cont((0.99)::double precision) WITHIN GROUP (ORDER BY x.ran)) DESC;

-- Name: VIEW slow; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.slow IS 'How long attempts ran and deliveries waited, by handler, among the newest 10,000 that have ended: SELECT * FROM outbox.slow.';

-- Name: COLUMN slow.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.handler IS 'The handler.';

-- Name: COLUMN slow.deliveries; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.deliveries IS 'How many were looked at.';

-- Name: COLUMN slow.ran_p50; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.ran_p50 IS 'Seconds that the last attempt took, the median.';

-- Name: COLUMN slow.ran_p99; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.ran_p99 IS 'The same, exceeded by one of a hundred.';

-- Name: COLUMN slow.waited_p50; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.waited_p50 IS 'Seconds from the creation, or since it was due, to that attempt, the median.';

-- Name: COLUMN slow.waited_p99; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.waited_p99 IS 'The same, exceeded by one of a hundred.';

-- Name: COLUMN slow.slowest_event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.slow.slowest_event_id IS 'The event whose attempt took longest.';

-- Name: stuck; Type: VIEW; Schema: outbox; Owner: -

CREATE VIEW outbox.stuck AS
 SELECT h.name AS handler,
    s.why,
    s.deliveries,
    s.event_id,
    s.since,
    s.detail
   FROM (outbox.handler h
     CROSS JOIN LATERAL ( SELECT 'paused'::text AS why,
            NULL::bigint AS deliveries,
            NULL::bigint AS event_id,
            h.paused_at AS since,
            concat_ws(': '::text, ('by '::text || h.paused_by), h.pause_reason) AS detail
          WHERE ((h.paused_at IS NOT NULL) AND COALESCE((h.paused_until > now()), true))
        UNION ALL
         SELECT 'breaker open'::text,
            NULL::bigint,
            NULL::bigint,
            h.breaker_since,
            h.breaker_error
          WHERE (h.breaker = 'open'::text)
        UNION ALL
         SELECT 'full'::text,
            f.events,
            NULL::bigint,
            f.since,
                CASE
                    WHEN f.refuses THEN 'its topics take no more events'::text
                    ELSE 'producers are warned'::text
                END AS "case"
           FROM outbox.full_handler f
          WHERE (f.handler = h.name)
        UNION ALL
         SELECT x.state,
            ( SELECT count(*) AS count
                   FROM ( SELECT
                           FROM outbox.open o
                          WHERE ((o.state = x.state) AND (o.handler = h.name))
                         LIMIT 10000) c) AS count,
            f.event_id,
            f.updated_at,
                CASE
                    WHEN (x.state = 'dead'::text) THEN f.last_error
                    WHEN (h.concurrency_per_key IS NOT NULL) THEN format('as many of its key as may run do (concurrency_per_key = %s): %s'::text, h.concurrency_per_key, f.key)
                    ELSE ('behind another one of its key: '::text || f.key)
                END AS "case"
           FROM (( VALUES ('dead'::text), ('blocked'::text)) x(state)
             CROSS JOIN LATERAL ( SELECT o.event_id,
                    o.updated_at,
                    o.last_error,
                    o.key
                   FROM outbox.open o
                  WHERE ((o.state = x.state) AND (o.handler = h.name))
                  ORDER BY o.updated_at
                 LIMIT 1) f)
        UNION ALL
         SELECT 'overdue'::text,
            ( SELECT count(*) AS count
                   FROM ( SELECT
                           FROM outbox.open o
                          WHERE ((o.handler = h.name) AND (o.due_at < (now() - '00:01:00'::interval)))
                         LIMIT 10000) c) AS count,
            f.event_id,
            f.due_at,
            f.last_error
           FROM ( SELECT o.event_id,
                    o.due_at,
                    o.last_error
                   FROM outbox.open o
                  WHERE ((o.handler = h.name) AND (o.due_at < (now() - '00:01:00'::interval)))
                  ORDER BY o.due_at
                 LIMIT 1) f
        UNION ALL
         SELECT 'running'::text,
            count(*) AS count,
            (array_agg(o.event_id ORDER BY o.started_at))[1] AS array_agg,
            min(o.started_at) AS min,
            NULL::text
           FROM outbox.open o
          WHERE ((o.state = 'running'::text) AND (o.handler = h.name) AND (o.started_at < (now() - '00:10:00'::interval)))
         HAVING (count(*) > 0)) s)
  ORDER BY s.since;

-- Name: VIEW stuck; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON VIEW outbox.stuck IS 'What holds handlers up, the longest first: SELECT * FROM outbox.stuck.';

-- Name: COLUMN stuck.handler; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.stuck.handler IS 'The handler.';

-- Name: COLUMN stuck.why; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.stuck.why IS 'paused, breaker open, full, dead, blocked, overdue (by a minute) or running (for ten minutes).';

-- Name: COLUMN stuck.deliveries; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.stuck.deliveries IS 'How many, counted up to 10,000; null: whatever comes.';

-- Name: COLUMN stuck.event_id; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.stuck.event_id IS 'The one that has been so for longest: outboxd show ID.';

-- Name: COLUMN stuck.since; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.stuck.since IS 'Since when.';

-- Name: COLUMN stuck.detail; Type: COMMENT; Schema: outbox; Owner: -

COMMENT ON COLUMN outbox.stuck.detail IS 'The error, or by whom and why.';

-- Name: done_default; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done ATTACH PARTITION outbox.done_default DEFAULT;

-- Name: done_p0; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done ATTACH PARTITION outbox.done_p0 FOR VALUES FROM ('0') TO ('1000000');

-- Name: done_p1000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done ATTACH PARTITION outbox.done_p1000000 FOR VALUES FROM ('1000000') TO ('2000000');

-- Name: done_p2000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done ATTACH PARTITION outbox.done_p2000000 FOR VALUES FROM ('2000000') TO ('3000000');

-- Name: done_p3000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done ATTACH PARTITION outbox.done_p3000000 FOR VALUES FROM ('3000000') TO ('4000000');

-- Name: done_p4000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done ATTACH PARTITION outbox.done_p4000000 FOR VALUES FROM ('4000000') TO ('5000000');

-- Name: event_default; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event ATTACH PARTITION outbox.event_default DEFAULT;

-- Name: event_p0; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event ATTACH PARTITION outbox.event_p0 FOR VALUES FROM ('0') TO ('1000000');

-- Name: event_p1000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event ATTACH PARTITION outbox.event_p1000000 FOR VALUES FROM ('1000000') TO ('2000000');

-- Name: event_p2000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event ATTACH PARTITION outbox.event_p2000000 FOR VALUES FROM ('2000000') TO ('3000000');

-- Name: event_p3000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event ATTACH PARTITION outbox.event_p3000000 FOR VALUES FROM ('3000000') TO ('4000000');

-- Name: event_p4000000; Type: TABLE ATTACH; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event ATTACH PARTITION outbox.event_p4000000 FOR VALUES FROM ('4000000') TO ('5000000');

-- Name: alert alert_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.alert
    ADD CONSTRAINT alert_pkey PRIMARY KEY (name, handler);

-- Name: attempt attempt_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.attempt
    ADD CONSTRAINT attempt_pkey PRIMARY KEY (event_id, handler, attempt);

-- Name: callback_key callback_key_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.callback_key
    ADD CONSTRAINT callback_key_pkey PRIMARY KEY (singleton);

-- Name: consumed consumed_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.consumed
    ADD CONSTRAINT consumed_pkey PRIMARY KEY (consumer, key);

-- Name: dedup dedup_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.dedup
    ADD CONSTRAINT dedup_pkey PRIMARY KEY (topic, dedup_key);

-- Name: done done_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done
    ADD CONSTRAINT done_pkey PRIMARY KEY (event_id, handler);

-- Name: done_default done_default_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done_default
    ADD CONSTRAINT done_default_pkey PRIMARY KEY (event_id, handler);

-- Name: done_p0 done_p0_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done_p0
    ADD CONSTRAINT done_p0_pkey PRIMARY KEY (event_id, handler);

-- Name: done_p1000000 done_p1000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done_p1000000
    ADD CONSTRAINT done_p1000000_pkey PRIMARY KEY (event_id, handler);

-- Name: done_p2000000 done_p2000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done_p2000000
    ADD CONSTRAINT done_p2000000_pkey PRIMARY KEY (event_id, handler);

-- Name: done_p3000000 done_p3000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done_p3000000
    ADD CONSTRAINT done_p3000000_pkey PRIMARY KEY (event_id, handler);

-- Name: done_p4000000 done_p4000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.done_p4000000
    ADD CONSTRAINT done_p4000000_pkey PRIMARY KEY (event_id, handler);

-- Name: event event_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (id);

-- Name: event_default event_default_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event_default
    ADD CONSTRAINT event_default_pkey PRIMARY KEY (id);

-- Name: event_p0 event_p0_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event_p0
    ADD CONSTRAINT event_p0_pkey PRIMARY KEY (id);

-- Name: event_p1000000 event_p1000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event_p1000000
    ADD CONSTRAINT event_p1000000_pkey PRIMARY KEY (id);

-- Name: event_p2000000 event_p2000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event_p2000000
    ADD CONSTRAINT event_p2000000_pkey PRIMARY KEY (id);

-- Name: event_p3000000 event_p3000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event_p3000000
    ADD CONSTRAINT event_p3000000_pkey PRIMARY KEY (id);

-- Name: event_p4000000 event_p4000000_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.event_p4000000
    ADD CONSTRAINT event_p4000000_pkey PRIMARY KEY (id);

-- Name: flow_version flow_version_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.flow_version
    ADD CONSTRAINT flow_version_pkey PRIMARY KEY (flow, version);

-- Name: full_handler full_handler_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.full_handler
    ADD CONSTRAINT full_handler_pkey PRIMARY KEY (handler);

-- Name: handler handler_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.handler
    ADD CONSTRAINT handler_pkey PRIMARY KEY (name);

-- Name: installation installation_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (singleton);

-- Name: open open_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.open
    ADD CONSTRAINT open_pkey PRIMARY KEY (event_id, handler);

-- Name: operation operation_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.operation
    ADD CONSTRAINT operation_pkey PRIMARY KEY (n);

-- Name: position position_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox."position"
    ADD CONSTRAINT position_pkey PRIMARY KEY (n);

-- Name: publish_right publish_right_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.publish_right
    ADD CONSTRAINT publish_right_pkey PRIMARY KEY (role);

-- Name: refinery_schema_history refinery_schema_history_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.refinery_schema_history
    ADD CONSTRAINT refinery_schema_history_pkey PRIMARY KEY (version);

-- Name: schedule schedule_pkey; Type: CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox.schedule
    ADD CONSTRAINT schedule_pkey PRIMARY KEY (name);

-- Name: attempt_finished; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX attempt_finished ON outbox.attempt USING btree (finished_at);

-- Name: consumed_expires; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX consumed_expires ON outbox.consumed USING btree (expires_at);

-- Name: dedup_expires; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX dedup_expires ON outbox.dedup USING btree (expires_at);

-- Name: event_correlation; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_correlation ON ONLY outbox.event USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_default_expr_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_default_expr_id_idx ON outbox.event_default USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_xid_id; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_xid_id ON ONLY outbox.event USING btree (xid, id);

-- Name: event_default_xid_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_default_xid_id_idx ON outbox.event_default USING btree (xid, id);

-- Name: event_p0_expr_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p0_expr_id_idx ON outbox.event_p0 USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_p0_xid_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p0_xid_id_idx ON outbox.event_p0 USING btree (xid, id);

-- Name: event_p1000000_expr_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p1000000_expr_id_idx ON outbox.event_p1000000 USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_p1000000_xid_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p1000000_xid_id_idx ON outbox.event_p1000000 USING btree (xid, id);

-- Name: event_p2000000_expr_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p2000000_expr_id_idx ON outbox.event_p2000000 USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_p2000000_xid_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p2000000_xid_id_idx ON outbox.event_p2000000 USING btree (xid, id);

-- Name: event_p3000000_expr_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p3000000_expr_id_idx ON outbox.event_p3000000 USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_p3000000_xid_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p3000000_xid_id_idx ON outbox.event_p3000000 USING btree (xid, id);

-- Name: event_p4000000_expr_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p4000000_expr_id_idx ON outbox.event_p4000000 USING btree (((headers ->> 'correlation_id'::text)), id) WHERE (headers ? 'correlation_id'::text);

-- Name: event_p4000000_xid_id_idx; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX event_p4000000_xid_id_idx ON outbox.event_p4000000 USING btree (xid, id);

-- Name: open_due; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX open_due ON outbox.open USING btree (handler, due_at, event_id) WHERE (due_at IS NOT NULL);

-- Name: open_key; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX open_key ON outbox.open USING btree (handler, key, n) WHERE (key IS NOT NULL);

-- Name: open_state; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX open_state ON outbox.open USING btree (state, handler, updated_at);

-- Name: operation_at; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX operation_at ON outbox.operation USING btree (at);

-- Name: operation_event; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX operation_event ON outbox.operation USING btree (event_id, n) WHERE (event_id IS NOT NULL);

-- Name: position_newest; Type: INDEX; Schema: outbox; Owner: -

CREATE INDEX position_newest ON outbox."position" USING btree (handler, n DESC);

-- Name: done_default_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.done_pkey ATTACH PARTITION outbox.done_default_pkey;

-- Name: done_p0_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.done_pkey ATTACH PARTITION outbox.done_p0_pkey;

-- Name: done_p1000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.done_pkey ATTACH PARTITION outbox.done_p1000000_pkey;

-- Name: done_p2000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.done_pkey ATTACH PARTITION outbox.done_p2000000_pkey;

-- Name: done_p3000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.done_pkey ATTACH PARTITION outbox.done_p3000000_pkey;

-- Name: done_p4000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.done_pkey ATTACH PARTITION outbox.done_p4000000_pkey;

-- Name: event_default_expr_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_correlation ATTACH PARTITION outbox.event_default_expr_id_idx;

-- Name: event_default_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_pkey ATTACH PARTITION outbox.event_default_pkey;

-- Name: event_default_xid_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_xid_id ATTACH PARTITION outbox.event_default_xid_id_idx;

-- Name: event_p0_expr_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_correlation ATTACH PARTITION outbox.event_p0_expr_id_idx;

-- Name: event_p0_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_pkey ATTACH PARTITION outbox.event_p0_pkey;

-- Name: event_p0_xid_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_xid_id ATTACH PARTITION outbox.event_p0_xid_id_idx;

-- Name: event_p1000000_expr_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_correlation ATTACH PARTITION outbox.event_p1000000_expr_id_idx;

-- Name: event_p1000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_pkey ATTACH PARTITION outbox.event_p1000000_pkey;

-- Name: event_p1000000_xid_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_xid_id ATTACH PARTITION outbox.event_p1000000_xid_id_idx;

-- Name: event_p2000000_expr_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_correlation ATTACH PARTITION outbox.event_p2000000_expr_id_idx;

-- Name: event_p2000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_pkey ATTACH PARTITION outbox.event_p2000000_pkey;

-- Name: event_p2000000_xid_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_xid_id ATTACH PARTITION outbox.event_p2000000_xid_id_idx;

-- Name: event_p3000000_expr_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_correlation ATTACH PARTITION outbox.event_p3000000_expr_id_idx;

-- Name: event_p3000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_pkey ATTACH PARTITION outbox.event_p3000000_pkey;

-- Name: event_p3000000_xid_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_xid_id ATTACH PARTITION outbox.event_p3000000_xid_id_idx;

-- Name: event_p4000000_expr_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_correlation ATTACH PARTITION outbox.event_p4000000_expr_id_idx;

-- Name: event_p4000000_pkey; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_pkey ATTACH PARTITION outbox.event_p4000000_pkey;

-- Name: event_p4000000_xid_id_idx; Type: INDEX ATTACH; Schema: outbox; Owner: -

ALTER INDEX outbox.event_xid_id ATTACH PARTITION outbox.event_p4000000_xid_id_idx;

-- Name: handler change_key_order; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER change_key_order AFTER UPDATE OF ordered, concurrency_per_key ON outbox.handler FOR EACH ROW WHEN (((old.ordered IS DISTINCT FROM new.ordered) OR ((old.concurrency_per_key IS NULL) <> (new.concurrency_per_key IS NULL)))) EXECUTE FUNCTION outbox.change_key_order();

-- Name: open keep_dead_step; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER keep_dead_step BEFORE UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((old.flow IS NOT NULL) AND (old.state = 'dead'::text) AND (new.state <> 'dead'::text))) EXECUTE FUNCTION outbox.keep_dead_step();

-- Name: open merge_earlier_insert; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER merge_earlier_insert BEFORE INSERT ON outbox.open FOR EACH ROW WHEN ((new.state = 'blocked'::text)) EXECUTE FUNCTION outbox.merge_earlier();

-- Name: open merge_earlier_update; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER merge_earlier_update BEFORE UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((new.state = 'blocked'::text) AND (old.state <> 'blocked'::text))) EXECUTE FUNCTION outbox.merge_earlier();

-- Name: open merge_failed; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER merge_failed AFTER UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((new.key IS NOT NULL) AND (((new.state = 'retrying'::text) AND (old.state <> 'retrying'::text)) OR ((new.state = 'blocked'::text) AND (old.state = 'dead'::text))))) EXECUTE FUNCTION outbox.merge_failed();

-- Name: open pass_turn_dead; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER pass_turn_dead AFTER UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((new.key IS NOT NULL) AND (new.state = 'dead'::text) AND (old.state <> 'dead'::text))) EXECUTE FUNCTION outbox.pass_turn();

-- Name: open pass_turn_delete; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER pass_turn_delete AFTER DELETE ON outbox.open FOR EACH ROW WHEN ((old.key IS NOT NULL)) EXECUTE FUNCTION outbox.pass_turn();

-- Name: event remember_dedup_key; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER remember_dedup_key AFTER INSERT ON outbox.event FOR EACH ROW WHEN ((new.dedup_key IS NOT NULL)) EXECUTE FUNCTION outbox.remember_dedup_key();

-- Name: event ring; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER ring AFTER INSERT ON outbox.event FOR EACH STATEMENT WHEN ((pg_sequence_last_value('outbox.bell'::regclass) <> 2)) EXECUTE FUNCTION outbox.ring();

-- Name: open step_changed; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER step_changed AFTER UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((old.flow IS NOT NULL) AND (old.state <> new.state) AND ((new.state = 'dead'::text) OR (old.state = ANY (ARRAY['dead'::text, 'running'::text]))))) EXECUTE FUNCTION outbox.step_changed();

-- Name: open step_ended; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER step_ended AFTER DELETE ON outbox.open FOR EACH ROW WHEN ((old.flow IS NOT NULL)) EXECUTE FUNCTION outbox.step_changed();

-- Name: open take_turn_insert; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER take_turn_insert BEFORE INSERT ON outbox.open FOR EACH ROW WHEN ((new.state = 'blocked'::text)) EXECUTE FUNCTION outbox.take_turn();

-- Name: open take_turn_update; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER take_turn_update BEFORE UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((new.key IS NOT NULL) AND (((new.state = 'blocked'::text) AND (old.state <> 'blocked'::text)) OR ((old.state = 'dead'::text) AND (new.state = ANY (ARRAY['retrying'::text, 'scheduled'::text])))))) EXECUTE FUNCTION outbox.take_turn();

-- Name: open tell_dead_insert; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER tell_dead_insert AFTER INSERT ON outbox.open FOR EACH ROW WHEN ((new.state = 'dead'::text)) EXECUTE FUNCTION outbox.tell_dead();

-- Name: open tell_dead_update; Type: TRIGGER; Schema: outbox; Owner: -

CREATE TRIGGER tell_dead_update AFTER UPDATE OF state ON outbox.open FOR EACH ROW WHEN (((new.state = 'dead'::text) AND (old.state <> 'dead'::text))) EXECUTE FUNCTION outbox.tell_dead();

-- Name: position position_handler_fkey; Type: FK CONSTRAINT; Schema: outbox; Owner: -

ALTER TABLE ONLY outbox."position"
    ADD CONSTRAINT position_handler_fkey FOREIGN KEY (handler) REFERENCES outbox.handler(name) ON DELETE CASCADE;

-- Name: FUNCTION add_partitions(ahead integer, lasting interval, smallest bigint); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.add_partitions(ahead integer, lasting interval, smallest bigint) FROM PUBLIC;

-- Name: FUNCTION add_roles(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.add_roles() FROM PUBLIC;

-- Name: FUNCTION advance_flow(event_id bigint, flow text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.advance_flow(event_id bigint, flow text) FROM PUBLIC;

-- Name: FUNCTION allow_publish(role name, VARIADIC topics text[]); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.allow_publish(role name, VARIADIC topics text[]) FROM PUBLIC;

-- Name: FUNCTION answer_done(event_id bigint, handler text, result jsonb); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.answer_done(event_id bigint, handler text, result jsonb) FROM PUBLIC;

-- Name: FUNCTION answer_failed(event_id bigint, handler text, error text, dead boolean); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.answer_failed(event_id bigint, handler text, error text, dead boolean) FROM PUBLIC;

-- Name: FUNCTION begin_flow(event_id bigint, flow text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.begin_flow(event_id bigint, flow text) FROM PUBLIC;

-- Name: FUNCTION begin_step(instance outbox.open, step text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.begin_step(instance outbox.open, step text) FROM PUBLIC;

-- Name: FUNCTION caller(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.caller() FROM PUBLIC;

-- Name: FUNCTION cancel(event_id bigint, handler text, reason text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.cancel(event_id bigint, handler text, reason text) FROM PUBLIC;

-- Name: FUNCTION caused_by(event_id bigint, headers jsonb); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.caused_by(event_id bigint, headers jsonb) FROM PUBLIC;

-- Name: FUNCTION change_key_order(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.change_key_order() FROM PUBLIC;

-- Name: FUNCTION check_patterns(topics text[]); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.check_patterns(topics text[]) FROM PUBLIC;

-- Name: FUNCTION check_publish(role name, topic text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.check_publish(role name, topic text) FROM PUBLIC;

-- Name: FUNCTION complete(event_id bigint, handler text, result jsonb); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.complete(event_id bigint, handler text, result jsonb) FROM PUBLIC;

-- Name: FUNCTION dead_letters(handler text, topic text, since timestamp with time zone, until timestamp with time zone, error text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.dead_letters(handler text, topic text, since timestamp with time zone, until timestamp with time zone, error text) FROM PUBLIC;

-- Name: FUNCTION dedup_holder(topic text, dedup_key text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.dedup_holder(topic text, dedup_key text) FROM PUBLIC;

-- Name: FUNCTION define_flow(flow text, steps jsonb, on_dead_step text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.define_flow(flow text, steps jsonb, on_dead_step text) FROM PUBLIC;

-- Name: FUNCTION discard(event_id bigint, handler text, reason text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.discard(event_id bigint, handler text, reason text) FROM PUBLIC;

-- Name: FUNCTION discard(reason text, handler text, topic text, since timestamp with time zone, until timestamp with time zone, error text, dry_run boolean); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.discard(reason text, handler text, topic text, since timestamp with time zone, until timestamp with time zone, error text, dry_run boolean) FROM PUBLIC;

-- Name: FUNCTION drop_partitions(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.drop_partitions() FROM PUBLIC;

-- Name: FUNCTION empty_partition(first_id bigint, checked pg_snapshot); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.empty_partition(first_id bigint, checked pg_snapshot) FROM PUBLIC;

-- Name: FUNCTION end_flow(instance outbox.open, outcome text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.end_flow(instance outbox.open, outcome text) FROM PUBLIC;

-- Name: FUNCTION fail(event_id bigint, handler text, error text, dead boolean); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.fail(event_id bigint, handler text, error text, dead boolean) FROM PUBLIC;

-- Name: FUNCTION flow_results(ended jsonb); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.flow_results(ended jsonb) FROM PUBLIC;

-- Name: FUNCTION flow_steps(instance outbox.open); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.flow_steps(instance outbox.open) FROM PUBLIC;

-- Name: FUNCTION forbid_publish(role name); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.forbid_publish(role name) FROM PUBLIC;

-- Name: FUNCTION forget(handler text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.forget(handler text) FROM PUBLIC;

-- Name: FUNCTION has_ended(state text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.has_ended(state text) FROM PUBLIC;

-- Name: FUNCTION has_turn(state text, attempt integer, due_at timestamp with time zone, ordered text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.has_turn(state text, attempt integer, due_at timestamp with time zone, ordered text) FROM PUBLIC;

-- Name: FUNCTION heartbeat(event_id bigint, handler text, attempt integer, progress jsonb); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.heartbeat(event_id bigint, handler text, attempt integer, progress jsonb) FROM PUBLIC;

-- Name: FUNCTION holds_key(state text, attempt integer, ordered text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.holds_key(state text, attempt integer, ordered text) FROM PUBLIC;

-- Name: FUNCTION is_past(part regclass); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.is_past(part regclass) FROM PUBLIC;

-- Name: FUNCTION keep_dead_step(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.keep_dead_step() FROM PUBLIC;

-- Name: FUNCTION key_order(handler text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.key_order(handler text) FROM PUBLIC;

-- Name: FUNCTION let_publish(role text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.let_publish(role text) FROM PUBLIC;

-- Name: FUNCTION merge_earlier(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.merge_earlier() FROM PUBLIC;

-- Name: FUNCTION merge_failed(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.merge_failed() FROM PUBLIC;

-- Name: FUNCTION needs_read_committed(what text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.needs_read_committed(what text) FROM PUBLIC;

-- Name: FUNCTION note(action text, handler text, event_id bigint, deliveries bigint, VARIADIC details text[]); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.note(action text, handler text, event_id bigint, deliveries bigint, VARIADIC details text[]) FROM PUBLIC;

-- Name: FUNCTION old_partitions(retention interval); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.old_partitions(retention interval) FROM PUBLIC;

-- Name: FUNCTION once(consumer text, key text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.once(consumer text, key text) FROM PUBLIC;

-- Name: FUNCTION partitions(OUT first_id bigint, OUT next_id bigint); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.partitions(OUT first_id bigint, OUT next_id bigint) FROM PUBLIC;

-- Name: FUNCTION pass_turn(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.pass_turn() FROM PUBLIC;

-- Name: FUNCTION pause(handler text, reason text, until timestamp with time zone); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.pause(handler text, reason text, until timestamp with time zone) FROM PUBLIC;

-- Name: FUNCTION publish(topic text, payload jsonb, key text, dedup_key text, delay interval, headers jsonb, expires_at timestamp with time zone, priority smallint); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.publish(topic text, payload jsonb, key text, dedup_key text, delay interval, headers jsonb, expires_at timestamp with time zone, priority smallint) FROM PUBLIC;

-- Name: FUNCTION redrive(handler text, topic text, since timestamp with time zone, until timestamp with time zone, error text, per_second double precision, dry_run boolean); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.redrive(handler text, topic text, since timestamp with time zone, until timestamp with time zone, error text, per_second double precision, dry_run boolean) FROM PUBLIC;

-- Name: FUNCTION related(event_id bigint); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.related(event_id bigint) FROM PUBLIC;

-- Name: FUNCTION remember_dedup_key(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.remember_dedup_key() FROM PUBLIC;

-- Name: FUNCTION replay(handler text, topic text, key text, since timestamp with time zone, until timestamp with time zone, from_id bigint, to_id bigint, reason text, per_second double precision, dry_run boolean, most integer); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.replay(handler text, topic text, key text, since timestamp with time zone, until timestamp with time zone, from_id bigint, to_id bigint, reason text, per_second double precision, dry_run boolean, most integer) FROM PUBLIC;

-- Name: FUNCTION resume(handler text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.resume(handler text) FROM PUBLIC;

-- Name: FUNCTION retry(event_id bigint, handler text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.retry(event_id bigint, handler text) FROM PUBLIC;

-- Name: FUNCTION retry_pause(retry jsonb, failures integer); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.retry_pause(retry jsonb, failures integer) FROM PUBLIC;

-- Name: FUNCTION ring(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.ring() FROM PUBLIC;

-- Name: FUNCTION set_limits(handler text, concurrency integer, rate text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.set_limits(handler text, concurrency integer, rate text) FROM PUBLIC;

-- Name: FUNCTION snooze(event_id bigint, handler text, after interval); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.snooze(event_id bigint, handler text, after interval) FROM PUBLIC;

-- Name: FUNCTION step_changed(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.step_changed() FROM PUBLIC;

-- Name: FUNCTION take_turn(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.take_turn() FROM PUBLIC;

-- Name: FUNCTION tell_dead(); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.tell_dead() FROM PUBLIC;

-- Name: FUNCTION tell_done(ended outbox.open, result jsonb); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.tell_done(ended outbox.open, result jsonb) FROM PUBLIC;

-- Name: FUNCTION topic_regex(topics text[]); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.topic_regex(topics text[]) FROM PUBLIC;

-- Name: FUNCTION trim_log(first_id bigint, next_id bigint, older interval); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.trim_log(first_id bigint, next_id bigint, older interval) FROM PUBLIC;

-- Name: FUNCTION undo_flow(event_id bigint, flow text, reason text); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.undo_flow(event_id bigint, flow text, reason text) FROM PUBLIC;

-- Name: FUNCTION undo_steps(instance outbox.open); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.undo_steps(instance outbox.open) FROM PUBLIC;

-- Name: FUNCTION wait_for(event_id bigint, timeout interval); Type: ACL; Schema: outbox; Owner: -

REVOKE ALL ON FUNCTION outbox.wait_for(event_id bigint, timeout interval) FROM PUBLIC;

-- Name: SEQUENCE bell; Type: ACL; Schema: outbox; Owner: -

GRANT SELECT ON SEQUENCE outbox.bell TO PUBLIC;
