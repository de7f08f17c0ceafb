-- The newest position of each handler, the deliveries it has finished so far, and whether it is held up.
-- $1 text[]: handlers. Result: one row for each that has a position; resumes_in are the seconds until its pause is over.
SELECT h.name AS handler, p.position::text AS position, p.finished, h.breaker = 'open' AS broken,
       h.paused_at IS NOT NULL AND coalesce(h.paused_until > now(), true) AS paused,
       extract(epoch FROM h.paused_until - now())::double precision AS resumes_in, h.limit_concurrency, h.limit_rate
FROM outbox.handler h
CROSS JOIN LATERAL (SELECT position, finished FROM outbox.position WHERE handler = h.name ORDER BY n DESC LIMIT 1) p
WHERE h.name = ANY ($1::text[])
