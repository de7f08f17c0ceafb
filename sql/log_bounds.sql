-- The lowest and highest id in the log. Result: one row; nulls when the log is empty.
SELECT min(id) AS lowest, max(id) AS highest FROM outbox.event
