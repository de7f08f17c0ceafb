//! The order of keys: a lane against a model of `outbox.open` and its triggers. Whatever fails, is delayed, discarded or lost in a
//! crash, whenever it is written, and in whatever batches it is handed over: one delivery of a key at a time, and none before those in
//! front of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboxd::config::{BatchConfig, DeliveryConfig, OnDeadKey, Record};
use outboxd::daemon::lane::{Lane, Offer, Start, Step};
use outboxd::daemon::write::{Ended, LaneId, Ticket, Write};
use outboxd::event::KeyHash;
use outboxd::outcome::{Failure, RetryPolicy, Settlement};
use outboxd::snapshot::Snapshot;
use outboxd::store::registry::{Checkpoint, Held};
use outboxd::store::settle::{Claimed, Found};
use outboxd::{Event, EventId, Outcome};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Scheduled,
    Retrying,
    Running,
    Blocked,
    Dead,
}

/// A row of `outbox.open`.
#[derive(Debug, Clone)]
struct Row {
    event: i64,
    state: State,
    due: bool,
    attempt: u32,
    failures: u32,
}

/// `outbox.open` in the order of `n`, and `outbox.done`.
struct Table {
    policy: OnDeadKey,
    rows: Vec<Row>,
    done: BTreeSet<i64>,
}

/// Three keys.
fn key(event: i64) -> String {
    format!("k{}", event % 3)
}

fn event(id: i64) -> Event {
    let (payload, headers) = ("{}".to_owned(), "{}".to_owned());
    let created_at = jiff::Timestamp::UNIX_EPOCH;
    Event { id: EventId(id), topic: "t".to_owned(), key: Some(key(id)), payload, headers, created_at }
}

impl Table {
    fn holds(&self, row: &Row) -> bool {
        match row.state {
            State::Scheduled => row.attempt > 0,
            State::Dead => self.policy == OnDeadKey::Block,
            _ => true,
        }
    }

    fn at(&self, event: i64) -> Option<usize> {
        self.rows.iter().position(|row| row.event == event)
    }

    fn has_turn(&self, row: &Row) -> bool {
        self.holds(row) && (row.state != State::Blocked || row.due)
    }

    /// `take_turn`: a row that is to be blocked, or runs again after its death, goes on at once when nobody of its key goes.
    fn is_behind(&self, event: i64, revived: bool) -> bool {
        let own = self.at(event);
        self.rows.iter().enumerate().any(|(n, row)| {
            let died_behind = revived && row.state == State::Dead && Some(n) > own;
            row.event != event && key(row.event) == key(event) && self.has_turn(row) && !died_behind
        })
    }

    /// `pass_turn`.
    fn pass(&mut self, event: i64) {
        let of_key = |row: &&Row| key(row.event) == key(event);
        if !self.rows.iter().filter(of_key).any(|row| self.has_turn(row))
            && let Some(row) =
                self.rows.iter_mut().find(|row| key(row.event) == key(event) && row.state == State::Blocked)
        {
            row.due = true;
        }
    }

    fn remove(&mut self, event: i64) {
        let at = self.at(event).unwrap();
        let had_turn = self.has_turn(&self.rows[at]);
        self.rows.remove(at);
        if had_turn {
            self.pass(event);
        }
    }

    fn park(&mut self, write: &Write, state: State, due: bool, failures: u32) {
        let event = write.event.0;
        let due = due || (state == State::Blocked && !self.is_behind(event, false));
        self.rows.push(Row { event, state, due, attempt: write.attempt, failures });
    }

