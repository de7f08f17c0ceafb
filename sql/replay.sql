-- Hands events to a handler again. $1 text: handler   $2 text: topic pattern   $3 text: key   $4, $5 timestamptz: created since, until
-- $6, $7 bigint: ids from, to (null lets everything pass)   $8 text: reason   $9 double precision: so many a second, or null
-- $10 boolean: only count   $11 integer: at most so many
-- Result: one row, how many.
SELECT outbox.replay($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
