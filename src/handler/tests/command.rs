//! What the handler kind `command` promises.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::super::Handler as _;
use super::super::command::CommandHandler;
use super::{attempt, dead, event, retried, run, until, within_patience};
use crate::config::{CommandConfig, Secret};
use crate::event::Event;
use crate::outcome::{Fault, Outcome, TEXT_BYTES_MAX};

const MEBIBYTE: usize = 1 << 20;

fn command(argv: &[&str]) -> CommandHandler {
    let argv = argv.iter().map(ToString::to_string).collect();
    CommandHandler::new(&CommandConfig { argv, env: BTreeMap::new() })
}

fn shell(script: &str) -> CommandHandler {
    command(&["/bin/sh", "-c", script])
}

fn payload(bytes: usize) -> Event {
    Event { payload: format!("\"{}\"", "x".repeat(bytes - 2)), ..event() }
}

/// A directory of one test, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("outboxd-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn process_id(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Whether the process exists, be it as a zombie.
fn exists(id: i32) -> bool {
    Path::new(&format!("/proc/{id}")).exists()
}

/// Whether the process runs. An orphan is reaped by the machine's init, and not every container has one.
fn runs(id: i32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[tokio::test]
async fn exit_codes_decide() {
    assert_eq!(run(&shell("exit 0"), event()).await, Outcome::done());
    for code in [1, 3, 75, 126, 255] {
        let (after, failure) = retried(run(&shell(&format!("exit {code}")), event()).await);
        assert_eq!((after, failure.error), (None, format!("exit code {code}")));
        assert_eq!(failure.fault, Fault::Refused, "{code}");
    }
    assert_eq!(dead(run(&shell("exit 65"), event()).await).error, "exit code 65");
}

#[tokio::test]
async fn death_by_a_signal_is_a_retry_that_names_it() {
    for (signal, error) in [
        ("KILL", "killed by signal 9 (SIGKILL)"),
        ("TERM", "killed by signal 15 (SIGTERM)"),
        ("34", "killed by signal 34"),
    ] {
        let (_, failure) = retried(run(&shell(&format!("kill -{signal} $$")), event()).await);
        assert_eq!((failure.error.as_str(), failure.fault), (error, Fault::Refused));
    }
}

#[tokio::test]
async fn the_answer_on_stdout_wins_over_exit_code_0_only() {
    let snooze = r#"echo '{"outcome": "snooze", "after": 60}'"#;
    assert_eq!(run(&shell(snooze), event()).await, Outcome::Snooze { after: Some(Duration::from_mins(1)) });
    let (_, failure) = retried(run(&shell(&format!("{snooze}; exit 2")), event()).await);
    assert_eq!(failure.error, "exit code 2");
    let failure = dead(run(&shell(r#"echo because >&2; echo '{"outcome": "dead", "error": "no"}'"#), event()).await);
    assert_eq!((failure.error.as_str(), failure.response.as_deref()), ("no", Some("because\n")));
}

#[tokio::test]
async fn the_payload_arrives_on_stdin() {
    let name = json!({"name": "Ada"});
    assert_eq!(run(&command(&["cat"]), event()).await, Outcome::done_with(name));
    let counted = Outcome::done_with(json!(MEBIBYTE));
    assert_eq!(run(&command(&["wc", "-c"]), payload(MEBIBYTE)).await, counted);
}

#[tokio::test]
async fn a_program_may_write_while_it_reads() {
    // Both pipes are full many times over: this ends only if they are served at the same time.
    assert_eq!(run(&command(&["cat"]), payload(4 * MEBIBYTE)).await, Outcome::done());
}

#[tokio::test]
async fn a_program_need_not_read_its_stdin() {
    assert_eq!(run(&command(&["true"]), payload(MEBIBYTE)).await, Outcome::done());
    assert_eq!(run(&shell("exec <&-; echo 1"), payload(MEBIBYTE)).await, Outcome::done_with(json!(1)));
}

#[tokio::test]
async fn a_flood_on_stdout_is_drained_and_not_kept() {
    let flood = command(&["head", "-c", "50000000", "/dev/zero"]);
    assert_eq!(run(&flood, event()).await, Outcome::done());
}

#[tokio::test]
async fn of_a_flood_of_progress_the_newest_counts_and_the_answer_stays() {
    let script = r#"yes '{"progress": 1}' | head -c 4000000; echo; echo '{"progress": {"page": 2}}'; echo 7"#;
    let (handler, attempt) = (shell(script), attempt(event()));
    let heard = attempt.heartbeats.listen();
    assert_eq!(handler.run(&attempt).await, Outcome::done_with(json!(7)));
    assert_eq!(heard.borrow().as_ref().unwrap().progress, Some(json!({ "page": 2 })));
}

#[tokio::test]
async fn progress_is_heard_while_the_process_runs() {
    let (handler, attempt) = (shell(r#"echo '{"progress": 1}'; sleep 600"#), attempt(event()));
    let mut heard = attempt.heartbeats.listen();
    tokio::select! {
        outcome = handler.run(&attempt) => panic!("{outcome:?}"),
        heard = within_patience("the heartbeat is heard", heard.changed()) => heard.unwrap(),
    }
    assert_eq!(heard.borrow().as_ref().unwrap().progress, Some(json!(1)));
}

#[tokio::test]
async fn an_answer_that_was_cut_is_no_answer() {
    let script = r#"echo '{"outcome": "dead"}'; head -c 100000 /dev/zero | tr '\0' ' '; echo x"#;
    assert_eq!(run(&shell(script), event()).await, Outcome::done());
}

#[tokio::test]
async fn the_end_of_stderr_is_kept() {
    let flood = "head -c 1000000 /dev/zero";
    for filler in
        [&format!("{flood} | tr '\\0' x"), &format!("{flood} | tr '\\0' '\\377'"), flood, "yes ä | head -n 100000"]
    {
        let script = format!("{{ {filler}; printf 'the reason'; }} >&2; exit 3");
        let (_, failure) = retried(run(&shell(&script), event()).await);
        let response = failure.response.unwrap();
        assert!(response.ends_with("the reason"), "{response}");
        assert!(response.len() > TEXT_BYTES_MAX - 128 && response.len() <= TEXT_BYTES_MAX, "{}", response.len());
    }
}

#[tokio::test]
async fn output_that_is_no_text_is_kept_as_far_as_it_is() {
    let (_, failure) = retried(run(&shell(r"printf 'a\377\000b' >&2; exit 3"), event()).await);
    assert_eq!(failure.response.as_deref(), Some("a\u{fffd}\u{fffd}b"));
    assert_eq!(run(&shell(r"printf '\377\000'"), event()).await, Outcome::done());
}

#[tokio::test]
async fn without_stderr_stdout_is_the_response() {
    let (_, failure) = retried(run(&shell("echo usage; exit 2"), event()).await);
    assert_eq!(failure.response.as_deref(), Some("usage\n"));
}

/// The environment a program is started with, sorted, without `PATH`.
async fn environment(env: BTreeMap<String, Secret>, event: Event) -> Vec<String> {
    let script = r"tr '\0' '\n' < /proc/$$/environ >&2; exit 3";
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let (_, failure) = retried(run(&CommandHandler::new(&CommandConfig { argv, env }), event).await);
    let mut lines: Vec<_> = failure.response.unwrap().lines().map(str::to_owned).collect();
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    assert!(lines.contains(&path));
    lines.retain(|line| *line != path);
    lines.sort();
    lines
}

#[tokio::test]
async fn the_environment_is_clean() {
    let event = Event { headers: r#"{"traceparent": "00-aa-bb-01"}"#.to_owned(), ..event() };
    let key = attempt(event.clone()).idempotency_key();
    let env = BTreeMap::from([("TOKEN".to_owned(), Secret::new("s3cret".to_owned()))]);
    let expected = [
        "OUTBOX_ATTEMPT=3",
        "OUTBOX_CREATED_AT=2026-03-01T12:30:00.123456Z",
        "OUTBOX_EVENT_ID=42",
        "OUTBOX_HANDLER=welcome_email",
        r#"OUTBOX_HEADERS={"traceparent": "00-aa-bb-01"}"#,
        &format!("OUTBOX_IDEMPOTENCY_KEY={key}"),
        "OUTBOX_KEY=ada",
        "OUTBOX_TOPIC=user.registered",
        "TOKEN=s3cret",
        "TRACEPARENT=00-aa-bb-01",
    ];
    assert_eq!(environment(env, event).await, expected);
}

#[tokio::test]
async fn what_an_event_does_not_have_or_is_too_large_is_not_set() {
    let headers = json!({ "large": "x".repeat(70_000) }).to_string();
    let lines = environment(BTreeMap::new(), Event { key: None, headers, ..event() }).await;
    assert!(!lines.iter().any(|line| line.starts_with("OUTBOX_KEY") || line.starts_with("OUTBOX_HEADERS")));
    assert_eq!(lines.len(), 6);
}

#[tokio::test]
async fn no_shell_reads_the_arguments() {
    let text = "$HOME `id` $(id) * ; | > & ~";
    let printed = run(&command(&["printf", "%s", &format!("\"{text}\"")]), event()).await;
    assert_eq!(printed, Outcome::done_with(json!(text)));
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_unreachable_and_named() {
    for (program, reason, fault) in [
        ("/nowhere/thumbnail", "No such file or directory", Fault::Unreachable),
        ("outboxd-no-such-program", "No such file or directory", Fault::Unreachable),
        ("/etc/passwd", "Permission denied", Fault::Unreachable),
        ("a\0b", "nul byte", Fault::Refused),
    ] {
        let (_, failure) = retried(run(&command(&[program]), event()).await);
        assert!(failure.error.contains(&format!("cannot run {program:?}: ")), "{}", failure.error);
        assert!(failure.error.contains(reason), "{}", failure.error);
        assert_eq!(failure.fault, fault, "{program}");
    }
    assert_eq!(retried(run(&command(&[]), event()).await).1.error, "the command has no program");
}

#[tokio::test]
async fn an_event_that_no_program_can_be_started_with_does_not_blame_the_program() {
    let large = Event { key: Some("x".repeat(MEBIBYTE)), ..event() };
    let (_, failure) = retried(run(&command(&["true"]), large).await);
    assert!(failure.error.contains("Argument list too long"), "{}", failure.error);
    assert_eq!(failure.fault, Fault::Refused);
}

#[tokio::test]
async fn no_zombie_stays() {
    let Outcome::Done { result: Some(id), .. } = run(&shell("echo $$"), event()).await else { panic!() };
    assert!(!exists(i32::try_from(id.as_i64().unwrap()).unwrap()));
}

#[tokio::test]
async fn the_whole_group_ends_when_the_future_is_dropped() {
    let scratch = Scratch::new();
    let (child, grandchild) = (scratch.file("child"), scratch.file("grandchild"));
    let script =
        format!("trap '' TERM; sleep 600 & echo $! > {}; echo $$ > {}; wait", grandchild.display(), child.display());
    let (handler, attempt) = (shell(&script), attempt(event()));
    tokio::select! {
        outcome = handler.run(&attempt) => panic!("{outcome:?}"),
        () = until("both processes run", || process_id(&child).and(process_id(&grandchild)).is_some()) => {}
    }
    let (child, grandchild) = (process_id(&child).unwrap(), process_id(&grandchild).unwrap());
    until("the child is dead and reaped", || !exists(child)).await;
    until("the grandchild is dead", || !runs(grandchild)).await;
}

#[tokio::test]
async fn what_a_program_leaves_running_ends_with_it() {
    let start = Instant::now();
    let Outcome::Done { result: Some(id), .. } = run(&shell("sleep 600 & echo $!"), event()).await else { panic!() };
    let id = i32::try_from(id.as_i64().unwrap()).unwrap();
    until("the grandchild is dead", || !runs(id)).await;
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_process_that_escaped_with_the_pipes_does_not_hold_the_attempt() {
    let scratch = Scratch::new();
    let (escaped, ready) = (scratch.file("escaped"), scratch.file("ready"));
    let script = format!(
        "mkfifo {ready}; setsid sh -c 'echo $$ > {escaped}; echo > {ready}; exec sleep 600' & read line < {ready}; echo 7",
        ready = ready.display(),
        escaped = escaped.display()
    );
    let start = Instant::now();
    assert_eq!(run(&shell(&script), payload(MEBIBYTE)).await, Outcome::done_with(json!(7)));
    assert!(start.elapsed() < Duration::from_secs(30));
    let escaped = process_id(&escaped).unwrap();
    assert!(runs(escaped), "it did hold the pipes");
    kill_process(Pid::from_raw(escaped).unwrap(), Signal::KILL).unwrap();
}
