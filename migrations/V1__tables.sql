-- outboxd: the tables. The whole story in thirty lines.
--
--   app ──INSERT──► outbox.event ──(bell)──► outboxd ──► handlers
--                                               │
--                       outbox.done  ◄──────────┴──────────►  outbox.open
--                  what finished, append-only        what needs attention, mutable
--
-- An app inserts one row into outbox.event, in its own transaction. A statement trigger rings a bell (NOTIFY)
-- if the daemon sleeps. The daemon reads the log behind a position (a pg_snapshot: sequence order is not commit
-- order), hands each event to every handler whose topics match, and appends one row to outbox.done for each
-- delivery that finished. An event for one handler is a delivery; a delivery without a row in outbox.done or
-- outbox.open is pending.
--
-- Only a delivery that does not simply succeed has a row in outbox.open: it waits for its time (scheduled,
-- retrying), for an answer (waiting) or for others of its key (blocked), lasts longer than a second
-- (running) or has been given up (dead). That row carries a copy of the event, so retries and dead letters never
-- need the log again, and old partitions of the log can be dropped without looking at them.
--
-- outbox.event and outbox.done are never updated: there is nothing to vacuum, and a transaction left open
-- elsewhere cannot slow them down. Both are partitioned by event id, never by time: a long transaction may
-- commit late. The daemon makes partitions ahead (outbox.add_partitions); the default partition takes what comes
-- when no daemon has run for a long time, so an INSERT never fails for lack of a partition. What has finished and is old
-- goes by whole partitions, events and outcomes together (V5__retention.sql).
--
-- Every table says with CHECKs which rows are impossible; the name of the constraint is the message.
-- Needs PostgreSQL 13 (xid8, pg_current_xact_id). Apps need INSERT on outbox.event, nothing else.

CREATE TABLE outbox.event (
    id         bigint      GENERATED ALWAYS AS IDENTITY,
    topic      text        NOT NULL,
    key        text,
    payload    jsonb       NOT NULL,
    headers    jsonb       NOT NULL DEFAULT '{}',
    dedup_key  text,
    due_at     timestamptz,
    expires_at timestamptz,
    priority   smallint    NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (id),
    CONSTRAINT topic_is_dotted_words_of_letters_digits_underscore_colon_dash
        CHECK (topic ~ '^[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*$'),
    CONSTRAINT topic_is_at_most_255_bytes
        CHECK (octet_length(topic) <= 255),
    CONSTRAINT key_is_1_to_512_bytes_without_control_characters
        CHECK (octet_length(key) BETWEEN 1 AND 512 AND key !~ '[[:cntrl:]]'),
    CONSTRAINT payload_is_at_most_16_mebibytes
        CHECK (pg_column_size(payload) <= 16777216),
    CONSTRAINT headers_are_an_object_of_strings
        CHECK (jsonb_typeof(headers) = 'object'
               AND NOT jsonb_path_exists(headers, '$.* ? (@.type() != "string")')),
    CONSTRAINT headers_are_at_most_64_kibibytes
        CHECK (pg_column_size(headers) <= 65536),
    CONSTRAINT dedup_key_is_1_to_512_bytes
        CHECK (octet_length(dedup_key) BETWEEN 1 AND 512),
    CONSTRAINT due_at_is_between_years_1970_and_9999
        CHECK (due_at >= '1970-01-01Z' AND due_at < '9999-01-01Z'),
    CONSTRAINT expires_at_is_between_years_1970_and_9999
        CHECK (expires_at >= '1970-01-01Z' AND expires_at < '9999-01-01Z'),
    CONSTRAINT expires_at_is_after_due_at
        CHECK (expires_at > due_at),
    CONSTRAINT created_at_is_between_years_1970_and_9999
        CHECK (created_at >= '1970-01-01Z' AND created_at < '9999-01-01Z')
) PARTITION BY RANGE (id);

-- The tail reads by (xid, id): a large transaction can be paged.
CREATE INDEX event_xid_id ON outbox.event (xid, id);
-- Everything that came of one event; see outbox.related. Only what was emitted has the header, so others do not pay for it.
CREATE INDEX event_correlation ON outbox.event ((headers->>'correlation_id'), id) WHERE headers ? 'correlation_id';

CREATE TABLE outbox.event_default PARTITION OF outbox.event DEFAULT;

