//! What the daemon knows about itself: the installation, the leader, the handlers and their positions.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

use super::log::seconds;
use super::{Error, Store, failed, sql};
use crate::callback::CallbackKey;
use crate::config::RateLimit;
use crate::event::KeyHash;
use crate::snapshot::Snapshot;

/// The `outbox.installation` row against the cluster it is in now.
#[derive(Debug)]
pub struct Installation {
    pub id: Uuid,
    /// `false` after a restore into another cluster or a failover: stored positions mean nothing then.
    pub same_cluster: bool,
    pub stored: String,
    pub found: String,
}

/// The session that leads.
#[derive(Debug, Clone)]
pub struct Leader {
    pub pid: i32,
    pub address: String,
    pub since: Option<Timestamp>,
    /// How long its session has said nothing; `None` while a statement runs.
    pub silent: Option<Duration>,
    /// When it last said something, on PostgreSQL's clock; only good for comparing.
    pub said: Option<String>,
    pub role: String,
    /// Whether its role could do a leader's work; every role may take every advisory lock.
    pub may_lead: bool,
}

/// A session that holds a lock which this one wants, and the role it has logged in as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    pub role: String,
}

/// A handler as `outbox.handler` keeps it.
#[derive(Debug, Serialize)]
pub struct Registration {
    pub name: Arc<str>,
    pub topics: Vec<String>,
    pub kind: &'static str,
    pub settings: serde_json::Value,
    /// The flow that it is a step of.
    pub flow: Option<Arc<str>>,
    /// Of a flow: its definition.
    pub steps: Option<serde_json::Value>,
    pub on_dead_step: Option<&'static str>,
    /// What a dead delivery does to those of its key behind it; `None`: there is no order.
    pub ordered: Option<&'static str>,
    /// Whether only the latest of those of a key that wait is handed over.
    pub coalesce: bool,
    /// How many of a key run at the same time; `None`: any number, or one, in order.
    pub concurrency_per_key: Option<i32>,
    pub on_done: Option<String>,
    pub on_dead: Option<String>,
    pub beginning: bool,
}

/// How far a handler has finished the log.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub handler: Arc<str>,
    pub position: Snapshot,
    /// Deliveries finished since the handler was registered.
    pub finished: i64,
}

/// How a handler begins in a term.
#[derive(Debug, Clone)]
pub struct Beginning {
    pub checkpoint: Checkpoint,
    pub pause: Option<Pause>,
    pub limits: Limits,
    /// The breaker of its target was open.
    pub broken: bool,
    pub held: Held,
}

/// What a handler that looks at keys has in `outbox.open`.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// The keys that rows hold, once for each row, where their order is kept.
    pub keys: Vec<KeyHash>,
    /// The keys of rows that wait for a place, where so many of a key run at the same time.
    pub parked: Vec<Arc<str>>,
}

/// What counts instead of a handler's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub concurrency: Option<usize>,
    pub rate: Option<RateLimit>,
}

/// A handler is paused: nothing more begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    UntilResumed,
    For(Duration),
}

/// What the catalog says about a SQL handler's function.
#[derive(Debug)]
pub struct SqlFunction {
    pub found: Option<String>,
    pub returns: Option<String>,
    pub allowed: Option<bool>,
}

impl Store {
    pub async fn installation(&self) -> Result<Installation, Error> {
        let row = self.query_one(sql!("installation"), &[]).await?;
        Ok(Installation {
            id: row.get("id"),
            same_cluster: row.get("same_cluster"),
            stored: row.get("stored"),
            found: row.get("found"),
        })
    }

    /// The key that callback tokens are made with.
    pub async fn callback_key(&self) -> Result<CallbackKey, Error> {
        Ok(CallbackKey::new(self.query_one(sql!("callback_key"), &[]).await?.get("key")))
    }

    /// Adopts the cluster the database is in now: restamps events, rewinds every position. Returns how many events
    /// carried a transaction id of another cluster.
    pub async fn adopt_cluster(&self) -> Result<u64, Error> {
        self.begin().await?;
        let restamped = self.execute(sql!("rebuild_events"), &[]).await?;
        self.execute(sql!("rebuild_positions"), &[]).await?;
        self.execute(sql!("adopt_cluster"), &[]).await?;
        self.commit().await?;
        Ok(restamped)
    }

