-- Sets the bell's flag: 1 = the daemon sleeps, producers ring; 2 = it is awake, they are silent. While a handler is full it is 3 in both
-- cases: they ring, and look whether their topic takes events.
-- Its own statement and transaction: whoever reads the flag afterwards, in any snapshot, sees it.
-- setval takes a transaction id while it holds the sequence's page. So a producer that read the old flag has a lower one,
-- and lies below the xmax of every snapshot taken after this statement: bell_producers misses nobody.
-- $1 bigint: the flag. Result: one row.
SELECT setval('outbox.bell', CASE WHEN EXISTS (SELECT FROM outbox.full_handler) THEN 3 ELSE $1::bigint END)
