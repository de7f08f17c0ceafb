-- Which of these deliveries an earlier daemon has settled already: they have a row in outbox.done or outbox.open.
-- $1 bigint[]: event ids   $2 text[]: handlers. Result: the pairs that exist; a pair without a row is pending.
SELECT event_id, handler FROM outbox.done WHERE event_id = ANY ($1) AND handler = ANY ($2)
UNION ALL
SELECT event_id, handler FROM outbox.open WHERE event_id = ANY ($1) AND handler = ANY ($2)
