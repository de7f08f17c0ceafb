-- After a restore or a failover: events whose transaction id this cluster has not given out yet get one that it has,
-- or they would be invisible to the tail now and come back when the counter reaches them. Result: the number of them.
UPDATE outbox.event SET xid = pg_current_xact_id() WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())
