-- The breaker of a handler's target has opened or closed: its row says so, and an event tells.
-- $1 text: handler   $2 text: why it has opened; null: it has closed
WITH told AS (
    UPDATE outbox.handler SET breaker = CASE WHEN $2::text IS NULL THEN 'closed' ELSE 'open' END,
        breaker_since = clock_timestamp(), breaker_error = $2
    WHERE name = $1
    RETURNING name, breaker, breaker_error
)
INSERT INTO outbox.event (topic, key, payload)
SELECT CASE breaker WHEN 'open' THEN 'outboxd.handler.opened' ELSE 'outboxd.handler.closed' END, name,
       jsonb_strip_nulls(jsonb_build_object('handler', name, 'error', breaker_error))
FROM told
