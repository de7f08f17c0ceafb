-- Remembers the cluster this installation runs in now.
UPDATE outbox.installation
SET system_identifier = c.system_identifier, timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
FROM pg_control_system() c
