-- Gives the handlers without a position their first one.
-- $1 text: a snapshot; the handler begins behind it, unless it begins at the beginning of the log (first_id = 0).
INSERT INTO outbox.position (handler, position)
SELECT h.name, CASE WHEN h.first_id = 0 THEN '3:3:' ELSE $1::text END::pg_snapshot
FROM outbox.handler h
WHERE NOT EXISTS (SELECT FROM outbox.position p WHERE p.handler = h.name)
