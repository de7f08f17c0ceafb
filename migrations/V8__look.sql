-- Looking at it with psql: what is stuck, what is slow, what failed and why, a line each. `\d+ outbox.open` teaches the rest.
-- Each view costs the same however large the log is: it looks at one end of an index, or at the newest 10,000.

-- What holds a handler up, the longest first: a pause, an open breaker, what is dead, overdue, blocked, or runs for more than ten minutes.
-- Counts stop at 10,000; `event_id` is the one that has been so for longest.
CREATE VIEW outbox.stuck AS
SELECT h.name AS handler, s.why, s.deliveries, s.event_id, s.since, s.detail
FROM outbox.handler h
CROSS JOIN LATERAL (
    SELECT 'paused' AS why, NULL::bigint AS deliveries, NULL::bigint AS event_id, h.paused_at AS since,
           concat_ws(': ', 'by ' || h.paused_by, h.pause_reason) AS detail
    WHERE h.paused_at IS NOT NULL AND coalesce(h.paused_until > now(), true)
    UNION ALL
    SELECT 'breaker open', NULL, NULL, h.breaker_since, h.breaker_error WHERE h.breaker = 'open'
    UNION ALL
    SELECT 'full', f.events, NULL, f.since, CASE WHEN f.refuses THEN 'its topics take no more events' ELSE 'producers are warned' END
    FROM outbox.full_handler f WHERE f.handler = h.name
    UNION ALL
    SELECT x.state, (SELECT count(*) FROM (SELECT FROM outbox.open o WHERE o.state = x.state AND o.handler = h.name LIMIT 10000) c),
           f.event_id, f.updated_at,
           CASE WHEN x.state = 'dead' THEN f.last_error
                WHEN h.concurrency_per_key IS NOT NULL THEN format('as many of its key as may run do (concurrency_per_key = %s): %s', h.concurrency_per_key, f.key)
                ELSE 'behind another one of its key: ' || f.key END
    FROM (VALUES ('dead'), ('blocked')) AS x (state)
    CROSS JOIN LATERAL (
        SELECT o.event_id, o.updated_at, o.last_error, o.key FROM outbox.open o
        WHERE o.state = x.state AND o.handler = h.name ORDER BY o.updated_at LIMIT 1
    ) f
    UNION ALL
    SELECT 'overdue', (SELECT count(*) FROM (
               SELECT FROM outbox.open o WHERE o.handler = h.name AND o.due_at < now() - interval '1 minute' LIMIT 10000) c),
           f.event_id, f.due_at, f.last_error
    FROM (
        SELECT o.event_id, o.due_at, o.last_error FROM outbox.open o
        WHERE o.handler = h.name AND o.due_at < now() - interval '1 minute' ORDER BY o.due_at LIMIT 1
    ) f
    UNION ALL
    SELECT 'running', count(*), (array_agg(o.event_id ORDER BY o.started_at))[1], min(o.started_at), NULL
    FROM outbox.open o
    WHERE o.state = 'running' AND o.handler = h.name AND o.started_at < now() - interval '10 minutes'
    HAVING count(*) > 0
) s
ORDER BY s.since;

-- How long attempts ran and deliveries waited, by handler, in seconds, among the newest 10,000 deliveries that have ended; the slowest
-- handler first. `waited` is from the creation of the event, or since it was due, to the attempt that succeeded.
CREATE VIEW outbox.slow AS
SELECT d.handler, count(*) AS deliveries,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY x.ran) AS ran_p50, percentile_cont(0.99) WITHIN GROUP (ORDER BY x.ran) AS ran_p99,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY x.waited) AS waited_p50,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY x.waited) AS waited_p99,
       (array_agg(d.event_id ORDER BY x.ran DESC))[1] AS slowest_event_id
FROM (
    SELECT n.event_id, n.handler, n.started_at, n.finished_at FROM outbox.done n
    WHERE n.started_at IS NOT NULL ORDER BY n.event_id DESC LIMIT 10000
) d
-- The limit keeps each event a look into the index: a join might read the whole log.
CROSS JOIN LATERAL (SELECT greatest(e.created_at, e.due_at) AS since FROM outbox.event e WHERE e.id = d.event_id LIMIT 1) e
CROSS JOIN LATERAL (
    SELECT extract(epoch FROM d.finished_at - d.started_at)::double precision AS ran,
           greatest(0, extract(epoch FROM d.started_at - e.since))::double precision AS waited
) x
GROUP BY d.handler
ORDER BY ran_p99 DESC;

