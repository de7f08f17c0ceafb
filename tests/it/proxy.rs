//! The tests' own network: a fault hits the sessions it is meant for, and no others.

use std::sync::Arc;
use std::time::Duration;

use outboxd::postgres::{Session, Target};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::proxy::{Fault, Proxy, Way};
use crate::harness::{Database, ring, until};

/// How long a test listens to nothing.
const SILENCE: Duration = Duration::from_millis(300);

async fn answers(session: &Session) {
    session.client.batch_execute("SELECT 1").await.unwrap();
}

async fn through(database: &Database) -> (Proxy, Target) {
    let proxy = Proxy::start(&database.target()).await;
    let target = proxy.target(&database.target());
    (proxy, target)
}

#[tokio::test]
async fn a_fault_hits_the_sessions_of_its_role_until_it_is_lifted() {
    let database = Database::empty().await;
    let (proxy, target) = through(&database).await;
    let (hit, well) = (target.connect("tail").await.unwrap(), target.connect("leader").await.unwrap());
    assert_eq!((proxy.connections("tail"), proxy.connections("")), (1, 2));

    proxy.set("tail", Fault::Hold(Way::ToClient));
    let answer = hit.client.batch_execute("SELECT 1");
    tokio::pin!(answer);
    assert!(timeout(SILENCE, &mut answer).await.is_err());
    answers(&well).await;
    proxy.lift("tail");
    answer.await.unwrap();

    proxy.set("tail", Fault::Swallow(Way::Both));
    assert!(timeout(SILENCE, answers(&hit)).await.is_err());
    assert!(!hit.client.is_closed());
    proxy.lift("tail");
    hit.closed().await;
    answers(&well).await;

    // A session that comes later is well again.
    answers(&target.connect("tail").await.unwrap()).await;
}

#[tokio::test]
async fn a_swallowed_end_leaves_the_server_with_a_half_open_session() {
    let database = Database::empty().await;
    let (proxy, target) = through(&database).await;
    let session = target.connect("leader").await.unwrap();
    session.client.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    proxy.set("leader", Fault::Swallow(Way::Both));
    drop(session);
    let other = database.session().await;
    let held = async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                   (SELECT oid FROM pg_database WHERE datname = current_database())";
        other.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    };
    assert!(held().await);
    proxy.lift("leader");
    until("the server has noticed the reset", async || !held().await).await;
}

#[tokio::test]
async fn a_deaf_session_answers_and_hears_nothing() {
    let database = Database::empty().await;
    let (proxy, target) = through(&database).await;
    let wake = Arc::new(Notify::new());
    let listener = target.listen("bell", Arc::clone(&wake)).await.unwrap();
    listener.client.batch_execute("LISTEN outbox").await.unwrap();
    let other = database.session().await;
    ring(&other).await;
    wake.notified().await;
    proxy.set("bell", Fault::Deaf);
    ring(&other).await;
    answers(&listener).await;
    assert!(timeout(SILENCE, wake.notified()).await.is_err());
    proxy.lift("bell");
    ring(&other).await;
    wake.notified().await;
}

#[tokio::test]
async fn a_cut_ends_in_the_middle_of_a_message() {
    let database = Database::empty().await;
    let (proxy, target) = through(&database).await;
    let session = target.connect("pool").await.unwrap();
    proxy.set("pool", Fault::CutAfter(100));
    session.client.query("SELECT repeat('x', 1000)", &[]).await.unwrap_err();
    session.closed().await;
    // Those that come are cut, too, and with a reset not even that far.
    target.connect("pool").await.unwrap_err();
    proxy.set("pool", Fault::Reset);
    target.connect("pool").await.unwrap_err();
    proxy.set("pool", Fault::Delay(Duration::from_millis(1)));
    let session = target.connect("pool").await.unwrap();
    answers(&session).await;
    // A cut that was not reached is lifted like every other fault.
    proxy.set("pool", Fault::CutAfter(1000));
    answers(&session).await;
    proxy.lift("pool");
    session.client.query("SELECT repeat('x', 10000)", &[]).await.unwrap();
    assert_eq!(proxy.reset("pool"), 1);
    session.closed().await;
}
