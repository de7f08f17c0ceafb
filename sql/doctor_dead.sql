-- What is dead, by handler, with the newest error and its event, and whether others of its key wait for it. Result: a row for each
-- handler with something dead.
SELECT h.name AS handler, h.ordered = 'block' AS blocks, d.dead, n.event_id, n.last_error,
       extract(epoch FROM clock_timestamp() - n.updated_at)::double precision AS seconds
FROM outbox.handler h
CROSS JOIN LATERAL (
    SELECT count(*) AS dead FROM outbox.open o WHERE o.state = 'dead' AND o.handler = h.name AND o.flow_version IS NULL
) d
CROSS JOIN LATERAL (
    SELECT o.event_id, o.last_error, o.updated_at FROM outbox.open o
    WHERE o.state = 'dead' AND o.handler = h.name AND o.flow_version IS NULL ORDER BY o.updated_at DESC LIMIT 1
) n
ORDER BY d.dead DESC, h.name