-- What has failed since midnight, of the newest 10,000 attempts that did, by handler and error; the most frequent first. Errors are put
-- together by their first line, with numbers left out.
CREATE VIEW outbox.failed AS
SELECT a.handler, a.outcome, count(*) AS attempts, count(DISTINCT a.event_id) AS events,
       max(a.finished_at) AS last_at, max(a.event_id) AS last_event_id, (array_agg(a.error ORDER BY a.finished_at DESC))[1] AS last_error
FROM (
    SELECT t.* FROM outbox.attempt t
    WHERE t.finished_at >= date_trunc('day', now()) AND t.outcome IN ('retry', 'unreachable', 'dead', 'lost', 'paused')
    ORDER BY t.finished_at DESC LIMIT 10000
) a
GROUP BY a.handler, a.outcome, regexp_replace(split_part(a.error, E'\n', 1), '[0-9]+', '#', 'g')
ORDER BY attempts DESC;

COMMENT ON SCHEMA outbox IS 'outboxd: events, and what becomes of them. Begin with \d+ outbox.event, SELECT * FROM outbox.stuck, and outboxd doctor.';

COMMENT ON TABLE outbox.event IS 'The log: an app inserts a row in its own transaction. Never updated; partitioned by id; old partitions go when all has ended.';
COMMENT ON COLUMN outbox.event.id IS 'Given out by a sequence; not the order of commits.';
COMMENT ON COLUMN outbox.event.topic IS 'What it is about: dotted words, 255 bytes. Handlers select by patterns: * is one word, # any number.';
COMMENT ON COLUMN outbox.event.key IS 'What it belongs to, 512 bytes; the order of handlers with ordered = true. Null: nothing.';
COMMENT ON COLUMN outbox.event.payload IS 'What the handlers get: any JSON, 16 MiB.';
COMMENT ON COLUMN outbox.event.headers IS 'An object of strings, 64 KiB; traceparent, correlation_id and causation_id mean something to outboxd.';
COMMENT ON COLUMN outbox.event.dedup_key IS 'A second event of the topic with this key is refused (23505) for dedup_window, a day.';
COMMENT ON COLUMN outbox.event.due_at IS 'Handlers do not get it before. Null: at once.';
COMMENT ON COLUMN outbox.event.expires_at IS 'A delivery that has not begun by then is expired. Null: never.';
COMMENT ON COLUMN outbox.event.priority IS 'Among those that wait in a handler, the higher goes first.';
COMMENT ON COLUMN outbox.event.created_at IS 'When it was inserted.';
COMMENT ON COLUMN outbox.event.xid IS 'The transaction that inserted it: the log is read in this order.';

COMMENT ON TABLE outbox.done IS 'Deliveries that have ended, a row each. Appended only; goes with its event.';
COMMENT ON COLUMN outbox.done.event_id IS 'The event; it may have gone, if only this outcome is kept.';
COMMENT ON COLUMN outbox.done.handler IS 'The handler; for a step of a flow FLOW/STEP.';
COMMENT ON COLUMN outbox.done.outcome IS 'done, cancelled, expired, discarded or, of a flow, compensated.';
COMMENT ON COLUMN outbox.done.attempt IS 'The attempt that ended it; 0 if none has begun.';
COMMENT ON COLUMN outbox.done.started_at IS 'When that attempt began.';
COMMENT ON COLUMN outbox.done.finished_at IS 'When it ended.';
COMMENT ON COLUMN outbox.done.result IS 'What the handler answered, 64 KiB; {"merged_into": ID} if a later one does its work; by whom and why, if by hand.';

