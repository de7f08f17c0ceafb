-- The first hundred events that deliveries of this one have emitted. $1 bigint: its id
-- Result: ids and topics, in their order.
SELECT r.id, r.topic FROM outbox.related($1) r WHERE r.headers->>'causation_id' = $1::text ORDER BY r.id LIMIT 100
