-- One page of the log for one handler that fell behind: like tail_head, but not beyond the head's position, so that
-- the handler can join the head when it gets there.
-- $1 to $5 as in tail_head   $6 text: the head's position   $7 text[], $8 bigint[]: transactions of which the rows up to
-- this id are before the head too   $9 text: no xid at or above this one
-- Result: the events, by (xid, id). Fewer than $5: the handler has reached the head.
SELECT e.id, e.xid::text AS xid, e.topic, e.key, e.payload, e.headers, e.priority, e.created_at,
       extract(epoch FROM e.due_at - now())::double precision AS due_in, extract(epoch FROM e.expires_at - now())::double precision AS expires_in,
       NULL::text AS snapshot
FROM (
    (SELECT e.*
     FROM unnest($1::text[], $2::bigint[]) AS late (xid, after_id)
     CROSS JOIN LATERAL (
         SELECT * FROM outbox.event
         WHERE (xid, id) > (late.xid::xid8, late.after_id) AND xid <= late.xid::xid8
           AND (pg_visible_in_snapshot(xid, $6::text::pg_snapshot) OR id <= ($8::bigint[])[array_position($7::text[], xid::text)])
         ORDER BY xid, id LIMIT $5
     ) e
     WHERE pg_visible_in_snapshot(late.xid::xid8, pg_current_snapshot())
     LIMIT $5)
    UNION ALL
    (SELECT * FROM outbox.event
     WHERE (xid, id) > ($3::text::xid8, $4::bigint) AND xid < $9::text::xid8
       AND (pg_visible_in_snapshot(xid, $6::text::pg_snapshot) OR id <= ($8::bigint[])[array_position($7::text[], xid::text)])
     ORDER BY xid, id LIMIT $5)
) e
LIMIT $5
