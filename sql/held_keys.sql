-- What rows in outbox.open do with keys: one row for each that holds the key of an ordered handler; and of handlers of which so many of
-- a key run at the same time, one for each key of which some wait for a place (parked). $1 text[]: handlers.
SELECT o.handler, o.key, false AS parked
FROM outbox.handler h
JOIN outbox.open o ON o.handler = h.name AND o.key IS NOT NULL AND outbox.holds_key(o.state, o.attempt, h.ordered)
WHERE h.name = ANY ($1::text[]) AND h.ordered IS NOT NULL
UNION ALL
SELECT DISTINCT o.handler, o.key, true
FROM outbox.handler h
JOIN outbox.open o ON o.handler = h.name AND o.state = 'blocked' AND o.due_at IS NULL
WHERE h.name = ANY ($1::text[]) AND h.concurrency_per_key IS NOT NULL
