-- $1 double precision: the window in seconds. Zero rows: it is that already.
UPDATE outbox.installation SET dedup_window = make_interval(secs => $1)
WHERE dedup_window <> make_interval(secs => $1)