COMMENT ON TABLE outbox.open IS 'Deliveries that need attention or wait: what does not simply succeed. Changes only by the daemon and the functions of this schema.';
COMMENT ON COLUMN outbox.open.event_id IS 'The event. The row has a copy of it, so it can be retried when the log has gone.';
COMMENT ON COLUMN outbox.open.handler IS 'The handler; for a step of a flow FLOW/STEP.';
COMMENT ON COLUMN outbox.open.state IS 'scheduled or retrying (until due_at), running, waiting (for an answer), blocked (behind its key), dead (outbox.retry, outbox.redrive, outbox.discard).';
COMMENT ON COLUMN outbox.open.due_at IS 'When it goes on.';
COMMENT ON COLUMN outbox.open.attempt IS 'The attempts that have begun.';
COMMENT ON COLUMN outbox.open.failures IS 'Those among them that failed and counted.';
COMMENT ON COLUMN outbox.open.started_at IS 'Since when it runs.';
COMMENT ON COLUMN outbox.open.topic IS 'Of the event.';
COMMENT ON COLUMN outbox.open.key IS 'Of the event.';
COMMENT ON COLUMN outbox.open.payload IS 'Of the event.';
COMMENT ON COLUMN outbox.open.headers IS 'Of the event.';
COMMENT ON COLUMN outbox.open.priority IS 'Of the event.';
COMMENT ON COLUMN outbox.open.expires_at IS 'Of the event.';
COMMENT ON COLUMN outbox.open.created_at IS 'Of the event.';
COMMENT ON COLUMN outbox.open.polls IS 'How often it has answered that it is not done yet.';
COMMENT ON COLUMN outbox.open.answer_by IS 'No answer by then is a failure.';
COMMENT ON COLUMN outbox.open.flow IS 'The flow that it is a step or a compensation of.';
COMMENT ON COLUMN outbox.open.flow_version IS 'Of an instance of a flow: the definition that it began with.';
COMMENT ON COLUMN outbox.open.ended IS 'Of an instance of a flow: what has ended of it.';
COMMENT ON COLUMN outbox.open.compensating IS 'Of an instance of a flow: why it is being undone, dead or cancelled.';
COMMENT ON COLUMN outbox.open.results IS 'Of a step: the results of those before it.';
COMMENT ON COLUMN outbox.open.progress IS 'What the running attempt said last.';
COMMENT ON COLUMN outbox.open.heartbeat_at IS 'When it said so.';
COMMENT ON COLUMN outbox.open.last_error IS 'Why the last attempt failed. outbox.attempt has them all.';
COMMENT ON COLUMN outbox.open.updated_at IS 'When its state changed last: since when it is dead.';
COMMENT ON COLUMN outbox.open.n IS 'The order of a key.';

COMMENT ON TABLE outbox.attempt IS 'The attempts of deliveries that did not succeed the first time; of a simple success, outbox.done says all.';
COMMENT ON COLUMN outbox.attempt.event_id IS 'The event.';
COMMENT ON COLUMN outbox.attempt.handler IS 'The handler.';
COMMENT ON COLUMN outbox.attempt.attempt IS 'Its number, from 1.';
COMMENT ON COLUMN outbox.attempt.started_at IS 'When it began.';
COMMENT ON COLUMN outbox.attempt.finished_at IS 'When it ended.';
COMMENT ON COLUMN outbox.attempt.outcome IS 'done, retry, unreachable (failed, and spent nothing), snooze, wait, paused (410), dead, cancelled, lost (with its daemon), replayed (it had ended, see error).';
COMMENT ON COLUMN outbox.attempt.error IS 'Why it failed.';
COMMENT ON COLUMN outbox.attempt.response IS 'The beginning of what the target answered.';

