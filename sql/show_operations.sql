-- What was done to an event by hand, in that order, 100 at most. $1 bigint event id
SELECT handler, at, role, action, detail FROM outbox.operation WHERE event_id = $1 ORDER BY n LIMIT 100
