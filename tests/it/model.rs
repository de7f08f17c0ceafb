//! The tail and the lanes against a PostgreSQL in memory: whatever the order of commits, reads, room and settling, a
//! lane is offered every event once, and what it has not settled is read again after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use outboxd::config::DeliveryConfig;
use outboxd::daemon::lane::{Lane, Offer, Step};
use outboxd::daemon::tail::{Read, Tail};
use outboxd::daemon::write::{Fate, LaneId, Ticket};
use outboxd::snapshot::Snapshot;
use outboxd::store::log::Cursor;
use outboxd::store::registry::{Checkpoint, Held};
use outboxd::{Event, EventId, Outcome};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Whether the cursor stands behind an event of this transaction with this id.
fn consumed(cursor: &Cursor, xid: u64, id: i64) -> bool {
    cursor.position.sees(xid) || cursor.partial.get(&xid).is_some_and(|&last| id <= last)
}

/// A row of the log: transaction and id, the order in which it is read.
type Row = (u64, i64);

/// Transactions and the rows they inserted.
#[derive(Default)]
struct Server {
    next_xid: u64,
    completed_max: u64,
    /// Ids left in each of two sessions' caches, so that ids do not follow transactions.
    cached: [Vec<i64>; 2],
    next_id: i64,
    open: BTreeMap<u64, Vec<i64>>,
    committed: BTreeSet<Row>,
    /// Rows of each committed transaction.
    sizes: BTreeMap<u64, usize>,
}

impl Server {
    fn new() -> Self {
        Self { next_xid: 3, completed_max: 2, next_id: 1, ..Self::default() }
    }

    fn id(&mut self, session: usize) -> i64 {
        if self.cached[session].is_empty() {
            let end = self.next_id + 50;
            self.cached[session] = (self.next_id..end).rev().collect();
            self.next_id = end;
        }
        self.cached[session].pop().unwrap()
    }

    fn begin(&mut self, rows: usize) {
        let xid = self.next_xid;
        self.next_xid += 1;
        let session = usize::try_from(xid % 2).unwrap();
        let ids = (0..rows).map(|_| self.id(session)).collect();
        self.open.insert(xid, ids);
    }

    /// Ends one of the transactions in progress, if there is any; whether there was.
    fn end(&mut self, which: impl Fn(usize) -> usize, commit: bool) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let xid = *self.open.keys().nth(which(self.open.len())).unwrap();
        let ids = self.open.remove(&xid).unwrap();
        self.completed_max = self.completed_max.max(xid);
        if commit {
            self.sizes.insert(xid, ids.len());
            self.committed.extend(ids.into_iter().map(|id| (xid, id)));
        }
        true
    }

    /// As PostgreSQL makes it: transactions above the highest that has ended are not listed.
    fn snapshot(&self) -> Snapshot {
        let xmax = self.completed_max + 1;
        let in_progress: Vec<String> = self.open.range(..xmax).map(|(xid, _)| xid.to_string()).collect();
        let xmin = self.open.keys().next().map_or(xmax, |&xid| xid.min(xmax));
        format!("{xmin}:{xmax}:{}", in_progress.join(",")).parse().unwrap()
    }

    /// `tail_head.sql`: one page behind the cursor.
    fn head(&self, cursor: &Cursor, events: usize) -> (Vec<Row>, Cursor) {
        let now = Cursor::at(self.snapshot());
        let unread = self.committed.iter().filter(|(xid, id)| !consumed(cursor, *xid, *id));
        let page: Vec<Row> = unread.take(events).copied().collect();
        let cursor = match page.last() {
            Some(&(xid, id)) if page.len() == events => cursor.after_full(xid, id, &now),
            _ => now,
        };
        (page, cursor)
    }

    /// `tail_behind.sql`: one page behind the cursor and before the head.
    fn behind(&self, cursor: &Cursor, head: &Cursor, events: usize) -> (Vec<Row>, Cursor) {
        let between = |(xid, id): &&Row| consumed(head, *xid, *id) && !consumed(cursor, *xid, *id);
        let page: Vec<Row> = self.committed.iter().filter(between).take(events).copied().collect();
        let cursor = match page.last() {
            Some(&(xid, id)) if page.len() == events => cursor.after_full(xid, id, head),
            _ => head.clone(),
        };
        (page, cursor)
    }
}

/// One handler: its lane in this term, and what the database knows of it.
struct Handler {
    lane: Lane,
    running: Vec<(Ticket, Row)>,
    /// Ended, and not yet written.
    ended: Vec<(Ticket, Row)>,
    /// The events of this term and their transactions.
    offered: BTreeMap<i64, u64>,
    /// Room that its runner leaves, besides what the lane itself allows.
    room: usize,
    /// Where it began, and where it was stored last.
    began: Snapshot,
    stored: Snapshot,
    settled: BTreeSet<Row>,
    /// Settled rows of each transaction.
    sizes: BTreeMap<u64, usize>,
}

