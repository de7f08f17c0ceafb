-- Makes partitions ahead of the last id. Result: one row, how many were made.
SELECT outbox.add_partitions()
