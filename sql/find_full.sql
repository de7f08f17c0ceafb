-- Notes which handlers are full: for whom as many deliveries wait as may, or, once full, nine tenths of that. What waits is in the log behind
-- the handler's stored position, or has a row and is to run again or after another one. The log is read as far as four times the limit goes:
-- behind that lies what is meant for others.
-- $1 text[] handlers with a limit, $2 bigint[] their limits, $3 boolean[] whether events are refused; no other handler is full
-- Result: a row for each handler that has become full or is not any more. Zero rows: nothing has changed.
WITH asked AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::boolean[]) AS a (handler, events, refuses)
), now_full AS (
    SELECT a.handler, a.events, a.refuses, h.topic_regex
    FROM asked a
    JOIN outbox.handler h ON h.name = a.handler
    LEFT JOIN outbox.full_handler f ON f.handler = a.handler AND f.events = a.events
    CROSS JOIN LATERAL (SELECT p.position FROM outbox.position p WHERE p.handler = h.name ORDER BY p.n DESC LIMIT 1) p
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM (
                SELECT e.id, e.topic FROM outbox.event e
                WHERE e.xid >= pg_snapshot_xmin(p.position) AND NOT pg_visible_in_snapshot(e.xid, p.position)
                ORDER BY e.xid, e.id LIMIT 4 * a.events
            ) e
            WHERE e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
              AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = h.name)
              AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = h.name)
            LIMIT a.events
        ) x
    ) unread
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM outbox.open o WHERE o.handler = h.name AND o.state IN ('retrying', 'running', 'blocked') LIMIT a.events
        ) x
    ) open
    WHERE unread.waiting + open.waiting >= CASE WHEN f.handler IS NULL THEN a.events ELSE a.events - a.events / 10 END
), gone AS (
    DELETE FROM outbox.full_handler f
    WHERE NOT EXISTS (SELECT FROM now_full n WHERE (n.handler, n.events, n.refuses, n.topic_regex) = (f.handler, f.events, f.refuses, f.topic_regex))
    RETURNING f.handler
), come AS (
    INSERT INTO outbox.full_handler (handler, topic_regex, events, refuses)
    SELECT n.handler, n.topic_regex, n.events, n.refuses FROM now_full n
    ON CONFLICT (handler) DO NOTHING
    RETURNING handler, events, refuses
)
SELECT handler, true AS is_full, events, refuses FROM come
UNION ALL
SELECT handler, false, NULL, NULL FROM gone
