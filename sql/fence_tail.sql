-- Tries to take the lock of the session that reads the log and sets the bell's flag. While the tail of an earlier term holds
-- it, that session may still set the flag, after this term has fallen asleep. The key follows that of `lead`.
-- Result: one row, whether it is ours, and the session that has it and its role if not; null when it has just gone.
WITH taken AS MATERIALIZED (SELECT pg_try_advisory_lock(31372865143011429) AS ours)
SELECT t.ours, h.pid, h.role
FROM taken t
LEFT JOIN LATERAL (
    SELECT l.pid, coalesce(a.usename::text, 'unknown') AS role
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE NOT t.ours AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32) | l.objid::bigint = 31372865143011429
) h ON true
