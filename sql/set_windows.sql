-- How long keys are remembered. $1 double precision: dedup keys, in seconds   $2 double precision: the keys of outbox.once.
-- Zero rows: it is so already.
UPDATE outbox.installation SET dedup_window = make_interval(secs => $1), once_window = make_interval(secs => $2)
WHERE (dedup_window, once_window) IS DISTINCT FROM (make_interval(secs => $1), make_interval(secs => $2))
