-- Attempts that ended, as the database has them.
-- $1 bigint[] event ids, $2 text[] handlers, $3 integer[] attempts
-- Result: event_id, handler, attempt, finished_at, ms (from the insert to the end of the attempt), said (what the other side
-- answered to a failed one). No row: it is not written yet.
SELECT s.event_id, s.handler, s.attempt, t.finished_at, t.response AS said,
       1e3 * extract(epoch FROM t.finished_at - e.created_at)::double precision AS ms
FROM unnest($1::bigint[], $2::text[], $3::integer[]) AS s (event_id, handler, attempt)
JOIN outbox.event e ON e.id = s.event_id
CROSS JOIN LATERAL (
    SELECT finished_at, NULL::text AS response FROM outbox.done d
    WHERE d.event_id = s.event_id AND d.handler = s.handler AND d.attempt = s.attempt
    UNION ALL
    SELECT finished_at, response FROM outbox.attempt a
    WHERE a.event_id = s.event_id AND a.handler = s.handler AND a.attempt = s.attempt AND a.outcome <> 'done'
) t
