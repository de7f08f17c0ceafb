//! A lane: the in-memory scheduler of one handler. It holds what was read and has not run, what runs, and what ended
//! and is not written yet; it says what may start, and how far the handler has finished the log.
//!
//! Pure: the clock and the random number are arguments, and nothing here waits. Bounded: see [`Lane::room`].

mod away;
mod call;
mod delivery;
mod due;
mod flow;
pub mod keys;
mod order;
pub mod places;
mod rate;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use self::call::{Batch, BatchId};
use self::delivery::{Delivery, OfLane, Stage};
pub use self::delivery::{EndedAttempt, Offer, Start, Step};
use self::keys::{Keys, Turn};
use self::places::Places;
use self::rate::Rate;
use super::windows::Windows;
use super::write::{Ended, Fate, LaneId, Ticket, Write};
use crate::config::{DeliveryConfig, OnDeadKey, Record};
use crate::emit;
use crate::event::{Event, EventId};
use crate::outcome::{Fault, Outcome, Policies, Settlement, Tried, settle};
use crate::snapshot::Snapshot;
use crate::store::registry::{Checkpoint, Held};
use crate::trace::{Trace, Traced};

/// Deliveries a lane holds at most, whatever their state.
pub const LANE_DELIVERIES_MAX: usize = 4096;
/// The weight of events at which a lane takes no more.
pub const LANE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// An attempt that lasts longer gets a `running` row.
const RECORD_AFTER: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub struct Lane {
    id: LaneId,
    of: OfLane,
    config: DeliveryConfig,
    /// Read and not begun: the higher priority first, then in the order of the log.
    queue: BTreeMap<Reverse<i16>, VecDeque<Ticket>>,
    /// Claimed for a batch, and not begun: they go before what is queued.
    due_queue: VecDeque<Ticket>,
    /// Deliveries in the queue, and behind one of their key.
    unbegun: usize,
    /// Who of a key goes; `None`: there is no order.
    keys: Option<Keys>,
    /// How many of a key run at the same time; `None`: any number, or one, in order.
    places: Option<Places>,
    deliveries: FxHashMap<Ticket, Delivery>,
    bytes: usize,
    next_ticket: u64,
    /// Deliveries that run.
    running: usize,
    /// The calls they are in, and those of them with what came from `outbox.open`, because it was due or because its key had a place.
    calls: usize,
    calls_due: usize,
    calls_parked: usize,
    batches: FxHashMap<BatchId, Batch>,
    /// Slots kept for a claim that is under way.
    reserved: Reserved,
    /// Calls that begin when their rows are written.
    recording: usize,
    /// With one slot, first tries and retries take turns.
    due_had_last_turn: bool,
    /// The same for what is due and rows whose key has a place.
    parked_had_last_turn: bool,
    /// What limits attempts in a time, and those from `outbox.open` among them.
    limit: Option<Rate>,
    rate: Option<Rate>,
    /// When the next delivery in `outbox.open` is due, as far as is known.
    due_at: Option<Instant>,
    /// When rows whose key has a place are claimed.
    ready_at: Option<Instant>,
    /// The running attempts in the order they began, to find those that last.
    began: VecDeque<(Instant, Ticket)>,
    /// It runs a flow: what it begins are instances.
    is_flow: bool,
    /// Steps that were passed on and have not begun, with when that was.
    passed_on: VecDeque<(Instant, Ticket)>,
    windows: Windows,
    finished: i64,
}

/// What a claim may bring.
#[derive(Debug, Default)]
struct Reserved {
    calls: usize,
    deliveries: usize,
    /// Those that are asked for because they are due, not because their key has a place.
    due: usize,
}

impl Lane {
    /// `held`: what `outbox.open` has already, for a lane that looks at keys.
    #[must_use]
    pub fn new(id: LaneId, config: DeliveryConfig, checkpoint: &Checkpoint, held: &Held, now: Instant) -> Self {
        Self {
            id,
            of: OfLane { handler: Arc::clone(&checkpoint.handler), traced: None },
            keys: config.ordered.map(|_| Keys::new(&held.keys)),
            places: config.concurrency_per_key.map(|most| Places::new(most, &held.parked)),
            limit: config.rate.map(|rate| Rate::new(rate.per_second(), now)),
            rate: config.retry.rate.map(|rate| Rate::new(rate.into(), now)),
            config,
            queue: BTreeMap::new(),
            due_queue: VecDeque::new(),
            unbegun: 0,
            deliveries: FxHashMap::default(),
            bytes: 0,
            next_ticket: 0,
            running: 0,
            calls: 0,
            calls_due: 0,
            calls_parked: 0,
            batches: FxHashMap::default(),
            reserved: Reserved::default(),
            recording: 0,
            due_had_last_turn: false,
            parked_had_last_turn: false,
            due_at: Some(now),
            ready_at: Some(now).filter(|_| !held.parked.is_empty()),
            began: VecDeque::new(),
            is_flow: false,
            passed_on: VecDeque::new(),
            windows: Windows::new(checkpoint.position.clone()),
            finished: checkpoint.finished,
        }
    }

