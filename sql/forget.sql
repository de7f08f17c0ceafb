-- Forgets a handler that left the configuration, with its position and its open deliveries; of a flow, its steps too. $1 text: its name
-- Result: the open deliveries given up with it. Zero rows: no absent handler has this name.
WITH forgotten AS (DELETE FROM outbox.handler WHERE (name = $1 OR flow = $1) AND absent RETURNING name, flow),
     given_up AS (DELETE FROM outbox.open o USING forgotten f WHERE o.handler = f.name RETURNING 1),
     undefined AS (DELETE FROM outbox.flow_version v USING forgotten f WHERE v.flow = f.name)
SELECT (SELECT count(*) FROM given_up) AS given_up FROM forgotten WHERE name = $1
