//! Producers, PostgreSQL and the daemon: where they stand, and every step that each of them may take next.

use std::collections::BTreeSet;

use crate::daemon::bell::model::present;
use crate::daemon::bell::{Bell, Next};
use crate::snapshot::Snapshot;

/// What a careless implementation might do instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Steps 1 and 2 of falling asleep are exchanged.
    ListsProducersBeforeTheFlagIsSet,
    /// Step 3 is left out when the list is empty.
    DoesNotReadAfterTheFlagIsSet,
    /// The list is ignored.
    IsNeverDrowsy,
    /// The flag is a row: a transaction sees it as it was when its snapshot was taken.
    FlagIsARow,
    /// The producer looks at the flag before it has a transaction id.
    ProducerLooksBeforeItInserts,
    /// The session that listens is late.
    ListensWhenItAlreadySleeps,
    /// What rings while a read is under way is taken for what that read finds.
    ForgetsARingDuringARead,
    /// The flag is set by something that takes no transaction id.
    FlagTakesNoTransactionId,
    /// The flag is set by something that takes its transaction id first.
    FlagTakesItsTransactionIdTooEarly,
    /// What a daemon that has ended asked for may happen after the next one began.
    OldSessionsMaySetTheFlag,
}

impl Fault {
    pub(super) const ALL: [Self; 10] = [
        Self::ListsProducersBeforeTheFlagIsSet,
        Self::DoesNotReadAfterTheFlagIsSet,
        Self::IsNeverDrowsy,
        Self::FlagIsARow,
        Self::ProducerLooksBeforeItInserts,
        Self::ListensWhenItAlreadySleeps,
        Self::ForgetsARingDuringARead,
        Self::FlagTakesNoTransactionId,
        Self::FlagTakesItsTransactionIdTooEarly,
        Self::OldSessionsMaySetTheFlag,
    ];
}

