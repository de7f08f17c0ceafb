//! A lane: the in-memory scheduler of one handler. It holds what was read and has not run, what runs, and what ended
//! and is not written yet; it says what may start, and how far the handler has finished the log.
//!
//! Pure: the clock and the random number are arguments, and nothing here waits. Bounded: see [`Lane::room`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::windows::Windows;
use super::write::{Ended, Fate, LaneId, Ticket, Write};
use crate::config::DeliveryConfig;
use crate::event::{Event, EventId};
use crate::outcome::{Fault, Outcome, Settlement, Tried, settle};
use crate::snapshot::Snapshot;
use crate::store::log::Logged;
use crate::store::registry::Checkpoint;
use crate::store::settle::Claimed;

/// Deliveries a lane holds at most, whatever their state.
pub const LANE_DELIVERIES_MAX: usize = 4096;
/// The weight of events at which a lane takes no more.
pub const LANE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// An attempt that lasts longer gets a `running` row.
const RECORD_AFTER: Duration = Duration::from_secs(1);

/// Before a due delivery whose row somebody else has locked is looked at again.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

/// One delivery the lane holds.
#[derive(Debug)]
struct Delivery {
    event: Arc<Event>,
    /// The window of the log it was read in; `None` for a delivery from `outbox.open`, or once a row keeps it.
    window: Option<u64>,
    attempt: u32,
    failures: u32,
    has_row: bool,
    /// Came from `outbox.open`.
    claimed: bool,
    expires_at: Option<Instant>,
    began: Option<Instant>,
    /// Takes a slot: its attempt has begun and not ended.
    running: bool,
}

/// An attempt to start.
#[derive(Debug)]
pub struct Start {
    pub ticket: Ticket,
    pub event: Arc<Event>,
    pub attempt: u32,
    pub has_row: bool,
}

/// How an attempt was settled, for whoever tells of it.
#[derive(Debug)]
pub struct EndedAttempt {
    pub event: EventId,
    pub attempt: u32,
    pub ran: Duration,
    pub settlement: Settlement,
}

/// What a lane wants done.
#[derive(Debug)]
pub enum Step {
    Start(Start),
    Write(Write),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Lane {
    id: LaneId,
    handler: Arc<str>,
    config: DeliveryConfig,
    /// Read and not begun: the higher priority first, then in the order of the log.
    queue: BTreeMap<Reverse<i16>, VecDeque<Ticket>>,
    deliveries: HashMap<Ticket, Delivery>,
    bytes: usize,
    next_ticket: u64,
    /// Attempts that run, and those of them that came from `outbox.open`.
    running: usize,
    running_due: usize,
    /// Slots kept for a claim that is under way.
    reserved: usize,
    /// With one slot, first tries and retries take turns.
    due_had_last_turn: bool,
    /// When the next delivery in `outbox.open` is due, as far as is known.
    due_at: Option<Instant>,
    /// The running attempts in the order they began, to find those that last.
    began: VecDeque<(Instant, Ticket)>,
    windows: Windows,
    finished: i64,
}

impl Lane {
    #[must_use]
    pub fn new(id: LaneId, config: DeliveryConfig, checkpoint: &Checkpoint, now: Instant) -> Self {
        Self {
            id,
            handler: Arc::clone(&checkpoint.handler),
            config,
            queue: BTreeMap::new(),
            deliveries: HashMap::new(),
            bytes: 0,
            next_ticket: 0,
            running: 0,
            running_due: 0,
            reserved: 0,
            due_had_last_turn: false,
            due_at: Some(now),
            began: VecDeque::new(),
            windows: Windows::new(checkpoint.position.clone()),
            finished: checkpoint.finished,
        }
    }

    #[must_use]
    pub fn config(&self) -> &DeliveryConfig {
        &self.config
    }

    /// Takes other settings; what runs is not touched.
    pub fn configure(&mut self, config: DeliveryConfig) {
        self.config = config;
    }

    /// How many more deliveries it takes.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.bytes >= LANE_BYTES_MAX { 0 } else { LANE_DELIVERIES_MAX.saturating_sub(self.deliveries.len()) }
    }

    /// The position up to which every delivery of this handler has a row in `outbox.done` or `outbox.open`.
    #[must_use]
    pub fn position(&self) -> &Snapshot {
        self.windows.position()
    }

