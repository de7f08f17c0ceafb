-- outboxd: retention. What has finished goes when it is old enough, with its events, and nothing is ever lost by it.
--
-- A partition goes whole: it is emptied (TRUNCATE), which asks nobody for a lock but those who use that partition, and dropped when
-- there is a moment in which nobody uses the log. What lies in the default partition, or in one that would last too long, goes
-- row by row. ARCHITECTURE.md, "Retention", says what must hold and why.

-- The newest position of each handler: how far it has finished the log. The steps of a flow read nothing; the flow does.
CREATE VIEW outbox.newest_position AS
SELECT h.name AS handler, h.absent, h.paused_at IS NOT NULL AND coalesce(h.paused_until > now(), true) AS paused, p.position
FROM outbox.handler h
LEFT JOIN LATERAL (SELECT position FROM outbox.position WHERE handler = h.name ORDER BY n DESC LIMIT 1) p ON true
WHERE h.flow IS NULL;

-- Whether every handler has come past all that lies in this partition of the log. False as long as there is no handler: the first
-- ones begin at the beginning. A transaction is not in a position when it is at or above its xmax, or in its list: two looks into an
-- index for each handler, however large the partition is. Transaction ids that this cluster has not given out are the sweep's.
CREATE FUNCTION outbox.is_past(part regclass) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- With few matches expected, a plan for the first one would read it all to find none.
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
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
$$;

-- The partitions that may go as far as a glance tells: all their ids have been given out, the event with the highest id is older
-- than `retention`, and every handler is past them. Not those that are empty already.
CREATE FUNCTION outbox.old_partitions(retention interval) RETURNS TABLE (first_id bigint, next_id bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
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

-- Empties a partition of the log and that of outbox.done beside it, in one. `checked` is the snapshot in which everything in it was
-- found finished and old. Whoever has written into it, or prepared to, holds a lock on it until the end of the transaction; so
-- nothing is under way when it is ours. What was inserted after the check keeps it, and so does a handler that has come since and
-- begins before it. Returns whether it has gone by this, null when somebody uses it.
CREATE FUNCTION outbox.empty_partition(first_id bigint, checked pg_snapshot) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET lock_timeout = '50ms'
AS $$
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
$$;

-- Drops the partitions below the last id given out that are empty. Returns how many; null when somebody uses the log, or the
-- settled, for longer than producers could wait. What comes with such an id later goes to the default partition.
CREATE FUNCTION outbox.drop_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
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
$$;

-- Takes away, row by row, what has finished and is older than that among these ids, at most 500 events of them, and what is left
-- of events that have gone: their outcomes, and the history of their attempts. Returns how many rows, null when a lock is in the way.
CREATE FUNCTION outbox.trim_log(first_id bigint, next_id bigint, older interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
