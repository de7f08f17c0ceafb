-- Keeps the history of attempts that did not simply succeed the first time.
-- $1 bigint[] event ids, $2 text[] handlers, $3 integer[] attempts, $4 bigint[] µs since each began, $5 bigint[] µs since it ended,
-- $6 text[] outcomes, $7 text[] errors, $8 text[] response excerpts
INSERT INTO outbox.attempt (event_id, handler, attempt, started_at, finished_at, outcome, error, response)
SELECT s.event_id, s.handler, s.attempt,
       clock_timestamp() - s.began * interval '1 microsecond', clock_timestamp() - s.ended * interval '1 microsecond',
       s.outcome, s.error, s.response
FROM unnest($1::bigint[], $2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[])
     AS s (event_id, handler, attempt, began, ended, outcome, error, response)
ON CONFLICT DO NOTHING
