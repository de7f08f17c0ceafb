-- outboxd: who may do what. Roles belong to the whole cluster, so nothing is made here: outbox.add_roles makes them when somebody asks
-- (outboxd migrate --roles), and gives them their rights in this database. Whoever shall have them is made a member: GRANT
-- outbox_producer TO shop.
--
--   outbox_producer  inserts events, of every topic; reads nothing of them but their ids
--   outbox_reader    reads all that has a place in a dashboard: events, deliveries, handlers, history
--   outbox_operator  reads, and calls what is done by hand: retry, redrive, discard, cancel, pause, ... (V4, V6)
--   outbox_daemon    runs the daemon; owns nothing, so it can neither change nor drop a table
--
-- A role that shall publish only some topics is no producer, and gets those: outbox.allow_publish. From the first one on there is
-- row security on the log, which costs those who are restricted and nobody else.

-- The topics that a role may publish that is no producer. By name, so that a dump can be restored where the role is not.
CREATE TABLE outbox.publish_right (
    role        text        PRIMARY KEY,
    topics      text[]      NOT NULL,
    topic_regex text        NOT NULL,
    granted_by  text        NOT NULL,
    granted_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT topics_are_1_to_100 CHECK (cardinality(topics) BETWEEN 1 AND 100)
);

-- What a role needs to insert events and to call outbox.publish. Not the columns that the log is read by: xid and created_at.
CREATE FUNCTION outbox.let_publish(role text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA outbox TO %I', role);
    EXECUTE format('GRANT INSERT (topic, key, payload, headers, dedup_key, due_at, expires_at, priority), SELECT (id) ON outbox.event TO %I', role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION outbox.publish, outbox.dedup_holder TO %I', role);
END
$$;

-- Makes those of the four roles that are missing, and gives them their rights in this database. To be called again after an update.
CREATE FUNCTION outbox.add_roles() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['outbox_producer', 'outbox_reader', 'outbox_operator', 'outbox_daemon'] LOOP
        BEGIN
            IF to_regrole(role) IS NULL THEN
                EXECUTE format('CREATE ROLE %I', role);
            END IF;
        EXCEPTION
            -- Another database of this cluster gets its roles at the same moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE insufficient_privilege USING
                    MESSAGE = format('%I may not create the role %I', current_user, role),
                    HINT = 'Let a role with CREATEROLE run: CREATE ROLE outbox_producer; CREATE ROLE outbox_reader; CREATE ROLE outbox_operator; CREATE ROLE outbox_daemon. Then call this again.';
        END;
    END LOOP;

    PERFORM outbox.let_publish('outbox_producer');

    GRANT USAGE ON SCHEMA outbox TO outbox_reader, outbox_operator, outbox_daemon;
    -- Not the key of callbacks: who reads it can answer for every delivery.
    GRANT SELECT ON outbox.event, outbox.done, outbox.open, outbox.attempt, outbox.handler, outbox.flow_version, outbox.position, outbox.dedup,
                    outbox.consumed, outbox.cancelling, outbox.installation, outbox.schedule, outbox.alert, outbox.operation, outbox.publish_right,
                    outbox.full_handler,
                    outbox.delivery, outbox.backlog, outbox.flow, outbox.newest_position, outbox.stuck, outbox.slow, outbox.failed,
                    outbox.refinery_schema_history
    TO outbox_reader, outbox_operator, outbox_daemon;
    -- The default partitions, which somebody looks into who wants to know whether they are used.
    GRANT SELECT ON outbox.event_default, outbox.done_default TO outbox_reader, outbox_operator, outbox_daemon;
    GRANT SELECT ON ALL SEQUENCES IN SCHEMA outbox TO outbox_reader, outbox_operator, outbox_daemon;
    GRANT EXECUTE ON FUNCTION outbox.related, outbox.dead_letters, outbox.check_patterns, outbox.topic_regex, outbox.partitions, outbox.has_ended, outbox.wait_for,
                              outbox.caller
    TO outbox_reader, outbox_operator;

    GRANT EXECUTE ON FUNCTION outbox.retry, outbox.snooze, outbox.cancel, outbox.redrive, outbox.replay, outbox.pause, outbox.resume,
                              outbox.set_limits, outbox.heartbeat, outbox.complete, outbox.fail, outbox.forget,
                              outbox.discard(bigint, text, text),
                              outbox.discard(text, text, text, timestamptz, timestamptz, text, boolean)
    TO outbox_operator;

    GRANT INSERT ON outbox.event, outbox.done, outbox.open, outbox.attempt, outbox.handler, outbox.flow_version, outbox.position, outbox.cancelling,
                    outbox.dedup, outbox.consumed, outbox.schedule, outbox.alert, outbox.full_handler
    TO outbox_daemon;
    GRANT UPDATE, DELETE ON outbox.open, outbox.handler, outbox.position, outbox.flow_version, outbox.cancelling, outbox.dedup, outbox.consumed, outbox.schedule,
                            outbox.alert, outbox.full_handler, outbox.done, outbox.attempt
    TO outbox_daemon;
    GRANT UPDATE ON outbox.installation, outbox.event, outbox.bell TO outbox_daemon;
    -- What was done by hand is noted by the functions; the daemon only takes away what is old.
    GRANT UPDATE, DELETE ON outbox.operation TO outbox_daemon;
    GRANT SELECT ON outbox.callback_key TO outbox_daemon;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO outbox_daemon;
    REVOKE EXECUTE ON FUNCTION outbox.add_roles, outbox.let_publish, outbox.allow_publish, outbox.forbid_publish FROM outbox_daemon;
END
$$;

-- Whether a role may publish an event of this topic; an exception says which it may. For the policy of row security, which those do
-- not come to who may publish everything. A role may what one may that it is a member of.
CREATE FUNCTION outbox.check_publish(role name, topic text) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    may     boolean;
    allowed text;
BEGIN
    SELECT bool_or((topic || '.') ~ r.topic_regex), string_agg(array_to_string(r.topics, ', '), ', ' ORDER BY r.role) INTO may, allowed
    FROM outbox.publish_right r
    -- One that was dropped has no members, and to ask for them is an error.
    WHERE CASE WHEN to_regrole(quote_ident(r.role)) IS NULL THEN false ELSE pg_has_role(check_publish.role, r.role::name, 'USAGE') END;
    IF may THEN
        RETURN true;
    END IF;
    RAISE insufficient_privilege USING
        MESSAGE = format('role %I may not publish topic %L', check_publish.role, topic),
        DETAIL = format('It may publish: %s.', coalesce(allowed, 'nothing')),
        HINT = format('The owner of the schema can allow it: SELECT outbox.allow_publish(%L, ...), or GRANT outbox_producer TO %I for every topic.', check_publish.role, check_publish.role);
END
$$;

-- Lets a role publish these topics ("*" is one word, "#" any number of words), and from now on no others. Only the owner of the schema can.
CREATE FUNCTION outbox.allow_publish(role name, VARIADIC topics text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
BEGIN
    IF array_position(allow_publish.topics, NULL) IS NOT NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'a topic pattern is null; name the topics, or GRANT outbox_producer for every topic';
    END IF;
    PERFORM outbox.check_patterns(allow_publish.topics);
    IF to_regrole(quote_ident(allow_publish.role)) IS NULL THEN
        RAISE undefined_object USING MESSAGE = format('role %I does not exist', allow_publish.role);
    END IF;
    PERFORM outbox.add_roles();
    IF pg_has_role(allow_publish.role, 'outbox_producer', 'USAGE') THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('role %I is a member of outbox_producer, which may publish every topic', allow_publish.role),
            HINT = format('REVOKE outbox_producer FROM %I first.', allow_publish.role);
    END IF;
    IF NOT (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = 'outbox.event'::regclass) THEN
        -- Rights on tables and columns say who reads and writes at all. Of what is inserted, the topic must be allowed.
        CREATE POLICY whoever_may_read ON outbox.event FOR SELECT USING (true);
        CREATE POLICY publishes_every_topic ON outbox.event FOR INSERT TO outbox_producer, outbox_daemon WITH CHECK (true);
        CREATE POLICY publishes_its_topics ON outbox.event FOR INSERT WITH CHECK (outbox.check_publish(current_user, topic));
        CREATE POLICY the_daemon_changes ON outbox.event FOR UPDATE TO outbox_daemon USING (true);
        ALTER TABLE outbox.event ENABLE ROW LEVEL SECURITY;
        GRANT EXECUTE ON FUNCTION outbox.check_publish TO PUBLIC;
    END IF;
    PERFORM outbox.let_publish(allow_publish.role);
    INSERT INTO outbox.publish_right AS r (role, topics, topic_regex, granted_by)
    VALUES (allow_publish.role, allow_publish.topics, outbox.topic_regex(allow_publish.topics), outbox.caller())
    ON CONFLICT (role) DO UPDATE SET topics = excluded.topics, topic_regex = excluded.topic_regex, granted_by = excluded.granted_by, granted_at = now();
    PERFORM outbox.note('allow_publish', NULL, NULL, NULL, 'role', allow_publish.role, 'topics', array_to_string(allow_publish.topics, ', '));
END
$$;

-- Takes that back. Returns whether the role had such a right.
CREATE FUNCTION outbox.forbid_publish(role name) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM outbox.publish_right r WHERE r.role = forbid_publish.role;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF to_regrole(quote_ident(forbid_publish.role)) IS NOT NULL THEN
        -- Of the columns, too.
        EXECUTE format('REVOKE ALL ON outbox.event FROM %I', forbid_publish.role);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION outbox.publish, outbox.dedup_holder FROM %I', forbid_publish.role);
    END IF;
    PERFORM outbox.note('forbid_publish', NULL, NULL, NULL, 'role', forbid_publish.role);
    RETURN true;
END
$$;

COMMENT ON TABLE outbox.publish_right IS 'The topics that roles may publish which may not publish all of them; see outbox.allow_publish.';
COMMENT ON COLUMN outbox.publish_right.role IS 'The role; its members may do the same.';
COMMENT ON COLUMN outbox.publish_right.topics IS 'The patterns of the topics.';
COMMENT ON COLUMN outbox.publish_right.topic_regex IS 'The same as a regular expression for a topic with a dot behind it.';
COMMENT ON COLUMN outbox.publish_right.granted_by IS 'By whom.';
COMMENT ON COLUMN outbox.publish_right.granted_at IS 'Since when.';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
