-- Marks the handlers that left the configuration; they keep their row and position until `outboxd forget`.
-- $1 text[]: the handlers of the configuration. Result: the names newly absent.
UPDATE outbox.handler SET absent = true, updated_at = now()
WHERE NOT absent AND name <> ALL ($1::text[])
RETURNING name
