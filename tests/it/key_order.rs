//! The order of a key, at the level of SQL: which row has its turn. The rows are written here as the daemon writes them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use fastrand::Rng;
use futures_util::future::join_all;
use outboxd::postgres::Session;
use tokio::sync::Barrier;
use tokio_postgres::error::SqlState;

use crate::harness::{Database, text, texts, until};

async fn handler(session: &Session, name: &str, ordered: &str) {
    let sql = format!(
        "INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id, ordered)
         VALUES ('{name}', '{{#}}', outbox.topic_regex('{{#}}'), 'rust', '{{}}', 0, '{ordered}')"
    );
    session.client.batch_execute(&sql).await.unwrap();
}

/// The statement that opens a row of event `id`.
fn opening(handler: &str, id: i64, key: &str, state: &str) -> String {
    let (due, started) = match state {
        "scheduled" | "retrying" | "waiting" => ("now() + interval '1 hour'", "NULL"),
        "running" => ("NULL", "now()"),
        _ => ("NULL", "NULL"),
    };
    let attempt = i32::from(!matches!(state, "blocked" | "scheduled"));
    format!(
        "INSERT INTO outbox.open (event_id, handler, topic, key, payload, headers, priority, created_at, state, due_at, attempt,
                                  started_at, last_error)
         VALUES ({id}, '{handler}', 'a', '{key}', '{{}}', '{{}}', 0, now(), '{state}', {due}, {attempt}, {started}, 'no')"
    )
}

async fn open(session: &Session, handler: &str, id: i64, state: &str) {
    session.client.batch_execute(&opening(handler, id, "k", state)).await.unwrap();
}

/// `event state` of every row of this handler, in the order of the key; `turn` for a blocked one whose turn has come.
async fn rows(session: &Session, handler: &str) -> String {
    let query = format!(
        "SELECT event_id || ' ' || CASE WHEN state = 'blocked' AND due_at IS NOT NULL THEN 'turn' ELSE state END
         FROM outbox.open WHERE handler = '{handler}' ORDER BY key, n"
    );
    texts(session, &query).await.join(", ")
}

