//! So many of a key at a time: a lane against a model of `outbox.open`. Whatever fails, is delayed, cancelled, locked or lost in a crash,
//! whenever it is written, in whatever batches, and however the number changes: never more of a key than may run, and nothing is
//! forgotten. Events are so large that a few fill a key's share of the lane.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboxd::config::{BatchConfig, DeliveryConfig, Record};
use outboxd::daemon::lane::places::WAITING_BYTES_MAX;
use outboxd::daemon::lane::{LANE_DELIVERIES_MAX, Lane, Offer, Start, Step};
use outboxd::daemon::write::{Ended, Fate, LaneId, Ticket, Write};
use outboxd::outcome::{Failure, RetryPolicy, Settlement};
use outboxd::snapshot::Snapshot;
use outboxd::store::registry::{Checkpoint, Held};
use outboxd::store::settle::{Claimed, Found, Parked, Wanted};
use outboxd::{Event, EventId, Outcome};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Due,
    Running,
    Blocked,
    Dead,
}

/// A row of `outbox.open`.
#[derive(Debug)]
struct Row {
    event: i64,
    state: State,
    attempt: u32,
    failures: u32,
    /// Somebody has locked it.
    locked: bool,
}

enum Request {
    Write(Box<Write>),
    Claim(Wanted),
}

enum Reply {
    Written(Box<Write>, Fate),
    Claimed(Found),
}

#[derive(Debug, Clone)]
enum Act {
    Insert { count: usize, delayed: bool, expires: bool },
    Start { most: usize },
    End { which: Index, how: u8 },
    Record,
    Claim { most: usize },
    Serve { count: usize },
    Hear { count: usize },
    Cancel { which: Index },
    Redrive { which: Index },
    Lock { which: Index },
    Unlock,
    Resize { most: usize },
    Crash,
}

struct World {
    lane: Lane,
    config: DeliveryConfig,
    rows: Vec<Row>,
    done: BTreeSet<i64>,
    next: i64,
    delayed: BTreeSet<i64>,
    expires: BTreeMap<i64, Instant>,
    running: Vec<(Ticket, i64)>,
    requests: VecDeque<Request>,
    replies: VecDeque<Reply>,
    now: Instant,
    /// What counts: when it becomes less, what has its place already keeps it.
    most: usize,
}

/// Half of the events have the first of three keys, the others one of many.
fn key(event: i64) -> String {
    format!("k{}", if event % 2 == 0 { 0 } else { event % 13 })
}

fn event(id: i64) -> Event {
    let (payload, headers) = ("x".repeat(WAITING_BYTES_MAX / 4), "{}".to_owned());
    let created_at = jiff::Timestamp::UNIX_EPOCH;
    Event { id: EventId(id), topic: "t".to_owned(), key: Some(key(id)), payload, headers, created_at }
}

fn new_lane(config: &DeliveryConfig, parked: Vec<Arc<str>>, now: Instant) -> Lane {
    let checkpoint = Checkpoint { handler: "h".into(), position: Snapshot::beginning(), finished: 0 };
    Lane::new(LaneId(0), config.clone(), &checkpoint, &Held { parked, ..Held::default() }, now)
}

impl World {
    fn new(most: usize, record: Record, batch: Option<BatchConfig>, concurrency: Option<usize>) -> Self {
        let retry = RetryPolicy { max_attempts: 3, concurrency, ..RetryPolicy::default() };
        let topics = vec!["#".parse().unwrap()];
        let concurrency_per_key = Some(most);
        let config =
            DeliveryConfig { concurrency: 5, concurrency_per_key, retry, record, batch, ..DeliveryConfig::new(topics) };
        let now = Instant::now();
        let (lane, delayed, done) = (new_lane(&config, Vec::new(), now), BTreeSet::new(), BTreeSet::new());
        let (rows, running, requests, replies) = (Vec::new(), Vec::new(), VecDeque::new(), VecDeque::new());
        Self {
            lane,
            config,
            rows,
            done,
            next: 1,
            delayed,
            expires: BTreeMap::new(),
            running,
            requests,
            replies,
            now,
            most,
        }
    }

    fn at(&self, event: i64) -> Option<usize> {
        self.rows.iter().position(|row| row.event == event)
    }

