//! The server and the log: what keeps PostgreSQL from working as it should for everybody.

use std::time::Duration;

use jiff::Timestamp;

use super::super::Failure;
use super::super::findings::Findings;
use super::super::output::age;
use crate::store::Store;
use crate::store::doctor::{Holder, LogState, Server};

/// Clocks further apart than this make times in logs and metrics wrong, and tokens and signatures fail in the end.
const CLOCK_SECONDS_MAX: f64 = 2.0;
/// How full the queue of notifications may be, and the connections.
const QUEUE_MAX: f64 = 0.1;
const CLIENTS_MAX: f64 = 0.9;
/// A partition has a million ids at least.
const IDS_LEFT_MIN: i64 = 1_000_000;
/// Dead rows of `outbox.open` beside a multiple of the living ones.
const DEAD_ROWS_MAX: i64 = 100_000;

pub(super) async fn look(findings: &mut Findings, store: &Store, usual: Duration) -> Result<(), Failure> {
    let asked = Timestamp::now();
    let server = store.server().await?;
    clock(findings, &server, asked, Timestamp::now());
    state(findings, &server);
    for holder in store.holders(usual).await? {
        held(findings, &holder);
    }
    log(findings, &store.log_state().await?);
    Ok(())
}

/// The server has read its clock between these two looks at ours.
fn clock(findings: &mut Findings, server: &Server, before: Timestamp, after: Timestamp) {
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let (ahead, behind) = (seconds(after, server.now), seconds(server.now, before));
    let (apart, how) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if apart > CLOCK_SECONDS_MAX {
        findings.problem(
            format!("PostgreSQL's clock is {} {how} the one here", age(apart)),
            "let both follow the same time server (timedatectl); due times are PostgreSQL's, times in logs and signatures are ours",
        );
    } else {
        findings.good("the clocks agree");
    }
}

fn state(findings: &mut Findings, server: &Server) {
    if server.standby || server.read_only {
        findings.problem(
            "this database takes no writes: it is a standby, or read-only",
            "connect to the primary, for example with several hosts and target_session_attrs=read-write",
        );
    }
    if let Some(whose) = &server.replica {
        findings.problem(
            format!("session_replication_role is replica for {whose}: their INSERTs run no triggers and ring nobody"),
            "reset it, or ALTER TABLE outbox.event ENABLE ALWAYS TRIGGER ring, and the same for remember_dedup_key",
        );
    }
    if server.queue > QUEUE_MAX {
        findings.problem(
            format!(
                "the queue of notifications is {:.0} % full; when it is full, every COMMIT that notifies fails",
                server.queue * 100.0
            ),
            "a session that listens is in a long transaction: find it in pg_stat_activity and end it",
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "connections are few")]
    let used = server.clients as f64 / server.clients_max.max(1) as f64;
    if used > CLIENTS_MAX {
        findings.problem(
            format!("{} of {} connections are taken", server.clients, server.clients_max),
            "raise max_connections, or find who holds them in pg_stat_activity; a daemon needs 5 and its pool_size",
        );
    }
}

fn held(findings: &mut Findings, holder: &Holder) {
    let Holder { kind, name, who, age: held, transactions } = holder;
    let since = held.map(|held| format!(" for {}", age(held.as_secs_f64()))).unwrap_or_default();
    let behind = transactions.map(|count| format!(", {count} transactions")).unwrap_or_default();
    let remedy = match kind.as_str() {
        "session" => format!("SELECT pg_terminate_backend({name}), once you know whose it is"),
        "prepared transaction" => format!("COMMIT PREPARED '{name}' or ROLLBACK PREPARED '{name}'"),
        _ => format!("let its consumer catch up, or SELECT pg_drop_replication_slot('{name}')"),
    };
    findings.problem(
        format!(
            "{kind} {name} ({who}) keeps PostgreSQL from cleaning up{since}{behind}: tables swell, queries slow down"
        ),
        remedy,
    );
}

fn log(findings: &mut Findings, log: &LogState) {
    match log.ids_left {
        Some(left) if left > IDS_LEFT_MIN => findings.good("partitions are made ahead"),
        left => findings.problem(
            format!(
                "the partitions ahead hold {} more events; then the default partition takes them",
                left.unwrap_or(0).max(0)
            ),
            "SELECT outbox.add_partitions(); the daemon's log says why it does not (`housekeeping`)",
        ),
    }
    if log.default_used {
        findings.notice(
            "rows lie in a default partition: there was no other when they came",
            "nothing to do: they are handled like the others, and go one by one when they are old",
        );
    }
    if log.dead_rows > DEAD_ROWS_MAX && log.dead_rows > 4 * log.live_rows {
        findings.notice(
            format!("outbox.open has {} dead rows beside {} live ones", log.dead_rows, log.live_rows),
            "VACUUM outbox.open; if that does not help, somebody keeps PostgreSQL from cleaning up",
        );
    }
}