async fn run(session: &Session, sql: &str) {
    session.client.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn the_next_of_a_key_has_its_turn_when_the_one_before_it_is_gone() {
    let database = Database::new().await;
    let session = database.session().await;
    let finish = "DELETE FROM outbox.open WHERE event_id = 1 AND handler = '{h}'";
    let dies = "UPDATE outbox.open SET state = 'dead', due_at = NULL, started_at = NULL WHERE event_id = 1 AND handler = '{h}'";
    let fails = "UPDATE outbox.open SET state = 'retrying', due_at = now(), started_at = NULL WHERE event_id = 1 AND handler = '{h}'";
    let cancel = "SELECT outbox.cancel(1, '{h}')";
    let table = [
        ("block", "running", finish, "2 turn, 3 blocked"),
        ("block", "running", cancel, "2 turn, 3 blocked"),
        ("block", "running", fails, "1 retrying, 2 blocked, 3 blocked"),
        ("block", "running", dies, "1 dead, 2 blocked, 3 blocked"),
        ("block", "retrying", cancel, "2 turn, 3 blocked"),
        ("block", "waiting", "SELECT outbox.complete(1, '{h}')", "2 turn, 3 blocked"),
        ("block", "waiting", "SELECT outbox.fail(1, '{h}', 'no')", "1 retrying, 2 blocked, 3 blocked"),
        ("block", "dead", "SELECT outbox.discard(1, '{h}', 'not wanted')", "2 turn, 3 blocked"),
        ("block", "dead", "SELECT outbox.discard('not wanted', handler => '{h}')", "2 turn, 3 blocked"),
        ("block", "blocked", cancel, "2 turn, 3 blocked"),
        ("skip", "running", finish, "2 turn, 3 blocked"),
        ("skip", "running", dies, "1 dead, 2 turn, 3 blocked"),
        ("skip", "running", fails, "1 retrying, 2 blocked, 3 blocked"),
        ("skip", "retrying", dies, "1 dead, 2 turn, 3 blocked"),
    ];
    for (number, (ordered, state, end, expected)) in table.into_iter().enumerate() {
        let name = format!("h{number}");
        handler(&session, &name, ordered).await;
        open(&session, &name, 1, state).await;
        open(&session, &name, 2, "blocked").await;
        open(&session, &name, 3, "blocked").await;
        let waiting = rows(&session, &name).await;
        assert!(waiting.ends_with("2 blocked, 3 blocked"), "{waiting}");
        run(&session, &end.replace("{h}", &name)).await;
        assert_eq!(rows(&session, &name).await, expected, "{ordered}: the first is {state}, then {end}");
    }
}

#[tokio::test]
async fn whoever_has_nobody_before_it_goes_on_at_once() {
    let database = Database::new().await;
    let session = database.session().await;
    for (name, ordered) in [("alone", "block"), ("other", "block"), ("delayed", "block"), ("passed", "skip")] {
        handler(&session, name, ordered).await;
        open(&session, if name == "other" { "alone" } else { name }, 9, "running").await;
        run(&session, "DELETE FROM outbox.open WHERE event_id = 9").await;
    }
    open(&session, "alone", 2, "blocked").await;
    assert_eq!(rows(&session, "alone").await, "2 turn");
    // Another key, another handler.
    run(&session, &opening("alone", 3, "l", "blocked")).await;
    open(&session, "other", 2, "blocked").await;
    assert_eq!(rows(&session, "alone").await, "2 turn, 3 turn");
    assert_eq!(rows(&session, "other").await, "2 turn");
    // A delayed one has no place yet; when it has begun it has.
    open(&session, "delayed", 1, "scheduled").await;
    open(&session, "delayed", 2, "blocked").await;
    assert_eq!(rows(&session, "delayed").await, "1 scheduled, 2 turn");
    // The dead are passed with `skip`.
    open(&session, "passed", 1, "dead").await;
    open(&session, "passed", 2, "blocked").await;
    assert_eq!(rows(&session, "passed").await, "1 dead, 2 turn");
    // A delayed one whose time has come goes behind those that have begun.
    run(&session, "UPDATE outbox.open SET state = 'blocked', due_at = NULL, n = DEFAULT WHERE event_id = 1 AND handler = 'delayed'")
        .await;
    assert_eq!(rows(&session, "delayed").await, "2 turn, 1 blocked");
}

#[tokio::test]
async fn a_redriven_one_goes_first_but_not_beside_another_one() {
    let database = Database::new().await;
    let session = database.session().await;
    handler(&session, "block", "block").await;
    for (id, state) in [(1, "dead"), (2, "blocked"), (3, "blocked")] {
        open(&session, "block", id, state).await;
    }
    assert_eq!(text(&session, "SELECT outbox.redrive('block')").await, "1");
    assert_eq!(rows(&session, "block").await, "1 retrying, 2 blocked, 3 blocked");

    handler(&session, "skip", "skip").await;
    for (id, state) in [(1, "dead"), (2, "dead"), (3, "running"), (4, "blocked")] {
        open(&session, "skip", id, state).await;
    }
    assert_eq!(text(&session, "SELECT outbox.redrive('skip')").await, "2");
    assert_eq!(rows(&session, "skip").await, "1 blocked, 2 blocked, 3 running, 4 blocked");
    // The end of one that had no turn changes nothing.
    run(&session, "SELECT outbox.cancel(4, 'skip')").await;
    assert_eq!(rows(&session, "skip").await, "1 blocked, 2 blocked, 3 running");
    for expected in ["1 turn, 2 blocked", "2 turn", ""] {
        run(&session, "DELETE FROM outbox.open WHERE handler = 'skip' AND (state = 'running' OR due_at IS NOT NULL)")
            .await;
        assert_eq!(rows(&session, "skip").await, expected);
    }

    // Several dead ones of a key run in their order, whichever is asked for first.
    for name in ["dead_block", "dead_skip"] {
        handler(&session, name, "skip").await;
        for id in [1, 2, 3] {
            open(&session, name, id, "dead").await;
        }
    }
    run(&session, "UPDATE outbox.handler SET ordered = 'block' WHERE name = 'dead_block'").await;
    assert_eq!(text(&session, "SELECT outbox.retry(2, 'dead_block')").await, "true");
    assert_eq!(rows(&session, "dead_block").await, "1 dead, 2 blocked, 3 dead");
    for name in ["dead_block", "dead_skip"] {
        run(&session, &format!("SELECT outbox.redrive('{name}')")).await;
        let expected = ["1 retrying, 2 blocked, 3 blocked", "2 turn, 3 blocked", "3 turn"];
        for expected in expected {
            assert_eq!(rows(&session, name).await, expected, "{name}");
            let first = &expected[..1];
            run(&session, &format!("DELETE FROM outbox.open WHERE handler = '{name}' AND event_id = {first}")).await;
        }
    }
}

/// The head ends when the one behind it is cancelled, and a third one has come that the head's transaction has not seen yet.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_while_those_before_it_end_has_its_turn() {
    let database = Database::new().await;
    let session = database.session().await;
    let (comes, ends) = (database.session().await, database.session().await);
    handler(&session, "mail", "block").await;
    open(&session, "mail", 1, "running").await;
    open(&session, "mail", 2, "blocked").await;
    run(&comes, "BEGIN").await;
    open(&comes, "mail", 3, "blocked").await;
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    run(&session, "SELECT outbox.cancel(2, 'mail')").await;
    let coming = async {
        until("the end waits for the one that comes", async || text(&session, waiting).await == "1").await;
        run(&comes, "COMMIT").await;
    };
    tokio::join!(run(&ends, "DELETE FROM outbox.open WHERE event_id = 1"), coming);
    assert_eq!(rows(&session, "mail").await, "3 turn");
}

