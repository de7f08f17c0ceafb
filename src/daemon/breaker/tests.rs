//! What the breaker promises, one by one and against a model.

use super::*;
use proptest::prelude::*;

const FAILED: Result<(), Fault> = Err(Fault::Unreachable);
/// In the middle of the spread: pauses of exactly 1 s, 2 s, 4 s …
const MIDDLE: f64 = 0.5;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A breaker and its time.
struct Target {
    breaker: Breaker,
    now: Instant,
}

impl Target {
    fn new() -> Self {
        Self { breaker: Breaker::new(), now: Instant::now() }
    }

    /// An attempt that takes a millisecond.
    #[track_caller]
    fn attempt(&mut self, result: Result<(), Fault>) -> Option<Change> {
        assert_ne!(self.breaker.room(self.now), 0, "no attempt may begin");
        let began = self.now;
        self.breaker.began(began);
        self.now += Duration::from_millis(1);
        self.breaker.ended(began, result, self.now, MIDDLE)
    }

    fn attempts(&mut self, results: &[Result<(), Fault>]) -> Vec<Change> {
        results.iter().filter_map(|result| self.attempt(*result)).collect()
    }

    /// Goes to the end of the pause and says how long that took.
    fn wait(&mut self) -> Duration {
        let until = self.breaker.next(self.now).expect("a pause");
        assert_eq!(self.breaker.limit(self.now), 0);
        let waited = until - self.now;
        self.now = until;
        assert_eq!(self.breaker.next(self.now), None);
        waited
    }

    /// An outage at the end of its first pause.
    fn broken() -> Self {
        let mut target = Self::new();
        assert_eq!(target.attempts(&[FAILED; 5]), [Change::Opened]);
        target.wait();
        target
    }
}

#[test]
fn it_opens_when_half_of_the_last_attempts_failed() {
    let mut target = Target::new();
    target.attempts(&[Ok(()); 100]);
    // 9 of the last 20 are not half of them, for as long as it goes on.
    for _ in 0..10 {
        assert_eq!(target.attempts(&[FAILED; 9]), []);
        assert_eq!(target.attempts(&[Ok(()); 11]), []);
    }
    assert_eq!(target.attempts(&[FAILED; 9]), []);
    assert_eq!(target.breaker.limit(target.now), usize::MAX);
    assert_eq!(target.attempt(FAILED), Some(Change::Opened));
    assert_eq!(target.breaker.limit(target.now), 0);
}

#[test]
fn fewer_than_five_attempts_never_open_it() {
    let mut target = Target::new();
    assert_eq!(target.attempts(&[FAILED; 4]), []);
    assert_eq!(target.breaker.room(target.now), usize::MAX);
    assert_eq!(target.attempt(FAILED), Some(Change::Opened));
}

#[test]
fn with_little_to_do_five_failures_open_it_however_long_they_take() {
    let mut target = Target::new();
    for _ in 0..4 {
        assert_eq!(target.attempt(FAILED), None);
        target.now += Duration::from_hours(24);
    }
    assert_eq!(target.attempt(FAILED), Some(Change::Opened));
}

#[test]
fn a_target_that_refuses_is_there() {
    let mut target = Target::new();
    assert_eq!(target.attempts(&[Err(Fault::Refused); 100]), []);
    let (failing, unreachable) = (Err(Fault::Failing), Err(Fault::Unreachable));
    assert_eq!(target.attempts(&[failing; 5]), []);
    assert_eq!(target.attempts(&[unreachable; 5]), [Change::Opened], "both count");
    target.wait();
    target.attempt(Err(Fault::Refused));
    assert_eq!(target.breaker.limit(target.now), 2, "a probe that is refused has found it");
}

#[test]
fn attempts_that_began_before_the_outage_do_not_count() {
    let mut target = Target::new();
    let early = target.now;
    (0..50).for_each(|_| target.breaker.began(early));
    target.attempts(&[FAILED; 5]);
    target.wait();
    assert_eq!(target.breaker.room(target.now), 1, "they hold up no probe");
    for result in [Ok(()), FAILED] {
        assert_eq!(target.breaker.ended(early, result, target.now, MIDDLE), None);
        target.breaker.withdrawn(early);
        assert_eq!(target.breaker.room(target.now), 1);
    }
    target.attempts(&[Ok(()); 6]);
    assert!(!target.breaker.is_open());
    for _ in 0..40 {
        assert_eq!(target.breaker.ended(early, FAILED, target.now, MIDDLE), None, "nor after it");
    }
}

#[test]
fn one_probe_runs_at_a_time() {
    let mut target = Target::broken();
    let probe = target.now;
    target.breaker.began(probe);
    target.now += seconds(3600);
    assert_eq!(target.breaker.room(target.now), 0);
    target.breaker.withdrawn(probe);
    assert_eq!(target.breaker.room(target.now), 1, "a probe that told nothing is made again");
    target.attempt(FAILED);
    assert_eq!(target.breaker.room(target.now), 0);
    assert_eq!(target.wait(), seconds(2));
    assert_eq!(target.breaker.room(target.now), 1);
}