COMMENT ON TABLE outbox.handler IS 'The handlers that a daemon has registered, and what holds them up.';
COMMENT ON COLUMN outbox.handler.name IS 'As in the configuration; steps of flows are FLOW/STEP and FLOW/STEP/compensate.';
COMMENT ON COLUMN outbox.handler.topics IS 'The patterns of the topics that it wants.';
COMMENT ON COLUMN outbox.handler.topic_regex IS 'The same as a regular expression for a topic with a dot behind it.';
COMMENT ON COLUMN outbox.handler.kind IS 'http, command, sql, rust or flow.';
COMMENT ON COLUMN outbox.handler.settings IS 'How it is run, without secrets.';
COMMENT ON COLUMN outbox.handler.flow IS 'The flow that it is a step or a compensation of.';
COMMENT ON COLUMN outbox.handler.absent IS 'It has left the configuration; outboxd forget takes it away.';
COMMENT ON COLUMN outbox.handler.first_id IS 'Events with lower ids are not meant for it.';
COMMENT ON COLUMN outbox.handler.ordered IS 'One delivery of a key at a time; block or skip says what a dead one does to the next. Null: no order.';
COMMENT ON COLUMN outbox.handler."coalesce" IS 'Of those of a key that wait only the latest is handed over.';
COMMENT ON COLUMN outbox.handler.concurrency_per_key IS 'So many of a key run at the same time, in no order. Null: any number, or one, in order.';
COMMENT ON COLUMN outbox.handler.on_done IS 'The topic of the event that tells of a success.';
COMMENT ON COLUMN outbox.handler.on_dead IS 'The topic of the event that tells of a death.';
COMMENT ON COLUMN outbox.handler.paused_at IS 'Since when nothing begins (outbox.pause).';
COMMENT ON COLUMN outbox.handler.paused_until IS 'When that ends by itself. Null: when it is resumed.';
COMMENT ON COLUMN outbox.handler.paused_by IS 'The role that paused it.';
COMMENT ON COLUMN outbox.handler.pause_reason IS 'Why.';
COMMENT ON COLUMN outbox.handler.limit_concurrency IS 'Attempts at the same time, instead of the configured number (outbox.set_limits). Null: that counts.';
COMMENT ON COLUMN outbox.handler.limit_rate IS 'Attempts in a time, as 10/m, instead of the configured rate. Null: that counts.';
COMMENT ON COLUMN outbox.handler.limited_at IS 'Since when.';
COMMENT ON COLUMN outbox.handler.limited_by IS 'By whom.';
COMMENT ON COLUMN outbox.handler.breaker IS 'open: its target cannot be reached or fails, and nothing but probes is sent.';
COMMENT ON COLUMN outbox.handler.breaker_since IS 'Since when.';
COMMENT ON COLUMN outbox.handler.breaker_error IS 'What failed.';
COMMENT ON COLUMN outbox.handler.updated_at IS 'When it was registered last.';

COMMENT ON TABLE outbox.flow_version IS 'The definitions of flows: an instance ends by the one that it began with.';
COMMENT ON COLUMN outbox.flow_version.flow IS 'The flow.';
COMMENT ON COLUMN outbox.flow_version.version IS 'From 1.';
COMMENT ON COLUMN outbox.flow_version.steps IS 'Its steps: name, after, and when each is compensated.';
COMMENT ON COLUMN outbox.flow_version.on_dead_step IS 'compensate or hold.';
COMMENT ON COLUMN outbox.flow_version.created_at IS 'When it was first configured.';

COMMENT ON TABLE outbox.position IS 'How far each handler has come in the log; the newest row counts.';
COMMENT ON COLUMN outbox.position.n IS 'The order of the rows.';
COMMENT ON COLUMN outbox.position.handler IS 'The handler.';
COMMENT ON COLUMN outbox.position.position IS 'Every delivery of what this snapshot sees has a row in outbox.done or outbox.open.';
COMMENT ON COLUMN outbox.position.finished IS 'Deliveries that have ended since the handler was registered.';
COMMENT ON COLUMN outbox.position.at IS 'When it was written.';

COMMENT ON TABLE outbox.dedup IS 'The dedup keys within their window.';
COMMENT ON COLUMN outbox.dedup.topic IS 'Of the event.';
COMMENT ON COLUMN outbox.dedup.dedup_key IS 'Of the event.';
COMMENT ON COLUMN outbox.dedup.event_id IS 'The event that has it.';
COMMENT ON COLUMN outbox.dedup.expires_at IS 'From then on it may come again.';

COMMENT ON TABLE outbox.consumed IS 'What outbox.once remembers.';
COMMENT ON COLUMN outbox.consumed.consumer IS 'Who did it.';
COMMENT ON COLUMN outbox.consumed.key IS 'What was done.';
COMMENT ON COLUMN outbox.consumed.expires_at IS 'When it is forgotten.';

