-- Whether a SQL handler's function is there. $1 text: schema.function, quoted, with the types of its arguments
-- Result: one row; `found` null when there is no such function; `returns` its result type.
SELECT to_regprocedure($1)::text AS found,
       (SELECT format_type(p.prorettype, NULL) FROM pg_proc p WHERE p.oid = to_regprocedure($1)) AS returns,
       has_function_privilege(to_regprocedure($1), 'EXECUTE') AS allowed
