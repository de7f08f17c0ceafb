//! The handler kind `command`: one process per attempt or batch, the body on its stdin, an answer on its stdout.
//!
//! The process leads a group of its own, and the whole group ends with the attempt, however the attempt ends.

use std::io::ErrorKind;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::{self, Either};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::answer::{self, with_response};
use super::progress::Lines;
use super::{Handler, OutcomeFuture, OutcomesFuture, batch};
use crate::config::CommandConfig;
use crate::event::{Attempt, Heartbeats};
use crate::outcome::{Failure, Fault, Outcome, TEXT_BYTES_MAX};

/// `EX_DATAERR` of `sysexits.h`: the event will never be accepted. Every other failure may pass, `EX_TEMPFAIL` (75) and
/// codes nobody thought about alike.
const EXIT_DEAD: i32 = 65;

/// Linux refuses to start a program with a variable over 128 KiB.
const HEADERS_BYTES_MAX: usize = 65_536;
/// How much of the end of stderr is kept. [`Failure`] keeps beginnings, so this must fit into it with its note.
const STDERR_BYTES_MAX: usize = TEXT_BYTES_MAX - 96;
/// How long the pipes are read after the process has ended and its group is killed. Only a process that left the
/// group can hold them open for longer, and nobody waits for that one.
const PIPES_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs one program for every event, or batch of events.
#[derive(Debug)]
pub struct CommandHandler {
    config: CommandConfig,
}

impl CommandHandler {
    #[must_use]
    pub fn new(config: &CommandConfig) -> Self {
        Self { config: config.clone() }
    }

    async fn execute(&self, attempt: &Attempt) -> Outcome {
        let task = Task {
            variables: variables(attempt).collect(),
            body: &attempt.body(),
            heartbeats: &attempt.heartbeats,
            answer_max: answer::BYTES_MAX,
        };
        match self.call(task).await {
            Ok(output) => with_response(answer::parse(&output.stdout).after_success(), &output.said()),
            Err(outcome) => outcome,
        }
    }

    async fn execute_batch(&self, attempts: &[Attempt]) -> Vec<Outcome> {
        let Some(first) = attempts.first() else { return Vec::new() };
        let task = Task {
            variables: variables_of_batch(first, attempts.len()).collect(),
            body: &batch::body(attempts),
            heartbeats: &first.heartbeats,
            answer_max: batch::BYTES_MAX,
        };
        match self.call(task).await {
            Ok(output) => batch::outcomes(&output.stdout, attempts),
            Err(outcome) => vec![outcome; attempts.len()],
        }
    }

    /// What a process wrote that succeeded; otherwise how the attempt ended.
    async fn call(&self, task: Task<'_>) -> Result<Output, Outcome> {
        let Some((program, arguments)) = self.config.argv.split_first() else {
            return Err(retry("the command has no program"));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(self.config.env.iter().map(|(name, value)| (name, value.expose())))
            .envs(task.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Err(cannot_run(program, &error)),
        };
        match supervise(&mut child, &task).await {
            Ok((status, output)) => judge(status, output),
            Err(error) => Err(retry(format!("lost track of {program:?}: {error}"))),
        }
    }
}

/// What a process is given, and where it is heard.
struct Task<'a> {
    variables: Vec<(&'static str, String)>,
    body: &'a str,
    heartbeats: &'a Heartbeats,
    answer_max: usize,
}

impl Handler for CommandHandler {
    fn run<'a>(&'a self, attempt: &'a Attempt) -> OutcomeFuture<'a> {
        Box::pin(self.execute(attempt))
    }