#[test]
fn what_was_found_again_gets_twice_as_much_with_every_success() {
    let mut target = Target::broken();
    let mut limits = Vec::new();
    while target.breaker.is_open() {
        limits.push(target.breaker.limit(target.now));
        let change = target.attempt(Ok(()));
        assert_eq!(change.is_some(), !target.breaker.is_open(), "{change:?}");
    }
    assert_eq!(limits, [1, 2, 4, 8, 16, 32]);
    assert_eq!(target.breaker.limit(target.now), usize::MAX);
    assert_eq!(target.attempts(&[FAILED; 4]), [], "the failures of the outage are forgotten");
    assert_eq!(target.attempt(FAILED), Some(Change::Opened));
    assert_eq!(target.wait(), seconds(1), "and so are its pauses");
}

#[test]
fn a_target_that_fails_now_and_then_leaves_the_ramp() {
    let mut target = Target::broken();
    let changes = target.attempts(&[Ok(()), Ok(()), FAILED, Ok(()), Ok(()), Ok(()), FAILED, Ok(()), Ok(()), Ok(())]);
    assert_eq!(changes, [Change::Closed]);
}

#[test]
fn a_ramp_of_failures_opens_it_again_in_silence() {
    let mut target = Target::broken();
    assert_eq!(target.attempts(&[Ok(()), FAILED, FAILED, FAILED, FAILED]), []);
    assert!(target.breaker.is_open());
    assert_eq!(target.wait(), seconds(2));
    assert_eq!(target.attempts(&[Ok(()); 6]), [Change::Closed]);
}

#[test]
fn pauses_are_doubled_up_to_half_a_minute() {
    let mut target = Target::broken();
    let pauses: Vec<u64> = (0..7)
        .map(|_| {
            assert_eq!(target.attempt(FAILED), None);
            target.wait().as_secs()
        })
        .collect();
    assert_eq!(pauses, [2, 4, 8, 16, 30, 30, 30]);
}

#[test]
fn pauses_are_spread_by_a_fifth() {
    let pause = |random| {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        (0..5).for_each(|_| {
            breaker.ended(now, FAILED, now, random);
        });
        breaker.next(now).unwrap() - now
    };
    assert_eq!(pause(0.0), Duration::from_millis(800));
    assert_eq!(pause(1.0), Duration::from_millis(1200));
}

#[test]
fn after_a_restart_the_outage_goes_on_with_a_probe() {
    let mut target = Target::new();
    target.breaker = Breaker::open(target.now);
    assert_eq!((target.breaker.room(target.now), target.breaker.next(target.now)), (1, None));
    assert_eq!(target.attempt(FAILED), None, "it has been told");
    assert_eq!(target.wait(), seconds(1));
    assert_eq!(target.attempts(&[Ok(()); 6]), [Change::Closed]);
}

#[test]
fn in_the_first_hour_of_an_outage_failing_spends_nothing() {
    let mut target = Target::new();
    assert_eq!(target.breaker.spares(target.now), Fault::Unreachable);
    target.attempts(&[FAILED; 5]);
    assert_eq!(target.breaker.spares(target.now + Duration::from_mins(59)), Fault::Failing);
    assert_eq!(target.breaker.spares(target.now + Duration::from_mins(61)), Fault::Unreachable, "poison must end");
    target.wait();
    target.attempts(&[Ok(()); 6]);
    assert_eq!(target.breaker.spares(target.now), Fault::Unreachable);
}

/// The same promises, kept slowly: it remembers every attempt, and derives everything from what was told.
struct Model {
    /// Every attempt that counts: when it began, and whether it runs.
    attempts: Vec<(Instant, bool)>,
    /// Every result since the breaker last opened or closed.
    results: Vec<bool>,
    outage: bool,
    /// The ends of the pauses of this outage, or when it was resumed.
    pauses: Vec<Instant>,
    /// Successes less failures since the last pause, as a power of two; `None`: no probe has come back.
    doublings: Option<u32>,
    ignored_before: Instant,
}

impl Model {
    fn limit(&self, now: Instant) -> usize {
        match (self.outage, self.doublings) {
            (false, _) => usize::MAX,
            (true, Some(doublings)) => 2usize.pow(doublings),
            (true, None) => usize::from(self.pauses.iter().all(|&until| until <= now)),
        }
    }

    fn running(&self) -> usize {
        self.attempts.iter().filter(|(began, runs)| *runs && *began >= self.ignored_before).count()
    }

    fn ends(&mut self, index: usize) -> Option<Instant> {
        self.attempts[index].1 = false;
        Some(self.attempts[index].0).filter(|&began| began >= self.ignored_before)
    }

