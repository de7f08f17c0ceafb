-- The registered handlers. Result: name and whether it is absent.
SELECT name, absent FROM outbox.handler ORDER BY name
