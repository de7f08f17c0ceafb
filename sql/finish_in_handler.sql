-- Finishes a delivery inside its SQL handler's own transaction: the running row of the attempt goes, if it has one, and the outcome is
-- appended to outbox.done. One statement: the row of a flow's step must not be gone before the step is done.
-- $1 bigint event id, $2 text handler, $3 integer attempt, $4 bigint µs since it began, $5 jsonb result, $6 boolean whether it has a row
-- Zero rows: somebody else has finished it, or taken it away; the transaction must be rolled back.
WITH gone AS (
    DELETE FROM outbox.open WHERE event_id = $1 AND handler = $2 AND attempt = $3 AND state = 'running' RETURNING 1
)
INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
SELECT $1, $2, 'done', $3, clock_timestamp() - $4::bigint * interval '1 microsecond', clock_timestamp(), $5
-- A young attempt may have got its row meanwhile, so it is looked for in any case.
WHERE (SELECT count(*) FROM gone) >= $6::boolean::integer
ON CONFLICT DO NOTHING
