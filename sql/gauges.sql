-- What /metrics shows of the database, at the same cost however much there is: counts of outbox.open stop at 10,000, and everything is at
-- one end of an index. Result: a row for each handler that is configured; `overdue` is for how many seconds the first that is due has
-- been so, null when nothing is; `last_id` the last id that the log has given out.
SELECT h.name AS handler,
       (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = 'scheduled' AND o.handler = h.name LIMIT 10000) x) AS scheduled,
       (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = 'retrying' AND o.handler = h.name LIMIT 10000) x) AS retrying,
       (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = 'running' AND o.handler = h.name LIMIT 10000) x) AS running,
       (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = 'waiting' AND o.handler = h.name LIMIT 10000) x) AS waiting,
       (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = 'blocked' AND o.handler = h.name LIMIT 10000) x) AS blocked,
       (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = 'dead' AND o.handler = h.name LIMIT 10000) x) AS dead,
       (SELECT nullif(greatest(0, extract(epoch FROM clock_timestamp() - o.due_at)), 0)::double precision
        FROM outbox.open o WHERE o.handler = h.name AND o.due_at IS NOT NULL ORDER BY o.due_at LIMIT 1) AS overdue,
       coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0) AS last_id
FROM outbox.handler h
WHERE NOT h.absent