COMMENT ON TABLE outbox.cancelling IS 'Deliveries that were cancelled and may run in the daemon; it takes the rows away.';
COMMENT ON COLUMN outbox.cancelling.event_id IS 'The event.';
COMMENT ON COLUMN outbox.cancelling.handler IS 'The handler.';
COMMENT ON COLUMN outbox.cancelling.flow IS 'It is a flow, of which the daemon knows how far it is.';

COMMENT ON TABLE outbox.installation IS 'What this installation is; one row.';
COMMENT ON COLUMN outbox.installation.singleton IS 'There is one row.';
COMMENT ON COLUMN outbox.installation.id IS 'A part of every idempotency key.';
COMMENT ON COLUMN outbox.installation.system_identifier IS 'The cluster in which the positions mean something.';
COMMENT ON COLUMN outbox.installation.timeline IS 'And its timeline: another one is a restore or a failover.';
COMMENT ON COLUMN outbox.installation.rebuilt_id IS 'Events up to this id were read again after a restore or a failover.';
COMMENT ON COLUMN outbox.installation.dedup_window IS 'How long a dedup key is remembered.';
COMMENT ON COLUMN outbox.installation.once_window IS 'How long outbox.once remembers.';
COMMENT ON COLUMN outbox.installation.created_at IS 'When the schema was made.';

COMMENT ON TABLE outbox.schedule IS 'The schedules of the configuration.';
COMMENT ON COLUMN outbox.schedule.name IS 'As in the configuration.';
COMMENT ON COLUMN outbox.schedule.cron IS 'When it ticks.';
COMMENT ON COLUMN outbox.schedule.timezone IS 'Where.';
COMMENT ON COLUMN outbox.schedule.topic IS 'The topic of its events.';
COMMENT ON COLUMN outbox.schedule.ticked_at IS 'When it ticked last.';
COMMENT ON COLUMN outbox.schedule.next_at IS 'When it ticks next.';

COMMENT ON TABLE outbox.alert IS 'The alerts that are raised now.';
COMMENT ON COLUMN outbox.alert.name IS 'As in the configuration.';
COMMENT ON COLUMN outbox.alert.handler IS 'The handler that it is about; empty: the daemon.';
COMMENT ON COLUMN outbox.alert.raised_at IS 'Since when.';

COMMENT ON TABLE outbox.full_handler IS 'The handlers for which as many deliveries wait as may: their topics take no more events, or warn.';
COMMENT ON COLUMN outbox.full_handler.handler IS 'The handler.';
COMMENT ON COLUMN outbox.full_handler.topic_regex IS 'Its topics.';
COMMENT ON COLUMN outbox.full_handler.events IS 'How many may wait.';
COMMENT ON COLUMN outbox.full_handler.refuses IS 'Events are refused; otherwise their sessions are warned.';
COMMENT ON COLUMN outbox.full_handler.since IS 'Since when.';

COMMENT ON TABLE outbox.operation IS 'What was done by hand: who, when, what. What is about one event goes when it is old, the rest after a year.';
COMMENT ON COLUMN outbox.operation.n IS 'The order of the rows.';
COMMENT ON COLUMN outbox.operation.at IS 'When.';
COMMENT ON COLUMN outbox.operation.role IS 'The role that did it: that of SET ROLE, or the one that had logged in.';
COMMENT ON COLUMN outbox.operation.action IS 'The function of the schema that did it; limit is outbox.set_limits.';
COMMENT ON COLUMN outbox.operation.handler IS 'The handler; null: all of them.';
COMMENT ON COLUMN outbox.operation.event_id IS 'The event; null: many, or none.';
COMMENT ON COLUMN outbox.operation.deliveries IS 'Of an action on many: how many.';
COMMENT ON COLUMN outbox.operation.detail IS 'What else was said, the reason for example.';

COMMENT ON TABLE outbox.callback_key IS 'What callback tokens are made with. Who reads it can answer for every delivery.';
COMMENT ON COLUMN outbox.callback_key.singleton IS 'There is one row.';
COMMENT ON COLUMN outbox.callback_key.key IS 'The key.';

