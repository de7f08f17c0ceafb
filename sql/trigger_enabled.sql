-- Whether the trigger that rings the bell is there and enabled. Result: one row.
SELECT EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = 'outbox.event'::regclass AND tgname = 'ring' AND tgenabled IN ('O', 'A')
) AS enabled
