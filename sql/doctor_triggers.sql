-- The triggers of the log: the one that rings the bell, and the one that refuses repeated keys.
-- Result: a row for each; `enabled` null when it is not there, and as in pg_trigger.tgenabled otherwise.
SELECT n.name, t.tgenabled::text AS enabled
FROM (VALUES ('ring'), ('remember_dedup_key')) AS n (name)
LEFT JOIN pg_trigger t ON t.tgrelid = 'outbox.event'::regclass AND t.tgname = n.name
ORDER BY n.name DESC
