-- Calls a SQL handler's function with a batch of events, each from the log or, once that is gone, from its open row.
-- handler_function is replaced by the function's quoted name.
-- $1 bigint[]: event ids   $2 text: handler
-- Result: one row, what the function returned.
SELECT handler_function(ARRAY(
    SELECT coalesce(
        (SELECT e FROM outbox.event e WHERE e.id = s.id),
        (SELECT ROW (o.event_id, o.topic, o.key, o.payload, o.headers, NULL, NULL, o.expires_at, o.priority, o.created_at,
                     pg_current_xact_id())::outbox.event
         FROM outbox.open o WHERE o.event_id = s.id AND o.handler = $2)
    )
    FROM unnest($1::bigint[]) WITH ORDINALITY AS s (id, place) ORDER BY s.place
))::jsonb
