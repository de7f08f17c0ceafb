//! Tells what happens. An observation says that something did; when, and how long after the insert, says the database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::mpsc;
use tokio::time::{Interval, interval_at};
use tokio_postgres::{Row, Statement};

use super::super::Failure;
use super::screen::Screen;
use super::summary::{self, ms};
use crate::observe::Observation;
use crate::postgres::Session;

const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// An attempt is observed before it is written; it is looked for this often, and told without times after a while.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Observations taken at once, and new events told at once.
const BATCH_MAX: usize = 500;
const NEW_EVENTS_MAX: i64 = 20;
/// The longest text of somebody else's that is repeated, in characters.
const TEXT_CHARS_MAX: usize = 60;

pub(super) struct Teller<'a> {
    session: Session,
    screen: &'a Screen,
    psql_line: String,
    new_events: Statement,
    ended: Statement,
    /// The events visible in it have been told.
    snapshot: String,
    /// Attempts that ended and are not told yet.
    waiting: VecDeque<Ended>,
    zone: TimeZone,
}

/// An attempt that ended.
struct Ended {
    event: i64,
    handler: Arc<str>,
    attempt: i32,
    how: How,
    observed: Instant,
}

enum How {
    Done,
    Retrying { after: Duration, error: String },
    Dead { error: String },
}

/// What the database says about it.
struct Written {
    finished_at: Timestamp,
    ms: f64,
    said: Option<String>,
}

enum Next {
    Observed(Vec<Observation>),
    Look,
    Summary,
}

impl<'a> Teller<'a> {
    /// Tells everything from now on.
    pub(super) async fn start(session: Session, screen: &'a Screen, psql_line: String) -> Result<Self, Failure> {
        let new_events = session.client.prepare(include_str!("new_events.sql")).await?;
        let ended = session.client.prepare(include_str!("ended.sql")).await?;
        let snapshot = session.client.query_one("SELECT pg_current_snapshot()::text", &[]).await?.get(0);
        let (waiting, zone) = (VecDeque::new(), TimeZone::system());
        Ok(Self { session, screen, psql_line, new_events, ended, snapshot, waiting, zone })
    }

    /// Tells until the daemon has ended.
    pub(super) async fn tell(mut self, observations: &mut mpsc::Receiver<Observation>) -> Result<(), Failure> {
        let mut summaries = interval_at((Instant::now() + SUMMARY_EVERY).into(), SUMMARY_EVERY);
        loop {
            match self.next(observations, &mut summaries).await {
                Next::Observed(observed) if observed.is_empty() => {
                    return Err(Failure::internal("the daemon has ended"));
                }
                Next::Observed(observed) => observed.into_iter().for_each(|observation| self.observed(observation)),
                Next::Look => {}
                Next::Summary => self.tell_summary().await?,
            }
            self.tell_new_events().await?;
            self.tell_ended().await?;
        }
    }

    async fn next(&self, observations: &mut mpsc::Receiver<Observation>, summaries: &mut Interval) -> Next {
        let mut observed = Vec::new();
        tokio::select! {
            _ = observations.recv_many(&mut observed, BATCH_MAX) => Next::Observed(observed),
            () = tokio::time::sleep(LOOK_EVERY), if !self.waiting.is_empty() => Next::Look,
            _ = summaries.tick() => Next::Summary,
        }
    }

    fn observed(&mut self, observation: Observation) {
        let (event, handler, attempt, how) = match observation {
            Observation::Done { event, handler, attempt, .. } => (event, handler, attempt, How::Done),
            Observation::Retrying { event, handler, attempt, after, error, .. } => {
                (event, handler, attempt, How::Retrying { after, error })
            }
            Observation::Dead { event, handler, attempt, error, .. } => (event, handler, attempt, How::Dead { error }),
            Observation::Expired { event, handler, .. } => {
                return self.line(None, event.0, &pad("expired"), &handler, "before its first attempt");
            }
            // The daemon's daily life, which the lines about the events show well enough.
            Observation::PageRead { .. }
            | Observation::Written { .. }
            | Observation::Asleep
            | Observation::Awake
            | Observation::Woken
            | Observation::FellBehind { .. }
            | Observation::CaughtUp { .. } => return,
            unusual => return self.screen.print(&format!("{}\n", self.screen.paint.red(&format!("{unusual:?}")))),
        };
        let attempt = attempt.cast_signed();
        self.waiting.push_back(Ended { event: event.0, handler, attempt, how, observed: Instant::now() });
    }

