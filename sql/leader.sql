-- The session that leads. `silent` is in seconds since it last said something, null while a statement runs and PostgreSQL
-- does not wait for the leader to read its answer. `said` is that moment: a standby compares it with what it saw
-- before, on its own clock, because PostgreSQL's may be set. Zero rows: nobody leads.
SELECT l.pid, coalesce(host(a.client_addr), 'local') AS address, a.backend_start AS since,
       CASE WHEN a.state LIKE 'idle%' OR a.wait_event_type = 'Client'
            THEN extract(epoch FROM clock_timestamp() - a.state_change)::double precision END AS silent,
       a.state_change::text AS said
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32) | l.objid::bigint = 31372865143011428
