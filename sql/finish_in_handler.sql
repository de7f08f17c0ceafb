-- Finishes a delivery inside its SQL handler's own transaction, when it has no row in outbox.open.
-- $1 bigint event id, $2 text handler, $3 integer attempt, $4 bigint µs since it began, $5 jsonb result
-- Zero rows: somebody else has finished it; the transaction must be rolled back.
INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
VALUES ($1, $2, 'done', $3, clock_timestamp() - $4::bigint * interval '1 microsecond', clock_timestamp(), $5)
ON CONFLICT DO NOTHING
