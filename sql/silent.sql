-- How long sessions have waited for their client, as another session sees it. $1 integer[]: their pids
-- Result: the sessions that are there; `silent` is in seconds, null while a statement runs.
SELECT pid, CASE WHEN state LIKE 'idle%' OR wait_event_type = 'Client'
                 THEN extract(epoch FROM clock_timestamp() - state_change)::double precision END AS silent
FROM pg_stat_activity WHERE pid = ANY ($1)
