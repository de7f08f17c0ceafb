-- Ends the session of a leader that has gone silent, which frees the lock and fences its writes in one act.
-- $1 integer: its pid. Result: one row, whether a signal was sent.
SELECT pg_terminate_backend($1)
