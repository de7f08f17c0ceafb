-- Raises an alert and emits the event that tells. $1 text name, $2 text handler, $3 jsonb what is told
-- Result: the event's id; zero rows: it was raised already.
WITH raised AS (
    INSERT INTO outbox.alert (name, handler) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING name, raised_at
)
INSERT INTO outbox.event (topic, key, payload)
SELECT 'outboxd.alert.raised', r.name, $3 || jsonb_build_object('since', r.raised_at) FROM raised r
RETURNING id
