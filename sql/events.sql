-- The newest events. Newest first.
-- $1 bigint: below this id (null: from the newest)   $2 text: a topic pattern (null: any topic)
-- $3 text: the key (null: any)   $4 text: only with a delivery in this state (null: any)   $5 bigint: rows at most
SELECT e.id, e.topic, e.key, e.created_at,
       (SELECT coalesce(jsonb_object_agg(d.handler, d.state ORDER BY d.handler), '{}') FROM outbox.delivery d WHERE d.event_id = e.id) AS deliveries
FROM outbox.event e
WHERE ($1::bigint IS NULL OR e.id < $1) AND ($2::text IS NULL OR (e.topic || '.') ~ outbox.topic_regex(ARRAY[$2])) AND ($3::text IS NULL OR e.key = $3)
  AND ($4::text IS NULL OR EXISTS (SELECT FROM outbox.delivery d WHERE d.event_id = e.id AND d.state = $4))
ORDER BY e.id DESC
LIMIT $5
