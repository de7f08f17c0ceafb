-- Lets other limits count for a handler. $1 text: handler   $2 integer: attempts at the same time   $3 text: in a time, as 10/m
-- (null: those in the configuration count)
-- Result: one row, whether there is such a handler.
SELECT outbox.set_limits($1, $2, $3)
