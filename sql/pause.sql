-- Pauses a handler. $1 text: handler   $2 text: why   $3 timestamptz: until when (null: until it is resumed)
-- Result: one row, whether there is such a handler.
SELECT outbox.pause($1, $2, $3)
