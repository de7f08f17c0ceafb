-- The partitions that may go as far as a glance tells. $1 double precision: the retention in seconds
-- Result: the ids of each, from first_id to below next_id.
SELECT first_id, next_id FROM outbox.old_partitions(make_interval(secs => $1)) ORDER BY first_id
