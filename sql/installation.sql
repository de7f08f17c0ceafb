-- What this installation is and where it runs now. Result: one row.
SELECT i.id, i.system_identifier = c.system_identifier AND i.timeline = c.timeline AS same_cluster,
       format('system identifier %s, timeline %s', i.system_identifier, i.timeline) AS stored,
       format('system identifier %s, timeline %s', c.system_identifier, c.timeline) AS found
FROM outbox.installation i
CROSS JOIN (
    SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline
    FROM pg_control_system()
) c
