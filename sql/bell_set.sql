-- Sets the bell's flag: 1 = the daemon sleeps, producers ring; 2 = it is awake, they are silent.
-- Its own statement and transaction: whoever reads the flag afterwards, in any snapshot, sees it.
-- $1 bigint: the flag. Result: one row.
SELECT setval('outbox.bell', $1)
