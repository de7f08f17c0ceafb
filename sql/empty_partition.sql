-- Empties a partition that was checked. $1 bigint: its first id   $2 text: the snapshot of the check
-- Result: one row: whether it is empty, null when somebody uses it.
SELECT outbox.empty_partition($1, $2::text::pg_snapshot) AS emptied
