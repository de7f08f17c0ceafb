-- The handlers whose delivery of this event can be cancelled; of a flow not its steps, which go with it. $1 bigint: event id. Zero rows: none can.
SELECT handler FROM outbox.delivery
WHERE event_id = $1 AND handler NOT LIKE '%/%' AND state IN ('pending', 'scheduled', 'retrying', 'running', 'waiting', 'blocked') ORDER BY handler
