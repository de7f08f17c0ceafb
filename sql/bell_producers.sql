-- The transactions in progress that may have inserted events while the flag said "awake": those in this snapshot that
-- hold a lock on outbox.event. A producer whose lock is gone by now has ended, so the next read of the log sees its rows.
-- Result: one row, the xids as text. An empty list: nobody skipped the bell.
SELECT coalesce(array_agg(x.xid::text), '{}') AS xids
FROM pg_snapshot_xip(pg_current_snapshot()) AS x (xid)
WHERE mod(x.xid::text::numeric, 4294967296)::bigint IN (
    SELECT t.transactionid::text::bigint
    FROM pg_locks r
    JOIN pg_locks t ON t.virtualtransaction = r.virtualtransaction AND t.locktype = 'transactionid' AND t.granted
    WHERE r.locktype = 'relation' AND r.relation = 'outbox.event'::regclass
      AND r.database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
