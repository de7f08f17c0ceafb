-- The newest position of each handler and the deliveries it has finished so far.
-- $1 text[]: handlers. Result: one row for each that has a position.
SELECT h.name AS handler, p.position::text AS position, p.finished
FROM unnest($1::text[]) AS h (name)
CROSS JOIN LATERAL (SELECT position, finished FROM outbox.position WHERE handler = h.name ORDER BY n DESC LIMIT 1) p
