-- Runs the dead deliveries that fit again. $1 text: handler   $2 text: topic pattern   $3, $4 timestamptz: given up since, until
-- $5 text: in the last error (null lets everything pass)   $6 double precision: so many a second, or null   $7 boolean: only count
-- Result: one row, how many.
SELECT outbox.redrive($1, $2, $3, $4, $5, $6, $7)
