-- The registered handlers whose order of keys is about to change. $1 jsonb: as in register_handlers. Result: their names.
SELECT h.name
FROM jsonb_to_recordset($1::jsonb) AS w (name text, ordered text)
JOIN outbox.handler h ON h.name = w.name AND h.ordered IS DISTINCT FROM w.ordered
