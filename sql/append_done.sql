-- Finishes deliveries that have no row in outbox.open. The primary key refuses a second finish.
-- $1 bigint[] event ids, $2 text[] handlers, $3 text[] outcomes, $4 integer[] attempts,
-- $5 bigint[] µs since each attempt began (null: none did), $6 bigint[] µs since it ended, $7 jsonb[] results
INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at, result)
SELECT s.event_id, s.handler, s.outcome, s.attempt,
       clock_timestamp() - s.began * interval '1 microsecond', clock_timestamp() - s.ended * interval '1 microsecond', s.result
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::bigint[], $6::bigint[], $7::jsonb[])
     AS s (event_id, handler, outcome, attempt, began, ended, result)
