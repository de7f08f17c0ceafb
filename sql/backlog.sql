-- What is not finished, per handler, and why nothing more begins. Result: one row per handler, absent ones included.
SELECT handler, kind, absent, pending, scheduled, retrying, running, waiting, blocked, dead,
       extract(epoch FROM oldest_age)::double precision AS oldest_age, finished, finished_per_second::double precision AS finished_per_second,
       paused, paused_at, paused_until, paused_by, pause_reason, breaker, breaker_since, breaker_error,
       limit_concurrency, limit_rate, limited_at, limited_by
FROM outbox.backlog ORDER BY handler
