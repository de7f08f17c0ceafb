-- The deliveries of one event and their states. $1 bigint: its id
SELECT d.handler, d.state, d.attempts, d.due_at, d.started_at, d.finished_at, d.last_error, d.progress, o.heartbeat_at, d.result
FROM outbox.delivery d
LEFT JOIN outbox.open o ON o.event_id = d.event_id AND o.handler = d.handler AND o.state = d.state
WHERE d.event_id = $1 ORDER BY d.handler
