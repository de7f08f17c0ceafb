//! A throwaway server leaves nothing behind, however its owner ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use outboxd::postgres::ThrowawayPostgres;
use outboxd::postgres::throwaway::Options;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::harness::until;

/// Makes the test below the owner of a server instead of a test.
const OWNER: &str = "OUTBOXD_TEST_OWNS_A_SERVER";

/// A zombie has ended; where nobody reaps orphans it stays in the list for ever.
fn runs(pid: u32) -> bool {
    let output = std::process::Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    let state = String::from_utf8(output.stdout).unwrap();
    !matches!(state.trim().chars().next(), None | Some('Z'))
}

async fn nothing_is_left(pid: u32, folder: &Path) {
    until("the server has ended", async || !runs(pid)).await;
    until("its folder is gone", async || !folder.exists()).await;
}

#[tokio::test]
async fn nothing_is_left_after_stop() {
    let postgres = ThrowawayPostgres::start(Options::default()).await.unwrap();
    let (pid, folder) = (postgres.pid().unwrap(), postgres.socket_dir().to_owned());
    assert!(runs(pid) && folder.exists());
    postgres.stop().await.unwrap();
    assert!(!runs(pid) && !folder.exists());
}

#[tokio::test]
async fn nothing_is_left_after_a_drop() {
    let postgres = ThrowawayPostgres::start(Options::default()).await.unwrap();
    let (pid, folder) = (postgres.pid().unwrap(), postgres.socket_dir().to_owned());
    drop(postgres);
    assert!(!runs(pid) && !folder.exists());
}

#[tokio::test]
async fn nothing_is_left_after_its_owner_was_killed() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["throwaway::owner_of_a_server", "--exact", "--ignored", "--nocapture"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let (pid, folder) = loop {
        let line = lines.next_line().await.unwrap().expect("the owner tells its server");
        if let Some((pid, folder)) = line.split_once("server ").and_then(|(_, told)| told.split_once(' ')) {
            break (pid.parse().unwrap(), PathBuf::from(folder));
        }
    };
    assert!(runs(pid) && folder.exists());
    owner.kill().await.unwrap();
    nothing_is_left(pid, &folder).await;
}

#[tokio::test]
#[ignore = "not a test: the process that another test kills"]
async fn owner_of_a_server() {
    if std::env::var_os(OWNER).is_some() {
        let postgres = ThrowawayPostgres::start(Options::default()).await.unwrap();
        println!("\nserver {} {}", postgres.pid().unwrap(), postgres.socket_dir().display());
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn what_was_committed_survives_a_crash() {
    let mut postgres = ThrowawayPostgres::start(Options { durable: true, settings: Vec::new() }).await.unwrap();
    let session = postgres.target("postgres").connect("test").await.unwrap();
    session.client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").await.unwrap();
    let (closed, pid) = (session.closed(), postgres.pid());
    postgres.crash().await.unwrap();
    closed.await;
    assert_eq!(postgres.pid(), None);
    assert!(postgres.target("postgres").connect("test").await.is_err_and(|error| error.exit_code() == 69));
    postgres.start_again().await.unwrap();
    assert_ne!(postgres.pid(), pid);
    let session = postgres.target("postgres").connect("test").await.unwrap();
    let row = session.client.query_one("SELECT n, current_setting('fsync') FROM kept", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (7, "on"));
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let settings = vec![("max_connections".to_owned(), "many".to_owned())];
    let error = ThrowawayPostgres::start(Options { durable: false, settings }).await.unwrap_err().to_string();
    assert!(error.contains("postgres failed") && error.contains("max_connections"), "{error}");
}

#[tokio::test]
async fn the_psql_line_opens_it_and_others_cannot() {
    use std::os::unix::fs::PermissionsExt;
    let postgres = ThrowawayPostgres::start(Options::default()).await.unwrap();
    let line = format!("{} -X -Atc 'SELECT 6 * 7'", postgres.psql_line("postgres"));
    let output = Command::new("sh").arg("-c").arg(line).output().await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "42\n");
    // The server trusts whoever reaches its socket.
    assert_eq!(std::fs::metadata(postgres.socket_dir()).unwrap().permissions().mode() & 0o777, 0o700);
    postgres.stop().await.unwrap();
}