#[tokio::test]
async fn nobody_is_left_behind_when_the_order_is_given_up() {
    let database = Database::new().await;
    let session = database.session().await;
    handler(&session, "mail", "block").await;
    for (id, state) in [(1, "dead"), (2, "blocked"), (3, "blocked")] {
        open(&session, "mail", id, state).await;
    }
    run(&session, "UPDATE outbox.handler SET ordered = 'skip'").await;
    assert_eq!(rows(&session, "mail").await, "1 dead, 2 turn, 3 blocked");
    run(&session, "UPDATE outbox.handler SET ordered = NULL").await;
    assert_eq!(rows(&session, "mail").await, "1 dead, 2 turn, 3 turn");
    open(&session, "mail", 4, "blocked").await;
    assert_eq!(rows(&session, "mail").await, "1 dead, 2 turn, 3 turn, 4 turn");
}

#[tokio::test]
async fn a_snapshot_that_could_miss_a_row_is_refused() {
    let database = Database::new().await;
    let session = database.session().await;
    handler(&session, "mail", "block").await;
    open(&session, "mail", 1, "dead").await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        run(&session, &format!("BEGIN ISOLATION LEVEL {level}")).await;
        let error = session.client.batch_execute("SELECT outbox.discard(1, 'mail', 'x')").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error:?}");
        run(&session, "ROLLBACK").await;
    }
    assert_eq!(rows(&session, "mail").await, "1 dead");
}

/// What several sessions share.
struct Stress {
    next: AtomicI64,
    deadlocks: AtomicUsize,
    done: AtomicUsize,
    over: AtomicBool,
}

const HANDLERS: [&str; 2] = ["block", "skip"];
const KEYS: [&str; 3] = ["a", "b", "c"];

/// One thing that the daemon or an operator does to a row that was chosen at random.
fn step(rng: &mut Rng, stress: &Stress) -> String {
    let handler = HANDLERS[rng.usize(..HANDLERS.len())];
    let key = KEYS[rng.usize(..KEYS.len())];
    let pick = |condition: &str| {
        format!(
            "(SELECT event_id FROM outbox.open WHERE handler = '{handler}' AND key = '{key}' AND {condition}
              ORDER BY random() LIMIT 1)"
        )
    };
    let update = |set: &str, condition: &str| {
        format!(
            "UPDATE outbox.open SET {set} WHERE handler = '{handler}' AND {condition} AND event_id = (
                 SELECT event_id FROM outbox.open WHERE handler = '{handler}' AND key = '{key}' AND {condition}
                 ORDER BY n LIMIT 1 FOR UPDATE SKIP LOCKED)"
        )
    };
    let begins = "state = 'running', attempt = attempt + 1, due_at = NULL, started_at = now()";
    match rng.u8(..18) {
        0..4 => opening(handler, stress.next.fetch_add(1, Ordering::Relaxed), key, "blocked"),
        4..8 => update(begins, "due_at IS NOT NULL"),
        8..12 => format!("DELETE FROM outbox.open WHERE state = 'running' AND handler = '{handler}' AND key = '{key}'"),
        12 => update("state = 'retrying', due_at = now(), started_at = NULL", "state = 'running'"),
        13 => update("state = 'dead', due_at = NULL, started_at = NULL", "state = 'running'"),
        14 => format!("SELECT outbox.discard({}, '{handler}', 'x')", pick("state = 'dead'")),
        15 => format!("SELECT outbox.retry({}, '{handler}')", pick("state = 'dead'")),
        16 => format!("SELECT outbox.cancel({}, '{handler}')", pick("true")),
        _ if rng.u8(..4) == 0 => "SELECT outbox.discard('x')".to_owned(),
        _ => format!("SELECT outbox.redrive('{handler}')"),
    }
}