    fn ended(&mut self, index: usize, failed: bool, now: Instant, random: f64) -> Option<Change> {
        self.ends(index)?;
        self.results.push(failed);
        let last: Vec<bool> = self.results.iter().rev().take(20).copied().collect();
        let failures = last.iter().filter(|failed| **failed).count();
        let rate_is_bad = last.len() >= 5 && failures >= last.len().div_ceil(2);
        if rate_is_bad || failed && self.outage && self.doublings.is_none() {
            let change = (!self.outage).then_some(Change::Opened);
            let length = [1, 2, 4, 8, 16].get(self.pauses.len()).copied().unwrap_or(30);
            self.outage = true;
            self.ignored_before = now + Duration::from_secs(length).mul_f64(0.8 + 0.4 * random);
            self.pauses.push(self.ignored_before);
            (self.doublings, self.results) = (None, Vec::new());
            return change;
        }
        if !self.outage {
            return None;
        }
        let before = self.doublings.unwrap_or(0);
        let doublings = if failed { before.saturating_sub(1) } else { before + 1 };
        self.doublings = Some(doublings);
        if doublings < 6 {
            return None;
        }
        (self.outage, self.doublings, self.pauses, self.results) = (false, None, Vec::new(), Vec::new());
        Some(Change::Closed)
    }
}

#[derive(Debug, Clone)]
enum Told {
    Passes { milliseconds: u64 },
    PauseEnds,
    Begins { even_without_room: bool },
    Ends { which: prop::sample::Index, failed: bool, random: f64 },
    Withdrawn { which: prop::sample::Index },
}

fn told(failing: f64) -> impl Strategy<Value = Told> {
    let index = any::<prop::sample::Index>;
    let random = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    prop_oneof![
        2 => (0u64..3000).prop_map(|milliseconds| Told::Passes { milliseconds }),
        2 => Just(Told::PauseEnds),
        9 => prop::bool::weighted(0.03).prop_map(|even_without_room| Told::Begins { even_without_room }),
        8 => (index(), prop::bool::weighted(failing), random)
            .prop_map(|(which, failed, random)| Told::Ends { which, failed, random }),
        1 => index().prop_map(|which| Told::Withdrawn { which }),
    ]
}

/// Some targets are well, some are down, most are something in between.
fn stories() -> impl Strategy<Value = (bool, Vec<Told>)> {
    let part = (0.0f64..=1.0).prop_flat_map(|failing| prop::collection::vec(told(failing), 0..60));
    (any::<bool>(), prop::collection::vec(part, 1..5).prop_map(|parts| parts.concat()))
}

proptest! {
    #[test]
    fn it_does_what_the_model_does((resumed, story) in stories()) {
        let mut now = Instant::now();
        let mut breaker = if resumed { Breaker::open(now) } else { Breaker::new() };
        let mut model = Model {
            attempts: Vec::new(), results: Vec::new(), outage: resumed, pauses: Vec::new(), doublings: None,
            ignored_before: now,
        };
        for told in story {
            let running: Vec<usize> = (0..model.attempts.len()).filter(|&i| model.attempts[i].1).collect();
            match told {
                Told::Passes { milliseconds } => now += Duration::from_millis(milliseconds),
                Told::PauseEnds => now = breaker.next(now).unwrap_or(now),
                Told::Begins { even_without_room } => if even_without_room || breaker.room(now) > 0 {
                    breaker.began(now);
                    model.attempts.push((now, true));
                },
                Told::Ends { which, failed, random } => if !running.is_empty() {
                    let index = running[which.index(running.len())];
                    let result = if failed { Err(Fault::Failing) } else { Ok(()) };
                    let change = breaker.ended(model.attempts[index].0, result, now, random);
                    prop_assert_eq!(change, model.ended(index, failed, now, random));
                },
                Told::Withdrawn { which } => if !running.is_empty() {
                    let index = running[which.index(running.len())];
                    breaker.withdrawn(model.attempts[index].0);
                    model.ends(index);
                },
            }
            prop_assert_eq!(breaker.limit(now), model.limit(now));
            prop_assert_eq!(breaker.room(now), model.limit(now).saturating_sub(model.running()));
            prop_assert_eq!(breaker.is_open(), model.outage);
            // What is shut opens by itself, and within a bound.
            prop_assert_eq!(breaker.next(now).is_some(), breaker.limit(now) == 0);
            prop_assert!(breaker.next(now).is_none_or(|until| until > now && until - now <= Duration::from_secs(36)));
        }
    }

    #[test]
    fn every_outage_is_told_once_and_ends_when_the_target_is_well((resumed, story) in stories()) {
        let mut now = Instant::now();
        let mut breaker = if resumed { Breaker::open(now) } else { Breaker::new() };
        let mut outage = resumed;
        for told in story {
            now = breaker.next(now).unwrap_or(now);
            if let Told::Ends { failed, random, .. } = told {
                breaker.began(now);
                let result = if failed { FAILED } else { Ok(()) };
                if let Some(change) = breaker.ended(now, result, now, random) {
                    prop_assert_eq!(change, if outage { Change::Closed } else { Change::Opened });
                    outage = !outage;
                }
                prop_assert_eq!(breaker.is_open(), outage);
            }
        }
        // The probe and five doublings, and a few more to outweigh failures of the ramp.
        for _ in 0..12 {
            now = breaker.next(now).unwrap_or(now);
            breaker.began(now);
            breaker.ended(now, Ok(()), now, 0.5);
        }
        prop_assert!(!breaker.is_open());
    }
}
