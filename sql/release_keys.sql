-- Under another order of keys, blocked deliveries may have nobody before them any more: those go on. $1 text[]: handlers
UPDATE outbox.open o SET due_at = clock_timestamp(), updated_at = clock_timestamp()
FROM outbox.handler h
WHERE h.name = ANY ($1::text[]) AND o.handler = h.name AND o.state = 'blocked' AND o.due_at IS NULL
  AND (h.ordered IS NULL OR NOT EXISTS (
      SELECT FROM outbox.open x
      WHERE x.handler = o.handler AND x.key = o.key AND x.n < o.n AND outbox.holds_key(x.state, x.attempt, h.ordered)))
