-- Remembers the cluster this installation runs in now, and up to which event it reads the log again.
UPDATE outbox.installation i
SET system_identifier = c.system_identifier, timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer,
    rebuilt_id = greatest(i.rebuilt_id, coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0))
FROM pg_control_system() c
