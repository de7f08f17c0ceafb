-- Writes the handlers of the configuration. Changed topics apply from the handler's position on: first_id must not
-- pass an event that it has yet to finish.
-- $1 jsonb: [{name, topics, kind, settings, beginning}]. A handler begins with the events from now on, unless it says
-- `beginning` or is among the first of the installation, which have nothing before them.
WITH wanted AS (
    SELECT w.name, ARRAY(SELECT jsonb_array_elements_text(w.topics)) AS topics, w.kind, w.settings,
           CASE WHEN w.beginning OR NOT EXISTS (SELECT FROM outbox.handler) THEN 0 ELSE last.id + 1 END AS first_id,
           last.id + 1 AS next_id
    FROM jsonb_to_recordset($1::jsonb) AS w (name text, topics jsonb, kind text, settings jsonb, beginning boolean)
    CROSS JOIN (
        SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0) AS id
    ) last
)
INSERT INTO outbox.handler AS h (name, topics, topic_regex, kind, settings, first_id)
SELECT name, topics, outbox.topic_regex(topics), kind, settings, first_id FROM wanted
ON CONFLICT (name) DO UPDATE
SET topics = excluded.topics, topic_regex = excluded.topic_regex, kind = excluded.kind, settings = excluded.settings,
    absent = false, updated_at = now(),
    first_id = CASE WHEN h.topics = excluded.topics THEN h.first_id ELSE least(
        (SELECT min(next_id) FROM wanted),
        (SELECT min(e.id)
         FROM (SELECT position FROM outbox.position WHERE handler = h.name ORDER BY n DESC LIMIT 1) p
         JOIN outbox.event e ON e.xid >= pg_snapshot_xmin(p.position) AND NOT pg_visible_in_snapshot(e.xid, p.position))) END
WHERE (h.topics, h.kind, h.settings, h.absent) IS DISTINCT FROM (excluded.topics, excluded.kind, excluded.settings, false)
