-- Writes the schedules of the configuration, and forgets the others. One that is new, or whose time has changed, has ticked now: it
-- makes nothing good from before.
-- $1 jsonb: [{name, cron, timezone, topic}]
-- Result: a row for each: when it ticked last, and what time it is.
WITH wanted AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS w (name text, cron text, timezone text, topic text)
), forgotten AS (
    DELETE FROM outbox.schedule s WHERE NOT EXISTS (SELECT FROM wanted w WHERE w.name = s.name)
)
INSERT INTO outbox.schedule AS s (name, cron, timezone, topic, ticked_at)
SELECT w.name, w.cron, w.timezone, w.topic, clock_timestamp() FROM wanted w
ON CONFLICT (name) DO UPDATE SET
    cron = excluded.cron, timezone = excluded.timezone, topic = excluded.topic,
    ticked_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.ticked_at ELSE excluded.ticked_at END
RETURNING name, ticked_at, clock_timestamp() AS now