    /// What `settle.rs` does with one write.
    fn write(&mut self, write: &Write) {
        let event = write.event.0;
        let failures = write.failures + 1;
        match &write.ended {
            Ended::Settled(Settlement::Done { .. }) => {
                if write.has_row {
                    assert_eq!(self.rows[self.at(event).unwrap()].attempt, write.attempt);
                    self.remove(event);
                }
                assert!(self.done.insert(event), "{event} is done twice");
            }
            Ended::Settled(Settlement::Retry { .. }) => self.open(write, State::Retrying, true, failures),
            Ended::Settled(Settlement::Snooze { .. }) => self.open(write, State::Scheduled, true, write.failures),
            Ended::Settled(Settlement::Dead { .. }) => {
                self.open(write, State::Dead, false, failures);
                if self.policy == OnDeadKey::Skip {
                    self.pass(event);
                }
            }
            Ended::Scheduled { .. } => self.park(write, State::Scheduled, true, 0),
            Ended::Blocked => self.park(write, State::Blocked, false, 0),
            Ended::StillRunning => self.park(write, State::Running, false, write.failures),
            Ended::PutBack => {
                let at = self.at(event).unwrap();
                self.rows[at].attempt -= 1;
                self.rows[at].state = State::Blocked;
                self.rows[at].due = false;
                self.rows[at].due = !self.is_behind(event, false);
            }
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, write: &Write, state: State, due: bool, failures: u32) {
        if !write.has_row {
            return self.park(write, state, due, failures);
        }
        let at = self.at(write.event.0).unwrap();
        let row = &mut self.rows[at];
        assert_eq!((row.state, row.attempt), (State::Running, write.attempt));
        (row.state, row.due, row.failures) = (state, due, failures);
    }

    /// `claim_due.sql`, everything that is due being due now.
    fn claim(&mut self, slots: usize) -> Found {
        let due: Vec<i64> = self.rows.iter().filter(|row| row.due).map(|row| row.event).take(slots).collect();
        let before = self.rows.clone();
        let mut claimed = Vec::new();
        for event in due {
            let at = self.at(event).unwrap();
            let held = |other: &Row| other.event != event && key(other.event) == key(event) && self.holds(other);
            let alone = !before.iter().any(held);
            if self.rows[at].state == State::Scheduled && self.rows[at].attempt == 0 && !alone {
                let mut row = self.rows.remove(at);
                (row.state, row.due) = (State::Blocked, false);
                self.rows.push(row);
                let at = self.at(event).unwrap();
                self.rows[at].due = !self.is_behind(event, false);
                continue;
            }
            let row = &mut self.rows[at];
            (row.state, row.due, row.attempt) = (State::Running, false, row.attempt + 1);
            claimed.push(Claimed {
                event: self::event(event),
                handler: "h".to_owned(),
                attempt: row.attempt,
                failures: row.failures,
                polls: 0,
                answer_in: None,
                expires_in: None,
                results: None,
                overdue: std::time::Duration::ZERO,
                unanswered: false,
                alone,
                parked: false,
            });
        }
        Found { claimed, ..Found::default() }
    }
}

struct World {
    table: Table,
    lane: Lane,
    config: DeliveryConfig,
    next: i64,
    delayed: BTreeSet<i64>,
    running: Vec<(Ticket, i64)>,
    /// The call that each is in: the ticket of its first.
    calls: BTreeMap<Ticket, Ticket>,
    /// Ended with success in this term, written or not.
    succeeded: BTreeSet<i64>,
    /// Asked of the leader's session, in order.
    requests: VecDeque<Request>,
    /// Answered by it, and not heard yet.
    replies: VecDeque<Reply>,
    /// With `skip`, these have lost their place.
    died: BTreeSet<i64>,
    now: Instant,
}

enum Request {
    Write(Box<Write>),
    Claim(usize),
}

enum Reply {
    Written(Box<Write>),
    Claimed(Found),
}

#[derive(Debug, Clone)]
enum Act {
    Insert { count: usize, delayed: bool },
    Start { most: usize },
    End { which: Index, how: u8 },
    Record,
    Claim,
    Serve { count: usize },
    Hear { count: usize },
    Discard { which: Index },
    Redrive { which: Index },
    Crash,
}

fn new_lane(config: &DeliveryConfig, held: &Held, now: Instant) -> Lane {
    let checkpoint = Checkpoint { handler: "h".into(), position: Snapshot::beginning(), finished: 0 };
    Lane::new(LaneId(0), config.clone(), &checkpoint, held, now)
}

impl World {
    fn new(policy: OnDeadKey, record: Record, batch: Option<BatchConfig>) -> Self {
        let retry = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        let (concurrency, ordered) = (4, Some(policy));
        let topics = vec!["#".parse().unwrap()];
        let config = DeliveryConfig { concurrency, retry, ordered, record, batch, ..DeliveryConfig::new(topics) };
        let now = Instant::now();
        let lane = new_lane(&config, &Held::default(), now);
        let table = Table { policy, rows: Vec::new(), done: BTreeSet::new() };
        let (delayed, succeeded, died) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (running, calls, requests, replies) = (Vec::new(), BTreeMap::new(), VecDeque::new(), VecDeque::new());
        Self { table, lane, config, next: 1, delayed, running, calls, succeeded, requests, replies, died, now }
    }

