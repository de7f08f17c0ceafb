-- One event, from the log or from the copy an open delivery keeps. Zero rows: there is no such event (any more).
-- $1 bigint: its id
SELECT e.*, (SELECT i.id FROM outbox.installation i) AS installation
FROM (
    SELECT id, topic, key, payload, headers, dedup_key, due_at, expires_at, priority, created_at FROM outbox.event WHERE id = $1
    UNION ALL
    (SELECT event_id, topic, key, payload, headers, NULL, NULL, expires_at, priority, created_at FROM outbox.open
     WHERE event_id = $1 AND NOT EXISTS (SELECT FROM outbox.event WHERE id = $1) LIMIT 1)
) e
