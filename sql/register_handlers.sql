-- Writes the handlers of the configuration.
-- $1 jsonb: [{name, topics, kind, settings, flow, ordered, coalesce, concurrency_per_key, on_done, on_dead, beginning}]. A handler begins with the events from now on, unless it says
-- `beginning` or is among the first of the installation, which have nothing before them.
WITH wanted AS (
    SELECT w.name, ARRAY(SELECT jsonb_array_elements_text(w.topics)) AS topics, w.kind, w.settings, w.flow, w.ordered, w."coalesce", w.concurrency_per_key, w.on_done, w.on_dead,
           CASE WHEN w.beginning OR NOT EXISTS (SELECT FROM outbox.handler) THEN 0 ELSE last.id + 1 END AS first_id
    FROM jsonb_to_recordset($1::jsonb) AS w (name text, topics jsonb, kind text, settings jsonb, flow text, ordered text, "coalesce" boolean, concurrency_per_key integer, on_done text, on_dead text, beginning boolean)
    CROSS JOIN (
        SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.event', 'id')::regclass), 0) AS id
    ) last
)
INSERT INTO outbox.handler AS h (name, topics, topic_regex, kind, settings, flow, ordered, "coalesce", concurrency_per_key, on_done, on_dead, first_id)
SELECT name, topics, outbox.topic_regex(topics), kind, settings, flow, ordered, "coalesce", concurrency_per_key, on_done, on_dead, first_id FROM wanted
ON CONFLICT (name) DO UPDATE
SET topics = excluded.topics, topic_regex = excluded.topic_regex, kind = excluded.kind, settings = excluded.settings, flow = excluded.flow,
    ordered = excluded.ordered, "coalesce" = excluded."coalesce", concurrency_per_key = excluded.concurrency_per_key, on_done = excluded.on_done, on_dead = excluded.on_dead, absent = false, updated_at = now()
WHERE (h.topics, h.kind, h.settings, h.flow, h.ordered, h."coalesce", h.concurrency_per_key, h.on_done, h.on_dead, h.absent)
      IS DISTINCT FROM (excluded.topics, excluded.kind, excluded.settings, excluded.flow, excluded.ordered, excluded."coalesce", excluded.concurrency_per_key, excluded.on_done, excluded.on_dead, false)