    fn offer(&mut self, id: i64, steps: &mut Vec<Step>) {
        let due_in = self.delayed.contains(&id).then_some(Duration::from_secs(1));
        let offer = Offer { priority: 0, due_in, expires_in: None, begun: false };
        self.lane.offer(&Arc::new(event(id)), &offer, self.now, steps);
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Write(write) => self.requests.push_back(Request::Write(Box::new(write))),
                Step::Start(start) => self.call(&[start]),
                Step::StartBatch(starts) => self.call(&starts),
                Step::Lasts(_) | Step::Withdrawn(_) => panic!("it has no flow"),
            }
        }
    }

    /// A call is no larger than is configured, and no more run at the same time.
    fn call(&mut self, starts: &[Start]) {
        assert!((1..=self.config.batch.map_or(1, |batch| batch.max)).contains(&starts.len()), "{starts:?}");
        for start in starts {
            self.calls.insert(start.ticket, starts[0].ticket);
            self.begins(start.ticket, start.event.id.0);
        }
        let calls: BTreeSet<Ticket> = self.running.iter().map(|(ticket, _)| self.calls[ticket]).collect();
        assert!(calls.len() <= self.config.concurrency, "{calls:?}");
    }

    /// The two promises.
    fn begins(&mut self, ticket: Ticket, id: i64) {
        let same = self.running.iter().find(|(_, other)| key(*other) == key(id));
        assert_eq!(same, None, "{id} begins while another one of its key runs");
        let passed = |other: i64| {
            self.table.done.contains(&other)
                || self.succeeded.contains(&other)
                || self.delayed.contains(&other)
                || (self.table.policy == OnDeadKey::Skip && self.died.contains(&other))
        };
        if !self.delayed.contains(&id) {
            let before = (1..id).filter(|&other| key(other) == key(id)).find(|&other| !passed(other));
            assert_eq!(before, None, "{id} begins before {before:?}, {:?}", self.table.rows);
        }
        self.running.push((ticket, id));
    }

    fn act(&mut self, act: &Act) {
        let mut steps = Vec::new();
        match act {
            Act::Insert { count, delayed } => {
                for _ in 0..*count {
                    if *delayed {
                        self.delayed.insert(self.next);
                    }
                    self.offer(self.next, &mut steps);
                    self.next += 1;
                }
            }
            Act::Start { most } => self.lane.start(*most, self.now, &mut steps),
            Act::End { which, how } if !self.running.is_empty() => {
                let (ticket, id) = self.running.remove(which.index(self.running.len()));
                let failure = Failure::new("no");
                let outcome = match how {
                    0 => Outcome::Retry { after: Some(Duration::ZERO), failure },
                    1 => Outcome::Dead { failure },
                    2 => Outcome::Snooze { after: Some(Duration::ZERO) },
                    _ => Outcome::done(),
                };
                if matches!(outcome, Outcome::Done { .. }) {
                    self.succeeded.insert(id);
                }
                let ended = self.lane.ended(ticket, outcome, None, self.now, 0.5, &mut steps).unwrap();
                if matches!(ended.settlement, Settlement::Dead { .. }) {
                    self.died.insert(id);
                }
            }
            Act::Record => {
                self.now += Duration::from_secs(2);
                self.lane.record(self.now, &mut steps);
            }
            Act::Claim => return self.claim(),
            Act::Serve { count } => return self.serve(*count),
            Act::Hear { count } => return self.hear(*count),
            Act::Discard { which } => self.discard(*which),
            Act::Redrive { which } => self.redrive(*which),
            Act::Crash => return self.crash(),
            Act::End { .. } => {}
        }
        self.take(steps);
    }

    fn claim(&mut self) {
        self.now += Duration::from_secs(5);
        self.lane.due_within(Duration::ZERO, self.now);
        let slots = self.lane.claim(usize::MAX, self.now).due;
        if slots > 0 {
            self.requests.push_back(Request::Claim(slots));
        }
    }

    /// The leader's session takes one after the other.
    fn serve(&mut self, count: usize) {
        for _ in 0..count {
            let Some(request) = self.requests.pop_front() else { break };
            self.replies.push_back(match request {
                Request::Write(write) => {
                    self.table.write(&write);
                    Reply::Written(write)
                }
                Request::Claim(slots) => Reply::Claimed(self.table.claim(slots)),
            });
        }
    }

    fn hear(&mut self, count: usize) {
        for _ in 0..count {
            let Some(reply) = self.replies.pop_front() else { break };
            let mut steps = Vec::new();
            match reply {
                Reply::Written(write) => self.lane.written(write.ticket, write.ended.fate(), self.now, &mut steps),
                Reply::Claimed(found) => drop(self.lane.claimed(found, self.now, 0.5, &mut steps)),
            }
            self.take(steps);
        }
    }

    fn dead(&self, which: Index) -> Option<usize> {
        let dead: Vec<usize> =
            (0..self.table.rows.len()).filter(|&at| self.table.rows[at].state == State::Dead).collect();
        (!dead.is_empty()).then(|| dead[which.index(dead.len())])
    }

    fn discard(&mut self, which: Index) {
        if let Some(at) = self.dead(which) {
            let event = self.table.rows[at].event;
            self.table.remove(event);
            self.table.done.insert(event);
        }
    }

    fn redrive(&mut self, which: Index) {
        if let Some(at) = self.dead(which) {
            let behind = self.table.is_behind(self.table.rows[at].event, true);
            let row = &mut self.table.rows[at];
            row.failures = 0;
            (row.state, row.due) = if behind { (State::Blocked, false) } else { (State::Retrying, true) };
        }
    }

    /// What was in memory is gone; the log is read again behind what has a row.
    fn crash(&mut self) {
        self.running.clear();
        self.requests.clear();
        self.replies.clear();
        self.succeeded.clear();
        for at in 0..self.table.rows.len() {
            let row = &mut self.table.rows[at];
            if row.state == State::Running {
                let dead = row.failures + 1 >= 3;
                (row.state, row.due) = if dead { (State::Dead, false) } else { (State::Retrying, true) };
                row.failures += 1;
                let event = row.event;
                if dead {
                    self.died.insert(event);
                }
                if dead && self.table.policy == OnDeadKey::Skip {
                    self.table.pass(event);
                }
            }
        }
        let held = self.table.rows.iter().filter(|row| self.table.holds(row));
        let keys = held.map(|row| KeyHash::of(&key(row.event))).collect();
        self.lane = new_lane(&self.config, &Held { keys, ..Held::default() }, self.now);
        let mut steps = Vec::new();
        for id in 1..self.next {
            if !self.table.done.contains(&id) && self.table.at(id).is_none() {
                self.offer(id, &mut steps);
            }
        }
        self.take(steps);
    }

    /// Everything succeeds from here on, and the dead are redriven: everything must end.
    fn finish(&mut self) {
        for _ in 0..3 * usize::try_from(self.next).unwrap() + 20 {
            let mut steps = Vec::new();
            self.lane.start(usize::MAX, self.now, &mut steps);
            self.take(steps);
            while let Some((ticket, id)) = self.running.pop() {
                let mut steps = Vec::new();
                self.succeeded.insert(id);
                self.lane.ended(ticket, Outcome::done(), None, self.now, 0.5, &mut steps).unwrap();
                self.take(steps);
            }
            self.serve(usize::MAX);
            self.hear(usize::MAX);
            while let Some(at) = self.table.rows.iter().position(|row| row.state == State::Dead) {
                let behind = self.table.is_behind(self.table.rows[at].event, true);
                let row = &mut self.table.rows[at];
                (row.state, row.due) = if behind { (State::Blocked, false) } else { (State::Retrying, true) };
                row.failures = 0;
            }
            self.claim();
            self.serve(usize::MAX);
            self.hear(usize::MAX);
        }
        assert_eq!(self.table.rows.len(), 0, "stuck: {:?}", self.table.rows);
        assert_eq!(self.table.done.len(), usize::try_from(self.next - 1).unwrap());
        assert!(self.lane.is_idle());
        assert_eq!(self.lane.room(), outboxd::daemon::lane::LANE_DELIVERIES_MAX, "nothing is left in the lane");
    }
}

