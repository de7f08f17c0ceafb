//! The demo shows what is true, and leaves nothing behind however it ends.

use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::{Folder, until};

/// A live demo.
struct Live {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Live {
    fn start(folder: &Folder) -> Self {
        let mut child = folder.outboxd("demo", &[]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads until a line contains `text`.
    async fn says(&mut self, text: &str) -> String {
        loop {
            let line = self.lines.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended without {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
    }

    async fn ended(mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }
}

#[tokio::test]
async fn demo_once_succeeds_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let output = folder.outboxd("demo", &["--once"]).output().await.unwrap();
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{error}");
    assert!(!text.contains("problem") && error.is_empty(), "{text}{error}");
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn demo_once_tells_programs_the_same() {
    let folder = Folder::new();
    let output = folder.outboxd("demo", &["--once", "--json"]).output().await.unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ok"], &report["events"]), (&true.into(), &60.into()), "{report}");
    let handlers = report["handlers"].as_array().unwrap();
    let done: Vec<_> = handlers.iter().map(|line| (line["handler"].as_str().unwrap(), &line["done"])).collect();
    let (forty, nineteen) = (40.into(), 19.into());
    assert_eq!(
        done,
        [("permissions", &forty), ("profile", &forty), ("thumbnail", &nineteen), ("welcome_mail", &forty)]
    );
}

/// Everything fails that can: third parties, the daemon, PostgreSQL. The demo's own audit says whether the books agree.
#[tokio::test]
async fn demo_order_ends_with_books_that_agree() {
    let folder = Folder::new();
    let output = folder.outboxd("demo", &["order", "--orders", "80", "--json"]).output().await.unwrap();
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && verdict["ok"] == true, "{verdict:#}");
    let count = |what: &str| verdict[what].as_i64().unwrap();
    assert_eq!(count("done") + count("compensated"), 80, "{verdict:#}");
    // Cards are refused and shelves run empty for the same orders every time.
    assert!(count("compensated") >= 5, "{verdict:#}");
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn demo_ocr_ends_with_every_document_read_or_explained() {
    let folder = Folder::new();
    let output = folder.outboxd("demo", &["ocr", "--documents", "60", "--json"]).output().await.unwrap();
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && verdict["ok"] == true, "{verdict:#}");
    assert_eq!(verdict["states"]["done"], 57, "{verdict:#}");
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn demo_without_postgresql_says_in_one_line_what_to_install() {
    let folder = Folder::new();
    // Named, it is the only place that is looked at, whatever this machine has elsewhere.
    let output = folder.outboxd("demo", &["--once"]).env("OUTBOXD_PG_BIN", folder.path()).output().await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{error}");
    assert!(error.lines().count() == 1 && error.contains("apt-get install postgresql"), "{error}");
    assert!(output.stdout.is_empty());
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn demo_refuses_a_database_of_yours() {
    let folder = Folder::new();
    let output = folder.outboxd("demo", &["--database-url", "postgres:///app"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn demo_shows_rows_of_others_and_stops_cleanly_on_sigterm() {
    let folder = Folder::new();
    let mut live = Live::start(&folder);
    let psql = live.says("psql -h ").await;
    let sql = r#"INSERT INTO outbox.event (topic, payload) VALUES ('user.registered', '{"name": "Visitor"}')"#;
    let inserted = Command::new("sh").arg("-c").arg(format!("{psql} -Xqc \"$0\"")).arg(sql).status().await.unwrap();
    assert!(inserted.success());
    let told = live.says("Visitor").await;
    let event = told.split("event ").nth(1).unwrap().split(' ').next().unwrap();
    live.says(&format!("event {event:<5}  done ")).await;
    live.says("retrying").await;
    live.signal(Signal::TERM);
    live.says("HANDLER").await;
    assert!(live.ended().await.success());
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn demo_stops_cleanly_while_it_starts() {
    let folder = Folder::new();
    let live = Live::start(&folder);
    until("initdb runs", async || !folder.is_empty()).await;
    live.signal(Signal::INT);
    assert!(live.ended().await.success());
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn demo_ends_when_nobody_reads_any_more() {
    let folder = Folder::new();
    let mut live = Live::start(&folder);
    live.says("psql -h ").await;
    let Live { mut child, lines } = live;
    drop(lines);
    assert!(child.wait().await.unwrap().success());
    folder.nothing_is_left().await;
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing_behind_either() {
    let folder = Folder::new();
    let mut live = Live::start(&folder);
    live.says("thumbnail").await;
    live.signal(Signal::KILL);
    assert!(!live.ended().await.success());
    until("the guard has removed everything", async || folder.is_empty()).await;
    folder.nothing_runs().await;
}
