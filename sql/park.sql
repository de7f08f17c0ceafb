-- Opens a row, with a copy of the event, for deliveries that have none and did not simply succeed; in this order, which is that of
-- a key.
-- $1 bigint[] event ids, $2 text[] handlers, $3 text[] states, $4 integer[] attempts, $5 integer[] failures,
-- $6 bigint[] µs until due (null: not by time), $7 bigint[] µs since the attempt began (null unless running), $8 text[] errors,
-- $9 integer[] how often each has answered "not yet", $10 bigint[] µs until its answer must be there (null: no such time),
-- $11 text[] of a step the results before it, as JSON
INSERT INTO outbox.open (event_id, handler, state, attempt, failures, due_at, started_at, last_error, polls, answer_by,
                         flow, results, topic, key, payload, headers, priority, expires_at, created_at)
SELECT s.event_id, s.handler, s.state, s.attempt, s.failures,
       clock_timestamp() + s.due * interval '1 microsecond', clock_timestamp() - s.began * interval '1 microsecond', s.error,
       s.polls, clock_timestamp() + s.answer * interval '1 microsecond',
       h.flow, s.results::jsonb, e.topic, e.key, e.payload, e.headers, e.priority, CASE WHEN h.flow IS NULL THEN e.expires_at END, e.created_at
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::bigint[], $7::bigint[], $8::text[],
            $9::integer[], $10::bigint[], $11::text[])
     WITH ORDINALITY AS s (event_id, handler, state, attempt, failures, due, began, error, polls, answer, results, place)
JOIN outbox.event e ON e.id = s.event_id
LEFT JOIN outbox.handler h ON h.name = s.handler
-- Not what was cancelled meanwhile.
WHERE NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = s.event_id AND d.handler = s.handler)
ORDER BY s.place