    /// How long dedup keys and the keys of `outbox.once` are remembered.
    pub async fn set_windows(&self, dedup: Duration, once: Duration) -> Result<u64, Error> {
        self.execute(sql!("set_windows"), &[&dedup.as_secs_f64(), &once.as_secs_f64()]).await
    }

    /// Tries to become the leader; whether this session is it.
    pub async fn lead(&self) -> Result<bool, Error> {
        Ok(self.query_one(sql!("lead"), &[]).await?.get(0))
    }

    /// Who leads, if anybody does.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        let row = self.query_opt(sql!("leader"), &[]).await?;
        Ok(row.map(|row| Leader {
            pid: row.get("pid"),
            address: row.get::<_, Option<_>>("address").unwrap_or_default(),
            since: row.get("since"),
            silent: row.get::<_, Option<f64>>("silent").map(seconds),
            said: row.get("said"),
            role: row.get("role"),
            may_lead: row.get("may_lead"),
        }))
    }

    /// Makes the four roles where they are missing, and gives them their rights.
    pub async fn add_roles(&self) -> Result<(), Error> {
        self.query_one(sql!("add_roles"), &[]).await.map(drop)
    }

    /// The server process of this session.
    pub async fn backend(&self) -> Result<i32, Error> {
        Ok(self.query_one(sql!("backend"), &[]).await?.get(0))
    }

    /// Those of these sessions that are there, and how long PostgreSQL has waited for each; `None` while a statement runs.
    pub async fn silent(&self, pids: &[i32]) -> Result<Vec<(i32, Option<Duration>)>, Error> {
        let rows = self.query(sql!("silent"), &[&pids]).await?;
        Ok(rows.iter().map(|row| (row.get("pid"), row.get::<_, Option<f64>>("silent").map(seconds))).collect())
    }

    /// Ends the session of a silent leader.
    pub async fn depose(&self, pid: i32) -> Result<bool, Error> {
        Ok(self.query_one(sql!("depose"), &[&pid]).await?.get(0))
    }

    /// Tries to become the only session that sets the bell's flag; otherwise who is, if somebody still is.
    pub async fn fence_tail(&self) -> Result<Result<(), Option<Holder>>, Error> {
        let row = self.query_one(sql!("fence_tail"), &[]).await?;
        let holder = row.get::<_, Option<i32>>("pid").map(|pid| Holder { pid, role: row.get("role") });
        Ok(if row.get("ours") { Ok(()) } else { Err(holder) })
    }

    /// Writes the configured handlers, marks the others absent, and gives new ones their first position: behind
    /// `now`, unless they begin at the beginning. Returns the names newly absent.
    pub async fn register(&self, handlers: &[Registration], now: &Snapshot) -> Result<Vec<String>, Error> {
        let registered = self.register_in_transaction(handlers, now).await;
        if registered.as_ref().is_err_and(Error::is_refusal) {
            self.rollback().await?;
        }
        registered
    }

    async fn register_in_transaction(&self, handlers: &[Registration], now: &Snapshot) -> Result<Vec<String>, Error> {
        let names: Vec<&str> = handlers.iter().map(|handler| &*handler.name).collect();
        let json = serde_json::json!(handlers);
        self.begin().await?;
        let changed = self.query(sql!("changed_topics"), &[&json]).await?;
        // Only then is the log looked at.
        if !changed.is_empty() {
            let changed: Vec<&str> = changed.iter().map(|row| row.get("name")).collect();
            self.execute(sql!("begin_topics"), &[&changed]).await?;
        }
        if handlers.iter().any(|handler| handler.steps.is_some()) {
            self.query(sql!("define_flows"), &[&json]).await?;
        }
        self.execute(sql!("register_handlers"), &[&json]).await?;
        let absent = self.query(sql!("mark_absent"), &[&names]).await?;
        self.execute(sql!("begin_position"), &[&now.to_string()]).await?;
        self.commit().await?;
        Ok(absent.iter().map(|row| row.get("name")).collect())
    }

    /// Where each of these handlers begins.
    pub async fn beginnings(&self, handlers: &[Arc<str>]) -> Result<Vec<Beginning>, Error> {
        let names: Vec<&str> = handlers.iter().map(|handler| &**handler).collect();
        let mut held = self.held_keys(&names).await?;
        let rows = self.query(sql!("load_position"), &[&names]).await?;
        rows.iter()
            .map(|row| {
                let position = row.get::<_, &str>("position").parse().map_err(failed("load_position"))?;
                let handler: &str = row.get("handler");
                let checkpoint = Checkpoint { handler: handler.into(), position, finished: row.get("finished") };
                let held = held.remove(handler).unwrap_or_default();
                let (pause, limits, broken) = (pause(row), limits(row), row.get("broken"));
                Ok(Beginning { checkpoint, pause, limits, broken, held })
            })
            .collect()
    }

    /// What rows do with keys. Read row by row: a key is longer than what stands for it.
    async fn held_keys(&self, handlers: &[&str]) -> Result<HashMap<String, Held>, Error> {
        let mut held: HashMap<String, Held> = HashMap::new();
        let mut rows = pin!(self.stream(sql!("held_keys"), &[&handlers]).await?);
        while let Some(row) = rows.next().await {
            let row = row.map_err(failed("held_keys"))?;
            let (handler, key): (&str, &str) = (row.get("handler"), row.get("key"));
            if !held.contains_key(handler) {
                held.insert(handler.to_owned(), Held::default());
            }
            let Some(held) = held.get_mut(handler) else { continue };
            if row.get("parked") {
                held.parked.push(key.into());
            } else {
                held.keys.push(KeyHash::of(key));
            }
        }
        Ok(held)
    }

    /// Writes that the breaker of a handler's target has opened, with the reason, or closed; and emits the event that tells.
    pub async fn tell_breaker(&self, handler: &str, opened: Option<&str>) -> Result<u64, Error> {
        self.execute(sql!("tell_breaker"), &[&handler, &opened]).await
    }

    /// Stores positions.
    pub async fn append_position(&self, checkpoints: &[Checkpoint]) -> Result<u64, Error> {
        let handlers: Vec<&str> = checkpoints.iter().map(|c| &*c.handler).collect();
        let positions: Vec<String> = checkpoints.iter().map(|c| c.position.to_string()).collect();
        let finished: Vec<i64> = checkpoints.iter().map(|c| c.finished).collect();
        self.execute(sql!("append_position"), &[&handlers, &positions, &finished]).await
    }

    /// The registered handlers and whether each is absent.
    pub async fn handler_names(&self) -> Result<Vec<(String, bool)>, Error> {
        let rows = self.query(sql!("handler_names"), &[]).await?;
        Ok(rows.iter().map(|row| (row.get("name"), row.get("absent"))).collect())
    }

    /// Forgets an absent handler; returns how many open deliveries were given up, `None` if no absent handler has
    /// this name.
    pub async fn forget(&self, handler: &str) -> Result<Option<i64>, Error> {
        Ok(self.query_one(sql!("forget"), &[&handler]).await?.get("given_up"))
    }

    /// Looks up a SQL handler's function by its quoted name with the types of its arguments.
    pub async fn sql_handler_function(&self, name: &str) -> Result<SqlFunction, Error> {
        let row = self.query_one(sql!("sql_handler_function"), &[&name]).await?;
        Ok(SqlFunction { found: row.get("found"), returns: row.get("returns"), allowed: row.get("allowed") })
    }
}

/// What counts instead of the configuration, as a row with `limit_concurrency` and `limit_rate` tells.
pub(super) fn limits(row: &Row) -> Limits {
    let concurrency = row.get::<_, Option<i32>>("limit_concurrency").and_then(|count| usize::try_from(count).ok());
    // The table's CHECK lets nothing else in.
    let rate = row.get::<_, Option<&str>>("limit_rate").and_then(|rate| rate.parse().ok());
    Limits { concurrency, rate }
}

/// The pause that a row with `paused` and `resumes_in` tells.
pub(super) fn pause(row: &Row) -> Option<Pause> {
    let resumes_in = row.get::<_, Option<f64>>("resumes_in").map(seconds);
    row.get::<_, bool>("paused").then(|| resumes_in.map_or(Pause::UntilResumed, Pause::For))
}
