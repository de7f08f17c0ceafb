-- The rights a daemon needs and this role has not. Result: what it may not do, in words.
SELECT format('%s on %s', needed.privilege, needed.relation) AS missing
FROM (
    VALUES ('SELECT', 'outbox.event'), ('SELECT', 'outbox.done'), ('INSERT', 'outbox.done'),
           ('SELECT', 'outbox.open'), ('INSERT', 'outbox.open'), ('UPDATE', 'outbox.open'), ('DELETE', 'outbox.open'),
           ('INSERT', 'outbox.event'), ('INSERT', 'outbox.attempt'), ('SELECT', 'outbox.handler'), ('INSERT', 'outbox.handler'), ('UPDATE', 'outbox.handler'),
           ('SELECT', 'outbox.position'), ('INSERT', 'outbox.position'), ('DELETE', 'outbox.position'),
           ('SELECT', 'outbox.installation'), ('UPDATE', 'outbox.installation'),
           ('SELECT', 'outbox.dedup'), ('UPDATE', 'outbox.dedup'), ('DELETE', 'outbox.dedup'),
           ('SELECT', 'outbox.consumed'), ('UPDATE', 'outbox.consumed'), ('DELETE', 'outbox.consumed'),
           ('SELECT', 'outbox.cancelling'), ('DELETE', 'outbox.cancelling'), ('SELECT', 'outbox.callback_key'),
           ('SELECT', 'outbox.flow_version'), ('INSERT', 'outbox.flow_version'), ('DELETE', 'outbox.flow_version'), ('DELETE', 'outbox.done'),
           ('SELECT', 'outbox.schedule'), ('INSERT', 'outbox.schedule'), ('UPDATE', 'outbox.schedule'), ('DELETE', 'outbox.schedule'),
           ('SELECT', 'outbox.alert'), ('INSERT', 'outbox.alert'), ('DELETE', 'outbox.alert'),
           ('SELECT', 'outbox.full_handler'), ('INSERT', 'outbox.full_handler'), ('DELETE', 'outbox.full_handler'),
           ('SELECT', 'outbox.operation'), ('DELETE', 'outbox.operation'), ('UPDATE', 'outbox.operation'), ('UPDATE', 'outbox.event')
) AS needed (privilege, relation)
WHERE NOT has_table_privilege(needed.relation, needed.privilege)
UNION ALL
SELECT 'set the sequence outbox.bell' WHERE NOT has_sequence_privilege('outbox.bell', 'UPDATE')
UNION ALL
-- Who may do what is not the daemon's to say.
SELECT format('call %s of the functions of schema outbox, %s for example', count(*), min(p.proname))
FROM pg_proc p
WHERE p.pronamespace = 'outbox'::regnamespace AND NOT has_function_privilege(p.oid, 'EXECUTE')
  AND p.proname NOT IN ('add_roles', 'let_publish', 'allow_publish', 'forbid_publish')
HAVING count(*) > 0
