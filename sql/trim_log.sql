-- Takes away what has finished among these ids and is older than that, some at a time.
-- $1 bigint, $2 bigint: from this id, below that one   $3 double precision: seconds
-- Result: one row: how many rows went, null when a lock was in the way.
SELECT outbox.trim_log($1, $2, make_interval(secs => $3)) AS trimmed
