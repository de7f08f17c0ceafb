-- Emits events, in this order; within the transaction that finishes the deliveries which caused them.
-- $1 text[] topics, $2 jsonb[] payloads, $3 text[] keys (null: none), $4 jsonb[] headers,
-- $5 bigint[] µs of delay (null: none)
INSERT INTO outbox.event (topic, payload, key, headers, due_at)
SELECT s.topic, s.payload, s.key, s.headers, clock_timestamp() + s.delay * interval '1 microsecond'
FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::jsonb[], $5::bigint[])
     WITH ORDINALITY AS s (topic, payload, key, headers, delay, place)
ORDER BY s.place
