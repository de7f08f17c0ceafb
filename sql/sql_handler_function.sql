-- Whether a SQL handler's function is there. $1 text: schema.function, quoted
-- Result: one row; `found` null when there is no function with one outbox.event argument; `returns` its result type.
SELECT to_regprocedure($1 || '(outbox.event)')::text AS found,
       (SELECT format_type(p.prorettype, NULL) FROM pg_proc p WHERE p.oid = to_regprocedure($1 || '(outbox.event)')) AS returns,
       has_function_privilege(to_regprocedure($1 || '(outbox.event)'), 'EXECUTE') AS allowed