/// The keys of which two rows have their turn, and those of which a row waits for its turn and none has it.
const WRONG: &str = "
    SELECT format('%s %s: %s', o.handler, o.key, string_agg(o.event_id || ' ' || o.state || CASE WHEN o.due_at IS NULL THEN '' ELSE ' due' END, ', ' ORDER BY o.n))
    FROM outbox.open o JOIN outbox.handler h ON h.name = o.handler
    GROUP BY o.handler, o.key
    HAVING count(*) FILTER (WHERE outbox.has_turn(o.state, o.attempt, o.due_at, h.ordered)) > 1
        OR (count(*) FILTER (WHERE outbox.has_turn(o.state, o.attempt, o.due_at, h.ordered)) = 0
            AND count(*) FILTER (WHERE o.state = 'blocked') > 0)";

async fn transactions(session: &Session, rng: &mut Rng, stress: &Stress, count: usize) {
    for _ in 0..count {
        let steps: Vec<String> = (0..rng.usize(1..=3)).map(|_| step(rng, stress)).collect();
        let end = if rng.u8(..10) == 0 { "ROLLBACK" } else { "COMMIT" };
        // A transaction takes a while, so that many overlap.
        let steps = steps.join("; SELECT pg_sleep(random() * 0.004); ");
        let result = session.client.batch_execute(&format!("BEGIN; {steps}; {end}")).await;
        stress.done.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = result {
            assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{steps}: {error:?}");
            stress.deadlocks.fetch_add(1, Ordering::Relaxed);
            run(session, "ROLLBACK").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_stuck_and_no_two_of_a_key_go_on_whatever_many_sessions_do() {
    const SESSIONS: usize = 6;
    const ROUNDS: usize = 12;
    const TRANSACTIONS: usize = 20;
    let database = Database::new().await;
    let session = database.session().await;
    for ordered in HANDLERS {
        handler(&session, ordered, ordered).await;
    }
    let seed = fastrand::u64(..);
    println!("the seed is {seed}");
    let stress = Arc::new(Stress {
        next: AtomicI64::new(1),
        deadlocks: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    });
    // In every snapshot, not only when all is quiet: a turn is passed on in the transaction that ends the one before.
    let watcher = async {
        let looking = database.session().await;
        let mut looks = 0;
        while !stress.over.load(Ordering::Relaxed) {
            assert_eq!(texts(&looking, WRONG).await, [""; 0], "the seed is {seed}");
            looks += 1;
        }
        looks
    };
    let barrier = Barrier::new(SESSIONS);
    let worker = async |number: usize| {
        let session = database.session().await;
        run(&session, "SET deadlock_timeout = '20ms'").await;
        let mut rng = Rng::with_seed(seed.wrapping_add(number as u64));
        for _ in 0..ROUNDS {
            barrier.wait().await;
            transactions(&session, &mut rng, &stress, TRANSACTIONS).await;
        }
    };
    let workers = async {
        join_all((0..SESSIONS).map(worker)).await;
        stress.over.store(true, Ordering::Relaxed);
    };
    let (looks, ()) = tokio::join!(watcher, workers);
    assert_eq!(texts(&session, WRONG).await, [""; 0], "the seed is {seed}");
    let (done, deadlocks) = (stress.done.load(Ordering::Relaxed), stress.deadlocks.load(Ordering::Relaxed));
    println!("{done} transactions, {deadlocks} of them ended by a deadlock; {looks} looks");
    assert!(looks > 0 && deadlocks * 4 < done, "{deadlocks} of {done} transactions were ended by deadlocks");

    // What is left goes on to its end, one of each key at a time.
    let mut left: BTreeSet<String> =
        texts(&session, "SELECT handler || event_id FROM outbox.open").await.into_iter().collect();
    while !left.is_empty() {
        run(
            &session,
            "SELECT outbox.discard('x');
             DELETE FROM outbox.open WHERE state IN ('running', 'retrying') OR due_at IS NOT NULL",
        )
        .await;
        let rest: BTreeSet<String> =
            texts(&session, "SELECT handler || event_id FROM outbox.open").await.into_iter().collect();
        assert!(rest.len() < left.len(), "stuck: {rest:?}; the seed is {seed}");
        left = rest;
    }
}
