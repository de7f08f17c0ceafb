-- Which of these deliveries need not run: an earlier daemon has settled them (they have a row in outbox.done or
-- outbox.open), or they come from reading the log again in another cluster and are older than their handler.
-- $1 bigint[]: event ids   $2 text[]: handlers   $3, $4 bigint: the lowest and the highest of the ids
-- Result: those pairs; any other is pending. With the steps of a flow among the handlers: which instances have begun.
-- A backlog that nobody has begun is the common case, and there the two looks at the range save two descents into an index for each
-- of the ids, which cost as much as everything else that a delivery costs.
SELECT event_id, handler FROM outbox.done
WHERE event_id = ANY ($1) AND handler = ANY ($2)
  AND EXISTS (SELECT FROM outbox.done WHERE event_id BETWEEN $3 AND $4)
UNION ALL
SELECT event_id, handler FROM outbox.open
WHERE event_id = ANY ($1) AND handler = ANY ($2)
  AND EXISTS (SELECT FROM outbox.open WHERE event_id BETWEEN $3 AND $4)
UNION ALL
SELECT e.id, h.name
FROM outbox.installation i
JOIN outbox.handler h ON h.name = ANY ($2) AND h.flow IS NULL
JOIN unnest($1) AS e (id) ON e.id <= i.rebuilt_id AND e.id < h.first_id
WHERE i.singleton AND i.rebuilt_id >= $3
