-- The live mode's summary line. Latency, from the insert to the end of the attempt: of those that succeeded the first
-- time, because the demo makes others fail on purpose.
-- Result: one row: events, done, retried, dead, median and 99th percentile in ms (null: none is done)
SELECT (SELECT count(*) FROM outbox.event) AS events,
       count(*) AS done,
       (SELECT count(DISTINCT (event_id, handler)) FROM outbox.attempt WHERE outcome = 'retry') AS retried,
       (SELECT count(*) FROM outbox.open WHERE state = 'dead') AS dead,
       percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1e3 * extract(epoch FROM d.finished_at - e.created_at)::double precision)
           FILTER (WHERE d.attempt = 1) AS latency
FROM outbox.done d
JOIN outbox.event e ON e.id = d.event_id
WHERE d.outcome = 'done'
