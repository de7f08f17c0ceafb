-- outboxd: the order of keys. Of the rows of one handler and key, one at most has its turn; triggers keep it so, whoever changes a row.
-- Of a handler without order of which so many of a key run at the same time, nothing of this holds: what waits there is `blocked` until
-- the leader, which counts what runs, claims it.

-- Whether a row keeps later deliveries of its key from beginning. A delayed event that has not begun does not: it takes its
-- place when its time has come. `ordered` is the handler's: with 'skip' a dead one lets the others pass.
CREATE FUNCTION outbox.holds_key(state text, attempt integer, ordered text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE state WHEN 'scheduled' THEN attempt > 0 WHEN 'dead' THEN ordered = 'block' ELSE true END
$$;

-- Whether a row that holds its key has its turn: it is not one of those that wait for theirs.
CREATE FUNCTION outbox.has_turn(state text, attempt integer, due_at timestamptz, ordered text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT outbox.holds_key(state, attempt, ordered) AND (state <> 'blocked' OR due_at IS NOT NULL)
$$;

-- Refuses what needs to see what was committed while a lock was waited for.
CREATE FUNCTION outbox.needs_read_committed(what text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE feature_not_supported USING
            MESSAGE = format('%s cannot be changed in a transaction that is %s', what, current_setting('transaction_isolation')),
            HINT = 'Use READ COMMITTED.';
    END IF;
END
$$;

-- How a handler orders the deliveries of a key; null when it does not. What follows from it is decided by looking again after every
-- wait for somebody else's transaction, which only READ COMMITTED does.
CREATE FUNCTION outbox.key_order(handler text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    policy text := (SELECT h.ordered FROM outbox.handler h WHERE h.name = key_order.handler);
BEGIN
    IF policy IS NOT NULL THEN
        PERFORM outbox.needs_read_committed(format('deliveries of %s, which keeps the order of keys,', key_order.handler));
    END IF;
    RETURN policy;
END
$$;

-- A row that is to be blocked, and a dead one that is to run again, look whether somebody of their key is before them. Nobody
-- is: it may go on at once. The row before it stays locked until the commit, so that its end cannot pass unseen.
CREATE FUNCTION outbox.take_turn() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    policy  text := outbox.key_order(NEW.handler);
    revived boolean := TG_OP = 'UPDATE' AND NEW.state <> 'blocked';
BEGIN
    IF policy IS NULL THEN
        IF revived OR NOT EXISTS (SELECT FROM outbox.handler h WHERE h.name = NEW.handler AND h.concurrency_per_key IS NOT NULL) THEN
            NEW.due_at := coalesce(NEW.due_at, clock_timestamp());
        END IF;
        RETURN NEW;
    END IF;
    LOOP
        PERFORM FROM outbox.open o
        WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.event_id <> NEW.event_id
          AND outbox.has_turn(o.state, o.attempt, o.due_at, policy)
          -- One that died behind a dead one does not keep it from running again.
          AND NOT (revived AND o.n > NEW.n AND o.state = 'dead')
        ORDER BY o.n DESC LIMIT 1 FOR SHARE;
        IF FOUND THEN
            NEW.state := 'blocked';
            NEW.due_at := NULL;
            RETURN NEW;
        END IF;
        -- Nobody is there who could be locked. Two that find nobody take turns, and the second one looks again.
        PERFORM pg_advisory_xact_lock(hashtextextended('outbox.take_turn ' || NEW.handler, 0));
        -- Locking drops a row that ended meanwhile; then there may be another one.
        IF NOT EXISTS (
            SELECT FROM outbox.open o
            WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.event_id <> NEW.event_id
              AND outbox.has_turn(o.state, o.attempt, o.due_at, policy)
              AND NOT (revived AND o.n > NEW.n AND o.state = 'dead')
        ) THEN
            NEW.due_at := coalesce(NEW.due_at, clock_timestamp());
            RETURN NEW;
        END IF;
    END LOOP;
END
$$;

CREATE TRIGGER take_turn_insert BEFORE INSERT ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'blocked')
    EXECUTE FUNCTION outbox.take_turn();
CREATE TRIGGER take_turn_update BEFORE UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.key IS NOT NULL AND ((NEW.state = 'blocked' AND OLD.state <> 'blocked')
                                   OR (OLD.state = 'dead' AND NEW.state IN ('retrying', 'scheduled'))))
    EXECUTE FUNCTION outbox.take_turn();

-- A row that had its turn and holds its key no more lets the next one go on, unless another one has its turn.
CREATE FUNCTION outbox.pass_turn() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    policy text := outbox.key_order(OLD.handler);
    next   bigint;
BEGIN
    IF policy IS NULL OR NOT outbox.has_turn(OLD.state, OLD.attempt, OLD.due_at, policy)
       OR (TG_OP = 'UPDATE' AND policy = 'block') THEN
        RETURN NULL;
    END IF;
    LOOP
        -- It passes the turn on itself. Locked, so that its end cannot pass unseen.
        PERFORM FROM outbox.open o
        WHERE o.handler = OLD.handler AND o.key = OLD.key AND outbox.has_turn(o.state, o.attempt, o.due_at, policy)
        LIMIT 1 FOR SHARE;
        EXIT WHEN FOUND;
        SELECT o.event_id INTO next FROM outbox.open o
        WHERE o.handler = OLD.handler AND o.key = OLD.key AND o.state = 'blocked'
        ORDER BY o.n LIMIT 1 FOR UPDATE;
        IF NOT FOUND THEN
            -- Locking drops a row that ended meanwhile; then there may be another one, come meanwhile, too.
            EXIT WHEN NOT EXISTS (
                SELECT FROM outbox.open o WHERE o.handler = OLD.handler AND o.key = OLD.key AND o.state = 'blocked'
            );
            CONTINUE;
        END IF;
        -- Nothing, if somebody else has given it the turn while its lock was waited for.
        UPDATE outbox.open o SET due_at = clock_timestamp(), updated_at = clock_timestamp()
        WHERE o.event_id = next AND o.handler = OLD.handler AND o.state = 'blocked' AND o.due_at IS NULL;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE TRIGGER pass_turn_delete AFTER DELETE ON outbox.open FOR EACH ROW
    WHEN (OLD.key IS NOT NULL)
    EXECUTE FUNCTION outbox.pass_turn();
CREATE TRIGGER pass_turn_dead AFTER UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.key IS NOT NULL AND NEW.state = 'dead' AND OLD.state <> 'dead')
    EXECUTE FUNCTION outbox.pass_turn();

-- A handler that keeps the order no more, or lets a dead one be passed from now on, or does not count any more how many of a key run:
-- those that nobody holds up any more go on.
CREATE FUNCTION outbox.change_key_order() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE outbox.open o SET due_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE o.handler = NEW.name AND o.state = 'blocked' AND o.due_at IS NULL
      AND (NEW.ordered IS NULL OR NOT EXISTS (
          SELECT FROM outbox.open x
          WHERE x.handler = o.handler AND x.key = o.key
            AND (outbox.has_turn(x.state, x.attempt, x.due_at, NEW.ordered) OR x.state = 'blocked' AND x.n < o.n)
      ));
    RETURN NULL;
END
$$;

CREATE TRIGGER change_key_order AFTER UPDATE OF ordered, concurrency_per_key ON outbox.handler FOR EACH ROW
    WHEN (OLD.ordered IS DISTINCT FROM NEW.ordered OR (OLD.concurrency_per_key IS NULL) <> (NEW.concurrency_per_key IS NULL))
    EXECUTE FUNCTION outbox.change_key_order();

-- Of a handler that merges, a delivery that is to wait behind others of its key takes the place of those that wait already, or are to
-- run again: they are done without it, as merged. What runs, waits for an answer or is dead is left alone.
CREATE FUNCTION outbox.merge_earlier() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM outbox.handler h WHERE h.name = NEW.handler AND h."coalesce") THEN
        WITH merged AS (
            DELETE FROM outbox.open o
            WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.n < NEW.n AND o.state IN ('blocked', 'retrying')
            RETURNING o.event_id, o.attempt
        )
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
        SELECT m.event_id, NEW.handler, 'done', m.attempt, clock_timestamp(), jsonb_build_object('merged_into', NEW.event_id) FROM merged m
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NEW;
END
$$;