CREATE TABLE outbox.done (
    event_id    bigint      NOT NULL,
    handler     text        NOT NULL,
    outcome     text        NOT NULL,
    attempt     integer     NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    result      jsonb,
    PRIMARY KEY (event_id, handler),
    CONSTRAINT outcome_is_done_cancelled_expired_discarded_or_compensated
        CHECK (outcome IN ('done', 'cancelled', 'expired', 'discarded', 'compensated')),
    -- Or it was merged into a later one of its key, which does its work.
    CONSTRAINT done_took_an_attempt
        CHECK (outcome <> 'done' OR (attempt >= 1 AND started_at IS NOT NULL) OR result ? 'merged_into'),
    CONSTRAINT result_is_at_most_64_kibibytes
        CHECK (pg_column_size(result) <= 65536)
) PARTITION BY RANGE (event_id);

CREATE TABLE outbox.done_default PARTITION OF outbox.done DEFAULT;

CREATE TABLE outbox.open (
    event_id   bigint      NOT NULL,
    handler    text        NOT NULL,
    state      text        NOT NULL,
    due_at     timestamptz,
    attempt    integer     NOT NULL DEFAULT 0,
    failures   integer     NOT NULL DEFAULT 0,
    started_at timestamptz,
    topic      text        NOT NULL,
    key        text,
    payload    jsonb       NOT NULL,
    headers    jsonb       NOT NULL,
    priority   smallint    NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL,
    -- How often it has answered "not yet", and when it must have answered.
    polls      integer     NOT NULL DEFAULT 0,
    answer_by  timestamptz,
    -- The flow that this is a step of, or a compensation.
    flow       text,
    -- An instance of a flow that has begun: which definition it goes by, what has ended of it, and why it is being undone. Its state
    -- is `waiting`, for its steps, or `dead`, when somebody must see to one of them. The row is the lock of all that its steps do.
    flow_version integer,
    ended        jsonb,
    compensating text,
    -- For a step: the results of those that are done.
    results      jsonb,
    -- What the running attempt said last, and when it said something.
    progress     jsonb,
    heartbeat_at timestamptz,
    last_error text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- The order in which rows were opened: the order of a key.
    n          bigint      GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (event_id, handler),
    CONSTRAINT state_is_one_of_the_six
        CHECK (state IN ('scheduled', 'retrying', 'running', 'waiting', 'blocked', 'dead')),
    -- A blocked row has none until its turn has come.
    CONSTRAINT due_at_says_when_it_goes_on
        CHECK (CASE WHEN flow_version IS NOT NULL THEN due_at IS NULL
                    WHEN state IN ('scheduled', 'retrying', 'waiting') THEN due_at IS NOT NULL
                    WHEN state IN ('running', 'dead') THEN due_at IS NULL ELSE true END),
    CONSTRAINT an_instance_of_a_flow_waits_or_is_dead
        CHECK (flow_version IS NULL OR state IN ('waiting', 'dead')),
    CONSTRAINT compensating_says_why
        CHECK (compensating IS NULL OR (compensating IN ('dead', 'cancelled') AND flow_version IS NOT NULL)),
    CONSTRAINT only_what_has_a_key_is_blocked
        CHECK (state <> 'blocked' OR key IS NOT NULL),
    CONSTRAINT progress_is_at_most_64_kibibytes
        CHECK (pg_column_size(progress) <= 65536),
    CONSTRAINT running_has_started_an_attempt
        CHECK ((state = 'running') = (started_at IS NOT NULL) AND (state <> 'running' OR attempt >= 1)),
    CONSTRAINT retrying_and_dead_have_an_error
        CHECK (state NOT IN ('retrying', 'dead') OR last_error IS NOT NULL),
    CONSTRAINT failures_are_among_the_attempts
        CHECK (failures BETWEEN 0 AND attempt),
    CONSTRAINT last_error_is_at_most_16_kibibytes
        CHECK (octet_length(last_error) <= 16384)
-- Rows here change state a few times: leave room on the page, vacuum early.
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);

-- What is due next, per handler.
CREATE INDEX open_due ON outbox.open (handler, due_at, event_id) WHERE due_at IS NOT NULL;
-- Who is next of a key.
CREATE INDEX open_key ON outbox.open (handler, key, n) WHERE key IS NOT NULL;
-- What a stopped daemon left running, what is dead, since when, and how much there is of each.
CREATE INDEX open_state ON outbox.open (state, handler, updated_at);

