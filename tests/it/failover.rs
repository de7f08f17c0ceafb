//! PostgreSQL fails over to an asynchronous standby that had not received everything: what survived is delivered, and ids
//! that come back are new events.

use std::collections::BTreeSet;
use std::path::Path;

use outboxd::config::DeliveryConfig;
use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, Target, ThrowawayPostgres};
use outboxd::{Attempt, Daemon, Observation};

use crate::harness::workload::Gate;
use crate::harness::{Calls, Programs, Running, Server, done, publish, publish_many, text, texts, until};

/// A folder in which PostgreSQL's socket is a link: the address that stays when the server behind it changes.
fn point(address: &Path, server: &Path) {
    let link = address.join(".s.PGSQL.5432");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(server.join(".s.PGSQL.5432"), link).unwrap();
}

/// A copy of the primary that has received what is committed so far, and nothing since: it is stopped.
async fn standby_left_behind(
    primary: &ThrowawayPostgres,
    programs: &Programs,
    session: &Session,
) -> std::path::PathBuf {
    let folder = primary.make_subfolder("standby").unwrap();
    let (from, to) = (primary.socket_dir().to_str().unwrap(), folder.join("data"));
    programs.run("pg_basebackup", &["-h", from, "-U", "outboxd", "-D", to.to_str().unwrap(), "-R", "-c", "fast"]);
    let standby = programs.serve(&folder, &[], &[]).await;
    let follower = standby.target("postgres").connect("test").await.unwrap();
    let now = text(session, "SELECT pg_current_wal_flush_lsn()").await;
    let received = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{now}', false)");
    until("the standby has received everything", async || text(&follower, &received).await == "true").await;
    drop(follower);
    standby.stop();
    folder
}

/// The standby becomes the primary.
async fn promote(programs: &Programs, folder: &Path) -> Server {
    let standby = programs.serve(folder, &[], &[]).await;
    let session = standby.target("postgres").connect("test").await.unwrap();
    assert_eq!(text(&session, "SELECT pg_is_in_recovery() AND pg_promote()").await, "true");
    standby
}

async fn transactions(session: &Session, events: &[i64]) -> BTreeSet<String> {
    texts(session, &format!("SELECT xid FROM outbox.event WHERE id = ANY ('{{{}}}')", list(events)))
        .await
        .into_iter()
        .collect()
}

fn list(events: &[i64]) -> String {
    events.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_that_lost_the_tail_what_survived_is_delivered_and_ids_that_come_back_are_new_events() {
    let mut primary = ThrowawayPostgres::start(Options::default()).await.unwrap();
    migrate(&primary.target("postgres")).await.unwrap();
    let programs = Programs::of(&primary).await;
    let address = primary.make_subfolder("address").unwrap();
    point(&address, primary.socket_dir());
    let mut config = tokio_postgres::Config::new();
    config.host_path(&address).port(5432).user("outboxd").dbname("postgres");
    let calls = Calls::default();
    let (first, second) = (Gate::closed(), Gate::closed());
    let (kept, gates) = (calls.clone(), (first.clone(), second.clone()));
    let handle = move |attempt: Attempt| {
        let (calls, (first, second)) = (kept.clone(), gates.clone());
        async move {
            calls.take(&attempt);
            match attempt.event.topic.as_str() {
                "first" => first.passed().await,
                "second" => second.passed().await,
                _ => {}
            }
        }
    };
    let delivery = DeliveryConfig { concurrency: 100, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let builder = Daemon::builder().target(Target::from_config(config, "a link")).handler_with("all", delivery, handle);
    let running = Running::start(builder).await;

    // What the standby has: events that are done, and two kinds that are running.
    let session = primary.target("postgres").connect("test").await.unwrap();
    let before = publish_many(&session, "plain", 10).await;
    until("they are done", async || done(&session, "all").await == before).await;
    let done_row_lost = publish_many(&session, "first", 5).await;
    let running_then = publish_many(&session, "second", 5).await;
    calls.reached(20).await;
    let standby = standby_left_behind(&primary, &programs, &session).await;

    // What it does not have: the end of some, and events that only the old primary ever saw.
    first.open();
    let mut lost = Vec::new();
    for _ in 0..150 {
        lost.push(publish(&session, "plain").await);
    }
    let finished = before.len() + done_row_lost.len() + lost.len();
    until("these are done", async || done(&session, "all").await.len() == finished).await;
    let lost_transactions = transactions(&session, &lost).await;
    let keys_before = calls.keys();
    primary.crash().await.unwrap();
    let server = promote(&programs, &standby).await;
    let session = server.target("postgres").connect("test").await.unwrap();
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.event").await, "20", "the tail is lost");
    // An app is there before the daemon.
    let mut new = publish_many(&session, "plain", 50).await;
    point(&address, &standby);
    running.observed("another timeline", |o| matches!(o, Observation::ClusterChanged { .. })).await;
    for _ in 0..150 {
        new.push(publish(&session, "plain").await);
    }
    let came_back: Vec<i64> = new.iter().copied().filter(|id| lost.contains(id)).collect();
    assert!(!came_back.is_empty(), "ids come back: lost {lost:?}, new {new:?}");
    assert!(!transactions(&session, &new).await.is_disjoint(&lost_transactions), "transaction ids come back");

    second.open();
    let mut all = [before.clone(), done_row_lost.clone(), running_then.clone(), new.clone()].concat();
    all.sort_unstable();
    until("everything that is there is done", async || done(&session, "all").await == all).await;
    let keys = calls.keys();
    for event in &done_row_lost {
        assert_eq!((calls.of(*event), keys[event].len()), (2, 1), "its done row was lost: again, with the same key");
    }
    for event in &running_then {
        assert_eq!((calls.of(*event), keys[event].len()), (2, 1), "it was running: again, with the same key");
    }
    for event in &before {
        assert_eq!(calls.of(*event), 1, "it was done before");
    }
    for event in &came_back {
        assert!(keys[event].len() == 2 && keys_before[event].len() == 1, "an id that came back has another key");
    }
    assert_eq!(running.count(|o| matches!(o, Observation::SweepFound { .. })), 0);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    running.stop().await;
}