    fn run_batch<'a>(&'a self, attempts: &'a [Attempt]) -> OutcomesFuture<'a> {
        Box::pin(self.execute_batch(attempts))
    }
}

/// What the program is told about the event beside the payload.
fn variables(attempt: &Attempt) -> impl Iterator<Item = (&'static str, String)> {
    let event = &*attempt.event;
    let headers = (event.headers.len() <= HEADERS_BYTES_MAX).then(|| event.headers.clone());
    [
        ("OUTBOX_EVENT_ID", Some(event.id.to_string())),
        ("OUTBOX_TOPIC", Some(event.topic.clone())),
        ("OUTBOX_KEY", event.key.clone()),
        ("OUTBOX_HEADERS", headers),
        ("OUTBOX_CREATED_AT", Some(event.created_at.to_string())),
        ("OUTBOX_HANDLER", Some(attempt.handler.to_string())),
        ("OUTBOX_ATTEMPT", Some(attempt.number.to_string())),
        ("OUTBOX_IDEMPOTENCY_KEY", Some(attempt.idempotency_key())),
        ("OUTBOX_CALLBACK", attempt.callback.clone()),
        ("OUTBOX_REPLAY", Some(event.replay()).filter(|replay| *replay > 0).map(|replay| replay.to_string())),
        ("TRACEPARENT", attempt.traceparent()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
}

/// The same about a batch, of which the body says the rest.
fn variables_of_batch(first: &Attempt, events: usize) -> impl Iterator<Item = (&'static str, String)> {
    [("OUTBOX_BATCH", events.to_string()), ("OUTBOX_HANDLER", first.handler.to_string())].into_iter()
}

/// What a process wrote: the beginning of its stdout, at most one byte more than an answer may have, the end of its stderr.
#[derive(Debug, Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    /// What an operator is shown of it.
    fn said(&self) -> String {
        if self.stderr.is_empty() { String::from_utf8_lossy(&self.stdout).into() } else { end(&self.stderr) }
    }
}

/// Feeds the process and reads from it until it has ended.
async fn supervise(child: &mut Child, task: &Task<'_>) -> std::io::Result<(ExitStatus, Output)> {
    let group = Group::of(child);
    let (mut output, mut lines) = (Output::default(), Lines::new(task.answer_max));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let status = {
        let pipes = pin!(future::join3(
            async {
                if let Some(mut stdin) = stdin {
                    // A program need not read its stdin; whether it succeeded is told by its exit code.
                    let _ = stdin.write_all(task.body.as_bytes()).await;
                }
            },
            read_stdout(stdout, &mut lines, task.heartbeats),
            keep_end(stderr, &mut output.stderr),
        ));
        let ended = pin!(async {
            let status = child.wait().await;
            // Whatever the process left running in its group must not outlive the attempt.
            drop(group);
            status
        });
        match future::select(ended, pipes).await {
            Either::Left((status, pipes)) => {
                // Too late is no failure: what was read until then counts.
                let _ = timeout(PIPES_TIMEOUT, pipes).await;
                status
            }
            Either::Right((_, ended)) => ended.await,
        }
    }?;
    // The last line need not have an end.
    if let Some(progress) = lines.end() {
        task.heartbeats.beat(progress);
    }
    output.stdout = lines.kept;
    Ok((status, output))
}

/// Takes the heartbeats out of a stream as they come. All of it is read: a process must not block on a full pipe.
async fn read_stdout(stream: Option<impl AsyncRead + Unpin>, lines: &mut Lines, heartbeats: &Heartbeats) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if let Some(progress) = lines.read(&buffer[..read]) {
            heartbeats.beat(progress);
        }
    }
}

/// Keeps the end of a stream; a stream that fails has ended.
async fn keep_end(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(STDERR_BYTES_MAX));
    }
}

/// The process group of a child; dropping it kills the group.
///
/// It must be dropped before the child's process id can belong to somebody else, that is before or directly after the
/// child is reaped. A `Group` made after its [`Child`] is also dropped before it.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // An error means that nobody is left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

fn judge(status: ExitStatus, output: Output) -> Result<Output, Outcome> {
    let outcome = match status.code() {
        Some(0) => return Ok(output),
        Some(EXIT_DEAD) => Outcome::Dead { failure: Failure::new(format!("exit code {EXIT_DEAD}")) },
        Some(code) => retry(format!("exit code {code}")),
        None => retry(killed_by(status)),
    };
    Err(with_response(outcome, &output.said()))
}

/// Usually the mistake of a deployment, which the next one repairs: the event must survive it.
fn cannot_run(program: &str, error: &std::io::Error) -> Outcome {
    let failure = Failure::new(format!("cannot run {program:?}: {error}"));
    let fault = match error.kind() {
        // The variables are made of the event, and other events may do.
        ErrorKind::ArgumentListTooLong | ErrorKind::InvalidInput => Fault::Refused,
        _ => Fault::Unreachable,
    };
    Outcome::Retry { after: None, failure: failure.with_fault(fault) }
}

fn retry(error: impl AsRef<str>) -> Outcome {
    Outcome::Retry { after: None, failure: Failure::new(error) }
}

/// The end of `bytes` as text. U+FFFD is three bytes to the one it replaces, hence the cut at the front.
fn end(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
    let mut start = text.len().saturating_sub(STDERR_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

fn killed_by(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;

    const NAMES: [(Signal, &str); 12] = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
    ];
    let Some(number) = status.signal() else { return status.to_string() };
    match NAMES.iter().find(|(signal, _)| signal.as_raw() == number) {
        Some((_, name)) => format!("killed by signal {number} ({name})"),
        None => format!("killed by signal {number}"),
    }
}
