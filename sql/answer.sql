-- Takes the answer that came by a callback.
-- $1 bigint event id, $2 text handler, $3 timestamptz when the event was created: ids are given out again after a failover,
-- $4 boolean it succeeded, $5 jsonb result, $6 text error, $7 boolean it will never succeed
-- Result: one row, whether the delivery was there to be answered; if it was, the attempt that asked, and the headers of the event.
SELECT CASE WHEN o.event_id IS NULL THEN false
            WHEN $4 THEN outbox.answer_done($1, $2, $5)
            ELSE outbox.answer_failed($1, $2, $6, $7) END AS accepted,
       o.attempt, o.headers
FROM (VALUES (1)) AS one
LEFT JOIN outbox.open o ON o.event_id = $1 AND o.handler = $2 AND o.created_at = $3
