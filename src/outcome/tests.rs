//! What every outcome means, against small models.

use super::*;
use proptest::prelude::*;

fn failed() -> Outcome {
    Outcome::Retry { after: None, failure: Failure::new("no") }
}

fn after(failures: u32) -> Tried {
    Tried { attempt: failures + 1, failures, spared: Some(Fault::Unreachable), asked: Asked::default() }
}

fn by(retry: &RetryPolicy) -> Policies<'_> {
    Policies { retry, poll: None }
}

#[test]
fn the_last_failure_is_dead_and_keeps_its_error() {
    let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
    assert!(matches!(settle(failed(), after(0), by(&policy), 0.5), Settlement::Retry { .. }));
    assert!(matches!(settle(failed(), after(1), by(&policy), 0.5), Settlement::Retry { .. }));
    assert_eq!(settle(failed(), after(2), by(&policy), 0.5), Settlement::Dead { failure: Failure::new("no") });
}

#[test]
fn what_the_target_is_to_blame_for_spends_no_attempt() {
    let policy = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
    let of = |fault| Outcome::Retry { after: None, failure: Failure::new("no").with_fault(fault) };
    let spared = |spared, fault| {
        let tried = Tried { attempt: 40, failures: 0, spared, asked: Asked::default() };
        matches!(settle(of(fault), tried, by(&policy), 0.5), Settlement::Retry { spent: false, .. })
    };
    for (threshold, refused, failing, unreachable) in [
        (None, false, false, false),
        (Some(Fault::Unreachable), false, false, true),
        (Some(Fault::Failing), false, true, true),
    ] {
        let found = [Fault::Refused, Fault::Failing, Fault::Unreachable].map(|fault| spared(threshold, fault));
        assert_eq!(found, [refused, failing, unreachable], "{threshold:?}");
    }
}

#[test]
fn pauses_grow_as_the_policy_says() {
    let seconds = |backoff, base| {
        let policy = RetryPolicy {
            backoff,
            base: Duration::from_secs(base),
            max: Duration::from_secs(9),
            ..RetryPolicy::default()
        };
        [1, 2, 3, 4, 5].map(|failures| policy.pause(failures, 1.0).as_secs())
    };
    let list = [1, 5, 20].map(Duration::from_secs).to_vec();
    assert_eq!(seconds(Backoff::Exponential, 1), [1, 2, 4, 8, 9]);
    assert_eq!(seconds(Backoff::Linear, 2), [2, 4, 6, 8, 9]);
    assert_eq!(seconds(Backoff::Fixed, 3), [3, 3, 3, 3, 3]);
    assert_eq!(seconds(Backoff::List(list), 0), [1, 5, 9, 9, 9]);
}

#[test]
fn what_the_other_side_asks_for_is_honoured_up_to_the_cap() {
    let policy = RetryPolicy::default();
    let asked = |secs| Outcome::Retry { after: Some(Duration::from_secs(secs)), failure: Failure::default() };
    let pause = |outcome| match settle(outcome, after(0), by(&policy), 0.0) {
        Settlement::Retry { after, .. } => after,
        other => panic!("{other:?}"),
    };
    assert_eq!(pause(asked(90)), Duration::from_secs(90));
    assert_eq!(pause(asked(1_000_000)), policy.max);
}

#[test]
fn a_result_that_cannot_be_stored_does_not_undo_the_success() {
    let settled = |result| settle(Outcome::done_with(result), after(0), by(&RetryPolicy::default()), 0.0);
    let zeros = Value::from(vec![0; 16_000]);
    assert!(zeros.to_string().len() < RESULT_BYTES_MAX);
    for result in [Value::from("x".repeat(RESULT_BYTES_MAX)), Value::from("a\0b"), zeros] {
        let Settlement::Done { result: Some(kept), .. } = settled(result) else { panic!() };
        assert!(kept["outboxd"].is_string());
    }
}

