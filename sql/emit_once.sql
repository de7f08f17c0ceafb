-- Emits events with a dedup key: nothing where there is an event of this topic and dedup key already.
-- Parameters as in emit, and $6 text[] dedup keys
SELECT outbox.publish(topic => s.topic, payload => s.payload, key => s.key, headers => s.headers,
                      delay => s.delay * interval '1 microsecond', dedup_key => s.dedup_key)
FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::jsonb[], $5::bigint[], $6::text[])
     WITH ORDINALITY AS s (topic, payload, key, headers, delay, dedup_key, place)
ORDER BY s.place
