-- After a restore or a failover: stored positions mean nothing. Every handler reads the retained log from its
-- beginning, compared with outbox.done and outbox.open.
WITH gone AS (DELETE FROM outbox.position RETURNING handler, finished)
INSERT INTO outbox.position (handler, position, finished)
SELECT handler, '3:3:', max(finished) FROM gone GROUP BY handler
