-- The session that leads. `silent` is in seconds since it last said something, null while a statement runs.
-- Zero rows: nobody leads.
SELECT l.pid, coalesce(host(a.client_addr), 'local') AS address, a.backend_start AS since,
       CASE WHEN a.state LIKE 'idle%' THEN extract(epoch FROM clock_timestamp() - a.state_change)::double precision END AS silent
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32) | l.objid::bigint = 31372865143011428
