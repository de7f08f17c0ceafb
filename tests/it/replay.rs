//! What has ended is handed over again, marked, at a pace, and what it had come to is kept; so is what a handler was not there for.

use std::sync::{Arc, Mutex};

use outboxd::{Attempt, Event};

use crate::harness::{
    Database, Running, daemon, deliveries, done, outboxd_output, publish, publish_many, text, texts, until,
};

/// What was handed over: id, attempt, replay, and the end of the idempotency key.
type Handed = Arc<Mutex<Vec<(i64, u32, u32, String)>>>;

fn noting(handed: &Handed) -> impl Fn(Attempt) -> std::future::Ready<()> + Send + Sync + 'static + use<> {
    let handed = Arc::clone(handed);
    move |attempt: Attempt| {
        let key = attempt.idempotency_key().split(':').skip(3).collect::<Vec<_>>().join(":");
        handed.lock().unwrap().push((attempt.event.id.0, attempt.number, attempt.event.replay(), key));
        std::future::ready(())
    }
}

fn delivery(topic: &str) -> outboxd::config::DeliveryConfig {
    outboxd::config::DeliveryConfig::new(vec![topic.parse().unwrap()])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_is_handed_over_again_and_says_so() {
    let (database, handed) = (Database::new().await, Handed::default());
    let session = database.session().await;
    let builder = || daemon(&database).handler_with("mail", delivery("user.#"), noting(&handed));
    let running = Running::start(builder()).await;
    let insert = "INSERT INTO outbox.event (topic, key, payload) VALUES ('user.a', 'ada', '{}'), ('user.b', 'bob', '{}'), \
                  ('user.a', 'bob', '{}') RETURNING id";
    let ids: Vec<i64> = session.client.query(insert, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    until("all are done", async || done(&session, "mail").await == ids).await;
    let again = async |arguments: &str| {
        text(&session, &format!("SELECT outbox.replay('mail', {arguments})")).await.parse::<usize>().unwrap()
    };
    assert_eq!(again("dry_run => true").await, 3);
    assert_eq!(again("topic => 'user.a', key => 'bob', reason => 'the bug is mended'").await, 1);
    until("it is handed over again", async || handed.lock().unwrap().len() == 4).await;
    let last = handed.lock().unwrap().last().unwrap().clone();
    assert_eq!(last, (ids[2], 2, 1, "mail:1".to_owned()), "a key of its own: who has seen the first does it again");
    until("it is done", async || deliveries(&session, ids[2]).await == ["mail|done|2"]).await;
    let kept = "SELECT concat_ws('|', attempt, outcome, error) FROM outbox.attempt ORDER BY attempt";
    until("what it had come to is kept", async || {
        texts(&session, kept).await.first().map(String::as_str)
            == Some("1|replayed|it was done; replayed by outboxd: the bug is mended")
    })
    .await;
    assert_eq!(again(&format!("from_id => {}, to_id => {}", ids[1], ids[2])).await, 2);
    until("they are handed over", async || handed.lock().unwrap().len() == 6).await;
    until("they are done", async || done(&session, "mail").await == ids).await;
    let twice = handed
        .lock()
        .unwrap()
        .iter()
        .filter(|(id, ..)| *id == ids[2])
        .map(|(_, _, replay, _)| *replay)
        .collect::<Vec<_>>();
    assert_eq!(twice, [0, 1, 2]);
    assert_eq!(again("since => now() + interval '1 hour'").await, 0);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "0");
    running.stop().await;
    // Nothing of it confuses a daemon that begins anew.
    let running = Running::start(builder()).await;
    let more = publish(&session, "user.c").await;
    until("the next is done", async || deliveries(&session, more).await == ["mail|done|1"]).await;
    assert_eq!(handed.lock().unwrap().len(), 7);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_gets_what_was_there_before_it_and_nothing_that_is_open() {
    let (database, handed) = (Database::new().await, Handed::default());
    let session = database.session().await;
    let first = Running::start(daemon(&database).handler("first", ["a"], async |_: Event| ())).await;
    let ids = publish_many(&session, "a", 5).await;
    until("they are done", async || done(&session, "first").await == ids).await;
    first.stop().await;
    let both = daemon(&database).handler("first", ["a"], async |_: Event| ()).handler_with(
        "second",
        delivery("a"),
        noting(&handed),
    );
    let running = Running::start(both).await;
    let later = "SELECT outbox.publish('a', '{}', delay => '1 hour')";
    session.client.batch_execute(later).await.unwrap();
    until("it is scheduled", async || text(&session, "SELECT count(*) FROM outbox.open").await == "2").await;
    assert_eq!(text(&session, "SELECT outbox.replay('second', per_second => 1000)").await, "5");
    until("it has the others", async || done(&session, "second").await == ids).await;
    let handed: Vec<i64> = handed.lock().unwrap().iter().map(|(id, ..)| *id).collect();
    assert_eq!(handed, ids, "in their order, at that pace");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open").await, "2");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_previews_refuses_too_many_and_says_what_it_cannot_do() {
    let database = Database::new().await;
    let session = database.session().await;
    let flow = outboxd::Flow::new("order", ["b"]).step("stock", &[], async |_: Attempt| ());
    let running = Running::start(daemon(&database).handler("mail", ["a"], async |_: Event| ()).flow(flow)).await;
    let ids = publish_many(&session, "a", 4).await;
    until("they are done", async || done(&session, "mail").await == ids).await;
    let say = async |arguments: &[&str]| {
        let output = outboxd_output(Some(&database), &[&["replay"], arguments].concat()).await;
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, told) = say(&["mail"]).await;
    assert!(code == 2 && told.contains("--all means the whole log"), "{told}");
    assert_eq!(say(&["mail", "--all", "--dry-run"]).await, (0, "4 fit\n".to_owned()));
    let (code, told) = say(&["mail", "--all", "--most", "3"]).await;
    assert!(code == 1 && told.contains("at least 3 fit") && told.contains("more than 3 events fit"), "{told}");
    let (code, told) = say(&["order", "--all"]).await;
    assert!(code == 1 && told.contains("'order' is not a handler that events can be replayed to"), "{told}");
    let (code, told) = say(&["nobody", "--all"]).await;
    assert!(code == 1 && told.contains("there is no handler nobody"), "{told}");
    // The verb reads patterns itself; in SQL it is the function that does.
    let wrong = session.client.batch_execute("SELECT outbox.replay('mail', topic => 'a..b')").await.unwrap_err();
    assert_eq!(wrong.as_db_error().unwrap().message(), "'a..b' is not a topic pattern");
    assert_eq!(
        text(&session, "SELECT count(*) FROM outbox.done WHERE handler = 'mail'").await,
        "4",
        "nothing has happened"
    );
    let from = ids[2].to_string();
    let told = say(&["mail", "--from-id", &from, "--rate", "500", "--json"]).await.1;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&told).unwrap(),
        serde_json::json!({ "fit": 2, "replayed": 2 })
    );
    let again = "SELECT count(*) FROM outbox.done WHERE handler = 'mail' AND attempt = 2";
    until("they are done again", async || text(&session, again).await == "2").await;
    let (code, told) = say(&["mail", "--key", "nobody"]).await;
    assert!(code == 1 && told.starts_with("0 fit\n") && told.contains("no event fits"), "{told}");
    running.stop().await;
}
