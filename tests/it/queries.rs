//! The statements in `sql/`: each has a header, is used, can be prepared on the schema, and the hot ones are planned
//! as they were meant to be.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect_file;
use outboxd::postgres::Session;
use outboxd::store::{LEADER_SETTINGS, TAIL_SETTINGS};

use crate::harness::Database;

/// The plans are pinned as this major version prints them.
const PLANS_OF: u32 = 15;

/// Name and text of every file in `sql/`.
fn statements() -> Vec<(String, String)> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).unwrap();
    let paths = folder.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "sql"));
    let named = |path: std::path::PathBuf| {
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap())
    };
    let mut statements: Vec<_> = paths.map(named).collect();
    statements.sort();
    statements
}

/// The names that the store's sources give to `sql!` and `include_str!`.
fn used(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for (before, after) in [("sql!(\"", "\")"), ("include_str!(\"../../sql/", ".sql\")")] {
            let found = source.split(before).skip(1).filter_map(|rest| rest.split_once(after));
            names.extend(found.map(|(name, _)| name.to_owned()));
        }
    }
    names
}

#[test]
fn every_statement_begins_with_what_it_does_and_is_used_by_the_store() {
    let statements = statements();
    for (name, text) in &statements {
        assert!(text.starts_with("-- "), "sql/{name}.sql has no header");
        assert!(!text.trim_end().ends_with(';'), "sql/{name}.sql is one statement without a semicolon");
    }
    let files: BTreeSet<String> = statements.into_iter().map(|(name, _)| name).collect();
    assert_eq!(used(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store"))), files);
}

#[tokio::test]
async fn every_statement_can_be_prepared_and_keeps_its_contract() {
    let database = Database::new().await;
    let session = database.session().await;
    let mut contracts = String::new();
    for (name, text) in statements() {
        let text = text.replace("SELECT handler_function(", "SELECT to_jsonb(");
        let statement = session.client.prepare(&text).await.unwrap_or_else(|error| panic!("sql/{name}.sql: {error:?}"));
        let params: Vec<&str> = statement.params().iter().map(tokio_postgres::types::Type::name).collect();
        let columns: Vec<_> =
            statement.columns().iter().map(|c| format!("{} {}", c.name(), c.type_().name())).collect();
        writeln!(contracts, "{name}: {} → {}", params.join(", "), columns.join(", ")).unwrap();
    }
    expect_file!["queries/contracts.txt"].assert_eq(&contracts);
}

/// The first of five partitions gets some thousand events of many transactions; most are done.
async fn fill(session: &Session) {
    let log = "DO $$ BEGIN FOR n IN 1..300 LOOP
                   INSERT INTO outbox.event (topic, payload) SELECT 'load.common', '{}' FROM generate_series(1, 20);
                   COMMIT;
               END LOOP; END $$";
    let rest = "
        INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
        VALUES ('all', '{#}', outbox.topic_regex('{#}'), 'rust', '{}', 0);
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at)
        SELECT id, 'all', 'done', 1, now(), now() FROM outbox.event WHERE id <= 4000;
        INSERT INTO outbox.open (event_id, handler, state, due_at, attempt, last_error, topic, payload, headers, priority,
                                 created_at)
        SELECT id, 'all', CASE WHEN id % 2 = 0 THEN 'retrying' ELSE 'dead' END, CASE WHEN id % 2 = 0 THEN now() END, 1, 'no', topic, payload, headers,
               priority, created_at
        FROM outbox.event WHERE id > 4000;
        ANALYZE outbox.event, outbox.done, outbox.open, outbox.handler";
    // The first commits as it goes and cannot be part of anything.
    session.client.batch_execute(log).await.unwrap();
    session.client.batch_execute(rest).await.unwrap();
}

async fn plan(session: &Session, name: &str, arguments: &str) -> String {
    let (_, text) = statements().into_iter().find(|(of, _)| of == name).unwrap();
    session.client.batch_execute(&format!("PREPARE {name} AS {text}")).await.unwrap();
    let explain = format!("EXPLAIN (COSTS OFF) EXECUTE {name} ({arguments})");
    let lines = session.client.query(&explain, &[]).await.unwrap();
    lines.iter().fold(format!("== {name}\n"), |plan, line| plan + line.get::<_, &str>(0) + "\n")
}

#[tokio::test]
async fn the_hot_statements_are_planned_by_index_and_never_sorted() {
    let database = Database::new().await;
    let (tail, leader) = (database.session().await, database.session().await);
    fill(&leader).await;
    tail.client.batch_execute(TAIL_SETTINGS).await.unwrap();
    let tail_plans = [
        plan(&tail, "tail_head", "'{5}', '{0}', '9', 0, 1000").await,
        plan(&tail, "tail_new", "'9', 0, 1000").await,
        plan(&tail, "tail_behind", "'{5}', '{0}', '9', 0, 1000, '9:9:', '{}', '{}', '9'").await,
        plan(&tail, "settled_among", "'{1,2,3}', '{all}', 1, 3").await,
    ];
    for plan in &tail_plans {
        for unwanted in ["Seq Scan", "->  Sort", "->  Incremental Sort", "Bitmap", "event_p1000000_pkey"] {
            assert!(!plan.contains(unwanted), "{unwanted:?} in\n{plan}");
        }
    }
    leader.client.batch_execute(LEADER_SETTINGS).await.unwrap();
    let due = plan(&leader, "claim_due", "'{all}', '{10}', '{all}', '{k}', '{2}'").await;
    assert!(due.contains("Index Cond: ((handler = w_2.handler) AND (due_at <= statement_timestamp()))"), "{due}");
    assert!(!due.contains("Seq Scan on open"), "{due}");
    assert!(due.contains("Index Scan using open_key on open o_3"), "in the order of the key\n{due}");
    if leader.version / 10_000 == PLANS_OF {
        expect_file!["queries/plans.txt"].assert_eq(&(tail_plans.concat() + &due));
    }
}

/// What a statement reads, in pages: the planner's own count of a run of it.
async fn pages(session: &Session, name: &str, arguments: &str) -> (u32, String) {
    let (_, text) = statements().into_iter().find(|(of, _)| of == name).unwrap();
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS) EXECUTE {name} ({arguments})");
    session.client.batch_execute(&format!("PREPARE {name} AS {text}")).await.unwrap();
    let lines = session.client.query(&explain, &[]).await.unwrap();
    let plan: Vec<&str> = lines.iter().map(|line| line.get(0)).collect();
    let pages = plan.iter().find_map(|line| line.trim().strip_prefix("Buffers: shared hit=")).unwrap();
    (pages.split(' ').next().unwrap().parse().unwrap(), plan.join("\n"))
}

