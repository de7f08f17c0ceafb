-- The registered handlers whose topics are about to change. $1 jsonb: as in register_handlers. Result: their names.
SELECT h.name
FROM jsonb_to_recordset($1::jsonb) AS w (name text, topics jsonb)
JOIN outbox.handler h ON h.name = w.name AND h.topics <> ARRAY(SELECT jsonb_array_elements_text(w.topics))
