//! Outcomes, and those among them that somebody else keeps from being written: an open transaction has locked their row, by
//! `outbox.cancel` for example, and is not committed. They wait, and so do later ones of their handler, which may belong behind
//! them; everybody else's are written.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::super::export::Tracer;
use super::super::spans::Settled;
use super::super::write::{Ended, Fate, Ticket, Write};
use super::batch::write;
use super::{AGAIN_MIN, Reply, wait};
use crate::observe::{Observation, Observer};
use crate::outcome::{Failure, Settlement, excerpt};
use crate::store::{Error, Store};

/// Before what was locked is tried again. A try waits for a tenth of that (`lock_timeout`), so it costs the others as much.
const LOCKED_AGAIN: Duration = Duration::from_secs(1);
/// Locked outcomes in a row after which the others are not tried: it is a table that is locked.
const LOCKED_IN_A_ROW: usize = 2;

pub(super) struct Outcomes<'a> {
    store: &'a Store,
    replies: &'a UnboundedSender<Reply>,
    observer: &'a Observer,
    tracer: Option<&'a Tracer>,
    /// In the order in which they came. The lanes bound them.
    locked: VecDeque<Write>,
    /// Their handlers.
    handlers: HashSet<Arc<str>>,
    again_at: Instant,
}

impl<'a> Outcomes<'a> {
    pub(super) fn new(
        store: &'a Store,
        replies: &'a UnboundedSender<Reply>,
        observer: &'a Observer,
        tracer: Option<&'a Tracer>,
    ) -> Self {
        let (locked, handlers) = (VecDeque::new(), HashSet::new());
        Self { store, replies, observer, tracer, locked, handlers, again_at: Instant::now() }
    }

    /// When those that are locked are to be tried again. Never, if there are none.
    pub(super) async fn may_be_free(&self) {
        if self.locked.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(self.again_at.into()).await;
    }

    pub(super) async fn try_again(&mut self) -> Result<(), Error> {
        let writes = std::mem::take(&mut self.locked).into();
        self.handlers.clear();
        self.one_by_one(writes).await
    }

    /// Writes a batch, and says what became of it.
    pub(super) async fn write(&mut self, mut writes: Vec<Write>) -> Result<(), Error> {
        if !self.handlers.is_empty() {
            let (later, now) = writes.into_iter().partition(|write| self.handlers.contains(&write.handler));
            let later: Vec<Write> = later;
            self.locked.extend(later);
            writes = now;
        }
        if writes.is_empty() {
            return Ok(());
        }
        match patiently!(self.observer, write(self.store, &writes), Error::is_passing) {
            Ok(refused) => {
                for &index in &refused {
                    self.tell_refused(&writes[index]);
                }
                let fate = |(index, write): (usize, &Write)| {
                    (write.ticket, if refused.contains(&index) { write.ended.refused() } else { write.ended.fate() })
                };
                self.tell_written(writes.iter().enumerate().map(fate).collect());
                if let Some(tracer) = self.tracer {
                    let now = Instant::now();
                    for (index, write) in writes.into_iter().enumerate() {
                        tell_spans(tracer, write, refused.contains(&index), now);
                    }
                }
                Ok(())
            }
            Err(error) if error.is_refusal() => self.one_by_one(writes).await,
            Err(error) => Err(error),
        }
    }

    /// PostgreSQL refused the batch because of one row or more. Each delivery by itself, so that the others do not suffer;
    /// one that is refused by itself is buried with the reason, unless somebody else has finished it.
    async fn one_by_one(&mut self, writes: Vec<Write>) -> Result<(), Error> {
        let mut in_a_row = 0;
        for one in writes {
            if in_a_row == LOCKED_IN_A_ROW || self.handlers.contains(&one.handler) {
                self.keep(one);
                continue;
            }
            in_a_row = 0;
            match patiently!(self.observer, write(self.store, std::slice::from_ref(&one)), Error::is_passing) {
                Ok(refused) if refused.is_empty() => {
                    self.tell_written(vec![(one.ticket, one.ended.fate())]);
                    if let Some(tracer) = self.tracer {
                        tell_spans(tracer, one, false, Instant::now());
                    }
                    continue;
                }
                Ok(_) => self.tell_refused(&one),
                Err(error) if error.is_locked() => {
                    in_a_row += 1;
                    let doing = "writing outcomes whose rows somebody else has locked";
                    self.observer.tell(&Observation::Hiccup { doing, error: error.to_string() });
                    self.keep(one);
                    continue;
                }
                Err(error) if error.code().is_some_and(|code| code.code() == "23505") => self.tell_refused(&one),
                Err(error) if error.is_refusal() => self.bury(&one, &error).await?,
                Err(error) => return Err(error),
            }
            self.tell_written(vec![(one.ticket, one.ended.refused())]);
            if let Some(tracer) = self.tracer {
                tell_spans(tracer, one, true, Instant::now());
            }
        }
        Ok(())
    }

    fn keep(&mut self, one: Write) {
        self.again_at = Instant::now() + LOCKED_AGAIN;
        self.handlers.insert(Arc::clone(&one.handler));
        self.locked.push_back(one);
    }

    async fn bury(&self, one: &Write, error: &Error) -> Result<(), Error> {
        let text = excerpt(&error.to_string());
        let Write { event, handler, attempt, trace, .. } = one.clone();
        self.observer.tell(&Observation::Unwritable { event, handler, attempt, trace, error: text.clone() });
        let failure = Failure::new(format!("its outcome could not be written: {text}"));
        let dead = [Write { ended: Ended::Settled(Settlement::Dead { failure }), ..one.clone() }];
        match patiently!(self.observer, write(self.store, &dead), Error::is_passing) {
            Err(error) if !error.is_refusal() => Err(error),
            // Not even that could be written: the sweep finds the delivery again.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn tell_refused(&self, write: &Write) {
        let &Write { event, ref handler, attempt, trace, .. } = write;
        self.observer.tell(&Observation::Refused { event, handler: Arc::clone(handler), attempt, trace });
    }

    fn tell_written(&self, written: Vec<(Ticket, Fate)>) {
        self.observer.tell(&Observation::Written { deliveries: written.len() });
        // Nobody listens any more when the term is over; then nobody needs the answer.
        let _ = self.replies.send(Reply::Written(written));
    }
}

/// Tells of the attempt that this has settled, if its trace wants to know.
fn tell_spans(tracer: &Tracer, write: Write, refused: bool, written: Instant) {
    let (Some(begun), Some(began)) = (write.spans, write.began) else { return };
    let (outcome, error) = write.ended.outcome();
    tracer.tell(Settled {
        begun: *begun,
        event: write.event,
        handler: write.handler,
        attempt: write.attempt,
        began,
        ended: write.at,
        written,
        outcome,
        error: error.map(ToOwned::to_owned),
        refused,
    });
}