fn act() -> impl Strategy<Value = Act> {
    let index = any::<Index>;
    prop_oneof![
        4 => (1usize..6, prop::bool::weighted(0.2)).prop_map(|(count, delayed)| Act::Insert { count, delayed }),
        6 => (0usize..5).prop_map(|most| Act::Start { most }),
        8 => (index(), 0u8..8).prop_map(|(which, how)| Act::End { which, how }),
        2 => Just(Act::Record),
        5 => Just(Act::Claim),
        7 => (1usize..6).prop_map(|count| Act::Serve { count }),
        7 => (1usize..6).prop_map(|count| Act::Hear { count }),
        1 => index().prop_map(|which| Act::Discard { which }),
        1 => index().prop_map(|which| Act::Redrive { which }),
        1 => Just(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_key_has_one_delivery_at_a_time_in_order_and_none_is_stuck(
        block in any::<bool>(), record in any::<bool>(), batch in option::of((2usize..4, 0u64..4)), acts in vec(act(), 1..100),
    ) {
        let policy = if block { OnDeadKey::Block } else { OnDeadKey::Skip };
        let batch = batch.map(|(max, wait)| BatchConfig { max, wait: Duration::from_secs(wait) });
        let mut world = World::new(policy, if record { Record::Start } else { Record::Late }, batch);
        for act in &acts {
            world.act(act);
        }
        world.finish();
    }
}
