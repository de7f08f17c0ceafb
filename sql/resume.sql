-- Ends a handler's pause. $1 text: its name. Result: one row, whether it was paused.
SELECT outbox.resume($1)
