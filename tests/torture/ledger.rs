//! What was meant, what became of it and what arrived: outside of PostgreSQL, append-only, and on the disk before an insert
//! is sent. The same in memory, for the comparison at the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

/// An event as its producer numbers it: the producer in the upper bits, so that its choices do not depend on the others.
pub(crate) type Number = u64;

/// What became of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Sent, or about to be.
    Intended,
    Committed,
    /// Rolled back, or refused before the commit was sent.
    Undone,
    /// The commit was sent and not answered.
    Unknown,
}

#[derive(Debug, Clone)]
pub(crate) struct Intent {
    pub(crate) topic: &'static str,
    pub(crate) key: Option<String>,
    /// Not to be handled at once.
    pub(crate) delayed: bool,
    pub(crate) fate: Fate,
    pub(crate) intended: Duration,
    /// When its fate was known.
    pub(crate) ended: Duration,
}

/// How an attempt ended, as the receiver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// "Done" was sent in full.
    Ok,
    /// Refused, or never answered.
    Failed,
    /// Done, and the answer was lost on purpose.
    Unanswered,
}

/// One attempt at the receiver.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) event: i64,
    pub(crate) attempt: u32,
    pub(crate) idempotency_key: String,
    /// The daemon's process, by name and number.
    pub(crate) daemon: String,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) verdict: Verdict,
    /// Whether the payload is the one that was inserted.
    pub(crate) intact: bool,
}

/// A fault, and the time in which it may show.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) what: String,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
}

#[derive(Default)]
pub(crate) struct Entries {
    pub(crate) intents: BTreeMap<Number, Intent>,
    pub(crate) receipts: HashMap<(&'static str, Number), Vec<Receipt>>,
    pub(crate) faults: Vec<Window>,
    /// Times in which nothing was wrong.
    pub(crate) calms: Vec<Window>,
    /// Times in which nothing was wrong, and at whose end everything was settled.
    pub(crate) settled: Vec<Window>,
    /// What was found while it ran.
    pub(crate) violations: Vec<String>,
    committed: u64,
    /// Intents whose fate is not known yet.
    under_way: usize,
}

#[derive(Clone)]
pub(crate) struct Ledger {
    started: Instant,
    entries: Arc<Mutex<Entries>>,
    lines: mpsc::Sender<Line>,
    path: PathBuf,
}

struct Line {
    text: String,
    on_disk: Option<oneshot::Sender<()>>,
}

impl Ledger {
    pub(crate) fn create(folder: &Path) -> Self {
        let path = folder.join("ledger");
        let file = File::create(&path).unwrap();
        let (lines, queue) = mpsc::channel();
        std::thread::spawn(move || write(file, &queue));
        Self { started: Instant::now(), entries: Arc::default(), lines, path }
    }

    /// Since the beginning of the run.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The entries, for whoever compares.
    pub(crate) fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is about to be inserted; returns when that is on the disk.
    pub(crate) async fn intend(&self, events: &[(Number, &'static str, Option<String>, bool)]) {
        let at = self.now();
        let mut text = String::new();
        for (number, topic, key, _) in events {
            let hash = hash(&payload(*number).to_string());
            let _ = writeln!(text, "{} intent {number} {topic} {key:?} {hash:016x}", at.as_micros());
        }
        let (on_disk, written) = oneshot::channel();
        let intents = events.iter().map(|(number, topic, key, delayed)| {
            (
                *number,
                Intent { topic, key: key.clone(), delayed: *delayed, fate: Fate::Intended, intended: at, ended: at },
            )
        });
        {
            let mut entries = self.entries();
            entries.under_way += events.len();
            entries.intents.extend(intents);
        }
        self.lines.send(Line { text, on_disk: Some(on_disk) }).unwrap();
        written.await.unwrap();
    }

    pub(crate) fn fate(&self, numbers: impl IntoIterator<Item = Number>, fate: Fate) {
        let at = self.now();
        let mut text = String::new();
        let mut entries = self.entries();
        for number in numbers {
            let _ = writeln!(text, "{} {fate:?} {number}", at.as_micros());
            let intent = entries.intents.get_mut(&number).unwrap();
            (intent.fate, intent.ended) = (fate, at);
            entries.under_way -= 1;
            entries.committed += u64::from(fate == Fate::Committed);
        }
        drop(entries);
        self.append(text);
    }

    /// Events committed so far.
    pub(crate) fn committed(&self) -> u64 {
        self.entries().committed
    }

    /// Whether a producer is in the middle of a transaction.
    pub(crate) fn is_under_way(&self) -> bool {
        self.entries().under_way > 0
    }

    pub(crate) fn receive(&self, handler: &'static str, number: Number, receipt: Receipt) {
        let Receipt { event, attempt, idempotency_key, daemon, began, ended, verdict, intact } = &receipt;
        let (began, ended) = (began.as_micros(), ended.as_micros());
        self.append(format!(
            "{ended} receipt {handler} {number} {event} {attempt} {verdict:?} {intact} {began} {daemon} {idempotency_key}\n"
        ));
        self.entries().receipts.entry((handler, number)).or_default().push(receipt);
    }

    /// Whether this delivery was done at least once.
    pub(crate) fn is_received(&self, handler: &'static str, number: Number) -> bool {
        self.entries().receipts.get(&(handler, number)).is_some_and(|all| all.iter().any(|r| r.verdict == Verdict::Ok))
    }

    /// Notes a fault that has ended, or a calm.
    pub(crate) fn window(&self, what: &str, began: Duration) {
        let ended = self.now();
        self.append(format!("{} window {} {what}\n", ended.as_micros(), began.as_micros()));
        let window = Window { what: what.to_owned(), began, ended };
        let mut entries = self.entries();
        match what {
            "calm" => entries.calms.push(window),
            "settled" => entries.settled.push(window),
            _ => entries.faults.push(window),
        }
    }

    pub(crate) fn violation(&self, text: impl Display) {
        self.append(format!("{} VIOLATION {text}\n", self.now().as_micros()));
        eprintln!("{:>8.3} s  {text}", self.now().as_secs_f64());
        self.entries().violations.push(text.to_string());
    }

    pub(crate) fn append(&self, text: String) {
        let _ = self.lines.send(Line { text, on_disk: None });
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes what has gathered, and waits for the disk once for all of it.
fn write(mut file: File, queue: &mpsc::Receiver<Line>) {
    while let Ok(first) = queue.recv() {
        let lines: Vec<Line> = [first].into_iter().chain(queue.try_iter()).collect();
        for line in &lines {
            file.write_all(line.text.as_bytes()).unwrap();
        }
        if lines.iter().any(|line| line.on_disk.is_some()) {
            file.sync_data().unwrap();
        }
        for on_disk in lines.into_iter().filter_map(|line| line.on_disk) {
            let _ = on_disk.send(());
        }
    }
}

/// The payload of an event: from its number alone, so that whoever receives it knows what it must be.
pub(crate) fn payload(number: Number) -> Value {
    let mut rng = fastrand::Rng::with_seed(number);
    let length = if rng.u8(..) < 2 { rng.usize(..40_000) } else { rng.usize(..300) };
    let text: String = (0..length).map(|_| ['a', 'ß', '"', '\\', '\n', '🔔', ' '][rng.usize(..7)]).collect();
    json!({ "n": number, "text": text, "list": [rng.i64(..), rng.bool(), null], "deep": { "er": { "est": rng.u32(..) } } })
}

/// FNV-1a, which is the same on every machine.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