#[test]
fn who_answers_not_yet_is_asked_again_ever_later_until_its_time_is_over() {
    let retry = RetryPolicy { max_attempts: 2, ..RetryPolicy::default() };
    let seconds = Duration::from_secs;
    let poll = PollPolicy { base: seconds(2), max: seconds(20), timeout: seconds(60) };
    let policies = Policies { retry: &retry, poll: Some(&poll) };
    for outcome in [Outcome::Snooze { after: None }, Outcome::Wait { timeout: None }] {
        let (mut asked, mut pauses) = (Asked::default(), Vec::new());
        let error = loop {
            match settle(outcome.clone(), Tried { asked, ..after(0) }, policies, 1.0) {
                Settlement::Snooze { after, asked: next } | Settlement::Wait { after, asked: next } => {
                    pauses.push(after.as_secs());
                    asked = Asked { left: next.left.map(|left| left.saturating_sub(after)), ..next };
                }
                Settlement::Retry { failure, spent: true, asked: next, .. } => {
                    // The next time is the first one again.
                    assert_eq!(next, Asked::default());
                    break failure.error;
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(pauses, [2, 4, 8, 16, 20, 10], "{outcome:?}");
        assert!(error.contains("asked 7 times"), "{error}");
    }
    // Its own word counts, as long as there is time.
    let own = Outcome::Snooze { after: Some(seconds(50)) };
    let Settlement::Snooze { after: first, asked } = settle(own.clone(), after(0), policies, 0.0) else { panic!() };
    assert_eq!((first, asked.left), (seconds(50), Some(seconds(60))));
    let asked = Asked { left: Some(seconds(10)), ..asked };
    let Settlement::Snooze { after: last, .. } = settle(own, Tried { asked, ..after(0) }, policies, 0.0) else {
        panic!()
    };
    assert_eq!(last, seconds(10));
}

#[test]
fn a_failure_between_two_questions_does_not_begin_the_time_anew() {
    let (retry, poll) = (RetryPolicy::default(), PollPolicy::default());
    let asked = Asked { polls: 3, left: Some(Duration::from_secs(9)) };
    let policies = Policies { retry: &retry, poll: Some(&poll) };
    let settled = settle(failed(), Tried { asked, ..after(0) }, policies, 0.5);
    assert!(matches!(settled, Settlement::Retry { asked: kept, .. } if kept == asked));
}

#[test]
fn nobody_is_asked_again_if_nobody_says_when() {
    let settled = settle(Outcome::Snooze { after: None }, after(0), by(&RetryPolicy::default()), 0.5);
    assert!(matches!(settled, Settlement::Retry { failure, .. } if failure.error.contains("`poll`")));
}

/// One attempt of a delivery: how it ends, and what is spared at that moment.
fn attempts() -> impl Strategy<Value = Vec<(u8, Fault, Option<Fault>)>> {
    let fault = || prop_oneof![Just(Fault::Refused), Just(Fault::Failing), Just(Fault::Unreachable)];
    let spared = prop_oneof![Just(None), Just(Some(Fault::Failing)), Just(Some(Fault::Unreachable))];
    proptest::collection::vec((0u8..8, fault(), spared), 1..60)
}

proptest! {
    /// Against a model that only counts.
    #[test]
    fn a_delivery_ends_when_it_succeeds_or_has_spent_its_attempts(
        attempts in attempts(), max_attempts in 1u32..6, random in 0.0f64..1.0,
    ) {
        let policy = RetryPolicy { max_attempts, ..RetryPolicy::default() };
        let (mut failures, mut spent) = (0, 0);
        for (attempt, (how, fault, spared)) in (1..).zip(attempts) {
            let failure = Failure::new("no").with_fault(fault);
            let (outcome, counts) = match how {
                0 => (Outcome::Snooze { after: Some(Duration::ZERO) }, false),
                1 => (Outcome::Wait { timeout: Some(Duration::from_secs(1)) }, false),
                2 => (Outcome::Gone { failure }, false),
                3 => (Outcome::done(), false),
                _ => (Outcome::Retry { after: None, failure }, true),
            };
            let is_spared = match fault {
                Fault::Refused => false,
                Fault::Failing => spared == Some(Fault::Failing),
                Fault::Unreachable => spared.is_some(),
            };
            spent += u32::from(counts && !is_spared);
            let tried = Tried { attempt, failures, spared, asked: Asked::default() };
            match settle(outcome, tried, by(&policy), random) {
                Settlement::Done { .. } => { prop_assert_eq!(how, 3); break }
                Settlement::Dead { .. } => { prop_assert_eq!(spent, max_attempts); break }
                Settlement::Retry { after, spent: counted, .. } => {
                    prop_assert!(counts && after <= policy.max);
                    prop_assert_eq!(counted, !is_spared);
                    failures += u32::from(counted);
                }
                Settlement::Snooze { after, .. } => prop_assert!(how == 0 && after >= SNOOZE_MIN),
                Settlement::Wait { .. } => prop_assert_eq!(how, 1),
                Settlement::Pause { .. } => prop_assert_eq!(how, 2),
                other => prop_assert!(false, "{:?}", other),
            }
            prop_assert_eq!(failures, spent);
            prop_assert!(spent < max_attempts, "it should be dead");
        }
    }

    #[test]
    fn a_pause_never_exceeds_the_cap(failures in 0u32.., random in 0.0f64..1.0, base in 0u64..100_000, max in 0u64..10_000_000) {
        let policy = RetryPolicy { base: Duration::from_millis(base), max: Duration::from_millis(max), ..RetryPolicy::default() };
        prop_assert!(policy.pause(failures, random) <= policy.max);
    }

    #[test]
    fn an_excerpt_is_bounded_and_has_no_nul(text in "(\\PC|\0){0,3000}") {
        let kept = excerpt(&text);
        prop_assert!(kept.len() <= TEXT_BYTES_MAX);
        prop_assert!(!kept.contains('\0'));
        prop_assert_eq!(excerpt(&kept), kept);
    }
}
