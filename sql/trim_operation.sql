-- Forgets what was done by hand: to one event when it is old, to many after a year; those are few.
-- $1 double precision: seconds that what is about one event is kept; null: a year, too
WITH kept AS (
    SELECT interval '1 year' AS year, coalesce(make_interval(secs => $1), interval '1 year') AS one
), old AS (
    SELECT n FROM outbox.operation, kept
    WHERE at < clock_timestamp() - least(one, year) AND at < clock_timestamp() - CASE WHEN event_id IS NULL THEN year ELSE one END
    ORDER BY at LIMIT 10000 FOR UPDATE OF operation SKIP LOCKED
)
DELETE FROM outbox.operation p USING old WHERE p.n = old.n