/// A term, on a server that outlives it.
struct World {
    server: Server,
    tail: Tail,
    handlers: BTreeMap<LaneId, Handler>,
    /// What an earlier term may have settled.
    earlier: (Snapshot, i64),
    now: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Begin { rows: usize },
    End { which: Index, commit: bool },
    Read { news: bool },
    Room { lane: Index, room: usize },
    Run { lane: Index, count: usize, last_first: bool },
    Write { lane: Index, count: usize },
    Store,
    AddHandler,
    Crash,
}

fn lane(id: LaneId, position: &Snapshot, now: Instant) -> Lane {
    let config = DeliveryConfig { concurrency: 64, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let checkpoint = Checkpoint { handler: "model".into(), position: position.clone(), finished: 0 };
    Lane::new(id, config, &checkpoint, &Held::default(), now)
}

fn event(id: i64) -> Arc<Event> {
    let created_at = jiff::Timestamp::UNIX_EPOCH;
    let (payload, headers) = ("{}".to_owned(), "{}".to_owned());
    Arc::new(Event { id: EventId(id), topic: "load".to_owned(), key: None, payload, headers, created_at })
}

impl Handler {
    fn new(id: LaneId, position: &Snapshot, now: Instant) -> Self {
        Self {
            lane: lane(id, position, now),
            running: Vec::new(),
            ended: Vec::new(),
            offered: BTreeMap::new(),
            room: usize::MAX,
            began: position.clone(),
            stored: position.clone(),
            settled: BTreeSet::new(),
            sizes: BTreeMap::new(),
        }
    }

    fn offer(&mut self, rows: &[Row], earlier: &(Snapshot, i64), checked: bool, position: &Snapshot, now: Instant) {
        for &(xid, id) in rows {
            // What was settled in this term is never asked for: only positions keep it from coming again.
            let known = checked || earlier.0.sees(xid) || id <= earlier.1;
            if known && self.settled.contains(&(xid, id)) {
                continue;
            }
            assert_eq!(self.offered.insert(id, xid), None, "{:?} is offered twice", (xid, id));
            let offer = Offer { priority: 0, due_in: None, expires_in: None, begun: false };
            let mut steps = Vec::new();
            self.lane.offer(&event(id), &offer, now, &mut steps);
            assert!(steps.is_empty());
        }
        self.lane.close_window(position);
    }

    /// Starts what may start, and ends some of it.
    fn run(&mut self, count: usize, last_first: bool, now: Instant) {
        let mut steps = Vec::new();
        self.lane.start(usize::MAX, now, &mut steps);
        for step in steps {
            let Step::Start(start) = step else { panic!("{step:?}") };
            let id = start.event.id.0;
            self.running.push((start.ticket, (self.offered[&id], id)));
        }
        for _ in 0..count.min(self.running.len()) {
            let (ticket, row) = if last_first { self.running.pop().unwrap() } else { self.running.remove(0) };
            let mut steps = Vec::new();
            self.lane.ended(ticket, Outcome::done(), None, now, 0.5, &mut steps).unwrap();
            assert_eq!(steps.len(), 1);
            self.ended.push((ticket, row));
        }
    }

    /// Commits some outcomes.
    fn write(&mut self, count: usize) {
        for (ticket, row) in self.ended.drain(..count.min(self.ended.len())) {
            assert!(self.settled.insert(row), "{row:?} is settled twice");
            *self.sizes.entry(row.0).or_default() += 1;
            self.lane.written(ticket, Fate::Ended { finished: true }, Instant::now(), &mut Vec::new());
        }
    }

    /// Nothing unsettled lies before the position.
    fn check(&self, server: &Server) {
        let position = self.lane.position();
        let passed = |xid: u64| position.sees(xid) && !self.began.sees(xid);
        let lost = server.sizes.iter().find(|(xid, rows)| passed(**xid) && self.sizes.get(xid) != Some(rows));
        assert_eq!(lost, None, "the position {position} has passed an unsettled event");
    }
}

impl World {
    fn new(handlers: u32) -> Self {
        let (server, now) = (Server::new(), Instant::now());
        let position = server.snapshot();
        let ids = (0..handlers).map(LaneId);
        let handlers: BTreeMap<_, _> = ids.map(|id| (id, Handler::new(id, &position, now))).collect();
        let positions = handlers.keys().map(|&id| (id, position.clone())).collect();
        let tail = Tail::new(&positions, position.clone());
        Self { server, tail, handlers, earlier: (position, 0), now }
    }

    fn picked(&mut self, lane: Index) -> &mut Handler {
        let lane = lane.index(self.handlers.len());
        self.handlers.values_mut().nth(lane).unwrap()
    }

    fn act(&mut self, act: Act) {
        let now = self.now;
        match act {
            Act::Begin { rows } => self.server.begin(rows),
            Act::End { which, commit } => {
                self.server.end(|open| which.index(open), commit);
            }
            Act::Read { news } => {
                self.read(news);
            }
            Act::Room { lane, room } => self.picked(lane).room = room,
            Act::Run { lane, count, last_first } => self.picked(lane).run(count, last_first, now),
            Act::Write { lane, count } => self.picked(lane).write(count),
            Act::Store => {
                for handler in self.handlers.values_mut() {
                    handler.stored = handler.lane.position().clone();
                }
            }
            Act::AddHandler => {
                // As a handler of a new configuration: behind the head.
                let id = LaneId(u32::try_from(self.handlers.len()).unwrap());
                let position = self.tail.head().clone();
                self.handlers.insert(id, Handler::new(id, &position, now));
                self.tail.add(id, position);
            }
            Act::Crash => self.crash(),
        }
        for handler in self.handlers.values() {
            handler.check(&self.server);
        }
    }

    /// One read, if the tail wants any; whether it did.
    fn read(&mut self, news: bool) -> bool {
        let handlers = &self.handlers;
        let read = self.tail.next(news, |id| handlers[&id].lane.room().min(handlers[&id].room), |_| {});
        match read {
            None => false,
            Some(Read::Head { cursor, limit, lanes }) => {
                let (rows, cursor) = self.server.head(&cursor, limit.events);
                let position = self.tail.read_head(cursor).clone();
                for id in lanes {
                    let handler = self.handlers.get_mut(&id).unwrap();
                    handler.offer(&rows, &self.earlier, false, &position, self.now);
                }
                true
            }
            Some(Read::Behind { lane, cursor, head, limit }) => {
                let (rows, cursor) = self.server.behind(&cursor, &head, limit.events);
                let (position, _) = self.tail.read_behind(lane, cursor);
                let handler = self.handlers.get_mut(&lane).unwrap();
                handler.offer(&rows, &self.earlier, true, &position, self.now);
                true
            }
        }
    }

    /// Everything in memory is gone: the next term begins with what was stored.
    fn crash(&mut self) {
        self.earlier = (self.server.snapshot(), self.server.next_id - 1);
        for (&id, handler) in &mut self.handlers {
            let (running, ended) = (&mut handler.running, &mut handler.ended);
            running.clear();
            ended.clear();
            handler.offered.clear();
            handler.lane = lane(id, &handler.stored, self.now);
        }
        let positions = self.handlers.iter().map(|(&id, handler)| (id, handler.stored.clone())).collect();
        self.tail = Tail::new(&positions, self.earlier.0.clone());
    }

    /// Ends every transaction, reads and settles everything, and compares with the model.
    fn finish(&mut self) {
        while self.server.end(|_| 0, true) {}
        let mut idle = 0;
        // Two reads of nothing in a row: the head and everybody behind it have come to the end.
        while idle < 2 + self.handlers.len() {
            let settled = |world: &Self| world.handlers.values().map(|handler| handler.settled.len()).sum::<usize>();
            let before = settled(self);
            self.read(true);
            for handler in self.handlers.values_mut() {
                handler.room = usize::MAX;
                handler.run(usize::MAX, false, self.now);
                handler.write(usize::MAX);
            }
            idle = if settled(self) > before { 0 } else { idle + 1 };
        }
        for handler in self.handlers.values() {
            let meant: BTreeSet<Row> =
                self.server.committed.iter().filter(|(xid, _)| !handler.began.sees(*xid)).copied().collect();
            assert!(handler.settled == meant, "settled {:?}, committed {meant:?}", handler.settled);
            assert_eq!(handler.lane.position(), self.tail.head(), "everything is settled up to the head");
            assert!(handler.lane.has_written());
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    let index = any::<Index>;
    prop_oneof![
        6 => (1usize..200).prop_map(|rows| Act::Begin { rows }),
        // Transactions that are always the youngest or the oldest to end come by themselves.
        6 => (index(), prop::bool::weighted(0.8)).prop_map(|(which, commit)| Act::End { which, commit }),
        12 => prop::bool::weighted(0.7).prop_map(|news| Act::Read { news }),
        3 => (index(), prop::sample::select(vec![0, 249, 250, 333, usize::MAX]))
            .prop_map(|(lane, room)| Act::Room { lane, room }),
        6 => (index(), 0usize..300, any::<bool>())
            .prop_map(|(lane, count, last_first)| Act::Run { lane, count, last_first }),
        6 => (index(), 0usize..300).prop_map(|(lane, count)| Act::Write { lane, count }),
        3 => Just(Act::Store),
        1 => Just(Act::AddHandler),
        1 => Just(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn every_lane_is_offered_everything_once_and_a_crash_costs_only_what_was_not_settled(acts in vec(act(), 1..120)) {
        let mut world = World::new(3);
        for act in acts {
            world.act(act);
        }
        world.finish();
    }
}
