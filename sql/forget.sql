-- Forgets a handler that left the configuration, with its position and its open deliveries. $1 text: its name
-- Result: the open deliveries given up with it. Zero rows: no absent handler has this name.
WITH forgotten AS (DELETE FROM outbox.handler WHERE name = $1 AND absent RETURNING name),
     given_up AS (DELETE FROM outbox.open o USING forgotten f WHERE o.handler = f.name RETURNING 1)
SELECT (SELECT count(*) FROM given_up) AS given_up FROM forgotten
