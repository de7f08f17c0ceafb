-- Takes the running row of an attempt away inside its SQL handler's own transaction.
-- $1 bigint event id, $2 text handler, $3 integer attempt. Result: the number of rows; 0 for an attempt that has none.
DELETE FROM outbox.open WHERE event_id = $1 AND handler = $2 AND attempt = $3 AND state = 'running'
