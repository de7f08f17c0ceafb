-- How far an event is. $1 bigint: its id
-- Result: one row; no deliveries for an event that nobody wants, null for one that is not there.
SELECT CASE WHEN d.deliveries IS NOT NULL OR EXISTS (SELECT FROM outbox.event e WHERE e.id = $1)
            THEN coalesce(d.deliveries, '[]') END AS deliveries,
       coalesce(d.ended, true) AS ended
FROM (
    SELECT jsonb_agg(jsonb_build_object('handler', handler, 'state', state, 'attempts', attempts, 'result', result,
                                        'last_error', last_error) ORDER BY handler) AS deliveries,
           bool_and(outbox.has_ended(state)) AS ended
    FROM outbox.delivery WHERE event_id = $1
) d
