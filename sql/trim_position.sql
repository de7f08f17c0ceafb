-- Removes positions that are older than ten minutes and not their handler's newest; the younger ones give the rates.
DELETE FROM outbox.position p
WHERE p.at < now() - interval '10 minutes'
  AND p.n < (SELECT max(q.n) FROM outbox.position q WHERE q.handler = p.handler)
