-- The lowest id, from this one on, that the log has or has left something of: an outcome, an attempt. $1 bigint: this id
-- Result: one row; null when there is none.
SELECT least((SELECT min(id) FROM outbox.event WHERE id >= $1), (SELECT min(event_id) FROM outbox.done WHERE event_id >= $1),
             (SELECT min(event_id) FROM outbox.attempt WHERE event_id >= $1)) AS id
