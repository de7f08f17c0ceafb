-- When attempts that have gone silent in the daemon were last heard of in the database.
-- $1 bigint[] event ids, $2 text[] handlers, $3 integer[] attempts
-- Result: the pairs and the µs since their heartbeat; a missing pair has none, or its attempt runs no more.
SELECT o.event_id, o.handler,
       greatest(0, extract(epoch FROM clock_timestamp() - o.heartbeat_at) * 1000000)::bigint AS age
FROM unnest($1::bigint[], $2::text[], $3::integer[]) AS s (event_id, handler, attempt)
JOIN outbox.open o ON o.event_id = s.event_id AND o.handler = s.handler AND o.attempt = s.attempt AND o.state = 'running'
WHERE o.heartbeat_at IS NOT NULL
