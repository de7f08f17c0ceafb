//! outboxd as one of its peers: a worker for `run.py`, which stands beside this file. Its environment says what to do:
//!
//! * `DATABASE_URL`: where the events are. With the argument `setup` it makes the schema there, and ends.
//! * `HANDLER`: `noop`, `sleep:MS`, or `http:URL`, which is the daemon's own HTTP handler with its defaults.
//! * `CONC`: attempts at the same time, 50.
//! * `LOG`: a file that gets a line for every attempt that begins: the event's id and the time in µs. Not with `http:`.
//! * `FIRST`, `DONE` and `DONE_N`: files for the time of the first attempt, and of the end of attempt number `DONE_N`.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use outboxd::config::{DeliveryConfig, Start};
use outboxd::postgres::{Target, migrate};
use outboxd::{Attempt, CancellationToken, Config, Daemon, DaemonBuilder, Observation, Observer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let target = Target::resolve(None, None, &variable)?;
    if std::env::args().nth(1).as_deref() == Some("setup") {
        migrate::migrate(&target).await?;
        return Ok(());
    }
    let marks = Marks::from_env()?;
    let work = variable("HANDLER").unwrap_or_else(|| "noop".to_owned());
    let builder = Daemon::builder().target(target);
    let builder = match work.split_once(':') {
        None => native(builder, Duration::ZERO, marks)?,
        Some(("sleep", ms)) => native(builder, Duration::from_millis(ms.parse()?), marks)?,
        Some(("http", url)) => http(builder, url, marks)?,
        Some(_) => return Err(format!("HANDLER={work} is none of noop, sleep:MS, http:URL").into()),
    };
    // SIGTERM ends the process at once, as it does its Rust peers.
    builder.build()?.run(CancellationToken::new()).await?;
    Ok(())
}

/// A Rust function that sleeps.
fn native(builder: DaemonBuilder, sleep: Duration, marks: Marks) -> Result<DaemonBuilder, Box<dyn Error>> {
    let topics = vec!["bench".parse()?];
    let delivery =
        DeliveryConfig { concurrency: concurrency()?, start: Start::Beginning, ..DeliveryConfig::new(topics) };
    let marks = Arc::new(marks);
    let handle = move |attempt: Attempt| {
        let marks = Arc::clone(&marks);
        async move {
            marks.begun()?;
            marks.log(&attempt)?;
            if !sleep.is_zero() {
                tokio::time::sleep(sleep).await;
            }
            marks.ended()
        }
    };
    Ok(builder.handler_with("bench", delivery, handle))
}

/// The HTTP handler, configured as a file would. It has no place for the marks, so they follow what the daemon tells.
fn http(builder: DaemonBuilder, url: &str, marks: Marks) -> Result<DaemonBuilder, Box<dyn Error>> {
    let text = format!(
        "[daemon]\nlisten = \"off\"\n[handler.bench]\ntopics = [\"bench\"]\nconcurrency = {}\nstart = \"beginning\"\nhttp = {{ url = \"{url}\" }}\n",
        concurrency()?
    );
    let observer = Observer::watching(move |observation| {
        let marked = match observation {
            Observation::PageRead { events: 1.. } => marks.begun(),
            Observation::Done { .. } => marks.ended(),
            _ => Ok(()),
        };
        if let Err(error) = marked {
            eprintln!("a time cannot be written: {error}");
        }
    });
    Ok(builder.config(Config::parse(&text, "HANDLER", &variable)?).observer(observer))
}

fn concurrency() -> Result<usize, Box<dyn Error>> {
    Ok(variable("CONC").as_deref().unwrap_or("50").parse()?)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// What the benchmark is told, by files.
struct Marks {
    log: Option<File>,
    first: Option<String>,
    has_begun: AtomicBool,
    done: Option<String>,
    done_n: u64,
    ended: AtomicU64,
}

impl Marks {
    fn from_env() -> Result<Self, Box<dyn Error>> {
        let log = variable("LOG").map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        let done_n = variable("DONE_N").as_deref().unwrap_or("0").parse()?;
        Ok(Self {
            log,
            first: variable("FIRST"),
            has_begun: AtomicBool::new(false),
            done: variable("DONE"),
            done_n,
            ended: AtomicU64::new(0),
        })
    }

    fn begun(&self) -> io::Result<()> {
        match &self.first {
            Some(path) if !self.has_begun.swap(true, Ordering::Relaxed) => fs::write(path, now_us().to_string()),
            _ => Ok(()),
        }
    }

    fn ended(&self) -> io::Result<()> {
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        match &self.done {
            Some(path) if ended == self.done_n => fs::write(path, now_us().to_string()),
            _ => Ok(()),
        }
    }

    /// One write a line: whole, though attempts run side by side.
    fn log(&self, attempt: &Attempt) -> io::Result<()> {
        let Some(mut log) = self.log.as_ref() else { return Ok(()) };
        log.write_all(format!("{} {}\n", attempt.event.id, now_us()).as_bytes())
    }
}
