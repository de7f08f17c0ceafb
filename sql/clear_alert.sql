-- Clears an alert and emits the event that tells. $1 text name, $2 text handler, $3 jsonb what is told
-- Result: the event's id; zero rows: it was not raised.
WITH cleared AS (
    DELETE FROM outbox.alert a WHERE a.name = $1 AND a.handler = $2 RETURNING a.name, a.raised_at
)
INSERT INTO outbox.event (topic, key, payload)
SELECT 'outboxd.alert.cleared', c.name, $3 || jsonb_build_object('since', c.raised_at) FROM cleared c
RETURNING id
