-- Keeps what running attempts have said. The row must still name the attempt; one that somebody else has locked is passed over,
-- since the next heartbeat says it again, and a batch must not wait for it.
-- $1 bigint[] event ids, $2 text[] handlers, $3 integer[] attempts, $4 bigint[] µs since they said it, $5 jsonb[] progress (null
-- keeps what was said before; one that is too large for the table becomes a note)
-- Result: the number of rows; a missing one was locked or taken away, or the attempt is so young that it has none.
UPDATE outbox.open o
SET heartbeat_at = greatest(o.heartbeat_at, clock_timestamp() - s.said * interval '1 microsecond'),
    progress = CASE WHEN s.progress IS NULL THEN o.progress
                    WHEN pg_column_size(s.progress) <= 65536 THEN s.progress
                    ELSE jsonb_build_object('outboxd', format('the progress had %s bytes as PostgreSQL stores it; at most 65536 are kept',
                                                              pg_column_size(s.progress))) END
FROM (
    SELECT s.* FROM unnest($1::bigint[], $2::text[], $3::integer[], $4::bigint[], $5::jsonb[])
                    AS s (event_id, handler, attempt, said, progress)
    JOIN outbox.open r ON r.event_id = s.event_id AND r.handler = s.handler AND r.attempt = s.attempt AND r.state = 'running'
    FOR UPDATE OF r SKIP LOCKED
) s
WHERE o.event_id = s.event_id AND o.handler = s.handler