    /// Deliveries finished since the handler was registered.
    #[must_use]
    pub fn finished(&self) -> i64 {
        self.finished
    }

    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Whether nothing runs, nothing is being claimed and nothing is left to be written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running == 0 && self.reserved == 0 && self.has_written()
    }

    /// Whether every outcome is written.
    #[must_use]
    pub fn has_written(&self) -> bool {
        let waiting: usize = self.queue.values().map(VecDeque::len).sum();
        self.deliveries.len() == waiting + self.running
    }

    /// Takes an event that was read behind the position; one that is not due yet is written down at once.
    pub fn offer(&mut self, event: &Arc<Event>, logged: &Offer, now: Instant, steps: &mut Vec<Step>) {
        let window = Some(self.windows.offer());
        let ticket = self.insert(Delivery {
            event: Arc::clone(event),
            window,
            attempt: 0,
            failures: 0,
            has_row: false,
            claimed: false,
            expires_at: logged.expires_in.map(|left| now + left),
            began: None,
            running: false,
        });
        match logged.due_in {
            Some(due_in) => {
                self.due_within(due_in, now);
                steps.extend(self.write(ticket, Ended::Scheduled { due_in }, now));
            }
            None => self.queue.entry(Reverse(logged.priority)).or_default().push_back(ticket),
        }
    }

    /// Everything read so far lies before this position.
    pub fn close_window(&mut self, position: &Snapshot) {
        self.windows.close(position.clone());
    }

    /// Slots for deliveries that are due: how many to claim now. The answer must come by [`Self::claimed`].
    pub fn claim(&mut self, now: Instant) -> usize {
        if self.reserved > 0 || self.due_at.is_none_or(|at| at > now) {
            return 0;
        }
        let free = self.config.concurrency.saturating_sub(self.running);
        let slots = if self.queue.is_empty() {
            free
        } else if self.config.concurrency == 1 && self.due_had_last_turn {
            0
        } else {
            // While first tries wait, a quarter of the slots, but never none, is for what is due.
            free.min((self.config.concurrency / 4).max(1).saturating_sub(self.running_due))
        };
        if slots > 0 {
            // What becomes due while the claim is under way must not be forgotten: the answer does not know it.
            self.due_at = None;
        }
        self.reserved = slots;
        slots
    }

    /// The answer to a claim: what has been started in the database, and when the next one is due.
    pub fn claimed(&mut self, claimed: Vec<Claimed>, due_in: Option<Duration>, now: Instant, steps: &mut Vec<Step>) {
        // One that is due and was not claimed although there was a slot is locked by somebody; no hurry then.
        let locked = claimed.len() < std::mem::take(&mut self.reserved) && due_in == Some(Duration::ZERO);
        if let Some(due_in) = due_in {
            self.due_within(if locked { LOCKED_PAUSE } else { due_in }, now);
        }
        for claimed in claimed {
            let ticket = self.insert(Delivery {
                event: Arc::new(claimed.event),
                window: None,
                attempt: claimed.attempt,
                failures: claimed.failures,
                has_row: true,
                claimed: true,
                expires_at: claimed.expires_in.map(|left| now + left),
                began: None,
                running: false,
            });
            self.due_had_last_turn = true;
            steps.extend(self.begin(ticket, now));
        }
    }

    /// Something in `outbox.open` may have become due.
    pub fn due_within(&mut self, due_in: Duration, now: Instant) {
        let at = now + due_in;
        self.due_at = Some(self.due_at.map_or(at, |known| known.min(at)));
    }

    /// Starts what has been read, as far as slots are free.
    pub fn start(&mut self, now: Instant, steps: &mut Vec<Step>) {
        while self.running + self.reserved < self.config.concurrency {
            let Some(mut first) = self.queue.first_entry() else { break };
            let ticket = first.get_mut().pop_front();
            if first.get().is_empty() {
                first.remove();
            }
            if let Some(ticket) = ticket {
                self.due_had_last_turn = false;
                steps.extend(self.begin(ticket, now));
            }
        }
    }

    /// An attempt ended; returns how it is settled.
    pub fn ended(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
        random: f64,
        steps: &mut Vec<Step>,
    ) -> Option<EndedAttempt> {
        let delivery = self.deliveries.get(&ticket)?;
        let spared = self.config.breaker.then_some(Fault::Unreachable);
        let tried = Tried { attempt: delivery.attempt, failures: delivery.failures, spared };
        let settlement = settle(outcome, tried, &self.config.retry, random);
        let ran = delivery.began.map_or(Duration::ZERO, |began| now - began);
        let (event, attempt) = (delivery.event.id, delivery.attempt);
        self.release_slot(ticket);
        if let Settlement::Retry { after, .. } | Settlement::Snooze { after } = settlement {
            self.due_within(after, now);
        }
        steps.extend(self.write(ticket, Ended::Settled(settlement.clone()), now));
        Some(EndedAttempt { event, attempt, ran, settlement })
    }

    /// Running attempts that have lasted: each gets a row, so that SQL shows it and the position can move on.
    pub fn record(&mut self, now: Instant, steps: &mut Vec<Step>) {
        while let Some(&(began, ticket)) = self.began.front() {
            let lasting =
                self.deliveries.get(&ticket).is_some_and(|d| d.running && !d.has_row && d.began == Some(began));
            if lasting && now < began + RECORD_AFTER {
                break;
            }
            self.began.pop_front();
            if lasting {
                steps.extend(self.write(ticket, Ended::StillRunning, now));
                if let Some(delivery) = self.deliveries.get_mut(&ticket) {
                    delivery.has_row = true;
                }
            }
        }
    }

    /// Everything that runs and has a row is given back, for the next leader to run at once.
    pub fn release(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let held: Vec<Ticket> =
            self.deliveries.iter().filter(|(_, d)| d.running && d.has_row).map(|(&ticket, _)| ticket).collect();
        for ticket in held {
            self.release_slot(ticket);
            steps.extend(self.write(ticket, Ended::CutOff, now));
        }
    }

    /// Forgets what was read and has not begun. The position does not pass it, so it is read again by the next leader.
    pub fn drop_queue(&mut self) {
        for ticket in std::mem::take(&mut self.queue).into_values().flatten() {
            self.remove(ticket);
        }
    }

    /// What was written for this delivery is committed. `finished`: it has left the lane for good.
    pub fn written(&mut self, ticket: Ticket, fate: Fate) {
        let window = match fate {
            Fate::Recorded => self.deliveries.get_mut(&ticket).and_then(|delivery| delivery.window.take()),
            Fate::Ended { finished } => {
                self.finished += i64::from(finished);
                self.remove(ticket).and_then(|delivery| delivery.window)
            }
        };
        if let Some(window) = window {
            self.windows.settled(window);
        }
    }

    #[must_use]
    pub fn runs(&self, ticket: Ticket) -> bool {
        self.deliveries.get(&ticket).is_some_and(|delivery| delivery.running)
    }

    /// The event and the number of an attempt that runs and has a row, or will have one when what was asked for is written.
    #[must_use]
    pub fn recorded(&self, ticket: Ticket) -> Option<(EventId, u32)> {
        let delivery = self.deliveries.get(&ticket).filter(|delivery| delivery.running && delivery.has_row)?;
        Some((delivery.event.id, delivery.attempt))
    }

    /// When the lane wants to be asked again, if nothing else happens. `claims`: whether a claim could be made.
    #[must_use]
    pub fn wake_at(&self, claims: bool) -> Option<Instant> {
        let record = self.began.front().map(|&(began, _)| began + RECORD_AFTER);
        // With no slot free, the end of an attempt is what to wait for.
        let has_slot = self.reserved == 0 && self.running < self.config.concurrency;
        record.into_iter().chain(self.due_at.filter(|_| claims && has_slot)).min()
    }

    fn insert(&mut self, delivery: Delivery) -> Ticket {
        let ticket = Ticket { lane: self.id, number: self.next_ticket };
        self.next_ticket += 1;
        self.bytes += delivery.event.weight();
        self.deliveries.insert(ticket, delivery);
        ticket
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Delivery> {
        let delivery = self.deliveries.remove(&ticket)?;
        self.bytes -= delivery.event.weight();
        Some(delivery)
    }

    fn begin(&mut self, ticket: Ticket, now: Instant) -> Option<Step> {
        let delivery = self.deliveries.get_mut(&ticket)?;
        if delivery.expires_at.is_some_and(|at| at <= now) {
            return self.write(ticket, Ended::Expired, now);
        }
        // A claim has counted the attempt already.
        delivery.attempt += u32::from(!delivery.claimed);
        delivery.began = Some(now);
        delivery.running = true;
        let (attempt, has_row) = (delivery.attempt, delivery.has_row);
        let event = Arc::clone(&delivery.event);
        self.running += 1;
        if delivery.claimed {
            self.running_due += 1;
        } else {
            self.began.push_back((now, ticket));
        }
        Some(Step::Start(Start { ticket, event, attempt, has_row }))
    }

    fn release_slot(&mut self, ticket: Ticket) {
        if let Some(delivery) = self.deliveries.get_mut(&ticket)
            && std::mem::take(&mut delivery.running)
        {
            self.running -= 1;
            self.running_due -= usize::from(delivery.claimed);
        }
    }

    fn write(&self, ticket: Ticket, ended: Ended, now: Instant) -> Option<Step> {
        let delivery = self.deliveries.get(&ticket)?;
        Some(Step::Write(Write {
            ticket,
            event: delivery.event.id,
            handler: Arc::clone(&self.handler),
            attempt: delivery.attempt,
            failures: delivery.failures,
            has_row: delivery.has_row,
            began: delivery.began,
            at: now,
            ended,
        }))
    }
}

/// What a lane needs to know of a logged event beside the event.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    pub priority: i16,
    pub due_in: Option<Duration>,
    pub expires_in: Option<Duration>,
}

impl From<&Logged> for Offer {
    fn from(logged: &Logged) -> Self {
        Self { priority: logged.priority, due_in: logged.due_in, expires_in: logged.expires_in }
    }
}
