//! A new binary beside the old one, for a moment or for a week: nothing is lost, nothing repeated, no schema taken for another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use outboxd::EventId;
use rustix::process::Signal;
use tokio::net::TcpListener;

use crate::harness::workload::{Ledger, Producers, Receipts, Shape, assert_done, scaled};
use crate::harness::{BINARY, ConfigFile, Database, Folder, Gate, Process};
use crate::harness::{deliveries, outboxd_at, publish, until};

const BUSY: Shape = Shape { rows_max: 8, pause_max: Duration::from_millis(10), prepare: false };
const UPGRADES: usize = 4;
const EVENTS: usize = 4_000;

/// An endpoint that takes a receipt for every event.
async fn endpoint(receipts: &Receipts) -> String {
    let receipts = receipts.clone();
    let answer = move |headers: HeaderMap| {
        receipts.take(EventId(headers["ce-id"].to_str().unwrap().parse().unwrap()));
        async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            StatusCode::OK
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    url
}

/// Puts the binary there as dpkg does: written beside, then renamed over the one that runs.
fn install(path: &Path) {
    let beside = path.with_extension("dpkg-new");
    std::fs::copy(BINARY, &beside).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

fn start(binary: &Path, database: &Database, config: &ConfigFile) -> Process {
    Process::start(outboxd_at(binary, Some(database), &["run", "--config", config.path()]))
}

/// The file that a daemon runs from; Linux tells of one that was replaced.
fn runs_from(daemon: &Process) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", daemon.pid().as_raw_nonzero())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_load_lose_nothing_and_repeat_nothing() {
    let (database, folder) = (Database::new().await, Folder::new());
    let (ledger, receipts) = (Ledger::default(), Receipts::default());
    let url = endpoint(&receipts).await;
    let config = ConfigFile::new(&format!("[handler.all]\ntopics = [\"#\"]\nconcurrency = 32\nhttp.url = \"{url}\"\n"));
    let binary = folder.path().join("outboxd");
    install(&binary);
    let mut old = start(&binary, &database, &config);
    old.logged("leading: this daemon dispatches").await;

    let mut producers = Producers::connect(&database, 8, BUSY, &ledger).await;
    let upgrading = async {
        for upgrade in 1..=UPGRADES {
            install(&binary);
            let replaced = runs_from(&old);
            assert!(replaced.to_str().unwrap().ends_with(" (deleted)"), "{}", replaced.display());
            let new = start(&binary, &database, &config);
            new.logged("standing by: another daemon leads").await;
            let enough = scaled(EVENTS) * upgrade / (UPGRADES + 1);
            until("the old one is in the middle of its work", async || receipts.len() >= enough).await;
            old.signal(Signal::TERM);
            assert_eq!(old.ended().await.code(), Some(0));
            old.logged("stopped cut_off=0").await;
            new.logged("leading: this daemon dispatches").await;
            assert_eq!(runs_from(&new), binary);
            old = new;
        }
    };
    tokio::join!(producers.produce(scaled(EVENTS)), upgrading);
    receipts.complete(&ledger, None).await;
    assert_done(&database, "all", &ledger.events(None)).await;
    assert_eq!(receipts.repeated(), 0);
}

#[tokio::test]
async fn who_stood_by_while_a_newer_version_migrated_does_not_lead() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let config = ConfigFile::new(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let session = database.session().await;
    let mut leader = Process::run(&database, &config);
    leader.logged("leading: this daemon dispatches").await;
    let mut standby = Process::run(&database, &config);
    standby.logged("standing by: another daemon leads").await;

    let newer = "INSERT INTO outbox.refinery_schema_history (version, name, checksum) VALUES (999, 'newer', '0')";
    session.client.batch_execute(newer).await.unwrap();
    let event = publish(&session, "a").await;
    until("who leads goes on", async || deliveries(&session, event).await == ["slow|done|1"]).await;

    leader.signal(Signal::TERM);
    assert_eq!(leader.ended().await.code(), Some(0));
    standby.logged("the schema was made by a newer outboxd (it is at version 999,").await;
    // The code after which systemd does not start it again.
    assert_eq!(standby.ended().await.code(), Some(78), "{}", standby.log());
    assert!(!standby.log().contains("leading: this daemon dispatches"), "{}", standby.log());
}
