-- What a daemon that died left running: its attempt counts, and the delivery runs again at once or is dead.
-- Run by a new leader before it starts anything.
-- $1 text[]: handlers   $2 integer[]: max_attempts of each   $3 text: the error to keep
-- Result: the number of such deliveries.
WITH finished AS (
    -- Their handler had committed; only the running row is left over.
    DELETE FROM outbox.open o
    WHERE o.state = 'running' AND EXISTS (SELECT FROM outbox.done d WHERE d.event_id = o.event_id AND d.handler = o.handler)
), lost AS (
    UPDATE outbox.open o
    SET state = CASE WHEN o.failures + 1 >= coalesce(w.max_attempts, 2147483647) THEN 'dead' ELSE 'retrying' END,
        due_at = CASE WHEN o.failures + 1 >= coalesce(w.max_attempts, 2147483647) THEN NULL ELSE clock_timestamp() END,
        failures = o.failures + 1, started_at = NULL, last_error = $3, updated_at = clock_timestamp()
    FROM outbox.open r
    LEFT JOIN unnest($1::text[], $2::integer[]) AS w (handler, max_attempts) ON w.handler = r.handler
    WHERE o.event_id = r.event_id AND o.handler = r.handler AND r.state = 'running' AND o.state = 'running'
      AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = r.event_id AND d.handler = r.handler)
    RETURNING o.event_id, o.handler, o.attempt, r.started_at
), history AS (
    INSERT INTO outbox.attempt (event_id, handler, attempt, started_at, finished_at, outcome, error)
    SELECT event_id, handler, attempt, started_at, greatest(started_at, clock_timestamp()), 'lost', $3 FROM lost
    ON CONFLICT DO NOTHING
)
SELECT count(*) AS lost FROM lost
