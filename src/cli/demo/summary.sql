-- What became of the deliveries, per handler. Latency: from the insert to the end of the attempt that succeeded, the
-- pauses between attempts included. Run time: that attempt alone.
-- Result: handler, kind, done, retried, dead, then medians and 99th percentiles in ms (null: none is done)
SELECT h.name AS handler, h.kind, d.done, a.retried, o.dead, d.latency, d.run
FROM outbox.handler h
CROSS JOIN LATERAL (
    SELECT count(*) AS done,
           percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1e3 * extract(epoch FROM d.finished_at - e.created_at)::double precision) AS latency,
           percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1e3 * extract(epoch FROM d.finished_at - d.started_at)::double precision) AS run
    FROM outbox.done d JOIN outbox.event e ON e.id = d.event_id
    WHERE d.handler = h.name AND d.outcome = 'done'
) d
CROSS JOIN LATERAL (
    SELECT count(DISTINCT event_id) AS retried FROM outbox.attempt WHERE handler = h.name AND outcome = 'retry'
) a
CROSS JOIN LATERAL (
    SELECT count(*) AS dead FROM outbox.open WHERE handler = h.name AND state = 'dead'
) o
ORDER BY h.name
