-- Events that became visible since a snapshot, whoever inserted them. (Ids are no help: their order is not the order
-- of commits.)
-- $1 text: the snapshot   $2 bigint: rows at most
-- Result: id, topic, name, created_at, seen (how many there are in all), snapshot (the next $1; without a row $1 stays good)
SELECT id, topic, payload ->> 'name' AS name, created_at, count(*) OVER () AS seen, pg_current_snapshot()::text AS snapshot
FROM outbox.event
WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
ORDER BY id
LIMIT $2