/// How far a producer's transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    NotBegun,
    /// It may have taken its snapshot.
    Begun,
    /// It has a transaction id, for whatever reason.
    Numbered,
    /// It has inserted an event and holds a lock on the table.
    Inserted,
    /// It has looked at the flag.
    Looked,
    /// Its event is visible.
    Visible,
    /// It holds no lock.
    Unlocked,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Event {
    None,
    Committed,
    /// In the answer that is on its way to the daemon. Delivered, it is forgotten.
    Read,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Producer {
    phase: Phase,
    xid: Option<u64>,
    /// It found the flag "asleep".
    rings: bool,
    /// What a flag in a row looks like to it.
    asleep_in_snapshot: bool,
    /// Somebody listened when it committed.
    is_heard: bool,
    event: Event,
}

/// What the daemon has asked of the tail's session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Job {
    None,
    /// Not yet executed, or executed: the highest transaction that had ended, and what was in progress below it.
    Read(Option<(u64, Vec<u64>)>),
    /// The parts that are still to come, the transaction that sets the flag, the producers listed.
    Flag {
        asleep: bool,
        parts: &'static [Part],
        xid: Option<u64>,
        list: Vec<u64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    TakeXid,
    SetFlag,
    Commit,
    Snapshot,
    Locks,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Daemon {
    bell: Bell,
    job: Job,
    listens: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    producers: Vec<Producer>,
    /// The flag as everybody sees it at once.
    asleep: bool,
    /// The highest transaction that has ended.
    ended: u64,
    /// A notification is on its way to the daemon.
    notified: bool,
    /// What a session of a daemon that has ended may still set the flag to.
    late: Option<bool>,
    daemon: Option<Daemon>,
    crashes_left: u8,
}

pub(super) struct Step {
    pub(super) name: &'static str,
    /// PostgreSQL or the daemon takes it by itself, sooner or later.
    pub(super) certain: bool,
    pub(super) to: State,
}

impl State {
    /// No daemon, and whatever the last one left; or one that is about to wake, after events that are forgotten.
    pub(super) fn first(transactions: usize, crashes: u8, fault: Option<Fault>) -> [Self; 3] {
        let producers = vec![Producer::new(fault); transactions];
        let waking = Daemon { bell: Bell::waking(), job: flag_job(false, fault), listens: true };
        [(true, None), (false, None), (true, Some(waking))].map(|(asleep, daemon)| {
            let (producers, crashes_left) = (producers.clone(), crashes);
            Self { producers, asleep, ended: 1, notified: false, late: None, daemon, crashes_left }.normalised()
        })
    }

    pub(super) fn undelivered(&self) -> usize {
        self.producers.iter().filter(|p| p.event != Event::None).count()
    }

    /// Every transaction id that still means something.
    fn xids(&mut self) -> Vec<&mut u64> {
        let mut xids = vec![&mut self.ended];
        xids.extend(self.producers.iter_mut().filter_map(|p| p.xid.as_mut()));
        if let Some(daemon) = &mut self.daemon {
            xids.extend(daemon.bell.producers());
            match &mut daemon.job {
                Job::None | Job::Read(None) => {}
                Job::Read(Some((ended, in_progress))) => xids.extend(std::iter::once(ended).chain(in_progress)),
                Job::Flag { xid, list, .. } => xids.extend(xid.iter_mut().chain(list)),
            }
        }
        xids
    }

    /// Whether the daemon waits for producers that may have skipped the bell.
    pub(super) fn is_drowsy(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| !daemon.bell.clone().producers().is_empty())
    }

    fn next_xid(&mut self) -> u64 {
        self.xids().into_iter().map(|xid| *xid).max().unwrap_or_default() + 1
    }

    fn end(&mut self, xid: Option<u64>) {
        self.ended = self.ended.max(xid.unwrap_or_default());
    }

    /// The same state for all that differ only in names and times: only the order of transaction ids matters, and which
    /// of the producers is which does not.
    fn normalised(mut self) -> Self {
        let known: BTreeSet<u64> = self.xids().into_iter().map(|xid| *xid).collect();
        for xid in self.xids() {
            *xid = known.range(..*xid).count() as u64 + 1;
        }
        self.producers.sort_unstable();
        if let Some(daemon) = &mut self.daemon {
            daemon.bell = daemon.bell.clone().rounded();
        }
        self
    }

    /// What a snapshot of now knows to be in progress.
    fn in_progress(&self) -> Vec<u64> {
        let runs = |p: &&Producer| (Phase::Numbered..=Phase::Looked).contains(&p.phase);
        self.producers.iter().filter(runs).filter_map(|p| p.xid).filter(|&xid| xid < self.ended).collect()
    }

    fn holds_lock(&self, xid: u64) -> bool {
        let holds = Phase::Inserted..=Phase::Visible;
        self.producers.iter().any(|p| p.xid == Some(xid) && holds.contains(&p.phase))
    }

    pub(super) fn steps(&self, fault: Option<Fault>) -> Vec<Step> {
        let mut steps = Vec::new();
        for at in 0..self.producers.len() {
            self.producer_steps(at, fault, &mut steps);
        }
        match &self.daemon {
            Some(daemon) => self.daemon_steps(daemon, fault, &mut steps),
            None => self.step("a daemon begins", true, &mut steps, |s| {
                if fault != Some(Fault::OldSessionsMaySetTheFlag) {
                    s.late = None;
                }
                let listens = fault != Some(Fault::ListensWhenItAlreadySleeps);
                s.daemon = Some(Daemon { bell: Bell::new(present()), job: Job::None, listens });
            }),
        }
        if let Some(asleep) = self.late {
            self.step("a daemon that has ended sets the flag", false, &mut steps, |s| {
                s.asleep = asleep;
                s.late = None;
                s.ended = s.next_xid();
            });
        }
        steps
    }

    fn step(&self, name: &'static str, certain: bool, steps: &mut Vec<Step>, change: impl FnOnce(&mut Self)) {
        let mut to = self.clone();
        change(&mut to);
        steps.push(Step { name, certain, to: to.normalised() });
    }

    fn producer_steps(&self, at: usize, fault: Option<Fault>, steps: &mut Vec<Step>) {
        let looks_early = fault == Some(Fault::ProducerLooksBeforeItInserts);
        let sees_a_row = fault == Some(Fault::FlagIsARow);
        match self.producers[at].phase {
            Phase::NotBegun => self.step("a producer begins", false, steps, |s| {
                s.producers[at].phase = Phase::Begun;
                s.producers[at].asleep_in_snapshot = sees_a_row && s.asleep;
                s.producers[at].rings = looks_early && s.asleep;
            }),
            Phase::Begun => self.step("a producer gets its transaction id", false, steps, |s| {
                let xid = s.next_xid();
                s.producers[at].phase = Phase::Numbered;
                s.producers[at].xid = Some(xid);
            }),
            Phase::Numbered => self.step("a producer inserts", false, steps, |s| {
                s.producers[at].phase = Phase::Inserted;
            }),
            Phase::Inserted => self.step("a producer looks at the flag", false, steps, |s| {
                let producer = &mut s.producers[at];
                producer.phase = Phase::Looked;
                producer.rings = match (looks_early, sees_a_row) {
                    (true, _) => producer.rings,
                    (_, true) => producer.asleep_in_snapshot,
                    _ => s.asleep,
                };
            }),
            Phase::Looked => self.step("a producer commits", false, steps, |s| {
                s.end(s.producers[at].xid);
                let producer = &mut s.producers[at];
                producer.phase = Phase::Visible;
                producer.event = Event::Committed;
                producer.is_heard = producer.rings && s.daemon.as_ref().is_some_and(|daemon| daemon.listens);
                producer.rings = false;
            }),
            Phase::Visible => self.step("a producer frees its lock", true, steps, |s| {
                let producer = &mut s.producers[at];
                producer.phase = if producer.is_heard { Phase::Unlocked } else { Phase::Ended };
                producer.xid = None;
            }),
            Phase::Unlocked => self.step("a producer notifies", true, steps, |s| {
                let producer = &mut s.producers[at];
                producer.phase = Phase::Ended;
                s.notified |= std::mem::take(&mut producer.is_heard);
            }),
            Phase::Ended => {}
        }
        if (Phase::Numbered..=Phase::Looked).contains(&self.producers[at].phase) {
            self.step("a producer rolls back", false, steps, |s| {
                s.end(s.producers[at].xid);
                s.producers[at] = Producer { phase: Phase::Ended, ..Producer::new(fault) };
            });
        }
    }

    fn daemon_steps(&self, daemon: &Daemon, fault: Option<Fault>, steps: &mut Vec<Step>) {
        let now = present();
        if !daemon.listens && daemon.bell.is_asleep() {
            self.on("a late daemon listens", steps, |_, daemon| daemon.listens = true);
        }
        if self.notified {
            self.on("the bell rings", steps, |s, daemon| {
                s.notified = false;
                let reads = matches!(daemon.job, Job::Read(_));
                if fault != Some(Fault::ForgetsARingDuringARead) || !reads {
                    daemon.bell.ring(now);
                }
            });
        }
        for (name, quiet) in [("a pause ends", false), ("it has been quiet", true)] {
            let later = daemon.bell.later(quiet);
            if later != daemon.bell {
                self.on(name, steps, |_, daemon| daemon.bell = later);
            }
        }
        match &daemon.job {
            Job::None => match daemon.bell.next(now) {
                Next::Read => self.on("the daemon reads", steps, |_, daemon| {
                    daemon.bell.reads();
                    daemon.job = Job::Read(None);
                }),
                Next::FallAsleep => {
                    self.on("the daemon wants to sleep", steps, |_, daemon| daemon.job = flag_job(true, fault));
                }
                Next::WakeUp => {
                    self.on("the daemon wants to wake", steps, |_, daemon| daemon.job = flag_job(false, fault));
                }
                Next::Wait(_) => {}
            },
            Job::Read(None) => self.on("PostgreSQL reads", steps, |s, daemon| {
                daemon.job = Job::Read(Some((s.ended, s.in_progress())));
                // A page holds one event.
                if let Some(found) = s.producers.iter_mut().find(|p| p.event == Event::Committed) {
                    found.event = Event::Read;
                }
            }),
            Job::Read(Some(snapshot)) => self.on("the daemon has read", steps, |s, daemon| {
                let mut events = 0;
                for producer in s.producers.iter_mut().filter(|p| p.event == Event::Read) {
                    producer.event = Event::None;
                    events += 1;
                }
                daemon.job = Job::None;
                daemon.bell.read(events, &as_snapshot(snapshot), now);
            }),
            Job::Flag { asleep, parts, .. } => match parts.first() {
                Some(part) => self.flag_part(*part, *asleep, fault, steps),
                None => self.on("the flag is set", steps, |_, daemon| daemon.flag_is_set(*asleep, fault)),
            },
        }
        if self.crashes_left > 0 {
            self.step("the daemon ends", false, steps, State::crash);
        }
    }

    /// A step of the daemon.
    fn on(&self, name: &'static str, steps: &mut Vec<Step>, change: impl FnOnce(&mut Self, &mut Daemon)) {
        self.step(name, true, steps, |state| {
            let mut daemon = state.daemon.take().unwrap();
            change(state, &mut daemon);
            state.daemon = Some(daemon);
        });
    }

    fn flag_part(&self, part: Part, sleep: bool, fault: Option<Fault>, steps: &mut Vec<Step>) {
        let next_xid = self.clone().next_xid();
        let is_row = fault == Some(Fault::FlagIsARow);
        let name = match part {
            Part::TakeXid => "the flag's transaction begins",
            Part::SetFlag => "PostgreSQL sets the flag",
            Part::Commit => "the flag's transaction commits",
            Part::Snapshot => "PostgreSQL takes a snapshot of the producers",
            Part::Locks => "PostgreSQL looks at their locks",
        };
        self.on(name, steps, |s, daemon| {
            let Job::Flag { parts, xid, list, .. } = &mut daemon.job else { unreachable!() };
            *parts = &parts[1..];
            match part {
                Part::TakeXid => *xid = Some(next_xid),
                Part::SetFlag => {
                    if xid.is_none() && fault != Some(Fault::FlagTakesNoTransactionId) {
                        *xid = Some(next_xid);
                    }
                    if !is_row {
                        s.asleep = sleep;
                    }
                }
                Part::Commit => {
                    s.end(xid.take());
                    s.asleep = sleep;
                }
                Part::Snapshot => *list = s.in_progress(),
                Part::Locks => list.retain(|&xid| s.holds_lock(xid)),
            }
        });
    }

    fn crash(&mut self) {
        self.crashes_left -= 1;
        self.notified = false;
        for producer in &mut self.producers {
            producer.is_heard = false;
            if producer.event == Event::Read {
                producer.event = Event::Committed;
            }
        }
        if let Some(Job::Flag { asleep, parts, xid, .. }) = self.daemon.take().map(|daemon| daemon.job) {
            if parts.contains(&Part::SetFlag) {
                self.late = Some(asleep);
            }
            self.end(xid);
        }
    }
}

impl Producer {
    /// When a transaction begins makes a difference only where its snapshot does, or what it does first.
    fn new(fault: Option<Fault>) -> Self {
        let early = matches!(fault, Some(Fault::FlagIsARow | Fault::ProducerLooksBeforeItInserts));
        Self {
            phase: if early { Phase::NotBegun } else { Phase::Begun },
            xid: None,
            rings: false,
            asleep_in_snapshot: false,
            is_heard: false,
            event: Event::None,
        }
    }
}

impl Daemon {
    fn flag_is_set(&mut self, asleep: bool, fault: Option<Fault>) {
        let now = present();
        let Job::Flag { list, .. } = std::mem::replace(&mut self.job, Job::None) else { unreachable!() };
        if !asleep {
            self.bell.woke_up(now);
            return;
        }
        let nobody = list.is_empty();
        self.bell.fell_asleep(if fault == Some(Fault::IsNeverDrowsy) { Vec::new() } else { list }, now);
        if fault == Some(Fault::DoesNotReadAfterTheFlagIsSet) && nobody {
            self.bell.read(0, &as_snapshot(&(1, Vec::new())), now);
        }
    }
}

fn flag_job(asleep: bool, fault: Option<Fault>) -> Job {
    use Part::{Commit, Locks, SetFlag, Snapshot, TakeXid};
    let parts: &[Part] = match (asleep, fault) {
        (true, Some(Fault::ListsProducersBeforeTheFlagIsSet)) => &[Snapshot, Locks, SetFlag, Commit],
        (true, Some(Fault::FlagTakesItsTransactionIdTooEarly)) => &[TakeXid, SetFlag, Commit, Snapshot, Locks],
        (true, _) => &[SetFlag, Commit, Snapshot, Locks],
        (false, _) => &[SetFlag, Commit],
    };
    Job::Flag { asleep, parts, xid: None, list: Vec::new() }
}

fn as_snapshot((ended, in_progress): &(u64, Vec<u64>)) -> Snapshot {
    let list: Vec<String> = in_progress.iter().map(ToString::to_string).collect();
    format!("0:{}:{}", ended + 1, list.join(",")).parse().unwrap()
}
