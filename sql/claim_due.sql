-- Starts the next attempt of deliveries that are due, at most so many per handler, the longest due first.
-- $1 text[]: handlers   $2 bigint[]: free slots of each, 0 allowed
-- Result: per handler one row without event_id that says in how many seconds its next delivery is due (null: none is;
-- negative: one is due and had no slot), then the claimed deliveries.
WITH want AS (
    SELECT w.handler, w.slots FROM unnest($1::text[], $2::bigint[]) AS w (handler, slots)
), due AS MATERIALIZED (
    SELECT d.event_id, d.handler
    FROM want w
    CROSS JOIN LATERAL (
        SELECT event_id, handler FROM outbox.open
        WHERE handler = w.handler AND state IN ('scheduled', 'retrying') AND due_at <= clock_timestamp()
        ORDER BY due_at, event_id
        LIMIT w.slots
        FOR UPDATE SKIP LOCKED
    ) d
), claimed AS (
    UPDATE outbox.open o
    SET state = 'running', attempt = o.attempt + 1, due_at = NULL, started_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM due d
    WHERE o.event_id = d.event_id AND o.handler = d.handler
    RETURNING o.event_id, o.handler, o.attempt, o.failures, o.topic, o.key, o.payload, o.headers, o.created_at,
              extract(epoch FROM o.expires_at - now())::double precision AS expires_in
)
SELECT NULL::bigint AS event_id, w.handler, NULL::integer AS attempt, NULL::integer AS failures, NULL::text AS topic, NULL::text AS key,
       NULL::jsonb AS payload, NULL::jsonb AS headers, NULL::timestamptz AS created_at, NULL::double precision AS expires_in,
       (SELECT extract(epoch FROM o.due_at - clock_timestamp())::double precision
        FROM outbox.open o
        WHERE o.handler = w.handler AND o.state IN ('scheduled', 'retrying')
          AND NOT EXISTS (SELECT FROM due d WHERE d.event_id = o.event_id AND d.handler = o.handler)
        ORDER BY o.due_at LIMIT 1) AS next_due_in
FROM want w
UNION ALL
SELECT event_id, handler, attempt, failures, topic, key, payload, headers, created_at, expires_in, NULL
FROM claimed
