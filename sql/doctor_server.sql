-- What `outboxd doctor` asks of the server. Result: one row; `now` is its clock, `queue` how full the queue of notifications is, from 0
-- to 1, `replica` where a setting makes triggers silent.
SELECT clock_timestamp() AS now, pg_is_in_recovery() AS standby,
       current_setting('default_transaction_read_only')::boolean AS read_only,
       pg_notification_queue_usage() AS queue,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS clients,
       current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint AS clients_max,
       (SELECT string_agg(concat_ws(' in ', coalesce('role ' || r.rolname, 'every role'), 'database ' || d.datname), ', ')
        FROM pg_db_role_setting s
        LEFT JOIN pg_roles r ON r.oid = s.setrole
        LEFT JOIN pg_database d ON d.oid = s.setdatabase
        WHERE 'session_replication_role=replica' = ANY (s.setconfig)
          AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) AS replica
