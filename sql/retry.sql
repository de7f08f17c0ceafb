-- Runs one delivery again now. $1 bigint: event id   $2 text: handler
-- Result: one row, whether there was a dead, retrying or scheduled delivery.
SELECT outbox.retry($1, $2)
