-- Forgets what outbox.once remembered for long enough, at most 10,000 keys at a time. Result: how many.
WITH expired AS (
    SELECT consumer, key FROM outbox.consumed WHERE expires_at <= now() ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM outbox.consumed c USING expired e WHERE c.consumer = e.consumer AND c.key = e.key
