//! The schema as `pg_dump` sees it: a change of `migrations/` shows up in review as a change of the snapshot.

use std::path::PathBuf;

use expect_test::expect_file;
use tokio::process::Command;

use crate::harness::{Database, cluster};

/// The release the snapshot was written with; others print some things in another way.
const MAJOR: u32 = 15;

/// `pg_dump` refuses a server newer than itself, so the server's own one is taken.
async fn pg_dump() -> PathBuf {
    let admin = cluster().target("postgres").connect("tests").await.unwrap();
    let row = admin.client.query_one("SELECT setting FROM pg_config() WHERE name = 'BINDIR'", &[]).await.unwrap();
    PathBuf::from(row.get::<_, String>(0)).join("pg_dump")
}

#[tokio::test]
async fn the_schema_is_the_one_that_was_reviewed() {
    let database = Database::new().await;
    let major = database.session().await.version / 10_000;
    if major != MAJOR {
        eprintln!("not compared: the snapshot was written with PostgreSQL {MAJOR}, this is {major}");
        return;
    }
    let output = Command::new(pg_dump().await)
        .args(["--schema-only", "--no-owner", "-U", "outboxd", "-h"])
        .arg(cluster().socket_dir())
        .arg(database.name())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = String::from_utf8(output.stdout).unwrap();
    // What differs between releases of PostgreSQL and between two dumps of one database says nothing of the schema.
    let noise = |line: &&str| {
        ["-- Dumped ", "-- PostgreSQL database dump", "\\restrict ", "\\unrestrict ", "SET "]
            .iter()
            .any(|noise| line.starts_with(noise))
            || line.starts_with("SELECT pg_catalog.set_config('search_path'")
            || *line == "--"
    };
    let mut text = String::from("-- `UPDATE_EXPECT=1 cargo test --test it schema` writes this file.\n");
    for line in dump.lines().filter(|line| !noise(line)) {
        if !(line.is_empty() && text.ends_with("\n\n")) {
            text.push_str(line);
            text.push('\n');
        }
    }
    expect_file!["../snapshots/schema.sql"].assert_eq(&(text.trim_end().to_owned() + "\n"));
}
