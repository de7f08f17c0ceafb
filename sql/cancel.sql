-- Ends one delivery before it has an outcome of its own. $1 bigint: event id   $2 text: handler   $3 text: why, or null
-- Result: one row, whether there was one to end.
SELECT outbox.cancel($1, $2, $3)