-- Before take_turn, which is told of those that are gone: triggers fire in the order of their names.
CREATE TRIGGER merge_earlier_insert BEFORE INSERT ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'blocked')
    EXECUTE FUNCTION outbox.merge_earlier();
CREATE TRIGGER merge_earlier_update BEFORE UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.state = 'blocked' AND OLD.state <> 'blocked')
    EXECUTE FUNCTION outbox.merge_earlier();

-- One that is to run again, while a later one of its key is there, is merged into that one.
CREATE FUNCTION outbox.merge_failed() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    later bigint;
BEGIN
    IF EXISTS (SELECT FROM outbox.handler h WHERE h.name = NEW.handler AND h."coalesce") THEN
        SELECT o.event_id INTO later FROM outbox.open o
        WHERE o.handler = NEW.handler AND o.key = NEW.key AND o.n > NEW.n AND o.state <> 'dead' ORDER BY o.n DESC LIMIT 1;
        IF FOUND THEN
            WITH merged AS (
                DELETE FROM outbox.open o WHERE o.event_id = NEW.event_id AND o.handler = NEW.handler AND o.state = NEW.state RETURNING o.attempt
            )
            INSERT INTO outbox.done (event_id, handler, outcome, attempt, finished_at, result)
            SELECT NEW.event_id, NEW.handler, 'done', m.attempt, clock_timestamp(), jsonb_build_object('merged_into', later) FROM merged m
            ON CONFLICT DO NOTHING;
        END IF;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER merge_failed AFTER UPDATE OF state ON outbox.open FOR EACH ROW
    WHEN (NEW.key IS NOT NULL AND ((NEW.state = 'retrying' AND OLD.state <> 'retrying') OR (NEW.state = 'blocked' AND OLD.state = 'dead')))
    EXECUTE FUNCTION outbox.merge_failed();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