    async fn tell_new_events(&mut self) -> Result<(), Failure> {
        let rows = self.session.client.query(&self.new_events, &[&self.snapshot, &NEW_EVENTS_MAX]).await?;
        let word = self.screen.paint.bold(&pad("inserted"));
        for row in &rows {
            let name = row.get::<_, Option<&str>>("name").map(plain).unwrap_or_default();
            self.line(Some(row.get("created_at")), row.get("id"), &word, row.get("topic"), &name);
        }
        let Some(row) = rows.last() else { return Ok(()) };
        self.snapshot = row.get("snapshot");
        let more = row.get::<_, i64>("seen") - NEW_EVENTS_MAX;
        if more > 0 {
            self.screen.print(&format!("              and {more} more events\n"));
        }
        Ok(())
    }

    /// Tells what is written, in the order in which it was observed.
    async fn tell_ended(&mut self) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let events: Vec<_> = self.waiting.iter().map(|ended| ended.event).collect();
        let handlers: Vec<_> = self.waiting.iter().map(|ended| &*ended.handler).collect();
        let attempts: Vec<_> = self.waiting.iter().map(|ended| ended.attempt).collect();
        let rows = self.session.client.query(&self.ended, &[&events, &handlers, &attempts]).await?;
        for ended in std::mem::take(&mut self.waiting) {
            let written = rows.iter().find(|row| ended.is(row)).map(Written::new);
            if written.is_some() || ended.observed.elapsed() > LOOK_MAX {
                self.tell_one(&ended, written.as_ref());
            } else {
                self.waiting.push_back(ended);
            }
        }
        Ok(())
    }

    fn tell_one(&self, ended: &Ended, written: Option<&Written>) {
        let paint = self.screen.paint;
        let said = written.and_then(|written| written.said.as_deref()).and_then(|said| said.lines().next());
        let why = |error: &str| plain(said.unwrap_or(error).trim_start_matches("outboxd: "));
        let (word, rest) = match &ended.how {
            How::Done => {
                let after =
                    written.map_or_else(String::new, |written| format!("{:>9} after the insert", ms(written.ms)));
                let again = if ended.attempt > 1 { format!(", attempt {}", ended.attempt) } else { String::new() };
                (paint.green(&pad("done")), after + &again)
            }
            How::Retrying { after, error } => {
                let (attempt, after) = (ended.attempt, after.as_millis());
                let rest = format!("attempt {attempt} failed: {}; runs again in {after} ms", why(error));
                (paint.yellow(&pad("retrying")), rest)
            }
            How::Dead { error } => {
                (paint.red(&pad("dead")), format!("attempt {} failed: {}; it was the last", ended.attempt, why(error)))
            }
        };
        self.line(written.map(|written| written.finished_at), ended.event, &word, &ended.handler, &rest);
    }

    async fn tell_summary(&self) -> Result<(), Failure> {
        let total = summary::total(&self.session.client).await?;
        let paint = self.screen.paint;
        self.screen.print(&format!("\n{}\n{}\n\n", paint.bold(&total), paint.dim(&self.psql_line)));
        Ok(())
    }

    fn line(&self, at: Option<Timestamp>, event: i64, word: &str, of: &str, rest: &str) {
        let at = at.unwrap_or_else(Timestamp::now).to_zoned(self.zone.clone()).strftime("%H:%M:%S%.3f").to_string();
        self.screen.print(&format!("{}  event {event:<5}  {word}  {of:<15}  {rest}\n", self.screen.paint.dim(&at)));
    }
}

impl Ended {
    fn is(&self, row: &Row) -> bool {
        (row.get("event_id"), row.get("handler"), row.get("attempt")) == (self.event, &*self.handler, self.attempt)
    }
}

impl Written {
    fn new(row: &Row) -> Self {
        Self { finished_at: row.get("finished_at"), ms: row.get("ms"), said: row.get("said") }
    }
}

/// As wide as the longest of the words.
fn pad(word: &str) -> String {
    format!("{word:<8}")
}

/// Somebody else's text: short, and without anything that would move the cursor.
fn plain(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
