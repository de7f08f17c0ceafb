-- Ends running attempts without finishing their deliveries. The row must still name the attempt. One that is blocked again has not
-- begun, and gives its attempt back.
-- Parameters as in park, without $7; $7 text[]: errors (null keeps the last one), $8 and $9 as $9 and $10 there.
-- Result: the pairs that were changed; a missing pair had been taken away.
UPDATE outbox.open o
SET state = s.state, attempt = o.attempt - (s.state = 'blocked')::integer, failures = s.failures, started_at = NULL, last_error = coalesce(s.error, o.last_error),
    polls = s.polls, answer_by = clock_timestamp() + s.answer * interval '1 microsecond',
    due_at = clock_timestamp() + s.due * interval '1 microsecond', updated_at = clock_timestamp()
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::bigint[], $7::text[],
            $8::integer[], $9::bigint[])
     AS s (event_id, handler, state, attempt, failures, due, error, polls, answer)
WHERE o.event_id = s.event_id AND o.handler = s.handler AND o.attempt = s.attempt AND o.state = 'running'
RETURNING o.event_id, o.handler
