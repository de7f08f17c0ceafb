-- The handlers whose delivery of this event can be retried. $1 bigint: event id. Zero rows: none can.
SELECT handler FROM outbox.open WHERE event_id = $1 AND state = 'dead' ORDER BY handler
