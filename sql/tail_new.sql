-- What tail_head reads where no transaction was in progress in the position: only what is newer. A statement of its own, because
-- to prepare an arm for each partition that reads nothing takes as long as to read one event (0.04 of 0.16 ms with six partitions),
-- and somebody waits for a lone event.
-- $1 text, $2 bigint: read behind this (xid, id)   $3 bigint: rows at most
-- Result: first one row with only `snapshot`, this statement's own; then the events. No event: there is no news.
SELECT NULL::bigint AS id, NULL::text AS xid, NULL::text AS topic, NULL::text AS key, NULL::jsonb AS payload, NULL::jsonb AS headers,
       NULL::smallint AS priority, NULL::timestamptz AS created_at, NULL::double precision AS due_in, NULL::double precision AS expires_in,
       pg_current_snapshot()::text AS snapshot
UNION ALL
(SELECT id, xid::text, topic, key, payload, headers, priority, created_at,
       extract(epoch FROM due_at - now())::double precision, extract(epoch FROM expires_at - now())::double precision, NULL
FROM outbox.event
WHERE (xid, id) > ($1::text::xid8, $2::bigint) AND xid < pg_snapshot_xmax(pg_current_snapshot())
ORDER BY event.xid, event.id LIMIT $3)
