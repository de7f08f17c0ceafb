-- Forgets a handler that left the configuration. $1 text: its name
-- Result: one row, the open deliveries given up with it; null: no absent handler has this name.
SELECT outbox.forget($1) AS given_up
