-- The session that leads. `silent` is in seconds since it last said something, null while a statement runs and PostgreSQL
-- does not wait for the leader to read its answer. `said` is that moment: a standby compares it with what it saw
-- before, on its own clock, because PostgreSQL's may be set. `may_lead` is false for a role that could not do a leader's work: every role
-- may take every advisory lock. Zero rows: nobody leads.
SELECT l.pid, coalesce(host(a.client_addr), 'local') AS address, a.backend_start AS since,
       CASE WHEN a.state LIKE 'idle%' OR a.wait_event_type = 'Client'
            THEN extract(epoch FROM clock_timestamp() - a.state_change)::double precision END AS silent,
       a.state_change::text AS said, coalesce(a.usename::text, 'unknown') AS role,
       coalesce(has_table_privilege(a.usesysid, 'outbox.open', 'DELETE'), true) AS may_lead
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32) | l.objid::bigint = 31372865143011428