CREATE TABLE outbox.attempt (
    event_id    bigint      NOT NULL,
    handler     text        NOT NULL,
    attempt     integer     NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    outcome     text        NOT NULL,
    error       text,
    response    text,
    PRIMARY KEY (event_id, handler, attempt),
    CONSTRAINT outcome_is_how_an_attempt_can_end
        CHECK (outcome IN ('done', 'retry', 'unreachable', 'snooze', 'wait', 'dead', 'lost', 'cancelled', 'paused', 'replayed')),
    CONSTRAINT error_is_at_most_16_kibibytes CHECK (octet_length(error) <= 16384),
    CONSTRAINT response_is_at_most_16_kibibytes CHECK (octet_length(response) <= 16384)
);
-- What failed today; see outbox.failed.
CREATE INDEX attempt_finished ON outbox.attempt (finished_at);

CREATE TABLE outbox.handler (
    name        text        PRIMARY KEY,
    topics      text[]      NOT NULL,
    topic_regex text        NOT NULL,
    kind        text        NOT NULL,
    settings    jsonb       NOT NULL,
    -- The flow that this is a step of, or a compensation: it has no topics, and begins when the flow says so.
    flow        text,
    absent      boolean     NOT NULL DEFAULT false,
    -- Events below this id existed before the handler (or its present topics) and are not meant for it.
    first_id    bigint      NOT NULL,
    -- One delivery of a key at a time, in order; what a dead one does to those behind it. Null: no order.
    ordered     text,
    -- Only the latest of those of a key that wait is handed over.
    "coalesce"  boolean     NOT NULL DEFAULT false,
    -- So many of a key run at the same time, in no order; those that wait for it are blocked. Null: any number.
    concurrency_per_key integer,
    -- The topics of the events that tell of a delivery that succeeded, and of a dead one.
    on_done     text,
    on_dead     text,
    -- By hand, or because the target answered 410. Over at paused_until, if there is one.
    paused_at    timestamptz,
    paused_until timestamptz,
    paused_by    text,
    pause_reason text,
    -- Limits that count instead of those in the configuration; null: those do.
    limit_concurrency integer,
    limit_rate        text,
    limited_at        timestamptz,
    limited_by        text,
    -- Open: the target cannot be reached, or fails; nothing is sent but probes.
    breaker       text        NOT NULL DEFAULT 'closed',
    breaker_since timestamptz,
    breaker_error text,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ordered_is_block_or_skip CHECK (ordered IN ('block', 'skip')),
    CONSTRAINT what_is_merged_is_ordered_and_skips CHECK (NOT "coalesce" OR ordered = 'skip'),
    CONSTRAINT concurrency_per_key_is_1_to_1000_and_without_order
        CHECK (concurrency_per_key IS NULL OR (concurrency_per_key BETWEEN 1 AND 1000 AND ordered IS NULL)),
    CONSTRAINT limit_concurrency_is_1_to_1000 CHECK (limit_concurrency BETWEEN 1 AND 1000),
    CONSTRAINT limit_rate_is_1_to_100000_in_a_second_minute_or_hour
        CHECK (limit_rate ~ '^[1-9][0-9]{0,5}/[smh]$' AND split_part(limit_rate, '/', 1)::integer <= 100000),
    CONSTRAINT breaker_is_closed_or_open CHECK (breaker IN ('closed', 'open')),
    CONSTRAINT pause_reason_is_at_most_4_kibibytes CHECK (octet_length(pause_reason) <= 4096),
    CONSTRAINT name_is_1_to_63_letters_digits_underscores_dashes CHECK (name ~ '^[A-Za-z0-9_-]{1,63}(/[A-Za-z0-9_-]{1,63}(/compensate)?)?$'),
    CONSTRAINT only_a_step_has_no_topics CHECK ((cardinality(topics) = 0) = (flow IS NOT NULL))
);

-- The definitions of each flow: its steps, each behind those that it comes after. An instance ends by the one it began with.
CREATE TABLE outbox.flow_version (
    flow         text        NOT NULL,
    version      integer     NOT NULL,
    -- [{"name": …, "after": […], "compensate": "done", "begun" or null}]
    steps        jsonb       NOT NULL,
    -- Whether a dead step is compensated for, or waits for somebody.
    on_dead_step text        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (flow, version),
    CONSTRAINT on_dead_step_is_compensate_or_hold CHECK (on_dead_step IN ('compensate', 'hold'))
);

