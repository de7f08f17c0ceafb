-- The handlers as the database knows them. Result: a row for each: name, topics, kind, whether it is absent.
SELECT name, topics, kind, absent FROM outbox.handler ORDER BY name
