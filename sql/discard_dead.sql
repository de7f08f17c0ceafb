-- Gives the dead deliveries that fit up for good. $1 text: why   $2 text: handler   $3 text: topic pattern
-- $4, $5 timestamptz: given up since, until   $6 text: in the last error (null lets everything pass)   $7 boolean: only count
-- Result: one row, how many.
SELECT outbox.discard($1, $2, $3, $4, $5, $6, $7)
