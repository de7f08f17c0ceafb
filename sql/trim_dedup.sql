-- Forgets dedup keys whose window is over, at most 10,000 at a time. Result: how many.
WITH expired AS (
    SELECT topic, dedup_key FROM outbox.dedup WHERE expires_at <= now() ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM outbox.dedup d USING expired e WHERE d.topic = e.topic AND d.dedup_key = e.dedup_key
