-- One page of the log for the handlers at the head: the events visible now and not in the position, by (xid, id).
-- The first arm reads the transactions that were in progress in the position and have ended since; without its guard
-- every wake would step over all the rows of a large transaction that is still open. The second reads everything
-- newer. xids of the first are below those of the second, so the arms follow each other in order.
-- `xid = late.xid ORDER BY id` means the same, and would be planned as a scan by id of a partition that is empty yet.
-- $1 text[], $2 bigint[]: in-progress xids of the position, ascending, and for each the last id already read (or the lowest bigint)
-- $3 text, $4 bigint: read behind this (xid, id)   $5 bigint: rows at most
-- Result: first one row with only `snapshot`, this statement's own; then the events. No event: there is no news.
SELECT NULL::bigint AS id, NULL::text AS xid, NULL::text AS topic, NULL::text AS key, NULL::jsonb AS payload, NULL::jsonb AS headers,
       NULL::smallint AS priority, NULL::timestamptz AS created_at, NULL::double precision AS due_in, NULL::double precision AS expires_in,
       pg_current_snapshot()::text AS snapshot
UNION ALL
(SELECT e.id, e.xid::text, e.topic, e.key, e.payload, e.headers, e.priority, e.created_at,
       extract(epoch FROM e.due_at - now())::double precision, extract(epoch FROM e.expires_at - now())::double precision, NULL
FROM (
    (SELECT e.*
     FROM unnest($1::text[], $2::bigint[]) AS late (xid, after_id)
     CROSS JOIN LATERAL (
         SELECT * FROM outbox.event
         WHERE (xid, id) > (late.xid::xid8, late.after_id) AND xid <= late.xid::xid8
         ORDER BY xid, id LIMIT $5
     ) e
     WHERE pg_visible_in_snapshot(late.xid::xid8, pg_current_snapshot())
     LIMIT $5)
    UNION ALL
    (SELECT * FROM outbox.event
     WHERE (xid, id) > ($3::text::xid8, $4::bigint) AND xid < pg_snapshot_xmax(pg_current_snapshot())
     ORDER BY xid, id LIMIT $5)
) e
LIMIT $5)
