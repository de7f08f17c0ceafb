-- The alerts that are raised. Result: a row for each: name, and handler, which is empty for one about the daemon.
SELECT name, handler FROM outbox.alert
