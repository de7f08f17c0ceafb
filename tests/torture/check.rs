//! The comparison: what was meant, what arrived and what the database says. One function for one invariant.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::arguments::Plan;
use crate::daemons::{Daemon, HANDLERS, Handler, Kind, Sample};
use crate::facts::{End, Event, Facts};
use crate::ledger::{Entries, Fate, Ledger, Number, Receipt, Verdict, Window};
use crate::sink::POISON;

/// Two attempts of one daemon that overlap by less are a matter of who looks first.
const OVERLAP_MIN: Duration = Duration::from_millis(500);
/// What one fault can cause to run twice: what a lane holds.
const REPEATED_BY_ONE_FAULT: usize = 4096;
/// What a daemon of this load may use, and grow by once it is warm.
const RESIDENT_MAX_KIB: u64 = 300 * 1024;
const GROWTH_MAX_KIB: u64 = 24 * 1024;
const DESCRIPTORS_GROWTH_MAX: usize = 24;
/// When a process is warm.
const WARM_AFTER: Duration = Duration::from_secs(20);
/// Violations of one invariant that are told.
const TOLD_MAX: usize = 5;

/// What was found, by invariant.
#[derive(Default)]
struct Found(Vec<(&'static str, String)>);

impl Found {
    fn add(&mut self, invariant: &'static str, text: String) {
        self.0.push((invariant, text));
    }
}

struct Case<'a> {
    plan: &'a Plan,
    entries: &'a Entries,
    facts: &'a Facts,
    found: Found,
}

/// Compares; what is wrong becomes a violation in the ledger.
pub(crate) fn compare(plan: &Plan, ledger: &Ledger, facts: &Facts, daemons: &[Arc<Daemon>; 2]) {
    let found = {
        let entries = ledger.entries();
        let mut case = Case { plan, entries: &entries, facts, found: Found::default() };
        case.commits();
        case.ends();
        case.receipts();
        case.repeats();
        case.attempts();
        case.order();
        case.overlaps();
        case.places();
        case.conservation();
        case.effects();
        case.program();
        case.logs(daemons);
        for daemon in daemons {
            case.resources(daemon);
        }
        case.found.0
    };
    let mut told: HashMap<&str, usize> = HashMap::new();
    for (invariant, text) in found {
        let count = told.entry(invariant).or_default();
        *count += 1;
        if *count <= TOLD_MAX {
            ledger.violation(format_args!("{invariant}: {text}"));
        }
    }
    for (invariant, count) in told.into_iter().filter(|(_, count)| *count > TOLD_MAX) {
        ledger.violation(format_args!("{invariant}: {count} times in all"));
    }
}

/// Receipts that answered "done", in the order of their times.
pub(crate) fn successes(receipts: &[Receipt]) -> Vec<&Receipt> {
    let mut all: Vec<_> = receipts.iter().filter(|receipt| receipt.verdict == Verdict::Ok).collect();
    all.sort_by_key(|receipt| receipt.began);
    all
}

/// Attempts after the first that answered "done".
pub(crate) fn repeats(receipts: &[Receipt]) -> Vec<(&Receipt, &Receipt)> {
    let Some(first) = successes(receipts).into_iter().min_by_key(|receipt| receipt.ended) else { return Vec::new() };
    receipts.iter().filter(|receipt| receipt.began > first.ended).map(|receipt| (first, receipt)).collect()
}

fn inside(windows: &[Window], at: Duration) -> bool {
    windows.iter().any(|window| window.began <= at && at <= window.ended)
}

impl Case<'_> {
    /// What the ledger says was committed is there, and what it says was not is not.
    fn commits(&mut self) {
        for (number, intent) in &self.entries.intents {
            let there = self.facts.events.get(number);
            match (intent.fate, there) {
                (Fate::Committed, None) => self.found.add("I1", format!("{number}: committed, and not in the log")),
                (Fate::Undone, Some(event)) => {
                    self.found.add("I2", format!("{number}: rolled back, and in the log as {}", event.id));
                }
                (_, Some(event)) if event.topic != intent.topic || event.key != intent.key => {
                    self.found.add("I3", format!("{number}: another topic or key is in the log"));
                }
                _ => {}
            }
        }
    }

    /// Each delivery: the event, its number and the handler.
    fn deliveries(&self) -> impl Iterator<Item = (Number, &Event, &'static Handler)> {
        self.facts.events.iter().flat_map(|(number, event)| {
            let wanting = HANDLERS.iter().filter(|handler| handler.wants(&event.topic));
            wanting.map(move |handler| (*number, event, handler))
        })
    }

    /// I1: exactly one terminal state for every delivery; done but for poison, with a receipt that says so.
    fn ends(&mut self) {
        let mut wrong = Vec::new();
        for (number, event, handler) in self.deliveries() {
            let ends = self.facts.ends.get(&(event.id, handler.name.to_owned())).map_or(&[][..], Vec::as_slice);
            let name = handler.name;
            let [End { state, failures, .. }] = ends else {
                wrong.push(("I1", format!("{number} (event {}) for {name}: {} ends {ends:?}", event.id, ends.len())));
                continue;
            };
            let poisoned = event.topic == POISON && name == "picky";
            let expected = if poisoned { "dead" } else { "done" };
            if state != expected {
                wrong.push(("I1", format!("{number} (event {}) for {name} is {state}, not {expected}", event.id)));
            }
            if poisoned && *failures != Some(handler.max_attempts) {
                wrong.push((
                    "I5",
                    format!("{number} (event {}) for {name} is dead after {failures:?} failures", event.id),
                ));
            }
            let http = matches!(handler.kind, Kind::Http { .. });
            let received = self.entries.receipts.get(&(name, number)).map_or(&[][..], Vec::as_slice);
            if http && !poisoned && successes(received).is_empty() {
                let text =
                    format!("{number} (event {}) for {name} is {state} without a receipt: {received:?}", event.id);
                wrong.push(("I1", text));
            }
        }
        self.found.0.extend(wrong);
    }

    /// I2, I3 and what belongs to the idempotency key: only what was committed arrives, intact, under one key of its own.
    fn receipts(&mut self) {
        let mut keys: HashMap<&str, (&str, Number)> = HashMap::new();
        for ((handler, number), receipts) in &self.entries.receipts {
            let event = self.facts.events.get(number);
            for receipt in receipts {
                if event.is_none_or(|event| event.id != receipt.event) {
                    self.found.add("I2", format!("{handler} was given {number}, which was not committed: {receipt:?}"));
                }
                if !receipt.intact {
                    self.found.add("I3", format!("{handler} was given {number} with another payload: {receipt:?}"));
                }
                let of = *keys.entry(&receipt.idempotency_key).or_insert((handler, *number));
                if of != (*handler, *number) {
                    let text = format!("{} names {of:?} and {:?}", receipt.idempotency_key, (handler, number));
                    self.found.add("idempotency key", text);
                }
                if receipt.idempotency_key != receipts[0].idempotency_key {
                    self.found.add("idempotency key", format!("{handler} was given {number} under two keys"));
                }
            }
        }
    }

    /// I4: nothing is done twice without a fault: what was settled in a calm is not done again in a storm, and nothing is done a
    /// second time in a calm.
    fn repeats(&mut self) {
        let mut count: HashMap<&str, usize> = HashMap::new();
        for ((handler, number), receipts) in &self.entries.receipts {
            for (first, again) in repeats(receipts) {
                *count.entry(handler).or_default() += 1;
                let calm = inside(&self.entries.settled, first.ended) || inside(&self.entries.calms, again.began);
                if calm || !self.plan.may_repeat() {
                    self.found.add("I4", format!("{handler} did {number} again: {first:?}, then {again:?}"));
                }
            }
        }
        for (handler, count) in count {
            let most = REPEATED_BY_ONE_FAULT * self.entries.faults.len();
            if count > most {
                self.found.add(
                    "I4",
                    format!("{handler}: {count} repeats, at most {most} with {} faults", self.entries.faults.len()),
                );
            }
        }
    }

    /// I5: attempts are counted without gaps, within their limit, and nothing ran behind the last one. What a stop cut off
    /// has no line in the history.
    fn attempts(&mut self) {
        let stops = self.entries.faults.iter().filter(|fault| fault.what.starts_with("stop")).count();
        for ((event, handler), ends) in &self.facts.ends {
            let Some(limit) = HANDLERS.iter().find(|known| known.name == *handler).map(|known| known.max_attempts)
            else {
                self.found.add("I1", format!("event {event} has a delivery for {handler}, which there is not"));
                continue;
            };
            let last = ends.iter().map(|end| end.attempt).max().unwrap_or(0);
            let known: HashSet<u32> =
                self.facts.attempts.get(&(*event, handler.clone())).into_iter().flatten().copied().collect();
            if known.iter().any(|attempt| *attempt > last)
                || ends.iter().any(|end| end.failures.is_some_and(|f| f > limit))
            {
                self.found.add("I5", format!("event {event} for {handler}: attempts {known:?}, and {ends:?}"));
            }
            let missing = (1..last).filter(|attempt| !known.contains(attempt)).count();
            if missing > stops {
                self.found
                    .add("I5", format!("event {event} for {handler}: attempts {known:?} of {last}, {stops} stops"));
            }
        }
        for ((handler, number), receipts) in &self.entries.receipts {
            let Some(event) = self.facts.events.get(number) else { continue };
            let Some([end, ..]) = self.facts.ends.get(&(event.id, (*handler).to_owned())).map(Vec::as_slice) else {
                continue;
            };
            // A deposed daemon may have been further; then somebody else has settled the delivery.
            let further = receipts.iter().filter(|receipt| receipt.attempt > end.attempt).count();
            if further > self.entries.faults.len() {
                self.found
                    .add("I5", format!("{handler} was given {number} {further} times behind attempt {}", end.attempt));
            }
        }
    }

    /// I6: events of one key whose transactions did not overlap arrive in their order, where that is promised.
    fn order(&mut self) {
        for handler in HANDLERS.iter().filter(|handler| handler.ordered) {
            let mut by_key: HashMap<&str, Vec<(Number, Duration, Duration, Duration)>> = HashMap::new();
            for (number, intent) in self.entries.intents.iter().filter(|(_, intent)| intent.fate == Fate::Committed) {
                // A delayed event takes its place when its time has come.
                if intent.delayed {
                    continue;
                }
                let receipts = self.entries.receipts.get(&(handler.name, *number));
                if let (Some(key), Some(first)) =
                    (&intent.key, receipts.and_then(|all| successes(all).first().copied()))
                {
                    by_key.entry(key).or_default().push((*number, intent.intended, intent.ended, first.began));
                }
            }
            for (key, mut events) in by_key {
                events.sort_by_key(|(_, _, ended, _)| *ended);
                for (at, (later, intended, _, began)) in events.iter().enumerate() {
                    let earlier = events[..at].iter().find(|(_, _, ended, first)| ended < intended && first > began);
                    if let Some((earlier, ..)) = earlier {
                        self.found.add("I6", format!("{}: key {key}: {later} before {earlier}", handler.name));
                    }
                }
            }
        }
    }

    /// I7: one daemon never runs two attempts of a delivery at the same time.
    fn overlaps(&mut self) {
        for ((handler, number), receipts) in &self.entries.receipts {
            let mut sorted: Vec<&Receipt> = receipts.iter().collect();
            sorted.sort_by_key(|receipt| receipt.began);
            for pair in sorted.windows(2) {
                let [first, second] = pair else { continue };
                if first.daemon == second.daemon && second.began + OVERLAP_MIN < first.ended {
                    self.found.add("I7", format!("{handler} had two attempts of {number}: {first:?} and {second:?}"));
                }
            }
        }
    }

    /// I7: nor more attempts of a key than its handler may have at a time.
    fn places(&mut self) {
        for handler in &HANDLERS {
            let Some(most) = handler.per_key else { continue };
            let mut by_key: HashMap<(&str, &str), Vec<&Receipt>> = HashMap::new();
            for ((_, number), receipts) in self.entries.receipts.iter().filter(|((of, _), _)| *of == handler.name) {
                let Some(key) = self.entries.intents.get(number).and_then(|intent| intent.key.as_deref()) else {
                    continue;
                };
                for receipt in receipts {
                    by_key.entry((&receipt.daemon, key)).or_default().push(receipt);
                }
            }
            for ((daemon, key), mut receipts) in by_key {
                receipts.sort_by_key(|receipt| receipt.began);
                for (at, receipt) in receipts.iter().enumerate() {
                    let before =
                        receipts[..at].iter().filter(|other| receipt.began + OVERLAP_MIN < other.ended).count();
                    if before >= most {
                        let text =
                            format!("{}: {daemon} had {} attempts of key {key}: {receipt:?}", handler.name, before + 1);
                        self.found.add("I7", text);
                    }
                }
            }
        }
    }

    /// I8: in one snapshot, every delivery is in one state, and there are as many as events and handlers make.
    fn conservation(&mut self) {
        let expected = i64::try_from(self.deliveries().count()).unwrap();
        let stored = i64::try_from(self.facts.ends.values().map(Vec::len).sum::<usize>()).unwrap();
        let (all, pending) = self.facts.view;
        if all != expected || stored + pending != expected {
            let text = format!("{expected} deliveries; the view has {all}, {stored} have a row, {pending} are pending");
            self.found.add("I8", text);
        }
        // Each daemon: leader, tail, bell, janitor and a pool of eight; ended sessions may last a moment.
        if self.facts.sessions > 2 * 12 {
            self.found.add("I10", format!("{} sessions of the daemons", self.facts.sessions));
        }
    }

    /// What a SQL function does stands exactly once.
    fn effects(&mut self) {
        let wanted: Vec<_> =
            self.deliveries().filter(|(_, _, h)| h.kind == Kind::Sql).map(|(n, e, _)| (e.id, n)).collect();
        for pair in &wanted {
            let count = self.facts.effects.get(pair).copied().unwrap_or(0);
            if count != 1 {
                self.found.add("exactly once", format!("event {} has {count} effects", pair.0));
            }
        }
        if self.facts.effects.len() > wanted.len() {
            self.found.add("I2", format!("{} effects of {} events", self.facts.effects.len(), wanted.len()));
        }
    }

    /// The program ran for every event that is for it, and for nothing else.
    fn program(&mut self) {
        let mut runs: HashMap<i64, Vec<&str>> = HashMap::new();
        for (event, _, payload) in &self.facts.program {
            runs.entry(*event).or_default().push(payload);
        }
        let wanted: Vec<_> =
            self.deliveries().filter(|(_, _, h)| h.kind == Kind::Command).map(|(n, e, _)| (e.id, n)).collect();
        for (event, number) in wanted {
            let payloads = runs.remove(&event).unwrap_or_default();
            if payloads.is_empty() {
                self.found.add("I1", format!("{number} (event {event}) did not reach the program"));
            }
            if payloads.iter().any(|payload| !payload.starts_with(&format!("{{\"n\": {number},"))) {
                self.found.add("I3", format!("{number} (event {event}) reached the program as {payloads:?}"));
            }
            if payloads.len() > 1 && !self.plan.may_repeat() {
                self.found.add("I4", format!("the program had {number} (event {event}) {} times", payloads.len()));
            }
        }
        for event in runs.keys() {
            self.found.add("I2", format!("the program had event {event}, which was not for it"));
        }
    }

    /// The daemons themselves found nothing that must not be.
    fn logs(&mut self, daemons: &[Arc<Daemon>; 2]) {
        let signs = ["panicked", "the sweep found deliveries", "a state could not be written"];
        for daemon in daemons {
            let log = std::fs::read_to_string(daemon.log_file()).unwrap_or_default();
            for line in log.lines().filter(|line| signs.iter().any(|sign| line.contains(sign))) {
                self.found.add("log", format!("daemon {}: {line}", daemon.name()));
            }
        }
    }

    /// I10: memory and descriptors do not grow.
    fn resources(&mut self, daemon: &Daemon) {
        let samples = daemon.samples();
        for start in samples.chunk_by(|a, b| a.start == b.start) {
            let most = |of: fn(&Sample) -> u64| start.iter().map(of).max().unwrap_or(0);
            if most(|sample| sample.kibibytes) > RESIDENT_MAX_KIB {
                self.found.add("I10", format!("daemon {} used {} KiB", daemon.name(), most(|sample| sample.kibibytes)));
            }
            let warm: Vec<&Sample> = start.iter().filter(|sample| sample.at > start[0].at + WARM_AFTER).collect();
            // A fault may leave a lane full, and a calm is not a storm; where there is nothing but load there is a level.
            if self.plan.has_faults() || self.plan.rounds > 0 || warm.len() < 20 {
                continue;
            }
            let (early, late) = warm.split_at(warm.len() / 2);
            let level = |of: &[&Sample]| {
                let memory = of.iter().map(|sample| sample.kibibytes).max().unwrap_or(0);
                (memory, of.iter().map(|sample| sample.descriptors).max().unwrap_or(0))
            };
            let (before, after) = (level(early), level(late));
            if after.0 > before.0 + GROWTH_MAX_KIB || after.1 > before.1 + DESCRIPTORS_GROWTH_MAX {
                let text = format!("daemon {}: from {before:?} to {after:?} KiB and descriptors", daemon.name());
                self.found.add("I10", text);
            }
        }
    }
}
