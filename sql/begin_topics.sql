-- Other topics apply from the handler's position on: first_id passes what lies before, which was not meant for it, and
-- no event that it has yet to finish. $1 text[]: the handlers whose topics change.
UPDATE outbox.handler h
SET first_id = least(
    (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0) + 1),
    (SELECT min(e.id)
     FROM (SELECT position FROM outbox.position WHERE handler = h.name ORDER BY n DESC LIMIT 1) p
     JOIN outbox.event e ON e.xid >= pg_snapshot_xmin(p.position) AND NOT pg_visible_in_snapshot(e.xid, p.position)))
WHERE h.name = ANY ($1::text[])
