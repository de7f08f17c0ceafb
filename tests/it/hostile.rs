//! What a role may do that publishes: that, and nothing else, however hard it tries.

use outboxd::daemon::Daemon;
use outboxd::postgres::Session;
use outboxd::{Event, Outcome};

use crate::harness::{Database, Login, Running, all_refused, done, refused, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_publishes_and_can_do_nothing_else() {
    let database = Database::new().await;
    let owner = database.session().await;
    let login = Login::new(&database, "shop", &["outbox_producer"]).await;
    let session = login.session().await;
    let insert = "INSERT INTO outbox.event (topic, payload, key, headers, dedup_key, due_at, expires_at, priority)
                  VALUES ('a', '{\"card\": 4711}', 'k', '{}', 'd', now(), now() + interval '1 hour', 1) RETURNING id";
    session.client.batch_execute(insert).await.unwrap();
    session.client.batch_execute("SELECT outbox.publish('a', '{}', dedup_key => 'e')").await.unwrap();
    hostile(&session, &["SELECT outbox.publish('b', '{}', headers => '{\"x\": 1}'::jsonb)"]).await;
    assert_eq!(text(&owner, "SELECT count(*) FROM outbox.event").await, "2", "nothing else came of it");
    drop(session);
    login.drop().await;
}

/// Whatever somebody tries who may publish. `more` fails, too, for another reason.
async fn hostile(session: &Session, more: &[&str]) {
    // To read what others have published, or what came of it.
    all_refused(
        session,
        &[
            "SELECT payload FROM outbox.event",
            "SELECT * FROM outbox.event",
            "SELECT topic, headers FROM outbox.event",
            "COPY outbox.event TO STDOUT",
            "INSERT INTO outbox.event (topic, payload) VALUES ('a', '{}') RETURNING payload",
            "SELECT * FROM outbox.event_default",
            "SELECT * FROM outbox.event_p0",
            "SELECT * FROM outbox.done",
            "SELECT * FROM outbox.open",
            "SELECT * FROM outbox.attempt",
            "SELECT * FROM outbox.handler",
            "SELECT * FROM outbox.operation",
            "SELECT * FROM outbox.delivery",
            "SELECT * FROM outbox.stuck",
            "SELECT * FROM outbox.related(1)",
            "SELECT * FROM outbox.dead_letters()",
            "SELECT outbox.wait_for(1)",
            "SELECT payload FROM outbox.event TABLESAMPLE SYSTEM (100)",
        ],
    )
    .await;
    // To change or hide it.
    all_refused(
        session,
        &[
            "UPDATE outbox.event SET payload = '{}'",
            "DELETE FROM outbox.event",
            "TRUNCATE outbox.event",
            "DROP TABLE outbox.event",
            "DO $$ BEGIN LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE; END $$",
            "ALTER TABLE outbox.event DISABLE TRIGGER USER",
            "SET session_replication_role = replica",
            "CREATE TABLE outbox.mine (i int)",
            "CREATE FUNCTION outbox.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "INSERT INTO outbox.event_default (topic, payload) VALUES ('a', '{}')",
            "INSERT INTO outbox.event (topic, payload, xid) VALUES ('a', '{}', '9999999')",
            "INSERT INTO outbox.event (topic, payload, created_at) VALUES ('a', '{}', '1999-01-01')",
        ],
    )
    .await;
    // To say that it is done, to let it run again, to answer for it.
    all_refused(
        session,
        &[
            "INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at) VALUES (1, 'h', 'done', 1, now(), now())",
            "INSERT INTO outbox.dedup VALUES ('a', 'x', 1, now() + interval '1 day')",
            "SELECT outbox.complete(1, 'h')",
            "SELECT outbox.fail(1, 'h', 'x')",
            "SELECT outbox.answer_done(1, 'h', '{}')",
            "SELECT outbox.answer_failed(1, 'h', 'x', true)",
            "SELECT outbox.retry(1, 'h')",
            "SELECT outbox.redrive()",
            "SELECT outbox.discard(1, 'h', 'x')",
            "SELECT outbox.discard('x')",
            "SELECT outbox.cancel(1, 'h')",
            "SELECT outbox.snooze(1, 'h', interval '1 day')",
            "SELECT outbox.replay('h')",
            "SELECT outbox.heartbeat(1, 'h', 1)",
            "SELECT outbox.once('c', 'k')",
            "SELECT outbox.begin_flow(1, 'h')",
            "SELECT outbox.advance_flow(1, 'h')",
            "SELECT outbox.define_flow('f', '[]', 'hold')",
        ],
    )
    .await;
    // To hold up the others, to forge an answer, to take more rights.
    all_refused(
        session,
        &[
            "SELECT outbox.pause('h')",
            "SELECT outbox.resume('h')",
            "SELECT outbox.set_limits('h', 1)",
            "SELECT outbox.forget('h')",
            "SELECT setval('outbox.bell', 2)",
            "SELECT nextval('outbox.bell')",
            "SELECT outbox.add_partitions()",
            "SELECT outbox.drop_partitions()",
            "SELECT outbox.empty_partition(0, '1:1:')",
            "SELECT outbox.trim_log(0, 1000, interval '0')",
            "SELECT key FROM outbox.callback_key",
            "SELECT outbox.note('retry', 'h', 1, 1, 'a', 'b')",
            "SELECT outbox.add_roles()",
            "SELECT outbox.let_publish('shop')",
            "SELECT outbox.allow_publish('shop', '#')",
            "SELECT outbox.forbid_publish('shop')",
            "GRANT outbox_operator TO CURRENT_USER",
            "SET ROLE outbox_daemon",
            "GRANT SELECT ON outbox.event TO PUBLIC",
        ],
    )
    .await;
    for statement in more {
        refused(session, statement).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_publishes_its_topics_and_no_others() {
    let database = Database::new().await;
    let owner = database.session().await;
    let (login, shop) =
        (Login::new(&database, "billing", &[]).await, Login::new(&database, "shop", &["outbox_producer"]).await);
    let (billing, shop_session) = (login.session().await, shop.session().await);
    let allow = format!("SELECT outbox.allow_publish('{}', 'payment.*', 'invoice.#')", login.name);
    owner.client.batch_execute(&allow).await.unwrap();
    let inserts =
        |topic: &str| format!("INSERT INTO outbox.event (topic, payload) VALUES ('{topic}', '{{}}') RETURNING id");
    for topic in ["payment.booked", "invoice", "invoice.sent.again"] {
        billing.client.batch_execute(&inserts(topic)).await.unwrap();
        billing
            .client
            .batch_execute(&format!("SELECT outbox.publish('{topic}', '{{}}', dedup_key => '{topic}')"))
            .await
            .unwrap();
    }
    for topic in ["user.deleted", "payment", "payment.a.b", "outboxd.alert.raised", "paymentx.y"] {
        let expected = format!("42501 role {} may not publish topic '{topic}'", login.name);
        assert_eq!(refused(&billing, &inserts(topic)).await, expected);
        assert_eq!(refused(&billing, &format!("SELECT outbox.publish('{topic}', '{{}}')")).await, expected);
    }
    // A statement that has one of them inserts none.
    let mixed = "INSERT INTO outbox.event (topic, payload) VALUES ('payment.a', '{}'), ('user.a', '{}')";
    assert!(refused(&billing, mixed).await.starts_with("42501 "));
    hostile(&billing, &["SELECT outbox.publish('user.a', '{}')"]).await;
    assert_eq!(text(&owner, "SELECT count(*) FROM outbox.event").await, "6");
    // Who may publish everything still does, and so do the owner and the daemon.
    shop_session.client.batch_execute(&inserts("user.deleted")).await.unwrap();
    owner.client.batch_execute(&inserts("user.deleted")).await.unwrap();
    // Somebody who was given the table's right and no topics is told what to ask for.
    let plain = Login::new(&database, "plain", &[]).await;
    owner
        .client
        .batch_execute(&format!("GRANT USAGE ON SCHEMA outbox TO {0}; GRANT INSERT ON outbox.event TO {0}", plain.name))
        .await
        .unwrap();
    let plain_session = plain.session().await;
    let error = plain_session
        .client
        .batch_execute("INSERT INTO outbox.event (topic, payload) VALUES ('a', '{}')")
        .await
        .unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.detail(), Some("It may publish: nothing."));
    assert!(error.hint().unwrap().contains("GRANT outbox_producer TO"), "{error:?}");
    // Members may what their role may; what was allowed is replaced, and taken back.
    owner.client.batch_execute(&format!("GRANT {} TO {}", login.name, plain.name)).await.unwrap();
    plain_session
        .client
        .batch_execute("INSERT INTO outbox.event (topic, payload) VALUES ('payment.a', '{}')")
        .await
        .unwrap();
    owner.client.batch_execute(&format!("SELECT outbox.allow_publish('{}', 'b')", login.name)).await.unwrap();
    assert!(refused(&billing, &inserts("payment.a")).await.starts_with("42501 "));
    billing.client.batch_execute(&inserts("b")).await.unwrap();
    assert_eq!(text(&owner, &format!("SELECT outbox.forbid_publish('{}')", login.name)).await, "true");
    assert_eq!(refused(&billing, &inserts("b")).await, "42501 permission denied for table event");
    assert_eq!(text(&owner, &format!("SELECT outbox.forbid_publish('{}')", login.name)).await, "false");
    // Bad input.
    for (arguments, says) in [
        ("'nobody_at_all', 'a'".to_owned(), "42704 role nobody_at_all does not exist"),
        (format!("'{}', 'a..b'", login.name), "22023 'a..b' is not a topic pattern"),
        (format!("'{}', 'pay*'", login.name), "22023 'pay*' is not a topic pattern"),
    ] {
        assert_eq!(refused(&owner, &format!("SELECT outbox.allow_publish({arguments})")).await, says);
    }
    let member = refused(&owner, &format!("SELECT outbox.allow_publish('{}', 'a')", shop.name)).await;
    assert_eq!(
        member,
        format!("22023 role {} is a member of outbox_producer, which may publish every topic", shop.name)
    );
    drop((billing, shop_session, plain_session));
    for login in [login, shop, plain] {
        login.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_holds_back_no_daemon() {
    let database = Database::new().await;
    let session = database.session().await;
    let login = Login::new(&database, "daemon", &["outbox_daemon"]).await;
    let tenant = Login::new(&database, "tenant", &[]).await;
    session.client.batch_execute(&format!("SELECT outbox.allow_publish('{}', 'a')", tenant.name)).await.unwrap();
    let emits = async |event: Event| {
        assert_eq!(event.topic, "a");
        Outcome::Done { result: None, emit: vec![outboxd::Emit::new("b", serde_json::json!({}))] }
    };
    let builder = Daemon::builder().target(login.target()).handler("emits", ["a"], emits).handler(
        "hears",
        ["b"],
        async |_: Event| (),
    );
    let running = Running::start(builder).await;
    let publisher = tenant.session().await;
    publisher.client.batch_execute("INSERT INTO outbox.event (topic, payload) VALUES ('a', '{}')").await.unwrap();
    until("what was emitted is done", async || done(&session, "hears").await.len() == 1).await;
    running.stop().await;
    drop(publisher);
    for login in [login, tenant] {
        login.drop().await;
    }
}