COMMENT ON SEQUENCE outbox.bell IS '1: the daemon sleeps, an INSERT notifies it. 2: it is awake. 3: some handler is full, an INSERT looks whose topic it is.';

COMMENT ON VIEW outbox.delivery IS 'Every delivery and its state. Filter by event_id or handler.';
COMMENT ON COLUMN outbox.delivery.event_id IS 'The event.';
COMMENT ON COLUMN outbox.delivery.handler IS 'The handler.';
COMMENT ON COLUMN outbox.delivery.topic IS 'Of the event.';
COMMENT ON COLUMN outbox.delivery.key IS 'Of the event.';
COMMENT ON COLUMN outbox.delivery.state IS 'pending, a state of outbox.open, or an outcome of outbox.done.';
COMMENT ON COLUMN outbox.delivery.attempts IS 'Attempts that have begun.';
COMMENT ON COLUMN outbox.delivery.due_at IS 'When it goes on.';
COMMENT ON COLUMN outbox.delivery.started_at IS 'When the last attempt began.';
COMMENT ON COLUMN outbox.delivery.finished_at IS 'When it ended.';
COMMENT ON COLUMN outbox.delivery.last_error IS 'Why the last attempt failed.';
COMMENT ON COLUMN outbox.delivery.progress IS 'What a running attempt said last.';
COMMENT ON COLUMN outbox.delivery.result IS 'What it answered.';

COMMENT ON VIEW outbox.backlog IS 'What has not ended, by handler. Reads the log behind the position: as much as is pending.';
COMMENT ON COLUMN outbox.backlog.handler IS 'The handler.';
COMMENT ON COLUMN outbox.backlog.kind IS 'Its kind.';
COMMENT ON COLUMN outbox.backlog.absent IS 'It has left the configuration.';
COMMENT ON COLUMN outbox.backlog.paused IS 'Nothing begins.';
COMMENT ON COLUMN outbox.backlog.paused_at IS 'Since when.';
COMMENT ON COLUMN outbox.backlog.paused_until IS 'Until when; null: until it is resumed.';
COMMENT ON COLUMN outbox.backlog.paused_by IS 'By whom.';
COMMENT ON COLUMN outbox.backlog.pause_reason IS 'Why.';
COMMENT ON COLUMN outbox.backlog.breaker IS 'open: nothing but probes is sent.';
COMMENT ON COLUMN outbox.backlog.breaker_since IS 'Since when.';
COMMENT ON COLUMN outbox.backlog.breaker_error IS 'What failed.';
COMMENT ON COLUMN outbox.backlog.limit_concurrency IS 'Attempts at the same time, instead of the configured number.';
COMMENT ON COLUMN outbox.backlog.limit_rate IS 'Attempts in a time, instead of the configured rate.';
COMMENT ON COLUMN outbox.backlog.limited_at IS 'Since when.';
COMMENT ON COLUMN outbox.backlog.limited_by IS 'By whom.';
COMMENT ON COLUMN outbox.backlog.pending IS 'Deliveries without a row.';
COMMENT ON COLUMN outbox.backlog.scheduled IS 'Rows in outbox.open, by state.';
COMMENT ON COLUMN outbox.backlog.retrying IS 'Rows in outbox.open, by state.';
COMMENT ON COLUMN outbox.backlog.running IS 'Rows in outbox.open, by state; an attempt has one after a second.';
COMMENT ON COLUMN outbox.backlog.waiting IS 'Rows in outbox.open, by state.';
COMMENT ON COLUMN outbox.backlog.blocked IS 'Rows in outbox.open, by state.';
COMMENT ON COLUMN outbox.backlog.dead IS 'Rows in outbox.open, by state.';
COMMENT ON COLUMN outbox.backlog.oldest_age IS 'Since the oldest event was created that is pending, running or retrying.';
COMMENT ON COLUMN outbox.backlog.finished IS 'Deliveries that have ended since the handler was registered.';
COMMENT ON COLUMN outbox.backlog.finished_per_second IS 'Over the last two minutes.';
COMMENT ON COLUMN outbox.backlog.position_at IS 'When its position was written.';

