//! PostgreSQL's disk may fill: the daemon keeps running, says why, and what was done meanwhile is neither lost nor repeated.

use outboxd::Daemon;
use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, ThrowawayPostgres};
use outboxd::{Attempt, Observation};

use crate::harness::workload::Gate;
use crate::harness::{Calls, Programs, Running, Server, Shim, done, publish_many, text, texts, until};

/// A server whose disk the test can fill; it lives in the folder of the first.
async fn server() -> (ThrowawayPostgres, Shim, Server) {
    let mut folder = ThrowawayPostgres::start(Options::default()).await.unwrap();
    let programs = Programs::of(&folder).await;
    let shim = Shim::new(&folder.make_subfolder("shim").unwrap());
    folder.crash().await.unwrap();
    let server = programs.serve(folder.socket_dir(), &[("autovacuum", "off")], &shim.environment()).await;
    migrate(&server.target("postgres")).await.unwrap();
    (folder, shim, server)
}

fn short_of_space(observation: &Observation) -> bool {
    matches!(observation, Observation::Hiccup { error, .. } if error.contains("SQLSTATE 53100"))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_is_full_outcomes_wait_and_nothing_runs_twice() {
    let (_folder, shim, server) = server().await;
    let session: Session = server.target("postgres").connect("test").await.unwrap();
    let (calls, gate) = (Calls::default(), Gate::closed());
    let (kept, closed) = (calls.clone(), gate.clone());
    let handle = move |attempt: Attempt| {
        let (calls, gate) = (kept.clone(), closed.clone());
        async move {
            gate.passed().await;
            calls.take(&attempt);
        }
    };
    let delivery = outboxd::config::DeliveryConfig::new(vec!["#".parse().unwrap()]);
    let builder = Daemon::builder().target(server.target("postgres")).handler_with("all", delivery, handle);
    let running = Running::start(builder).await;
    let mut events = publish_many(&session, "a", 2000).await;
    until("attempts run", async || text(&session, "SELECT count(*) FROM outbox.open").await == "8").await;

    shim.fill_disk(true);
    gate.open();
    running.observed("the daemon says why", short_of_space).await;
    calls.reached(2000).await;
    let refused = session.client.batch_execute("CREATE TABLE more AS SELECT generate_series(1, 10000)").await;
    assert_eq!(refused.unwrap_err().code().unwrap().code(), "53100", "an app has no room either");
    assert!(done(&session, "all").await.len() < 2000);

    shim.fill_disk(false);
    until("everything is done", async || done(&session, "all").await == events).await;
    events.extend(publish_many(&session, "a", 100).await);
    until("what is new is done too", async || done(&session, "all").await == events).await;
    assert_eq!(texts(&session, "SELECT state FROM outbox.open").await, [""; 0]);
    assert!(events.iter().all(|event| calls.of(*event) == 1), "each event ran once");
    assert_eq!(running.count(|o| matches!(o, Observation::TermEnded { .. })), 0);
    running.stop().await;
}
