-- Makes partitions ahead of the last id. $1 double precision: how long one is to last, in seconds
-- Result: one row, how many were made.
SELECT outbox.add_partitions(lasting => make_interval(secs => $1))
