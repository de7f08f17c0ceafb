-- The key that callback tokens are made with. Result: one row.
SELECT key FROM outbox.callback_key
