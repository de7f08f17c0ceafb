//! `outboxd demo ocr`: documents are read by a slow service that dies and comes back, and written into a search index that refuses some
//! of them; the daemon is restarted meanwhile. At the end every document is in the index, or it is said why not.

mod parties;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_util::sync::CancellationToken;

use self::parties::{Parties, text_of};
use super::super::Failure;
use super::super::output::print_json;
use super::screen::Screen;
use super::system::{System, free_address};
use crate::postgres::Session;

const CONFIG: &str = include_str!("ocr.toml");
const TABLES: &str = "CREATE SCHEMA demo; CREATE TABLE demo.document (id bigint PRIMARY KEY, name text NOT NULL)";
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long all documents may take: this, and so much for each.
const END_MAX: Duration = Duration::from_mins(3);
const END_MAX_EACH: Duration = Duration::from_millis(100);
/// Between the faults that come while nothing ends.
const BETWEEN: Duration = Duration::from_millis(1500);
/// Documents of which every step is shown.
const SHOWN: i64 = 3;

const HELP: &str = "\
On a PostgreSQL of its own. A service reads the documents: it says \"not yet\" and is asked again after pauses that double; it dies,
forgets what it was reading, and comes back. A search index is busy now and then, and refuses some documents for good. The daemon is
restarted in the middle.

Exit codes: 0; 1 if a document is neither in the index nor has a reason; 69 if PostgreSQL is not installed.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct OcrDemo {
    /// How many documents
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    documents: u32,
    /// Print the verdict as JSON, and nothing else
    #[arg(long)]
    json: bool,
}

struct Verdict {
    /// How many ended so, by the state and the reason.
    states: BTreeMap<String, i64>,
    wrong: Vec<String>,
    seconds: f64,
    told: String,
}

