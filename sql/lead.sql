-- Tries to become the leader of this database: the session that holds this lock dispatches. The key is "outboxd" in ASCII.
-- Result: one row, whether it is ours.
SELECT pg_try_advisory_lock(31372865143011428)
