-- Compares a range of the log with outbox.done and outbox.open and schedules at once whatever the tail never saw: an
-- event that lies before its handler's finished position (or carries a transaction id that has not been given out
-- yet, as rows applied by logical replication do) and has no row.
-- $1 bigint: from this id   $2 bigint: below this id   $3 text[]: handlers   $4 text[]: their finished positions
-- Result: the number of deliveries found. In normal running: 0.
-- The range is said of `done` and `open`, too, so that only the partitions of it are looked into: half the time. OFFSET 0 keeps each
-- delivery a look into an index, whatever the planner knows of the tables: where outbox.open had been empty when it was analyzed, it
-- read the range again for each event, 15 s for 10,000.
WITH w AS MATERIALIZED (
    SELECT handler, position::pg_snapshot AS position FROM unnest($3::text[], $4::text[]) AS w (handler, position)
), bounds AS MATERIALIZED (
    -- What no handler has come to lies between these, and is told by two comparisons: a backlog costs the sweep next to nothing.
    SELECT (SELECT pg_snapshot_xmax(position) FROM w ORDER BY pg_snapshot_xmax(position) DESC LIMIT 1) AS come_to,
           pg_snapshot_xmax(pg_current_snapshot()) AS given_out
), passed AS MATERIALIZED (
    SELECT e.id, h.name
    FROM w
    JOIN outbox.handler h ON h.name = w.handler
    CROSS JOIN bounds b
    JOIN outbox.event e ON (e.xid < b.come_to OR e.xid >= b.given_out)
                       AND e.id >= $1 AND e.id < $2 AND e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
    WHERE pg_visible_in_snapshot(e.xid, w.position) OR e.xid >= b.given_out
), missing AS MATERIALIZED (
    SELECT p.id, p.name FROM passed p
    WHERE NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = p.id AND d.handler = p.name AND d.event_id >= $1 AND d.event_id < $2 OFFSET 0)
      AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = p.id AND o.handler = p.name AND o.event_id >= $1 AND o.event_id < $2 OFFSET 0)
), found AS (
    INSERT INTO outbox.open (event_id, handler, state, due_at, topic, key, payload, headers, priority, expires_at, created_at)
    SELECT e.id, m.name, 'scheduled', greatest(e.due_at, now()), e.topic, e.key, e.payload, e.headers, e.priority, e.expires_at, e.created_at
    FROM missing m
    JOIN outbox.event e ON e.id = m.id AND e.id >= $1 AND e.id < $2
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT count(*) AS found FROM found
