-- Tries to take the lock of the session that reads the log and sets the bell's flag. While the tail of an earlier term holds
-- it, that session may still set the flag, after this term has fallen asleep. The key follows that of `lead`.
-- $1 boolean: end the session that holds it.
-- Result: one row, whether it is ours.
WITH taken AS MATERIALIZED (SELECT pg_try_advisory_lock(31372865143011429) AS ours)
SELECT ours, CASE WHEN $1 AND NOT ours THEN (
    SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32) | l.objid::bigint = 31372865143011429
) END AS ended
FROM taken
