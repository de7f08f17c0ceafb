-- Removes the running rows of deliveries whose handler has finished them in its own transaction meanwhile.
-- $1 bigint[] event ids, $2 text[] handlers, $3 integer[] attempts. Zero rows: the handler's transaction removed them.
DELETE FROM outbox.open o
USING unnest($1::bigint[], $2::text[], $3::integer[]) AS s (event_id, handler, attempt)
WHERE o.event_id = s.event_id AND o.handler = s.handler AND o.attempt = s.attempt AND o.state = 'running'
