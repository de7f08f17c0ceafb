-- Reads a partition once, without a lock in anybody's way: may it go?
-- $1 bigint, $2 bigint: from this id, below that one   $3 double precision: the retention in seconds
-- Result: one row. `young_for`: seconds until the youngest event or outcome in it is old enough; null: nothing is in it. `pending`:
-- whether a delivery in it has neither finished nor an open row; null while it is young. `checked`: the snapshot of all this.
-- OFFSET 0 keeps each delivery a look into an index, whatever the planner knows of the tables: of those that had never been analyzed it
-- read the range again for each event, 40 s for 16,000.
SELECT pg_current_snapshot()::text AS checked, y.young_for,
       CASE WHEN y.young_for > 0 THEN NULL ELSE EXISTS (
           SELECT FROM outbox.event e
           JOIN outbox.handler h ON e.id >= h.first_id AND (e.topic || '.') ~ h.topic_regex
           WHERE e.id >= $1 AND e.id < $2
             AND NOT EXISTS (SELECT FROM outbox.done d WHERE d.event_id = e.id AND d.handler = h.name AND d.event_id >= $1 AND d.event_id < $2 OFFSET 0)
             AND NOT EXISTS (SELECT FROM outbox.open o WHERE o.event_id = e.id AND o.handler = h.name OFFSET 0)
       ) END AS pending
FROM (
    SELECT extract(epoch FROM greatest(
        (SELECT max(created_at) FROM outbox.event WHERE id >= $1 AND id < $2),
        (SELECT max(finished_at) FROM outbox.done WHERE event_id >= $1 AND event_id < $2)
    ) - clock_timestamp())::double precision + $3::double precision AS young_for
) y
