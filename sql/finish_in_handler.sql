-- Finishes deliveries inside their SQL handler's own transaction: the running row of an attempt goes, if it has one, and the outcome is
-- appended to outbox.done. One statement: the row of a flow's step must not be gone before the step is done.
-- $1 bigint[] event ids, $2 text handler, $3 integer[] attempts, $4 bigint µs since they began, $5 jsonb[] results, $6 boolean[] whether
-- each has a row
-- Result: the ids of those that are finished. Of one that is missing, somebody else has finished it, or taken it away; the transaction
-- must be rolled back.
WITH ended AS (
    SELECT * FROM unnest($1::bigint[], $3::integer[], $5::jsonb[], $6::boolean[]) AS e (event_id, attempt, result, has_row)
), gone AS (
    -- A young attempt may have got its row meanwhile, so it is looked for in any case.
    DELETE FROM outbox.open o USING ended e
    WHERE o.event_id = e.event_id AND o.handler = $2 AND o.attempt = e.attempt AND o.state = 'running'
    RETURNING o.event_id
)
INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
SELECT e.event_id, $2, 'done', e.attempt, clock_timestamp() - $4::bigint * interval '1 microsecond', clock_timestamp(), e.result
FROM ended e
WHERE NOT e.has_row OR e.event_id IN (SELECT g.event_id FROM gone g)
ON CONFLICT DO NOTHING
RETURNING event_id
