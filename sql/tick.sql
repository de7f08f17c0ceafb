-- Inserts the event of one tick, unless it is there: whoever else believes that it leads finds the schedule ticked.
-- $1 text name, $2 timestamptz the tick, $3 timestamptz the next one, $4 text topic, $5 text key (null: none), $6 jsonb payload
-- Result: the event's id; zero rows: somebody else has inserted it, or a later one.
WITH ticked AS (
    UPDATE outbox.schedule s SET ticked_at = $2, next_at = $3 WHERE s.name = $1 AND s.ticked_at < $2
    RETURNING s.name
)
INSERT INTO outbox.event (topic, key, payload, headers)
SELECT $4, $5, $6, jsonb_build_object('outbox-schedule', t.name,
                                      'outbox-tick', to_char($2 AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
FROM ticked t
RETURNING id