impl OcrDemo {
    /// Plays it. Everything is removed when this returns, whatever it returns.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), Failure> {
        let screen = Screen::stdout();
        let result = tokio::select! {
            result = self.play(&screen) => result,
            () = stop.cancelled() => Err(Failure::new("stopped before it was finished")),
        };
        screen.finish().await;
        result
    }

    async fn play(&self, screen: &Screen) -> Result<(), Failure> {
        let tell = |text: &str| {
            if !self.json {
                screen.print(text);
            }
        };
        let parties = Parties::start().await?;
        let config = CONFIG.replace("${LISTEN}", &free_address()?).replace("${PARTIES}", &parties.url());
        let mut system = System::start(&config, TABLES).await?;
        let played = self.read(&mut system, &parties, &tell).await;
        let removed = system.remove().await;
        let verdict = played?;
        removed?;
        let ok = verdict.wrong.is_empty();
        if self.json {
            let Verdict { states, wrong, seconds, .. } = verdict;
            let documents = self.documents;
            print_json(&serde_json::json!({
                "ok": ok, "documents": documents, "states": states, "seconds": seconds, "wrong": wrong,
            }))?;
        } else {
            tell(&verdict.told(screen));
        }
        // Everything has been said.
        if ok { Ok(()) } else { Err(Failure::new("")) }
    }

    async fn read(&self, system: &mut System, parties: &Parties, tell: &impl Fn(&str)) -> Result<Verdict, Failure> {
        let documents = i64::from(self.documents);
        let session = system.session().await?;
        tell(&format!(
            "{documents} documents. Look at them in another terminal:\n\n    {}\n    SELECT * FROM outbox.flow;\n\n",
            system.psql_line()
        ));
        system.start_daemon()?;
        let began = Instant::now();
        let upload = "WITH document AS (
                INSERT INTO demo.document (id, name) SELECT i, format('scan-%s.tif', i) FROM generate_series(1, $1::bigint) i RETURNING id
            )
            INSERT INTO outbox.event (topic, payload) SELECT 'document.uploaded', jsonb_build_object('document', id) FROM document ORDER BY id";
        session.client.execute(upload, &[&documents]).await?;
        let mut faults = [Fault::ReaderDies, Fault::DaemonRestarts, Fault::ReaderIsBack].into_iter().peekable();
        let mut struck = began;
        let mut watch = Watch { shown: Vec::new(), second: 0 };
        let deadline = began + END_MAX + END_MAX_EACH * self.documents;
        loop {
            let ended = watch.look(&session, parties, began, tell).await?;
            if ended >= documents || Instant::now() > deadline {
                break;
            }
            if let Some(fault) = faults.next_if(|fault| fault.is_due(ended * 100 / documents, struck.elapsed())) {
                struck = Instant::now();
                tell(fault.told());
                match fault {
                    Fault::ReaderDies => parties.reader(true),
                    Fault::DaemonRestarts => {
                        system.stop_daemon().await?;
                        system.start_daemon()?;
                    }
                    Fault::ReaderIsBack => parties.reader(false),
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        system.stop_daemon().await?;
        let (states, wrong) = audit(&session, parties, documents).await?;
        Ok(Verdict { states, wrong, seconds, told: parties.told() })
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    ReaderDies,
    DaemonRestarts,
    ReaderIsBack,
}

impl Fault {
    /// When so many of a hundred documents have ended, and so long after the fault before. While nobody reads, hardly any ends.
    fn is_due(self, percent: i64, since: Duration) -> bool {
        match self {
            Self::ReaderDies => percent >= 10,
            Self::DaemonRestarts | Self::ReaderIsBack => since >= BETWEEN,
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::ReaderDies => "---- the service that reads dies, and forgets what it was reading\n",
            Self::DaemonRestarts => "---- the daemon is restarted\n",
            Self::ReaderIsBack => "---- the service is back\n",
        }
    }
}

/// Tells what happens, as far as a person can read it.
struct Watch {
    /// The lines of the first documents that have been told.
    shown: Vec<String>,
    second: u64,
}

impl Watch {
    /// Returns how many documents have ended.
    async fn look(
        &mut self,
        session: &Session,
        parties: &Parties,
        began: Instant,
        tell: &impl Fn(&str),
    ) -> Result<i64, Failure> {
        let steps = "SELECT format('document %s  %s %s', e.payload->>'document', rpad(d.handler, 16),
                                   concat_ws(': ', CASE WHEN d.state = 'scheduled' THEN 'asked again' ELSE d.state END, coalesce(d.last_error, d.result::text)))
                     FROM outbox.event e JOIN outbox.delivery d ON d.event_id = e.id
                     WHERE e.id <= $1 AND d.handler LIKE 'document/%' AND d.state NOT IN ('pending', 'running') ORDER BY e.id, d.finished_at";
        for row in session.client.query(steps, &[&SHOWN]).await? {
            let line: String = row.get(0);
            if !self.shown.contains(&line) {
                tell(&format!("{:6.1} s  {line}\n", began.elapsed().as_secs_f64()));
                self.shown.push(line);
            }
        }
        let counts = "SELECT (SELECT count(*) FROM outbox.done WHERE handler = 'document'),
                             (SELECT count(*) FROM outbox.open WHERE handler = 'document' AND state = 'dead')";
        let row = session.client.query_one(counts, &[]).await?;
        let (done, dead): (i64, i64) = (row.get(0), row.get(1));
        let second = began.elapsed().as_secs();
        if second > self.second {
            self.second = second;
            tell(&format!("{second:4} s    {done} done, {dead} dead; {}\n", parties.told()));
        }
        Ok(done + dead)
    }
}

/// Every document is in the index once with its text, or dead with a reason that was given.
async fn audit(
    session: &Session,
    parties: &Parties,
    documents: i64,
) -> Result<(BTreeMap<String, i64>, Vec<String>), Failure> {
    let query = "SELECT (e.payload->>'document')::bigint AS document, f.state, coalesce(f.last_error, '') AS reason
                 FROM outbox.flow f JOIN outbox.event e ON e.id = f.event_id WHERE f.flow = 'document' ORDER BY 1";
    let index: BTreeMap<i64, (String, u32)> =
        parties.index().into_iter().map(|(document, text, times)| (document, (text, times))).collect();
    let (mut states, mut wrong, mut found) = (BTreeMap::<String, i64>::new(), Vec::new(), 0);
    for row in session.client.query(query, &[]).await? {
        let (document, state, reason): (i64, String, String) =
            (row.get("document"), row.get("state"), row.get("reason"));
        found += 1;
        *states.entry([state.clone(), reason.clone()].join(" ").trim().to_owned()).or_default() += 1;
        let written = index.get(&document);
        let right = match state.as_str() {
            "done" => written == Some(&(text_of(document), 1)),
            "dead" => written.is_none() && !reason.is_empty(),
            _ => false,
        };
        if !right {
            wrong.push(format!("document {document} is {state} ({reason}), and the index says {written:?}"));
        }
    }
    if found != documents {
        wrong.push(format!("{documents} documents were uploaded, and {found} have a state"));
    }
    Ok((states, wrong))
}

impl Verdict {
    fn told(&self, screen: &Screen) -> String {
        let Self { states, wrong, seconds, told } = self;
        let mut text = format!("\nAll have ended after {seconds:.1} s; {told}.\n\n");
        // Writing to a String cannot fail.
        for (state, count) in states {
            let _ = writeln!(text, "{count:7}  {state}");
        }
        for wrong in wrong {
            let _ = writeln!(text, "{}  {wrong}", screen.paint.red("problem"));
        }
        let verdict = if wrong.is_empty() {
            screen.paint.green("Every document is in the index, or dead with a reason; none is pending.")
        } else {
            screen.paint.red("Not every document has come to its end.")
        };
        let _ = writeln!(text, "\n{verdict}");
        text
    }
}
