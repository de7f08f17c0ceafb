-- How the log stands. Result: one row: ids left in the partitions that are made ahead, whether something is in the default ones (which an
-- INSERT takes when there is no other), and the dead rows of outbox.open beside those that live.
SELECT (SELECT max(p.next_id) FROM outbox.partitions() p)
       - coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0) AS ids_left,
       EXISTS (SELECT FROM outbox.event_default) OR EXISTS (SELECT FROM outbox.done_default) AS default_used,
       coalesce(s.n_dead_tup, 0) AS dead_rows, coalesce(s.n_live_tup, 0) AS live_rows
FROM (VALUES (1)) AS one (row)
LEFT JOIN pg_stat_user_tables s ON s.relid = 'outbox.open'::regclass
