-- The handlers for whom events are kept that are older than that. $1 double precision: seconds
-- The first event of a transaction stands for all of it, and the order is that of an index: a transaction may have a million.
-- Result: name, whether it is absent or paused, and the age in seconds of the oldest event that it has not come past.
SELECT p.handler, p.absent, p.paused, extract(epoch FROM clock_timestamp() - least(later.created_at, listed.created_at))::double precision AS age
FROM outbox.newest_position p
LEFT JOIN LATERAL (
    SELECT e.created_at FROM outbox.event e
    WHERE e.xid >= pg_snapshot_xmax(p.position) AND e.xid < pg_snapshot_xmax(pg_current_snapshot())
    ORDER BY e.xid, e.id LIMIT 1
) later ON true
LEFT JOIN LATERAL (
    SELECT min(first.created_at) AS created_at
    FROM pg_snapshot_xip(p.position) AS x (xid)
    CROSS JOIN LATERAL (
        SELECT e.created_at FROM outbox.event e WHERE e.xid >= x.xid AND e.xid <= x.xid ORDER BY e.xid, e.id LIMIT 1
    ) first
) listed ON true
WHERE least(later.created_at, listed.created_at) < clock_timestamp() - make_interval(secs => $1)
ORDER BY p.handler
