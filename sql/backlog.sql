-- What is not finished, per handler. Result: one row per handler, absent ones included.
SELECT handler, kind, absent, pending, scheduled, retrying, running, dead,
       extract(epoch FROM oldest_age)::double precision AS oldest_age, finished, finished_per_second::double precision AS finished_per_second
FROM outbox.backlog ORDER BY handler
