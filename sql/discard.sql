-- Gives one dead delivery up for good. $1 bigint: event id   $2 text: handler   $3 text: why
-- Result: one row, whether it was dead.
SELECT outbox.discard($1::bigint, $2::text, $3::text)
