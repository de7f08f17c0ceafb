-- Pauses a handler. $1 text: its name   $2 text: why, or null   $3 timestamptz: until when, or null
-- Result: one row, whether there is such a handler.
SELECT outbox.pause($1, $2, $3)
