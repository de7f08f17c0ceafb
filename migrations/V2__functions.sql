-- outboxd: the functions, triggers and views.
-- Every function fixes its search_path; EXECUTE is granted to nobody but the owner.

-- RabbitMQ topic patterns as one regular expression over `topic || '.'`: `*` is one word, `#` is any number of words. A topic
-- whose first word is `outboxd` is the daemon's own; no wildcard stands for that word at the beginning.
CREATE FUNCTION outbox.topic_regex(topics text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT '^(' || coalesce(string_agg(CASE WHEN pattern ~ '^[*#]' THEN '(?!outboxd\.)' ELSE '' END || regex, '|'), '') || ')$'
    FROM (
        SELECT pattern, (
            SELECT string_agg(CASE word WHEN '#' THEN '([^.]+\.)*' WHEN '*' THEN '[^.]+\.' ELSE word || '\.' END, '' ORDER BY i)
            FROM regexp_split_to_table(pattern, '\.') WITH ORDINALITY AS w (word, i)
        ) AS regex
        FROM unnest(topics) AS t (pattern)
    ) AS p
$$;

-- The bell, rung by a statement trigger.
-- `SET LOCAL outbox.bell = off` is for two-phase commit: PREPARE TRANSACTION is refused after a NOTIFY.
-- When a handler is full, an event of its topics is refused, or its session warned. Among the transaction's last thousand events: those of
-- the statement, unless it has more. `SET LOCAL outbox.max_backlog = off` lets events through, and the daemon's sessions set it: what
-- has happened must be written. Runs as the owner, because producers may not read topics.
CREATE FUNCTION outbox.ring() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
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

-- A producer that finds the daemon awake pays one sequence read and never enters the function. The condition is kept short:
-- PostgreSQL parses and prepares it again for every statement.
CREATE TRIGGER ring AFTER INSERT ON outbox.event FOR EACH STATEMENT
    WHEN (pg_sequence_last_value('outbox.bell'::regclass) <> 2)
    EXECUTE FUNCTION outbox.ring();

-- Refuses a second event of one (topic, dedup_key) within the window. Runs as the owner: producers need no right on outbox.dedup.
CREATE FUNCTION outbox.remember_dedup_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
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

CREATE TRIGGER remember_dedup_key AFTER INSERT ON outbox.event FOR EACH ROW
    WHEN (NEW.dedup_key IS NOT NULL)
    EXECUTE FUNCTION outbox.remember_dedup_key();

-- The id of the event that holds this dedup key now, or null. For outbox.publish, whose caller may not read outbox.dedup.
CREATE FUNCTION outbox.dedup_holder(topic text, dedup_key text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT d.event_id FROM outbox.dedup d
    WHERE d.topic = dedup_holder.topic AND d.dedup_key = dedup_holder.dedup_key AND d.expires_at > clock_timestamp()
$$;

-- Inserts one event and returns its id. Publishing the same (topic, dedup_key) again within the installation's
-- dedup_window returns the first id and makes no second event.
CREATE FUNCTION outbox.publish(
    topic      text,
    payload    jsonb,
    key        text        DEFAULT NULL,
    dedup_key  text        DEFAULT NULL,
    delay      interval    DEFAULT NULL,
    headers    jsonb       DEFAULT '{}',
    expires_at timestamptz DEFAULT NULL,
    priority   smallint    DEFAULT 0::smallint
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- The partitions of the log but for the default one: the ids from first_id to below next_id. Their tables are
-- event_p<first_id> and done_p<first_id>.
CREATE FUNCTION outbox.partitions(OUT first_id bigint, OUT next_id bigint) RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT bound[1]::bigint, bound[2]::bigint
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid), $re$FROM \('(\d+)'\) TO \('(\d+)'\)$re$) AS bound
    WHERE i.inhparent = 'outbox.event'::regclass AND bound IS NOT NULL
$$;

-- Makes partitions of outbox.event and outbox.done, so that `ahead` of them lie above the last id given out. Returns how many it
-- made. A partition has `smallest` ids, or as many as are given out in `lasting`: every partition costs every read of the log
-- 15 µs. The rate is that of the last `smallest` ids, and one partition is four times as large as the one before at most, so that
-- a burst does not make one for years. CREATE TABLE and ATTACH, not CREATE ... PARTITION OF: that would lock
-- producers out. Where rows already went to a default partition, the next range begins above them. A lock that
-- is not had within 100 ms is left for the next call: nobody waits behind this function.
CREATE FUNCTION outbox.add_partitions(
    ahead integer DEFAULT 4, lasting interval DEFAULT '1 day', smallest bigint DEFAULT 1000000
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
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

-- Every delivery and its state. Filter by event_id or handler: without a filter this reads the whole retained log. A flow that was
-- cancelled while it had no row waits until the daemon has said how far it was (outbox.begin_flow).
CREATE VIEW outbox.delivery AS
SELECT d.event_id, d.handler, e.topic, e.key,
       CASE WHEN d.outcome = 'cancelled' AND EXISTS (
           SELECT FROM outbox.cancelling c WHERE c.event_id = d.event_id AND c.handler = d.handler AND c.flow
       ) THEN 'waiting' ELSE d.outcome END AS state, d.attempt AS attempts,
       NULL::timestamptz AS due_at, d.started_at, d.finished_at, NULL::text AS last_error, NULL::jsonb AS progress, d.result
FROM outbox.done d
LEFT JOIN outbox.event e ON e.id = d.event_id
UNION ALL
SELECT o.event_id, o.handler, o.topic, o.key, o.state, o.attempt,
       o.due_at, o.started_at, NULL, o.last_error, o.progress, NULL
FROM outbox.open o
UNION ALL
SELECT e.id, h.name, e.topic, e.key, 'pending', 0, e.due_at, NULL, NULL, NULL, NULL, NULL
FROM outbox.event e
JOIN outbox.handler h ON e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
WHERE NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = h.name)
  AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = h.name);

