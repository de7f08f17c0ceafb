-- The state of a delivery that has a row, and null for any other.
-- $1 bigint event id, $2 text handler. Result: one row.
SELECT coalesce((SELECT d.outcome FROM outbox.done d WHERE d.event_id = $1 AND d.handler = $2),
                (SELECT o.state FROM outbox.open o WHERE o.event_id = $1 AND o.handler = $2)) AS state
