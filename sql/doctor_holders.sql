-- Who keeps PostgreSQL from cleaning up: sessions with an old snapshot or transaction, prepared transactions, replication slots.
-- $1 double precision: seconds that are nothing unusual
-- Result: the oldest five; `kind`, `name` (a pid, a gid, a slot), who it is, the age in seconds (null: unknown) and in transactions.
SELECT * FROM (
    SELECT 'session' AS kind, a.pid::text AS name,
           concat_ws(', ', nullif(a.application_name, ''), a.usename, a.state) AS who,
           extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start))::double precision AS seconds,
           greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS transactions
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND coalesce(a.backend_xmin, a.backend_xid) IS NOT NULL AND a.pid <> pg_backend_pid()
      AND a.backend_type = 'client backend'
    UNION ALL
    SELECT 'prepared transaction', p.gid, p.owner, extract(epoch FROM clock_timestamp() - p.prepared)::double precision,
           age(p.transaction)::bigint
    FROM pg_prepared_xacts p WHERE p.database = current_database()
    UNION ALL
    SELECT 'replication slot', s.slot_name, CASE WHEN s.active THEN 'active' ELSE 'inactive' END, NULL,
           greatest(age(s.xmin), age(s.catalog_xmin))::bigint
    FROM pg_replication_slots s WHERE coalesce(s.xmin, s.catalog_xmin) IS NOT NULL
) h
WHERE h.seconds > $1 OR h.transactions > 1000000
ORDER BY h.transactions DESC, h.seconds DESC LIMIT 5