-- Per handler: what is not finished, how old it is, how fast it goes. `pending` reads the log behind the stored
-- position only; `finished_per_second` is the mean over the last two minutes of checkpoints.
CREATE VIEW outbox.backlog AS
SELECT h.name AS handler, h.kind, h.absent,
       h.paused_at IS NOT NULL AND coalesce(h.paused_until > now(), true) AS paused,
       h.paused_at, h.paused_until, h.paused_by, h.pause_reason, h.breaker, h.breaker_since, h.breaker_error,
       h.limit_concurrency, h.limit_rate, h.limited_at, h.limited_by,
       coalesce(p.pending, 0) AS pending,
       coalesce(o.scheduled, 0) AS scheduled, coalesce(o.retrying, 0) AS retrying, coalesce(o.running, 0) AS running,
       coalesce(o.waiting, 0) AS waiting, coalesce(o.blocked, 0) AS blocked, coalesce(o.dead, 0) AS dead,
       now() - least(p.oldest, o.oldest) AS oldest_age,
       c.finished, r.per_second AS finished_per_second, c.at AS position_at
FROM outbox.handler h
LEFT JOIN LATERAL (
    SELECT position, finished, at FROM outbox.position WHERE handler = h.name ORDER BY n DESC LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT (max(x.finished) - min(x.finished)) / nullif(extract(epoch FROM max(x.at) - min(x.at)), 0)::double precision AS per_second
    FROM outbox.position x WHERE x.handler = h.name AND x.at > now() - interval '2 minutes'
) r ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS pending, min(e.created_at) AS oldest
    FROM outbox.event e
    -- A step of a flow reads nothing.
    WHERE h.flow IS NULL AND e.xid >= pg_snapshot_xmin(c.position) AND NOT pg_visible_in_snapshot(e.xid, c.position)
      AND e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
      AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = h.name)
      AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = h.name)
) p ON true
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 'scheduled') AS scheduled, count(*) FILTER (WHERE state = 'retrying') AS retrying,
           count(*) FILTER (WHERE state = 'running') AS running, count(*) FILTER (WHERE state = 'waiting') AS waiting,
           count(*) FILTER (WHERE state = 'blocked') AS blocked, count(*) FILTER (WHERE state = 'dead') AS dead,
           min(created_at) FILTER (WHERE state IN ('retrying', 'running')) AS oldest
    FROM outbox.open WHERE handler = h.name
) o ON true;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
-- The flag must be readable by whoever inserts; reading it tells nothing but whether a daemon sleeps.
GRANT SELECT ON SEQUENCE outbox.bell TO PUBLIC;

SELECT outbox.add_partitions();
