//! A leader that ends with a thousand attempts in flight: exactly these run again, and nothing it says later is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use outboxd::postgres::Session;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::harness::workload::Gate;
use crate::harness::{ConfigFile, Database, Process, done, publish_many, text, texts, until, until_within};

const IN_FLIGHT: i32 = 1000;
const DONE_BEFORE: i32 = 200;

/// An HTTP server that counts requests by idempotency key and holds those for `held` until the gate is open.
struct Sink {
    url: String,
    requests: Arc<Mutex<HashMap<String, usize>>>,
    gate: Gate,
}

impl Sink {
    async fn start() -> Self {
        // A connection for each attempt, here and in the daemon, which inherits the limit.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, gate) = (Arc::<Mutex<HashMap<String, usize>>>::default(), Gate::closed());
        let (counted, closed) = (Arc::clone(&requests), gate.clone());
        let answer = move |headers: HeaderMap| {
            let key = headers["idempotency-key"].to_str().unwrap().to_owned();
            *counted.lock().unwrap().entry(key).or_default() += 1;
            let (gate, held) = (closed.clone(), headers["ce-type"] == "held");
            async move {
                if held {
                    gate.passed().await;
                }
                StatusCode::OK
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
        Self { url, requests, gate }
    }

    fn config(&self) -> ConfigFile {
        let url = &self.url;
        ConfigFile::new(&format!("[handler.web]\ntopics = [\"#\"]\nhttp.url = \"{url}\"\nconcurrency = {IN_FLIGHT}\n"))
    }

    async fn reached(&self, keys: i32) {
        let keys = usize::try_from(keys).unwrap();
        until_within(60, "the requests have come", async || self.requests.lock().unwrap().len() == keys).await;
    }

    /// How many deliveries came so many times.
    fn times(&self, times: usize) -> i32 {
        self.requests.lock().unwrap().values().filter(|count| **count == times).count().try_into().unwrap()
    }
}

/// A leader with a thousand attempts in flight, and what it has published in all.
async fn busy(database: &Database, session: &Session, sink: &Sink, config: &ConfigFile) -> (Process, Vec<i64>) {
    let leader = Process::run(database, config);
    leader.logged("leading").await;
    let mut events = publish_many(session, "quick", DONE_BEFORE).await;
    until("the first are done", async || done(session, "web").await == events).await;
    events.extend(publish_many(session, "held", IN_FLIGHT).await);
    sink.reached(DONE_BEFORE + IN_FLIGHT).await;
    (leader, events)
}

async fn exactly_these_ran_again(session: &Session, sink: &Sink, events: &[i64]) {
    until_within(60, "everything is done", async || done(session, "web").await == events).await;
    assert_eq!((sink.times(1), sink.times(2)), (DONE_BEFORE, IN_FLIGHT), "with the same key, and no third time");
    assert_eq!(text(session, "SELECT count(*) FROM outbox.open").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_with_a_thousand_attempts_in_flight_exactly_these_run_again() {
    let (database, sink) = (Database::new().await, Sink::start().await);
    let (session, config) = (database.session().await, sink.config());
    let (mut leader, events) = busy(&database, &session, &sink, &config).await;
    let recorded = "SELECT count(*) FROM outbox.open WHERE state = 'running'";
    until("all have rows", async || text(&session, recorded).await == IN_FLIGHT.to_string()).await;
    leader.signal(Signal::KILL);
    leader.ended().await;
    sink.gate.open();
    let next = Process::run(&database, &config);
    next.logged("recovered what a stopped daemon left running deliveries=1000").await;
    exactly_these_ran_again(&session, &sink, &events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_runs_exactly_what_a_killed_leader_had_in_flight() {
    let (database, sink) = (Database::new().await, Sink::start().await);
    let (session, config) = (database.session().await, sink.config());
    // Some of the attempts have rows by now, and some have not.
    let (mut leader, events) = busy(&database, &session, &sink, &config).await;
    let standby = Process::run(&database, &config);
    standby.logged("standing by").await;
    leader.signal(Signal::KILL);
    leader.ended().await;
    sink.gate.open();
    standby.logged("leading").await;
    exactly_these_ran_again(&session, &sink, &events).await;
}

/// Takes as long as a leader may be silent, ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_that_reach_a_deposed_leader_are_not_written() {
    let (database, sink) = (Database::new().await, Sink::start().await);
    let (session, config) = (database.session().await, sink.config());
    let (frozen, events) = busy(&database, &session, &sink, &config).await;
    let standby = Process::run(&database, &config);
    standby.logged("standing by").await;
    let recorded = "SELECT count(*) FROM outbox.open WHERE state = 'running'";
    until("all have rows", async || text(&session, recorded).await == IN_FLIGHT.to_string()).await;
    frozen.signal(Signal::STOP);
    // They are answered, and wait in the sockets of the frozen leader.
    sink.gate.open();
    standby.logged("ended the session of a silent leader").await;
    exactly_these_ran_again(&session, &sink, &events).await;
    frozen.signal(Signal::CONT);
    frozen.logged("dispatching ended, connecting again after a pause").await;
    assert!(frozen.log().contains("unwritten=1000"), "{}", frozen.log());
    frozen.logged("standing by").await;
    let history = "SELECT attempt || ' ' || outcome || ' ' || count(*) FROM outbox.attempt \
                   GROUP BY attempt, outcome ORDER BY attempt";
    assert_eq!(texts(&session, history).await, ["1 lost 1000", "2 done 1000"]);
    assert_eq!((sink.times(1), sink.times(2)), (DONE_BEFORE, IN_FLIGHT));
}
