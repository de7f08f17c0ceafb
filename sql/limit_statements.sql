-- Lets PostgreSQL end every further statement of this transaction that takes longer. $1 text: milliseconds. Result: one row.
SELECT set_config('statement_timeout', $1, true)
