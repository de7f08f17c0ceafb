//! Every key there is, by table.

pub(super) const ROOT: &[&str] = &["database", "daemon", "traces", "handler", "flow", "schedule", "alert"];
pub(super) const DATABASE: &[&str] = &["url"];
pub(super) const DAEMON: &[&str] = &[
    "poll_interval",
    "drain_timeout",
    "dedup_window",
    "once_window",
    "retention",
    "pool_size",
    "listen",
    "callback_url",
];
pub(super) const TRACES: &[&str] = &["endpoint", "headers", "sample"];
pub(super) const HANDLER: &[&str] = &[
    "topics",
    "http",
    "command",
    "env",
    "sql",
    "concurrency",
    "concurrency_per_key",
    "rate",
    "timeout",
    "max_timeout",
    "retry",
    "poll",
    "callback",
    "ordered",
    "on_dead_key",
    "coalesce",
    "batch",
    "max_backlog",
    "record",
    "breaker",
    "on_done",
    "on_dead",
    "start",
];
pub(super) const FLOW: &[&str] =
    &["on", "ordered", "on_dead_key", "on_dead_step", "on_done", "on_dead", "start", "step"];
pub(super) const STEP: &[&str] = &[
    "after",
    "http",
    "command",
    "env",
    "sql",
    "concurrency",
    "concurrency_per_key",
    "rate",
    "timeout",
    "max_timeout",
    "retry",
    "poll",
    "callback",
    "record",
    "breaker",
    "on_done",
    "on_dead",
    "compensate",
    "retired",
];
pub(super) const COMPENSATION: &[&str] = &[
    "when",
    "http",
    "command",
    "env",
    "sql",
    "concurrency",
    "concurrency_per_key",
    "rate",
    "timeout",
    "max_timeout",
    "retry",
    "poll",
    "callback",
    "record",
    "breaker",
    "on_done",
    "on_dead",
];
pub(super) const SCHEDULE: &[&str] = &["cron", "timezone", "topic", "payload", "key", "catch_up"];
pub(super) const ALERT: &[&str] = &["when", "handler", "above", "for"];
pub(super) const HTTP: &[&str] = &["url", "allow", "secret", "headers"];
pub(super) const BATCH: &[&str] = &["max", "wait"];
pub(super) const MAX_BACKLOG: &[&str] = &["events", "then"];
pub(super) const POLL: &[&str] = &["base", "max", "timeout"];
pub(super) const RETRY: &[&str] = &["max_attempts", "backoff", "base", "max", "concurrency", "rate"];

/// Whether a key has a meaning in some table.
pub(super) fn is_known(key: &str) -> bool {
    [
        ROOT,
        DATABASE,
        DAEMON,
        TRACES,
        HANDLER,
        FLOW,
        STEP,
        COMPENSATION,
        SCHEDULE,
        ALERT,
        HTTP,
        BATCH,
        MAX_BACKLOG,
        POLL,
        RETRY,
    ]
    .iter()
    .any(|keys| keys.contains(&key))
}
