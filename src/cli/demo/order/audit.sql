-- Whether stock, payments, refunds and parcels agree, for every order. Result: a row for everything that does not hold.
WITH party AS (
    SELECT customer_order, sum(times) FILTER (WHERE what = 'charge') AS charged, sum(times) FILTER (WHERE what = 'refund') AS refunded,
           sum(times) FILTER (WHERE what = 'parcel') AS parcels, sum(times) FILTER (WHERE what = 'cancelled parcel') AS cancelled,
           sum(times) FILTER (WHERE what = 'message') AS messages
    FROM demo.party GROUP BY customer_order
), movement AS (
    SELECT customer_order, count(*) FILTER (WHERE pieces < 0) AS locked, count(*) FILTER (WHERE pieces > 0) AS unlocked
    FROM demo.movement GROUP BY customer_order
), placed AS MATERIALIZED (
    SELECT e.id, (e.payload->>'order')::integer AS customer_order FROM outbox.event e WHERE e.topic = 'order.placed'
), flow AS MATERIALIZED (
    SELECT f.event_id, f.state, f.last_error FROM outbox.flow f WHERE f.flow = 'order'
), each AS (
    SELECT o.id, f.state, f.last_error, coalesce(m.locked, 0) AS locked, coalesce(m.unlocked, 0) AS unlocked,
           coalesce(p.charged, 0) AS charged, coalesce(p.refunded, 0) AS refunded, coalesce(p.parcels, 0) AS parcels,
           coalesce(p.cancelled, 0) AS cancelled, coalesce(p.messages, 0) AS messages
    FROM demo.customer_order o
    LEFT JOIN placed e ON e.customer_order = o.id
    LEFT JOIN flow f ON f.event_id = e.id
    LEFT JOIN party p ON p.customer_order = o.id
    LEFT JOIN movement m ON m.customer_order = o.id
)
SELECT format('order %s is %s (%s): locked %s, unlocked %s, charged %s, refunded %s, parcels %s, cancelled %s, messages %s',
              id, coalesce(state, 'not there'), coalesce(last_error, ''), locked, unlocked, charged, refunded, parcels, cancelled, messages) AS wrong
FROM each
WHERE (CASE state
    -- Everything once, and nothing taken back.
    WHEN 'done' THEN (locked, unlocked, charged, refunded, parcels, cancelled, messages) = (1, 0, 1, 0, 1, 0, 1)
    -- Nothing is left of it.
    WHEN 'compensated' THEN locked = unlocked AND locked <= 1 AND charged = refunded AND charged <= 1
                            AND parcels = cancelled AND parcels <= 1 AND messages = 0
    ELSE false
END) IS NOT TRUE
UNION ALL
SELECT format('article %s: %s were there, %s are, and the movements say %s', a.id, a.stocked, a.stock, coalesce(sum(m.pieces), 0))
FROM demo.article a
LEFT JOIN demo.customer_order o ON o.article = a.id
LEFT JOIN demo.movement m ON m.customer_order = o.id
GROUP BY a.id, a.stocked, a.stock
HAVING a.stocked + coalesce(sum(m.pieces), 0) <> a.stock
UNION ALL
SELECT format('%s of event %s is left in outbox.open: %s', handler, event_id, state) FROM outbox.open
LIMIT 20
