//! What a person reads at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::arguments::Plan;
use crate::check::{repeats, successes};
use crate::daemons::Daemon;
use crate::facts::Facts;
use crate::ledger::{Fate, Ledger, Verdict};

/// Prints the table; returns whether nothing was violated.
pub(crate) fn print(plan: &Plan, ledger: &Ledger, facts: &Facts, daemons: &[Arc<Daemon>; 2]) -> bool {
    let entries = ledger.entries();
    let fates = |fate| entries.intents.values().filter(|intent| intent.fate == fate).count();
    println!("  {:>8.1} s", ledger.now().as_secs_f64());
    println!(
        "  {:>8} events: {} committed, {} rolled back, {} with an unknown commit",
        facts.events.len(),
        fates(Fate::Committed),
        fates(Fate::Undone),
        fates(Fate::Unknown)
    );
    let receipts: usize = entries.receipts.values().map(Vec::len).sum();
    let verdicts = |verdict| entries.receipts.values().flatten().filter(|receipt| receipt.verdict == verdict).count();
    let (failed, unanswered) = (verdicts(Verdict::Failed), verdicts(Verdict::Unanswered));
    println!(
        "  {:>8} deliveries; {receipts} HTTP attempts, {failed} refused or hung, {unanswered} without an answer",
        facts.ends.values().map(Vec::len).sum::<usize>()
    );
    let repeated: usize = entries.receipts.values().map(|receipts| repeats(receipts).len()).sum();
    println!("  {repeated:>8} attempts after one that had succeeded");
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for fault in &entries.faults {
        *kinds.entry(fault.what.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("  {:>8} faults: {}", entries.faults.len(), kinds.join(", "));
    // From the commit to the first attempt that succeeded. Only probes are sent when nothing else is to be done.
    let worst = |probes: bool| {
        let waits = entries.receipts.iter().filter_map(|((handler, number), receipts)| {
            let (intent, first) = (entries.intents.get(number)?, successes(receipts).first().copied()?);
            let counts = intent.fate == Fate::Committed && !intent.delayed && (*handler == "probe") == probes;
            counts.then(|| first.began.saturating_sub(intent.ended))
        });
        waits.max().unwrap_or_default().as_secs_f64()
    };
    println!("  {:>8.3} s from commit to handler at worst, in a calm; {:.3} s otherwise", worst(true), worst(false));
    for daemon in daemons {
        let samples = daemon.samples();
        let memory = samples.iter().map(|sample| sample.kibibytes).max().unwrap_or(0) / 1024;
        let descriptors = samples.iter().map(|sample| sample.descriptors).max().unwrap_or(0);
        let starts = samples.last().map_or(0, |sample| sample.start);
        println!("  {memory:>8} MiB, {descriptors} descriptors at most: daemon {}, {starts} starts", daemon.name());
    }
    for violation in &entries.violations {
        println!("\nVIOLATED {violation}");
    }
    if let Some(at) = first_number(&entries.violations) {
        history(ledger, &at);
    }
    let well = entries.violations.is_empty();
    println!("{} (--seed {})", if well { "torture: ok" } else { "torture: FAILED" }, plan.seed);
    well
}

/// The first number of an event that a violation names.
fn first_number(violations: &[String]) -> Option<String> {
    let words = violations.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_digit()));
    words.filter(|word| word.parse::<u64>().is_ok_and(|number| number >> 40 > 0)).map(str::to_owned).next()
}

/// What the ledger has about an event, and the faults.
fn history(ledger: &Ledger, number: &str) {
    println!("\nthe ledger about {number}, and the faults (µs):");
    let text = std::fs::read_to_string(ledger.path()).unwrap_or_default();
    let named = |line: &&str| line.split(' ').any(|word| word == number) || line.split(' ').nth(1) == Some("window");
    for line in text.lines().filter(named) {
        println!("  {line}");
    }
}