    /// Spans of its attempts are exported.
    #[must_use]
    pub fn traced(mut self, traced: Option<Traced>) -> Self {
        self.of.traced = traced;
        self
    }

    #[must_use]
    pub fn config(&self) -> &DeliveryConfig {
        &self.config
    }

    /// Takes other settings; what runs is not touched.
    pub fn configure(&mut self, config: DeliveryConfig, now: Instant) {
        if self.config.retry.rate != config.retry.rate {
            self.rate = config.retry.rate.map(|rate| Rate::new(rate.into(), now));
        }
        if self.config.rate != config.rate {
            self.limit = config.rate.map(|rate| Rate::new(rate.per_second(), now));
        }
        if let (Some(places), Some(most)) = (&mut self.places, config.concurrency_per_key) {
            for ticket in places.resize(most) {
                self.unbegun -= 1;
                self.enqueue_again(ticket);
            }
            self.claim_ready(now);
        }
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

    /// Deliveries that are read, or passed on, and have not begun.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.unbegun
    }

    /// Attempts that have begun, and whose outcome is not written.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.deliveries.len() - self.unbegun
    }

    /// Whether nothing runs, nothing is being claimed and nothing is left to be written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running == 0 && self.reserved.calls == 0 && self.has_written()
    }

    /// Whether every outcome is written.
    #[must_use]
    pub fn has_written(&self) -> bool {
        self.deliveries.len() == self.unbegun + self.running
    }

    /// Takes an event that was read behind the position. One that is not due yet, or is behind another one of its key that
    /// has a row, is written down at once.
    pub fn offer(&mut self, event: &Arc<Event>, logged: &Offer, now: Instant, steps: &mut Vec<Step>) {
        let key = self.key_of(event);
        let window = self.windows.offer();
        let ticket = self.insert(Delivery {
            window: Some(window),
            priority: logged.priority,
            key,
            expires_at: logged.expires_in.map(|left| now + left),
            begun: logged.begun,
            ..Delivery::unbegun(Arc::clone(event), now)
        });
        if let Some(due_in) = logged.due_in {
            self.due_within(due_in, now);
            steps.extend(self.write(ticket, Ended::Scheduled { due_in }, now));
            return;
        }
        match self.turn(ticket, key) {
            Turn::Now => self.enqueue(ticket, logged.priority),
            Turn::Later => {
                self.unbegun += 1;
                self.merge_into(ticket, now, steps);
            }
            Turn::Blocked => self.block(ticket, now, steps),
        }
    }

    /// Everything read so far lies before this position.
    pub fn close_window(&mut self, position: &Snapshot) {
        self.windows.close(position.clone());
    }

    /// An attempt ended; returns how it is settled. `spared`: as in [`Tried`].
    pub fn ended(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        spared: Option<Fault>,
        now: Instant,
        random: f64,
        steps: &mut Vec<Step>,
    ) -> Option<EndedAttempt> {
        // One that was cancelled in the middle of a batch has ended before.
        self.deliveries.get(&ticket).filter(|delivery| delivery.stage != Stage::Ended)?;
        let verdict = self.verdict(ticket, &outcome);
        let delivery = self.deliveries.get(&ticket)?;
        let asked = delivery.asked(now);
        let tried = Tried { attempt: delivery.attempt, failures: delivery.failures, spared, asked };
        let policies = Policies { retry: &self.config.retry, poll: self.config.poll.as_ref() };
        let mut settlement = settle(outcome, tried, policies, random);
        if let Settlement::Done { result, emit } = &mut settlement {
            let own = delivery.own_trace;
            let caused = std::mem::take(emit).into_iter().map(|one| one.caused_by(&delivery.event, own));
            let told = self.config.on_done.as_ref().and_then(|topic| {
                emit::of_done(topic, &self.of.handler, &delivery.event, delivery.attempt, result.as_ref(), own)
            });
            *emit = caused.chain(told).collect();
        }
        let (event, attempt, began) = (delivery.event.id, delivery.attempt, delivery.began);
        let trace = delivery.trace.map(|trace| trace.id);
        self.release_slot(ticket, now, steps);
        match settlement {
            Settlement::Retry { after, .. } | Settlement::Snooze { after, .. } | Settlement::Wait { after, .. } => {
                self.due_within(after, now);
            }
            Settlement::Pause { .. } => self.due_within(Duration::ZERO, now),
            Settlement::Done { .. } | Settlement::Committed { .. } | Settlement::Lost | Settlement::Dead { .. } => {}
        }
        let holds = match settlement {
            Settlement::Done { .. } | Settlement::Committed { .. } | Settlement::Lost => false,
            Settlement::Dead { .. } => self.config.ordered == Some(OnDeadKey::Block),
            _ => true,
        };
        let key = self.current_key(ticket);
        if holds
            && key.is_some()
            && let Some(delivery) = self.deliveries.get_mut(&ticket)
        {
            delivery.writes_row = !delivery.has_row;
        }
        steps.extend(self.write(ticket, Ended::Settled(settlement.clone()), now));
        if holds {
            self.hold(key, now, steps);
        } else {
            self.pass(key, now, steps);
        }
        self.leave_place(ticket, now);
        Some(EndedAttempt { event, trace, attempt, began, verdict, settlement })
    }

    /// Running attempts that have lasted: each gets a row, so that SQL shows it and the position can move on.
    pub fn record(&mut self, now: Instant, steps: &mut Vec<Step>) {
        while let Some(&(began, ticket)) = self.began.front() {
            let lasting =
                self.deliveries.get(&ticket).is_some_and(|d| d.runs() && !d.has_row && d.began == Some(began));
            if lasting && now < began + RECORD_AFTER {
                break;
            }
            self.began.pop_front();
            if lasting && self.is_flow {
                steps.push(Step::Lasts(ticket));
            } else if lasting {
                self.record_one(ticket, now, steps);
            }
        }
    }

    /// What was written for this delivery is committed.
    pub fn written(&mut self, ticket: Ticket, fate: Fate, now: Instant, steps: &mut Vec<Step>) {
        let Some(delivery) = self.deliveries.get_mut(&ticket) else { return };
        let wrote = std::mem::take(&mut delivery.writes_row).then(|| (delivery.key, Arc::clone(&delivery.event)));
        let window = match fate {
            Fate::Recorded => {
                let (window, waits) = (delivery.window.take(), delivery.stage == Stage::Recording);
                if waits {
                    self.may_begin(ticket, now, steps);
                }
                window
            }
            Fate::Ended { .. } | Fate::Refused => {
                self.finished += i64::from(fate == Fate::Ended { finished: true });
                self.remove(ticket).and_then(|delivery| delivery.window)
            }
        };
        if let Some(window) = window {
            self.windows.settled(window);
        }
        if let Some((Some(key), event)) = wrote {
            self.wrote(key, &event, now);
        }
    }

    /// The event of a delivery that it holds.
    #[must_use]
    pub fn event_of(&self, ticket: Ticket) -> Option<EventId> {
        self.deliveries.get(&ticket).map(|delivery| delivery.event.id)
    }

    #[must_use]
    pub fn runs(&self, ticket: Ticket) -> bool {
        self.deliveries.get(&ticket).is_some_and(Delivery::runs)
    }

    /// The event and the number of an attempt that runs and has a row, or will have one when what was asked for is written.
    #[must_use]
    pub fn recorded(&self, ticket: Ticket) -> Option<(EventId, u32)> {
        let delivery = self.deliveries.get(&ticket).filter(|delivery| delivery.runs() && delivery.has_row)?;
        Some((delivery.event.id, delivery.attempt))
    }

    /// When the lane wants to be asked again, if nothing else happens. `begins`: whether something may begin; `claims`: whether a
    /// claim could be made.
    #[must_use]
    pub fn wake_at(&self, begins: bool, claims: bool) -> Option<Instant> {
        let record = self.began.front().map(|&(began, _)| began + RECORD_AFTER);
        let passed_on = self.passed_on.front().map(|&(since, _)| since + RECORD_AFTER);
        let has_slot = begins && self.taken() < self.config.concurrency;
        let limited = self.limit.as_ref().filter(|limit| limit.is_empty()).map(Rate::next);
        let gathered = match limited {
            Some(at) => Some(at).filter(|_| has_slot && !self.queue.is_empty()),
            None => self.config.batch.filter(|_| has_slot).and_then(|batch| self.gathered_at(batch)),
        };
        let due = self.due_at().filter(|_| begins && claims);
        record.into_iter().chain(passed_on).chain(gathered).chain(due).min()
    }

    fn insert(&mut self, mut delivery: Delivery) -> Ticket {
        if let Some(Traced { installation, sample }) = self.of.traced {
            let begins = || Trace::derived(&delivery.event.origin(installation), sample);
            delivery.trace = Some(delivery.trace.unwrap_or_else(begins));
        }
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

    fn enqueue(&mut self, ticket: Ticket, priority: i16) {
        self.unbegun += 1;
        self.queue.entry(Reverse(priority)).or_default().push_back(ticket);
    }

    fn write(&self, ticket: Ticket, ended: Ended, now: Instant) -> Option<Step> {
        let delivery = self.deliveries.get(&ticket)?;
        let spans = self.of.traced.filter(|_| ended.ends_attempt() && delivery.began.is_some());
        Some(Step::Write(Write {
            ticket,
            event: delivery.event.id,
            trace: delivery.trace.map(|trace| trace.id),
            spans: spans.and_then(|traced| delivery.begun(traced, &self.of.handler)),
            handler: Arc::clone(&self.of.handler),
            attempt: delivery.attempt,
            failures: delivery.failures,
            asked: match ended {
                Ended::Settled(
                    Settlement::Retry { asked, .. } | Settlement::Snooze { asked, .. } | Settlement::Wait { asked, .. },
                ) => asked,
                _ => delivery.asked(now),
            },
            has_row: delivery.has_row,
            began: delivery.began,
            results: delivery.results.clone(),
            at: now,
            ended,
        }))
    }
}