-- How far each handler has finished the log: append-only, the newest row counts, old ones are trimmed.
-- `finished` counts the deliveries that ended since the handler was registered: rates come from it for free.
CREATE TABLE outbox.position (
    n        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    handler  text        NOT NULL REFERENCES outbox.handler (name) ON DELETE CASCADE,
    position pg_snapshot NOT NULL,
    finished bigint      NOT NULL DEFAULT 0,
    at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX position_newest ON outbox.position (handler, n DESC);

-- One row per dedup key inside its window; (topic, dedup_key) cannot be unique on the log, which is partitioned by id.
CREATE TABLE outbox.dedup (
    topic      text        NOT NULL,
    dedup_key  text        NOT NULL,
    event_id   bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (topic, dedup_key)
);
CREATE INDEX dedup_expires ON outbox.dedup (expires_at);

-- What consumers inside PostgreSQL have done already: see outbox.once.
CREATE TABLE outbox.consumed (
    consumer   text        NOT NULL,
    key        text        NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (consumer, key),
    CONSTRAINT consumer_is_1_to_255_bytes CHECK (octet_length(consumer) BETWEEN 1 AND 255),
    CONSTRAINT key_is_1_to_512_bytes CHECK (octet_length(key) BETWEEN 1 AND 512)
);
CREATE INDEX consumed_expires ON outbox.consumed (expires_at);

-- Cancelled deliveries of which an attempt may be running in the daemon. It takes the row away and ends the attempt.
CREATE TABLE outbox.cancelling (
    event_id bigint  NOT NULL,
    handler  text    NOT NULL,
    -- A flow, which the daemon may have begun without a row: it tells how far it is, and what is to be undone (outbox.begin_flow).
    flow     boolean NOT NULL DEFAULT false
);

-- One row: what this installation is. The id is part of every idempotency key; system identifier and timeline tell
-- a restored or failed-over database, whose transaction ids mean nothing to the stored positions.
CREATE TABLE outbox.installation (
    singleton         boolean     PRIMARY KEY DEFAULT true,
    id                uuid        NOT NULL DEFAULT gen_random_uuid(),
    system_identifier bigint      NOT NULL,
    timeline          integer     NOT NULL,
    -- Events up to this id have been read again since a restore or failover, behind no position; there
    -- handler.first_id says which of them are meant for a handler.
    rebuilt_id        bigint      NOT NULL DEFAULT 0,
    dedup_window      interval    NOT NULL DEFAULT '24 hours',
    -- How long outbox.once remembers.
    once_window       interval    NOT NULL DEFAULT '30 days',
    created_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT there_is_one_row CHECK (singleton),
    CONSTRAINT dedup_window_is_positive CHECK (dedup_window > interval '0'),
    CONSTRAINT once_window_is_positive CHECK (once_window > interval '0')
);
INSERT INTO outbox.installation (system_identifier, timeline)
SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
FROM pg_control_system();

-- When each schedule ticked last, and will next.
CREATE TABLE outbox.schedule (
    name      text        PRIMARY KEY,
    cron      text        NOT NULL,
    timezone  text        NOT NULL,
    topic     text        NOT NULL,
    ticked_at timestamptz NOT NULL,
    next_at   timestamptz
);

-- The alerts that are raised, so that a restart tells nobody twice.
CREATE TABLE outbox.alert (
    name      text        NOT NULL,
    -- Empty: it is about the daemon.
    handler   text        NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, handler)
);

-- What callback tokens are made with. Who reads it can answer for every delivery.
CREATE TABLE outbox.callback_key (
    singleton boolean PRIMARY KEY DEFAULT true,
    -- The random bits of two UUIDs, 244 of them: those of PostgreSQL are cryptographically strong.
    key       bytea   NOT NULL DEFAULT sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea),
    CONSTRAINT there_is_one_key CHECK (singleton)
);
INSERT INTO outbox.callback_key DEFAULT VALUES;

-- The handlers whose backlog is as large as it may be (max_backlog): their topics take no more events, or warn.
CREATE TABLE outbox.full_handler (
    handler     text        PRIMARY KEY,
    topic_regex text        NOT NULL,
    -- What was configured.
    events      bigint      NOT NULL,
    refuses     boolean     NOT NULL,
    since       timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The bell's flag: 1 = the daemon sleeps, ring; 2 = it is awake, be silent; 3 = some handler is full, ring and look whose topic it is. A sequence, because it is read and
-- set outside snapshots: a producer whose snapshot is an hour old still sees the flag of this moment.
CREATE SEQUENCE outbox.bell MINVALUE 1 MAXVALUE 3 CYCLE;
SELECT setval('outbox.bell', 1);
