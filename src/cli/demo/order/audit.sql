-- Whether stock, payments, refunds and parcels agree, for every order. Result: a row for everything that does not hold.
WITH done AS (
    SELECT what, customer_order, times FROM demo.party
), each AS (
    SELECT o.id, o.pieces, f.state, f.last_error,
           (SELECT count(*) FROM demo.movement m WHERE m.customer_order = o.id AND m.pieces < 0) AS locked,
           (SELECT count(*) FROM demo.movement m WHERE m.customer_order = o.id AND m.pieces > 0) AS unlocked,
           coalesce((SELECT times FROM done d WHERE d.customer_order = o.id AND d.what = 'charge'), 0) AS charged,
           coalesce((SELECT times FROM done d WHERE d.customer_order = o.id AND d.what = 'refund'), 0) AS refunded,
           coalesce((SELECT times FROM done d WHERE d.customer_order = o.id AND d.what = 'parcel'), 0) AS parcels,
           coalesce((SELECT times FROM done d WHERE d.customer_order = o.id AND d.what = 'cancelled parcel'), 0) AS cancelled,
           coalesce((SELECT times FROM done d WHERE d.customer_order = o.id AND d.what = 'message'), 0) AS messages
    FROM demo.customer_order o
    LEFT JOIN outbox.event e ON e.topic = 'order.placed' AND (e.payload->>'order')::integer = o.id
    LEFT JOIN outbox.flow f ON f.event_id = e.id AND f.flow = 'order'
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