    fn offer(&mut self, id: i64, steps: &mut Vec<Step>) {
        let due_in = self.delayed.contains(&id).then_some(Duration::from_secs(1));
        let offer = Offer { priority: 0, due_in, expires_in: self.expires_in(id), begun: false };
        self.lane.offer(&Arc::new(event(id)), &offer, self.now, steps);
    }

    fn expires_in(&self, id: i64) -> Option<Duration> {
        self.expires.get(&id).map(|at| at.saturating_duration_since(self.now))
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Write(write) => self.requests.push_back(Request::Write(Box::new(write))),
                Step::Start(start) => self.begins(&[start]),
                Step::StartBatch(starts) => self.begins(&starts),
                Step::Lasts(_) | Step::Withdrawn(_) => panic!("it has no flow"),
            }
        }
    }

    /// The promise.
    fn begins(&mut self, starts: &[Start]) {
        for start in starts {
            let id = start.event.id.0;
            assert!(!self.done.contains(&id), "{id} begins again");
            let of_key = self.running.iter().filter(|(_, other)| key(*other) == key(id)).count();
            assert!(of_key < self.most, "{id} begins beside {of_key} others");
            self.running.push((start.ticket, id));
        }
    }

    fn act(&mut self, act: &Act) {
        let mut steps = Vec::new();
        if self.lane.is_idle() && self.lane.waiting() == 0 {
            self.most = self.config.concurrency_per_key.unwrap();
        }
        match act {
            Act::Insert { count, delayed, expires } => {
                for _ in 0..(*count).min(self.lane.room()) {
                    if *delayed {
                        self.delayed.insert(self.next);
                    }
                    if *expires {
                        self.expires.insert(self.next, self.now + Duration::from_secs(20));
                    }
                    self.offer(self.next, &mut steps);
                    self.next += 1;
                }
            }
            Act::Start { most } => self.lane.start(*most, self.now, &mut steps),
            Act::End { which, how } if !self.running.is_empty() => {
                let (ticket, _) = self.running.remove(which.index(self.running.len()));
                let failure = Failure::new("no");
                let outcome = match how {
                    0 => Outcome::Retry { after: Some(Duration::ZERO), failure },
                    1 => Outcome::Dead { failure },
                    2 => Outcome::Snooze { after: Some(Duration::ZERO) },
                    _ => Outcome::done(),
                };
                self.lane.ended(ticket, outcome, None, self.now, 0.5, &mut steps).unwrap();
            }
            Act::Record => {
                self.now += Duration::from_secs(2);
                self.lane.record(self.now, &mut steps);
            }
            Act::Claim { most } => return self.claim(*most),
            Act::Serve { count } => return self.serve(*count),
            Act::Hear { count } => return self.hear(*count),
            Act::Cancel { which } if self.next > 1 => {
                let events: Vec<i64> = (1..self.next).collect();
                return self.cancel(events[which.index(events.len())]);
            }
            Act::Redrive { which } => return self.redrive(Some(*which)),
            Act::Lock { which } if !self.rows.is_empty() => {
                let at = which.index(self.rows.len());
                self.rows[at].locked = true;
            }
            Act::Unlock => self.unlock(),
            Act::Resize { most } => {
                self.config.concurrency_per_key = Some(*most);
                self.most = self.most.max(*most);
                self.lane.configure(self.config.clone(), self.now);
            }
            Act::Crash => return self.crash(),
            Act::End { .. } | Act::Cancel { .. } | Act::Lock { .. } => {}
        }
        self.take(steps);
    }

    fn unlock(&mut self) {
        for row in &mut self.rows {
            row.locked = false;
        }
    }

    fn claim(&mut self, most: usize) {
        self.now += Duration::from_secs(5);
        let wanted = self.lane.claim(most, self.now);
        if !wanted.is_empty() {
            self.requests.push_back(Request::Claim(wanted));
        }
    }

    fn serve(&mut self, count: usize) {
        for _ in 0..count {
            let Some(request) = self.requests.pop_front() else { break };
            let reply = match request {
                Request::Write(write) => {
                    let fate = if self.write(&write) { write.ended.fate() } else { write.ended.refused() };
                    Reply::Written(write, fate)
                }
                Request::Claim(wanted) => Reply::Claimed(self.claim_due(&wanted)),
            };
            self.replies.push_back(reply);
        }
    }

    fn hear(&mut self, count: usize) {
        for _ in 0..count {
            let Some(reply) = self.replies.pop_front() else { break };
            let mut steps = Vec::new();
            match reply {
                Reply::Written(write, fate) => self.lane.written(write.ticket, fate, self.now, &mut steps),
                Reply::Claimed(found) => drop(self.lane.claimed(found, self.now, 0.5, &mut steps)),
            }
            self.take(steps);
        }
    }

    /// What `settle.rs` does with one write; false if somebody else has ended the delivery.
    fn write(&mut self, write: &Write) -> bool {
        let event = write.event.0;
        if self.done.contains(&event) {
            return matches!(write.ended, Ended::Cancelled);
        }
        let (state, failures) = match &write.ended {
            Ended::Settled(Settlement::Done { .. }) | Ended::Expired => {
                self.rows.retain(|row| row.event != event);
                return self.done.insert(event);
            }
            Ended::Settled(Settlement::Retry { .. }) => (State::Due, write.failures + 1),
            Ended::Settled(Settlement::Snooze { .. }) | Ended::Scheduled { .. } => (State::Due, write.failures),
            Ended::Settled(Settlement::Dead { .. }) => (State::Dead, write.failures + 1),
            Ended::Blocked | Ended::PutBack => (State::Blocked, write.failures),
            Ended::StillRunning => (State::Running, write.failures),
            other => panic!("{other:?}"),
        };
        let attempt = write.attempt - u32::from(matches!(write.ended, Ended::PutBack));
        if let Some(at) = self.at(event) {
            assert!(write.has_row);
            assert_eq!((self.rows[at].state, self.rows[at].attempt), (State::Running, write.attempt));
            let row = &mut self.rows[at];
            (row.state, row.attempt, row.failures) = (state, attempt, failures);
        } else {
            assert!(!write.has_row, "{:?}", write.ended);
            self.rows.push(Row { event, state, attempt, failures, locked: false });
        }
        true
    }

    /// `claim_due.sql`, everything that is due being due now.
    fn claim_due(&mut self, wanted: &Wanted) -> Found {
        let due = self.rows.iter().filter(|row| row.state == State::Due && !row.locked).map(|row| row.event);
        let mut events: Vec<(i64, bool)> = due.take(wanted.due).map(|event| (event, false)).collect();
        let mut parked = Vec::new();
        for (of, places) in &wanted.parked {
            let waits = |row: &&Row| row.state == State::Blocked && key(row.event) == **of;
            let found: Vec<i64> =
                self.rows.iter().filter(waits).filter(|row| !row.locked).map(|row| row.event).take(*places).collect();
            let left = self.rows.iter().filter(waits).count() > found.len();
            parked.push(Parked { key: of.to_string(), claimed: found.len(), left });
            events.extend(found.into_iter().map(|event| (event, true)));
        }
        let mut claimed = Vec::new();
        for (event, parked) in events {
            let at = self.at(event).unwrap();
            let row = &mut self.rows[at];
            (row.state, row.attempt) = (State::Running, row.attempt + 1);
            claimed.push(Claimed {
                event: self::event(event),
                handler: "h".to_owned(),
                attempt: row.attempt,
                failures: row.failures,
                polls: 0,
                answer_in: None,
                expires_in: self.expires.get(&event).map(|at| at.saturating_duration_since(self.now)),
                results: None,
                overdue: Duration::ZERO,
                unanswered: false,
                alone: true,
                parked,
            });
        }
        let due_in = self.rows.iter().any(|row| row.state == State::Due).then_some(Duration::ZERO);
        Found { claimed, parked, due_in }
    }

    /// `outbox.cancel`, and what the daemon is told of it.
    fn cancel(&mut self, event: i64) {
        // An answer that is on its way comes before.
        self.hear(usize::MAX);
        if self.at(event).is_some_and(|at| self.rows[at].state == State::Dead) || !self.done.insert(event) {
            return;
        }
        self.rows.retain(|row| row.event != event);
        let mut steps = Vec::new();
        for (ticket, _) in self.lane.cancel(EventId(event), self.now, &mut steps) {
            self.running.retain(|(running, _)| *running != ticket);
        }
        self.take(steps);
    }

    fn redrive(&mut self, which: Option<Index>) {
        let dead: Vec<usize> = (0..self.rows.len()).filter(|&at| self.rows[at].state == State::Dead).collect();
        if !dead.is_empty() {
            let row = &mut self.rows[dead[which.map_or(0, |which| which.index(dead.len()))]];
            (row.state, row.failures) = (State::Due, 0);
            self.lane.due_within(Duration::ZERO, self.now);
        }
    }

    /// What was in memory is gone; the log is read again behind what has a row.
    fn crash(&mut self) {
        self.running.clear();
        self.requests.clear();
        self.replies.clear();
        for row in self.rows.iter_mut().filter(|row| row.state == State::Running) {
            row.failures += 1;
            row.state = if row.failures >= 3 { State::Dead } else { State::Due };
        }
        let waits = self.rows.iter().filter(|row| row.state == State::Blocked);
        let parked: BTreeSet<String> = waits.map(|row| key(row.event)).collect();
        self.most = self.config.concurrency_per_key.unwrap();
        self.lane = new_lane(&self.config, parked.into_iter().map(Into::into).collect(), self.now);
        let mut steps = Vec::new();
        for id in 1..self.next {
            if !self.done.contains(&id) && self.at(id).is_none() {
                self.offer(id, &mut steps);
            }
        }
        self.take(steps);
    }

    /// Everything succeeds from here on, nothing is locked, and the dead are redriven: everything must end.
    fn finish(&mut self) {
        self.unlock();
        for _ in 0..3 * self.next + 20 {
            let mut steps = Vec::new();
            self.lane.start(usize::MAX, self.now, &mut steps);
            self.take(steps);
            while let Some((ticket, _)) = self.running.pop() {
                let mut steps = Vec::new();
                self.lane.ended(ticket, Outcome::done(), None, self.now, 0.5, &mut steps).unwrap();
                self.take(steps);
            }
            self.serve(usize::MAX);
            self.hear(usize::MAX);
            self.redrive(None);
            self.claim(usize::MAX);
            self.serve(usize::MAX);
            self.hear(usize::MAX);
        }
        assert_eq!(self.rows.len(), 0, "stuck: {:?}", self.rows);
        assert_eq!(self.done.len(), usize::try_from(self.next - 1).unwrap());
        assert!(self.lane.is_idle());
        assert_eq!(self.lane.room(), LANE_DELIVERIES_MAX, "nothing is left in the lane");
        self.has_all_places();
    }

    /// What has ended has given its place back.
    fn has_all_places(&mut self) {
        let most = self.config.concurrency_per_key.unwrap();
        let mut steps = Vec::new();
        for id in (self.next..).filter(|id| key(*id) == "k0").take(most) {
            self.offer(id, &mut steps);
        }
        self.now += Duration::from_secs(10);
        self.lane.start(usize::MAX, self.now, &mut steps);
        self.take(steps);
        self.serve(usize::MAX);
        self.hear(usize::MAX);
        assert_eq!(self.running.len(), most, "a key has lost a place");
    }
}

