-- Starts the next attempt of deliveries that are due, at most so many per handler, the longest due first; and of those that wait until
-- their key has a place, at most so many per key, in their order. And tells what has been done by hand meanwhile: which handlers are
-- paused, which deliveries were cancelled.
-- $1 text[]: handlers   $2 bigint[]: free slots of each, 0 allowed
-- $3 text[], $4 text[], $5 bigint[]: handlers among these, keys, and the places of each
-- Result: rows of several kinds. `handler`: one for each; due_in are the seconds until its next delivery is due (null: none is;
-- negative: one is due and had no slot), resumes_in those until its pause is over, limit_concurrency and limit_rate those that count instead of the configured ones,
-- snapshot is this statement's own. `claimed`, `parked` and `unanswered`: a delivery whose
-- attempt begins, because it is due or because its key has a place, and one that waited for an answer in vain; overdue are the seconds since it was due, `alone` when no other row holds its key. `cancelled`: its attempt, if
-- one runs, must end; the row is gone. `key`: one for each of $4; attempt is how many were claimed, `alone` whether none is left. `cancelled_flow`: an instance that had no row; told again until outbox.begin_flow has seen to it.
WITH want AS (
    SELECT w.handler, w.slots, h.ordered, coalesce(h.paused_at IS NOT NULL AND coalesce(h.paused_until > now(), true), false) AS paused,
           extract(epoch FROM h.paused_until - now())::double precision AS resumes_in, h.limit_concurrency, h.limit_rate
    FROM unnest($1::text[], $2::bigint[]) AS w (handler, slots)
    LEFT JOIN outbox.handler h ON h.name = w.handler
), cancelled AS (
    DELETE FROM outbox.cancelling WHERE NOT flow RETURNING event_id, handler
), opened_meanwhile AS (
    DELETE FROM outbox.open o USING cancelled c WHERE o.event_id = c.event_id AND o.handler = c.handler
), due AS MATERIALIZED (
    SELECT d.event_id, d.handler, d.due_at, w.ordered,
           -- Its time to answer is over; before that, it is asked again.
           CASE WHEN d.state = 'waiting' AND coalesce(d.answer_by <= statement_timestamp(), true) THEN 'unanswered' ELSE 'claimed' END AS what,
           -- A delayed event takes its place behind those of its key that have begun.
           CASE WHEN w.ordered IS NOT NULL AND d.key IS NOT NULL AND d.state = 'scheduled' AND d.attempt = 0 THEN EXISTS (
               SELECT FROM outbox.open x
               WHERE x.handler = d.handler AND x.key = d.key AND outbox.holds_key(x.state, x.attempt, w.ordered)
           ) ELSE false END AS behind
    FROM want w
    CROSS JOIN LATERAL (
        SELECT o.event_id, o.handler, o.key, o.state, o.attempt, o.answer_by, o.due_at FROM outbox.open o
        WHERE o.handler = w.handler AND o.due_at <= statement_timestamp()
          AND NOT EXISTS (SELECT FROM outbox.cancelling c WHERE c.event_id = o.event_id AND c.handler = o.handler)
        ORDER BY o.due_at, o.event_id
        LIMIT CASE WHEN w.paused THEN 0 ELSE w.slots END
        FOR UPDATE SKIP LOCKED
    ) d
), place AS (
    SELECT p.handler, p.key, p.places, w.paused FROM unnest($3::text[], $4::text[], $5::bigint[]) AS p (handler, key, places) JOIN want w USING (handler)
), parked AS MATERIALIZED (
    SELECT d.event_id, p.handler, p.key, d.updated_at
    FROM place p
    CROSS JOIN LATERAL (
        SELECT o.event_id, o.updated_at FROM outbox.open o
        WHERE o.handler = p.handler AND o.key = p.key AND o.state = 'blocked' AND o.due_at IS NULL
          AND NOT EXISTS (SELECT FROM outbox.cancelling c WHERE c.event_id = o.event_id AND c.handler = o.handler)
        ORDER BY o.n
        LIMIT CASE WHEN p.paused THEN 0 ELSE p.places END
        FOR UPDATE SKIP LOCKED
    ) d
), begun AS (
    SELECT event_id, handler, due_at, ordered, what FROM due WHERE NOT behind
    UNION ALL
    SELECT event_id, handler, updated_at, NULL, 'parked' FROM parked
), blocked AS (
    UPDATE outbox.open o SET state = 'blocked', due_at = NULL, n = DEFAULT, updated_at = clock_timestamp()
    FROM due d
    WHERE d.behind AND o.event_id = d.event_id AND o.handler = d.handler
), claimed AS (
    UPDATE outbox.open o
    SET state = 'running', attempt = o.attempt + (b.what <> 'unanswered')::integer, due_at = NULL, started_at = clock_timestamp(),
        progress = NULL, heartbeat_at = NULL, updated_at = clock_timestamp()
    FROM begun b
    WHERE o.event_id = b.event_id AND o.handler = b.handler
    RETURNING o.event_id, o.handler, o.attempt, o.failures, o.topic, o.key, o.payload, o.headers, o.created_at, o.polls, o.results,
              extract(epoch FROM o.answer_by - clock_timestamp())::double precision AS answer_in,
              extract(epoch FROM o.expires_at - now())::double precision AS expires_in,
              extract(epoch FROM clock_timestamp() - b.due_at)::double precision AS overdue, b.what,
              o.key IS NOT NULL AND NOT EXISTS (
                  SELECT FROM outbox.open x
                  WHERE x.handler = o.handler AND x.key = o.key AND x.event_id <> o.event_id
                    AND outbox.holds_key(x.state, x.attempt, b.ordered)
              ) AS alone
)
SELECT 'handler' AS what, w.handler, w.paused, w.resumes_in,
       (SELECT extract(epoch FROM o.due_at - clock_timestamp())::double precision
        FROM outbox.open o
        WHERE o.handler = w.handler AND o.due_at IS NOT NULL
          AND NOT EXISTS (SELECT FROM due d WHERE d.event_id = o.event_id AND d.handler = o.handler)
        ORDER BY o.due_at LIMIT 1) AS due_in,
       NULL::bigint AS event_id, NULL::integer AS attempt, NULL::integer AS failures, NULL::text AS topic, NULL::text AS key,
       NULL::jsonb AS payload, NULL::jsonb AS headers, NULL::timestamptz AS created_at, NULL::double precision AS expires_in,
       NULL::boolean AS alone, NULL::integer AS polls, NULL::double precision AS answer_in, NULL::jsonb AS results, NULL::double precision AS overdue,
       pg_current_snapshot()::text AS snapshot, w.limit_concurrency, w.limit_rate
FROM want w
UNION ALL
SELECT what, handler, NULL, NULL, NULL, event_id, attempt, failures, topic, key, payload, headers, created_at, expires_in, alone, polls, answer_in, results, overdue, NULL, NULL, NULL
FROM claimed
UNION ALL
SELECT 'key', p.handler, NULL, NULL, NULL, NULL, (SELECT count(*) FROM parked k WHERE k.handler = p.handler AND k.key = p.key)::integer, NULL, NULL, p.key,
       NULL, NULL, NULL, NULL, l.event_id IS NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM place p
LEFT JOIN LATERAL (
    SELECT o.event_id FROM outbox.open o
    WHERE o.handler = p.handler AND o.key = p.key AND o.state = 'blocked' AND o.due_at IS NULL
      AND NOT EXISTS (SELECT FROM parked k WHERE k.event_id = o.event_id AND k.handler = o.handler)
    ORDER BY o.n LIMIT 1
) l ON true
UNION ALL
SELECT 'cancelled', handler, NULL, NULL, NULL, event_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM cancelled
UNION ALL
SELECT 'cancelled_flow', handler, NULL, NULL, NULL, event_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM outbox.cancelling WHERE flow