COMMENT ON VIEW outbox.flow IS 'The instances of flows: where each stands. Filter by event_id, or by state and flow.';
COMMENT ON COLUMN outbox.flow.event_id IS 'The event that it began with.';
COMMENT ON COLUMN outbox.flow.flow IS 'The flow.';
COMMENT ON COLUMN outbox.flow.state IS 'running, compensating, dead, done, compensated, discarded or cancelled.';
COMMENT ON COLUMN outbox.flow.version IS 'The definition that it goes by.';
COMMENT ON COLUMN outbox.flow.topic IS 'Of the event.';
COMMENT ON COLUMN outbox.flow.key IS 'Of the event.';
COMMENT ON COLUMN outbox.flow.last_error IS 'Why it is dead or undone.';
COMMENT ON COLUMN outbox.flow.stands_at IS 'The steps that have not ended.';
COMMENT ON COLUMN outbox.flow.steps IS 'Its steps and compensations: state, attempts, times, result or error.';
COMMENT ON COLUMN outbox.flow.created_at IS 'Of the event.';
COMMENT ON COLUMN outbox.flow.finished_at IS 'When it ended.';

COMMENT ON VIEW outbox.newest_position IS 'How far each handler has come.';
COMMENT ON COLUMN outbox.newest_position.handler IS 'The handler.';
COMMENT ON COLUMN outbox.newest_position.absent IS 'It has left the configuration.';
COMMENT ON COLUMN outbox.newest_position.paused IS 'Nothing begins.';
COMMENT ON COLUMN outbox.newest_position.position IS 'As in outbox.position.';

COMMENT ON VIEW outbox.stuck IS 'What holds handlers up, the longest first: SELECT * FROM outbox.stuck.';
COMMENT ON COLUMN outbox.stuck.handler IS 'The handler.';
COMMENT ON COLUMN outbox.stuck.why IS 'paused, breaker open, full, dead, blocked, overdue (by a minute) or running (for ten minutes).';
COMMENT ON COLUMN outbox.stuck.deliveries IS 'How many, counted up to 10,000; null: whatever comes.';
COMMENT ON COLUMN outbox.stuck.event_id IS 'The one that has been so for longest: outboxd show ID.';
COMMENT ON COLUMN outbox.stuck.since IS 'Since when.';
COMMENT ON COLUMN outbox.stuck.detail IS 'The error, or by whom and why.';

COMMENT ON VIEW outbox.slow IS 'How long attempts ran and deliveries waited, by handler, among the newest 10,000 that have ended: SELECT * FROM outbox.slow.';
COMMENT ON COLUMN outbox.slow.handler IS 'The handler.';
COMMENT ON COLUMN outbox.slow.deliveries IS 'How many were looked at.';
COMMENT ON COLUMN outbox.slow.ran_p50 IS 'Seconds that the last attempt took, the median.';
COMMENT ON COLUMN outbox.slow.ran_p99 IS 'The same, exceeded by one of a hundred.';
COMMENT ON COLUMN outbox.slow.waited_p50 IS 'Seconds from the creation, or since it was due, to that attempt, the median.';
COMMENT ON COLUMN outbox.slow.waited_p99 IS 'The same, exceeded by one of a hundred.';
COMMENT ON COLUMN outbox.slow.slowest_event_id IS 'The event whose attempt took longest.';

COMMENT ON VIEW outbox.failed IS 'What failed today and why, by handler and error, the most frequent first: SELECT * FROM outbox.failed.';
COMMENT ON COLUMN outbox.failed.handler IS 'The handler.';
COMMENT ON COLUMN outbox.failed.outcome IS 'As in outbox.attempt.';
COMMENT ON COLUMN outbox.failed.attempts IS 'How many.';
COMMENT ON COLUMN outbox.failed.events IS 'Of how many events.';
COMMENT ON COLUMN outbox.failed.last_at IS 'When the last of them ended.';
COMMENT ON COLUMN outbox.failed.last_event_id IS 'The newest event among them: outboxd show ID.';
COMMENT ON COLUMN outbox.failed.last_error IS 'The error of the last of them.';
