-- Attempts that have run for long. $1 double precision: seconds that are nothing unusual
-- Result: the oldest five; `silent` is for how many seconds nothing was heard of it (null: it has never said anything), `overdue` whether
-- it runs for longer than its handler's max_timeout and a minute: then nobody is there to end it.
SELECT o.event_id, o.handler, h.kind, o.attempt,
       extract(epoch FROM clock_timestamp() - o.started_at)::double precision AS seconds,
       extract(epoch FROM clock_timestamp() - o.heartbeat_at)::double precision AS silent,
       o.started_at < clock_timestamp() - make_interval(secs => coalesce((h.settings->>'max_timeout_seconds')::double precision, 86400) + 60)
           AS overdue
FROM outbox.open o
JOIN outbox.handler h ON h.name = o.handler
WHERE o.state = 'running' AND o.started_at < clock_timestamp() - make_interval(secs => $1)
ORDER BY o.started_at LIMIT 5
