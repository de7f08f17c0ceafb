-- The attempts of one event that did not simply succeed the first time. $1 bigint: its id
SELECT handler, attempt, started_at, finished_at, outcome, error, response
FROM outbox.attempt WHERE event_id = $1 ORDER BY handler, attempt
