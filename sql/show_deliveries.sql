-- The deliveries of one event and their states. $1 bigint: its id
SELECT handler, state, attempts, due_at, started_at, finished_at, last_error, result
FROM outbox.delivery WHERE event_id = $1 ORDER BY handler
