-- Finishes deliveries that have a running row in outbox.open: the row goes, the outcome is appended to outbox.done.
-- The row must still name the attempt. Parameters as in append_done.
-- Result: the pairs that were finished; a missing pair had been taken away (its row is gone or names another attempt).
WITH ended AS (
    DELETE FROM outbox.open o
    USING unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::bigint[], $6::bigint[], $7::jsonb[])
          AS s (event_id, handler, outcome, attempt, began, ended, result)
    WHERE o.event_id = s.event_id AND o.handler = s.handler AND o.attempt = s.attempt AND o.state = 'running'
    RETURNING s.*
)
INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
SELECT event_id, handler, outcome, attempt,
       clock_timestamp() - began * interval '1 microsecond', clock_timestamp() - ended * interval '1 microsecond', result
FROM ended
RETURNING event_id, handler
