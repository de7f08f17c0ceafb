//! Without a fault nothing runs twice, nothing is left, and nothing grows. `OUTBOXD_TEST_SCALE=250` makes it a million events,
//! each with a key of its own.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use outboxd::postgres::Session;
use rustix::process::Pid;
use tokio::net::TcpListener;

use crate::harness::workload::scaled;
use crate::harness::{ConfigFile, Database, Process, text, until_within};

const EVENTS: usize = 4_000;
/// Inserted by one statement.
const TOGETHER: usize = 100;
/// Growth by which a measurement may differ from another one: an allocator keeps some of what it was given back.
const SLACK_KIBIBYTES: u64 = 16 * 1024;
/// Connections that are open at one moment and not at another.
const SLACK_DESCRIPTORS: usize = 70;

/// How often each event has come.
type Counts = Arc<Mutex<Vec<u8>>>;

async fn sink(events: usize) -> (String, Counts) {
    let counts: Counts = Arc::new(Mutex::new(vec![0; events + 1]));
    let counted = Arc::clone(&counts);
    let answer = move |headers: HeaderMap| {
        let id: usize = headers["ce-id"].to_str().unwrap().parse().unwrap();
        counted.lock().unwrap()[id] += 1;
        async { StatusCode::OK }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    (url, counts)
}

/// A tenth of the events is for the SQL function, too.
async fn produce(session: &Session, events: usize) {
    let insert = "INSERT INTO outbox.event (topic, key, payload)
                  SELECT CASE WHEN n % 10 = 0 THEN 'load.tenth' ELSE 'load.other' END, gen_random_uuid()::text, '{}'
                  FROM generate_series(1, $1) n";
    for _ in 0..events / TOGETHER {
        session.client.execute(insert, &[&i32::try_from(TOGETHER).unwrap()]).await.unwrap();
    }
}

/// Resident memory in KiB, and open files.
fn used(pid: Pid) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes = line.trim().trim_end_matches(" kB").parse().unwrap();
    (kibibytes, std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count())
}

async fn finished(session: &Session, handler: &str) -> usize {
    let query = format!("SELECT count(*) FROM outbox.done WHERE handler = '{handler}' AND attempt = 1");
    text(session, &query).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fault_nothing_runs_twice_and_nothing_grows() {
    let database = Database::new().await;
    let session = database.session().await;
    let events = scaled(EVENTS);
    let (url, counts) = sink(events).await;
    let schema = "CREATE SCHEMA app; CREATE TABLE app.effect (id bigint PRIMARY KEY);
                  CREATE FUNCTION app.take(e outbox.event) RETURNS jsonb LANGUAGE sql
                  AS $$ INSERT INTO app.effect VALUES (e.id) RETURNING NULL::jsonb $$";
    session.client.batch_execute(schema).await.unwrap();
    let config = ConfigFile::new(&format!(
        "[handler.web]\ntopics = [\"load.*\"]\nhttp.url = \"{url}\"\nordered = true\nconcurrency = 64\n\
         [handler.sql]\ntopics = [\"load.tenth\"]\nsql = \"app.take\"\n"
    ));
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;

    let mut samples = Vec::new();
    // Each part is finished before the next one, so that every measurement finds the same: nothing to do.
    for part in 1..=10 {
        produce(&session, events / 10).await;
        let seconds = 60 + u64::try_from(events / 500).unwrap();
        until_within(seconds, "this part is done", async || {
            finished(&session, "web").await == events / 10 * part
                && finished(&session, "sql").await == events / 100 * part
        })
        .await;
        samples.push(used(daemon.pid()));
    }

    assert!(counts.lock().unwrap()[1..].iter().all(|count| *count == 1), "each event came once");
    for (query, expected) in [
        ("SELECT count(*) FROM app.effect", events / 10),
        ("SELECT count(*) FROM outbox.done", events + events / 10),
        ("SELECT count(*) FROM outbox.open", 0),
        ("SELECT count(*) FROM outbox.attempt", 0),
    ] {
        assert_eq!(text(&session, query).await, expected.to_string(), "{query}");
    }
    let first = samples[2];
    for (kibibytes, descriptors) in &samples[3..] {
        assert!(*kibibytes <= first.0 + SLACK_KIBIBYTES, "memory grows: {samples:?}");
        assert!(*descriptors <= first.1 + SLACK_DESCRIPTORS, "open files grow: {samples:?}");
    }
    println!("{events} events; KiB and open files after each tenth: {samples:?}");
}
