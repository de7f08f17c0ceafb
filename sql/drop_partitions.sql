-- Drops partitions that are empty and behind. Result: one row: how many, null when a lock was in the way.
SELECT outbox.drop_partitions() AS dropped
