//! The schema is made once, by whoever comes first, and never touched by a version that does not know it.

use std::process::Stdio;

use outboxd::postgres::migrate::{migrate, sql, status};
use outboxd::postgres::{MigrateError, SchemaStatus, Target};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::{Database, cluster};

async fn count(database: &Database, what: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {what}");
    database.session().await.client.query_one(&query, &[]).await.unwrap().get(0)
}

async fn history(database: &Database) -> Vec<String> {
    let query = "SELECT concat_ws(' ', version, name, checksum) FROM outbox.refinery_schema_history ORDER BY version";
    database.session().await.client.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn an_empty_database_gets_every_migration_of_the_folder() {
    let database = Database::empty().await;
    let session = database.session().await;
    assert_eq!(status(&session.client).await.unwrap(), SchemaStatus::Missing);
    let applied = migrate(&database.target()).await.unwrap();
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
    let mut files: Vec<String> =
        folder.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    files.sort();
    assert_eq!(applied, files);
    assert_eq!(status(&session.client).await.unwrap(), SchemaStatus::Current);
    assert_eq!(count(&database, "outbox.installation").await, 1);
}

#[tokio::test]
async fn a_second_time_changes_nothing() {
    let database = Database::new().await;
    let before = history(&database).await;
    assert_eq!(migrate(&database.target()).await.unwrap(), Vec::<String>::new());
    assert_eq!(history(&database).await, before);
}

#[tokio::test]
async fn of_twenty_at_once_one_migrates_and_all_succeed() {
    let database = Database::empty().await;
    let mut migrators = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let target = database.target();
        migrators.spawn(async move { migrate(&target).await.unwrap() });
    }
    let applied = migrators.join_all().await;
    assert_eq!(applied.iter().filter(|applied| !applied.is_empty()).count(), 1);
    assert_eq!(count(&database, "outbox.installation").await, 1);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let database = Database::new().await;
    let client = &database.session().await.client;
    let newer = "INSERT INTO outbox.refinery_schema_history VALUES (9999, 'later', '2030-01-01T00:00:00Z', '1')";
    client.batch_execute(newer).await.unwrap();
    let error = migrate(&database.target()).await.unwrap_err();
    assert!(matches!(error, MigrateError::Unusable(SchemaStatus::Newer { found: 9999, .. })), "{error:?}");
    assert!(error.to_string().contains("update outboxd"), "{error}");
}

#[tokio::test]
async fn an_edited_migration_is_refused_and_says_what_to_do() {
    let database = Database::new().await;
    let client = &database.session().await.client;
    client.batch_execute("UPDATE outbox.refinery_schema_history SET checksum = '1' WHERE version = 2").await.unwrap();
    assert_eq!(status(client).await.unwrap(), SchemaStatus::Divergent { version: 2 });
    let error = migrate(&database.target()).await.unwrap_err().to_string();
    assert!(error.contains("migration 2 differs") && error.contains("drop schema outbox"), "{error}");
    // What it tells people to do works.
    client.batch_execute("DROP SCHEMA outbox CASCADE").await.unwrap();
    migrate(&database.target()).await.unwrap();
    assert_eq!(status(client).await.unwrap(), SchemaStatus::Current);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_of_itself() {
    let database = Database::empty().await;
    let client = &database.session().await.client;
    // In the way of a migration in the middle of the run.
    client.batch_execute("CREATE SCHEMA outbox; CREATE VIEW outbox.backlog AS SELECT 1 AS mine").await.unwrap();
    let error = migrate(&database.target()).await.unwrap_err();
    assert!(matches!(&error, MigrateError::Failed { message, .. } if message.contains("backlog")), "{error:?}");
    assert_eq!(status(client).await.unwrap(), SchemaStatus::Missing);
    assert_eq!(count(&database, "pg_tables WHERE schemaname = 'outbox' AND tablename = 'event'").await, 0);
}

#[tokio::test]
async fn the_script_for_psql_leaves_what_migrate_leaves() {
    let migrated = Database::new().await;
    let database = Database::empty().await;
    let mut psql = Command::new("psql")
        .arg("-h")
        .arg(cluster().socket_dir())
        .args(["-X", "-q", "-U", "outboxd", "-d", database.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(sql().as_bytes()).await.unwrap();
    assert!(psql.wait().await.unwrap().success());
    assert_eq!(status(&database.session().await.client).await.unwrap(), SchemaStatus::Current);
    assert_eq!(history(&database).await, history(&migrated).await);
    assert_eq!(migrate(&database.target()).await.unwrap(), Vec::<String>::new());
    // refinery itself can read every row of it, and agrees.
    let applied =
        "SELECT count(*) FROM outbox.refinery_schema_history WHERE applied_on::timestamptz > now() - interval '1 hour'";
    let row = database.session().await.client.query_one(applied, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), i64::try_from(history(&database).await.len()).unwrap());
}

#[tokio::test]
async fn a_role_that_may_not_create_a_schema_is_told_which_right_it_lacks() {
    let database = Database::empty().await;
    let role = format!("Nobody {}", database.name());
    let client = &database.session().await.client;
    client.batch_execute(&format!("CREATE ROLE \"{role}\" LOGIN")).await.unwrap();
    let mut config = database.target().config().clone();
    config.user(&role);
    let target = Target::from_config(config, "a test");
    let error = migrate(&target).await.unwrap_err().to_string();
    let grant = format!("GRANT CREATE ON DATABASE {} TO \"{role}\"", database.name());
    assert!(error.ends_with(&grant), "{error}");
    // The statement it names is the one that helps.
    client.batch_execute(&grant).await.unwrap();
    migrate(&target).await.unwrap();
}
