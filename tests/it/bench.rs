//! The bench measures what it says, and leaves nothing behind. How fast anything is, no test asks.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Database, Folder, outboxd_output, text, until, url};

/// The figures of one run, by their names.
fn figures(run: &Value) -> Vec<(String, f64)> {
    let figure = |figure: &Value| (figure["what"].as_str().unwrap().to_owned(), figure["value"].as_f64().unwrap());
    run["figures"].as_array().unwrap().iter().map(figure).collect()
}

#[tokio::test]
async fn every_quick_scenario_measures_on_a_server_of_its_own_and_removes_it() {
    let folder = Folder::new();
    let arguments =
        ["drain", "fanout", "flow", "enqueue", "latency", "steady", "held-xmin", "http", "backlog", "restart"];
    let small = ["--events", "100", "--seconds", "1", "--json"];
    let output = folder.outboxd("bench", &[&arguments[..], &small].concat()).output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let runs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["scenario"].as_str().unwrap()).collect();
    let expected = [
        "drain",
        "fanout",
        "flow",
        "enqueue",
        "enqueue",
        "latency",
        "steady",
        "steady",
        "held-xmin",
        "http",
        "backlog",
        "restart",
    ];
    assert_eq!(names, expected);
    for run in &runs {
        for (what, value) in figures(run) {
            // A time may be less than the clock shows, and memory may shrink; a rate is never nothing.
            assert!(value.is_finite() && (value > 0.0 || !what.contains("/s")), "{what} of {run}");
            assert!(what != "dead tuples" || value == 0.0, "{run}");
        }
    }
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn a_named_database_must_not_be_in_use_and_is_left_as_it_was() {
    let used = Database::new().await;
    let output = outboxd_output(None, &["bench", "drain", "--database-url", &url(&used)]).await;
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has a schema outbox already"));
    let session = used.session().await;
    assert_eq!(text(&session, "SELECT count(*)::text FROM outbox.event").await, "0");

    let empty = Database::empty().await;
    let output = outboxd_output(None, &["bench", "idle", "--database-url", &url(&empty)]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("leave --database-url out"));
    let drain = ["bench", "drain", "--events", "1000", "--database-url", &url(&empty)];
    let output = outboxd_output(None, &drain).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("drain") && table.contains("1000 events") && table.contains("deliveries/s"), "{table}");
    let session = empty.session().await;
    assert_eq!(text(&session, "SELECT (to_regnamespace('outbox') IS NULL)::text").await, "true");
}

#[tokio::test]
async fn a_bench_that_is_stopped_removes_everything() {
    let folder = Folder::new();
    let empty = Database::empty().await;
    for arguments in [&["idle"][..], &["held-xmin", "--database-url", &url(&empty)]] {
        let mut child = folder.outboxd("bench", arguments).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        folder_or_schema(&folder, &empty).await;
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(1));
        folder.nothing_is_left().await;
        let session = empty.session().await;
        assert_eq!(text(&session, "SELECT (to_regnamespace('outbox') IS NULL)::text").await, "true");
    }
}

/// Waits until a bench has begun: its server has a folder, or its database the schema.
async fn folder_or_schema(folder: &Folder, database: &Database) {
    let session = database.session().await;
    until("the bench has begun", async || {
        !folder.is_empty() || text(&session, "SELECT (to_regclass('outbox.event') IS NOT NULL)::text").await == "true"
    })
    .await;
}
