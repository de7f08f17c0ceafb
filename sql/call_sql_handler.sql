-- Calls a SQL handler's function with the event, from the log or, once that is gone, from its open row.
-- handler_function is replaced by the function's quoted name, and the comment by `, $3` for a step of a flow.
-- $1 bigint: event id   $2 text: handler   $3 text: the results of the steps before it, as JSON
-- Result: one row, what the function returned.
SELECT handler_function(coalesce(
    (SELECT e FROM outbox.event e WHERE e.id = $1),
    (SELECT ROW (o.event_id, o.topic, o.key, o.payload, o.headers, NULL, NULL, o.expires_at, o.priority, o.created_at,
                 pg_current_xact_id())::outbox.event
     FROM outbox.open o WHERE o.event_id = $1 AND o.handler = $2)
)/* results */)::jsonb
