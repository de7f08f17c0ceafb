//! Clocks that are set: due times are PostgreSQL's wall-clock times, everything else that waits counts seconds.

use std::path::Path;

use outboxd::Daemon;
use outboxd::config::DeliveryConfig;
use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, ThrowawayPostgres};
use outboxd::{Attempt, DaemonBuilder, Failure, Observation, Outcome, RetryPolicy};

use crate::harness::{
    Calls, ConfigFile, Database, Gate, Process, Programs, Running, Server, Shim, done, outboxd, publish, publish_many,
    text, until, url,
};

const HOUR: i64 = 3600;

/// A server whose clock the test can set; it lives in the folder of the first.
async fn server() -> (ThrowawayPostgres, Shim, Server) {
    let mut folder = ThrowawayPostgres::start(Options::default()).await.unwrap();
    let programs = Programs::of(&folder).await;
    let shim = Shim::new(&folder.make_subfolder("shim").unwrap());
    folder.crash().await.unwrap();
    let server = programs.serve(folder.socket_dir(), &[], &shim.environment()).await;
    migrate(&server.target("postgres")).await.unwrap();
    (folder, shim, server)
}

/// A handler that fails once and is tried again after a second.
fn fails_once(builder: DaemonBuilder, calls: &Calls) -> DaemonBuilder {
    let second = std::time::Duration::from_secs(1);
    let retry = RetryPolicy { base: second, max: second, ..RetryPolicy::default() };
    let delivery = DeliveryConfig { concurrency: 100, retry, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let calls = calls.clone();
    builder.handler_with("all", delivery, move |attempt: Attempt| {
        calls.take(&attempt);
        let fails = attempt.number == 1 && attempt.event.topic == "fails";
        let retry = Outcome::Retry { after: None, failure: Failure::new("not yet") };
        std::future::ready(if fails { retry } else { Outcome::done() })
    })
}

async fn states(session: &Session) -> String {
    text(session, "SELECT string_agg(DISTINCT state, ' ' ORDER BY state) FROM outbox.delivery").await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_postgresql_s_clock_is_set_nothing_is_lost_or_repeated_and_due_times_go_with_it() {
    let (_folder, shim, server) = server().await;
    let session = server.target("postgres").connect("test").await.unwrap();
    let calls = Calls::default();
    let builder = || fails_once(Daemon::builder().target(server.target("postgres")), &calls);
    let running = Running::start(builder()).await;
    let standby = Running::start_only(builder());
    standby.observed("standing by", |o| matches!(o, Observation::StandingBy { .. })).await;
    let mut all = Vec::new();
    let keyed = "SELECT outbox.publish('plain', '{}', dedup_key => 'one')";
    let first: i64 = session.client.query_one(keyed, &[]).await.unwrap().get(0);
    all.push(first);

    // Forward: what was due within the hour is due, new retries wait their second, and no leader is silent for it.
    let delayed = "SELECT outbox.publish('plain', '{}', delay => interval '50 min')";
    all.push(session.client.query_one(delayed, &[]).await.unwrap().get(0));
    until("it waits", async || states(&session).await == "done scheduled").await;
    shim.set_clock(HOUR);
    all.extend(publish_many(&session, "fails", 20).await);
    until("everything is done", async || done(&session, "all").await == all).await;

    // Back: new events and new retries know nothing of it.
    all.push(session.client.query_one(delayed, &[]).await.unwrap().get(0));
    until("it waits", async || states(&session).await == "done scheduled").await;
    shim.set_clock(0);
    all.extend(publish_many(&session, "fails", 20).await);
    let without = [&all[..22], &all[23..]].concat();
    until("what is new is done", async || done(&session, "all").await == without).await;
    // What was due by the clock as it was waits for that time, unless somebody says otherwise.
    let left = "SELECT extract(epoch FROM due_at - clock_timestamp()) BETWEEN 6000 AND 6600 FROM outbox.open";
    assert_eq!(text(&session, left).await, "true", "50 minutes and the hour");
    session.client.batch_execute("SELECT outbox.retry(event_id, handler) FROM outbox.open").await.unwrap();
    until("everything is done", async || done(&session, "all").await == all).await;

    // A key is remembered for its window on that clock.
    let again: i64 = session.client.query_one(keyed, &[]).await.unwrap().get(0);
    assert_eq!(again, first);
    let fails: usize = all.iter().map(|event| calls.of(*event)).sum();
    assert_eq!(fails, all.len() + 40, "the failing ones ran twice, the others once");
    for running in [&running, &standby] {
        assert_eq!(running.count(|o| matches!(o, Observation::Deposed { .. } | Observation::TermEnded { .. })), 0);
    }
    standby.stop().await;
    running.stop().await;
}

/// Takes as long as a leader may be silent, ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_frozen_while_postgresql_s_clock_goes_back_is_deposed_all_the_same() {
    let (folder, shim, server) = server().await;
    let gate = Gate::opened();
    let config = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let database = format!("postgres://outboxd@/postgres?host={}", folder.socket_dir().display());
    let run = || {
        let mut command = outboxd(None, &["run", "--config", config.path()]);
        command.env("DATABASE_URL", &database);
        Process::start(command)
    };
    let frozen = run();
    frozen.logged("leading").await;
    let standby = run();
    standby.logged("standing by").await;
    frozen.signal(rustix::process::Signal::STOP);
    shim.set_clock(-HOUR);
    standby.logged("ended the session of a silent leader").await;
    standby.logged("leading").await;
    frozen.signal(rustix::process::Signal::CONT);
    frozen.logged("standing by").await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_daemon_s_clock_is_set_nothing_changes() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let session = database.session().await;
    let folder = crate::harness::cluster().make_subfolder("daemon-clock").unwrap();
    let shim = Shim::new(&folder);
    let config = ConfigFile::new(&format!(
        "[daemon]\npoll_interval = \"off\"\n[handler.slow]\ntopics = [\"#\"]\nretry = {{ base = \"1s\", max = \"1s\" }}\n\
         command = [\"/bin/sh\", \"-c\", \"test $OUTBOX_ATTEMPT = 2\"]\n[handler.quick]\ntopics = [\"#\"]\n{}",
        gate.command()
    ));
    let mut command = outboxd(None, &["run", "--config", config.path()]);
    let environment: [(&str, &Path); 3] = shim.environment();
    command.env("DATABASE_URL", url(&database)).envs(environment);
    let mut daemon = Process::start(command);
    daemon.logged("leading").await;
    let mut events = Vec::new();
    for clock in [HOUR, -HOUR, 0] {
        shim.set_clock(clock);
        events.push(publish(&session, "a").await);
        until("it is done, at the second attempt", async || {
            (done(&session, "slow").await, done(&session, "quick").await) == (events.clone(), events.clone())
        })
        .await;
    }
    assert_eq!(
        text(&session, "SELECT min(attempt) || ' ' || max(attempt) FROM outbox.done WHERE handler = 'slow'").await,
        "2 2"
    );
    assert_eq!(gate.events("begin"), events);
    let far = "SELECT count(*) FROM outbox.done WHERE abs(extract(epoch FROM finished_at - clock_timestamp())) > 60";
    assert_eq!(text(&session, far).await, "0", "times in the tables are PostgreSQL's");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(0));
}
