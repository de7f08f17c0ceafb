-- The snapshot of this moment and the last event id given out. Whatever an earlier daemon saw is visible in it.
-- Result: one row.
SELECT pg_current_snapshot()::text AS snapshot,
       coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0) AS last_id