#[tokio::test]
async fn what_compares_a_range_of_the_log_reads_each_row_once_whatever_the_planner_knows() {
    let database = Database::new().await;
    let session = database.session().await;
    // Nobody has analyzed these tables since they were empty.
    let fill = "
        INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
        VALUES ('all', '{#}', outbox.topic_regex('{#}'), 'rust', '{}', 0);
        INSERT INTO outbox.event (topic, payload) SELECT 'load.common', '{}' FROM generate_series(1, 4000);
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at)
        SELECT id, 'all', 'done', 1, now(), now() FROM outbox.event WHERE id <= 2000;
        INSERT INTO outbox.open (event_id, handler, state, due_at, topic, payload, headers, priority, created_at)
        SELECT id, 'all', 'scheduled', now() + interval '1 hour', topic, payload, headers, priority, created_at
        FROM outbox.event WHERE id > 2000";
    session.client.batch_execute(fill).await.unwrap();
    let position: String = session.client.query_one("SELECT pg_current_snapshot()::text", &[]).await.unwrap().get(0);
    let sweep = format!("1, 10001, '{{all}}', '{{{position}}}'");
    for (name, arguments) in [("sweep", sweep.as_str()), ("check_partition", "1, 1000001, 0")] {
        let (pages, plan) = pages(&session, name, arguments).await;
        // Two descents for each event; to read the range again for each takes 138,000.
        assert!((4000..40_000).contains(&pages), "{name}: {pages} pages for 4000 events\n{plan}");
    }
}
