-- Every delivery of every event, with all that the demo checks.
-- Result: event_id, handler, state, attempts, last_error, "user" and file (the app's ids; null: not of that kind), name,
-- failures (attempts kept with an error and what the program said), history (attempts kept), profiles (rows of the event)
SELECT v.event_id, v.handler, v.state, v.attempts, v.last_error,
       (e.payload ->> 'user')::bigint AS "user", (e.payload ->> 'file')::bigint AS file, coalesce(e.payload ->> 'name', '') AS name,
       (SELECT count(*) FROM outbox.attempt a
        WHERE a.event_id = v.event_id AND a.handler = v.handler AND a.error <> '' AND a.response <> '') AS failures,
       (SELECT count(*) FROM outbox.attempt a WHERE a.event_id = v.event_id AND a.handler = v.handler) AS history,
       (SELECT count(*) FROM demo.profile p WHERE p.event_id = v.event_id) AS profiles
FROM outbox.delivery v
JOIN outbox.event e ON e.id = v.event_id
ORDER BY v.event_id, v.handler
