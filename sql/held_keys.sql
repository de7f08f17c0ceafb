-- The keys of ordered handlers that rows in outbox.open hold. $1 text[]: handlers. Result: one row for each such row.
SELECT o.handler, o.key
FROM outbox.handler h
JOIN outbox.open o ON o.handler = h.name AND o.key IS NOT NULL AND outbox.holds_key(o.state, o.attempt, h.ordered)
WHERE h.name = ANY ($1::text[]) AND h.ordered IS NOT NULL