fn act() -> impl Strategy<Value = Act> {
    let index = any::<Index>;
    prop_oneof![
        4 => (1usize..8, prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(count, delayed, expires)| Act::Insert { count, delayed, expires }),
        6 => (0usize..5).prop_map(|most| Act::Start { most }),
        8 => (index(), 0u8..8).prop_map(|(which, how)| Act::End { which, how }),
        2 => Just(Act::Record),
        5 => (0usize..6).prop_map(|most| Act::Claim { most }),
        7 => (1usize..6).prop_map(|count| Act::Serve { count }),
        7 => (1usize..6).prop_map(|count| Act::Hear { count }),
        1 => index().prop_map(|which| Act::Cancel { which }),
        1 => index().prop_map(|which| Act::Redrive { which }),
        1 => index().prop_map(|which| Act::Lock { which }),
        1 => Just(Act::Unlock),
        1 => (1usize..4).prop_map(|most| Act::Resize { most }),
        1 => Just(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_key_has_no_more_attempts_than_it_may_and_none_is_forgotten(
        most in 1usize..4, record in any::<bool>(), batch in option::of((2usize..4, 0u64..4)), retries in option::of(1usize..3),
        acts in vec(act(), 1..100),
    ) {
        let batch = batch.map(|(max, wait)| BatchConfig { max, wait: Duration::from_secs(wait) });
        let mut world = World::new(most, if record { Record::Start } else { Record::Late }, batch, retries);
        for act in &acts {
            world.act(act);
        }
        world.finish();
    }
}
