//! The handlers: what is dead, held up, behind or hangs, and whether the daemon runs what is configured.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Failure;
use super::super::findings::Findings;
use super::super::output::age;
use crate::config::Config;
use crate::store::Store;
use crate::store::doctor::{DeadLetters, Known, Lasting};
use crate::store::inspect::Backlog;
use crate::topic::Pattern;

/// The longest part of an error that is shown, in characters.
const ERROR_CHARS_MAX: usize = 200;

pub(super) async fn look(
    findings: &mut Findings,
    store: &Store,
    config: Option<&Config>,
    usual: Duration,
) -> Result<(), Failure> {
    if let Some(config) = config {
        compare(findings, config, &store.known_handlers().await?);
    }
    for attempt in store.lasting(usual).await? {
        lasts(findings, &attempt);
    }
    let dead = store.dead_letters().await?;
    let backlog = store.backlog().await?;
    for line in &backlog {
        held_up(findings, line, usual);
        if let Some(dead) = dead.iter().find(|dead| dead.handler == line.handler) {
            if dead.blocks && line.blocked > 0 {
                blocked(findings, line);
            }
            died(findings, dead, line.kind.as_str());
        }
    }
    if dead.is_empty() {
        findings.good("nothing is dead");
    }
    Ok(())
}

/// An attempt that may hang.
fn lasts(findings: &mut Findings, attempt: &Lasting) {
    let Lasting { event, handler, kind, attempt, age: ran, silent, overdue } = attempt;
    let silent = match silent {
        Some(silent) => format!("was last heard of {} ago", age(silent.as_secs_f64())),
        None => "has never said anything".to_owned(),
    };
    let what = format!(
        "{handler}: attempt {attempt} of event {event} ({kind}) has run for {} and {silent}",
        age(ran.as_secs_f64())
    );
    if *overdue {
        findings.problem(
            format!("{what}, longer than it may"),
            format!("no daemon is there to end it: start one; or outboxd cancel {event} {handler}"),
        );
    } else {
        findings.notice(
            what,
            format!("outboxd cancel {event} {handler} ends it, `timeout` bounds it; let it tell its progress"),
        );
    }
}

/// What holds a handler up, or how far it is behind.
fn held_up(findings: &mut Findings, line: &Backlog, usual: Duration) {
    let name = &line.handler;
    let open = line.scheduled + line.retrying + line.waiting + line.blocked + line.dead;
    if line.absent {
        if line.pending + open > 0 {
            findings.notice(
                format!(
                    "{name} has left the configuration, and {} of its deliveries have not ended",
                    line.pending + open
                ),
                format!("configure it again, or give them up: outboxd forget {name}"),
            );
        }
        return;
    }
    let oldest = line.oldest_age.unwrap_or(0.0);
    let waits = format!("{} wait, the oldest for {}", line.pending + line.retrying, age(oldest));
    if line.paused {
        let reason = line.pause_reason.as_deref().map(|reason| format!(": {}", shown(reason))).unwrap_or_default();
        findings.notice(format!("{name} is paused{reason}; {waits}"), format!("outboxd resume {name}"));
    } else if line.breaker == "open" {
        let error = line.breaker_error.as_deref().map(|error| format!(": {}", shown(error))).unwrap_or_default();
        findings.problem(
            format!("{name}: its target cannot be reached or fails, nothing but probes is sent{error}; {waits}"),
            "mend the target; a probe goes out every 30 s at most, and everything follows when one comes through",
        );
    // What runs, or runs again in its time, may be old.
    } else if line.pending > 0 && oldest > usual.as_secs_f64() {
        findings.problem(format!("{name} is behind: {waits}"), behind(line));
    }
}

/// What waits behind the dead.
fn blocked(findings: &mut Findings, line: &Backlog) {
    let name = &line.handler;
    findings.notice(
        format!("{name}: {} deliveries wait behind others of their key, of which some are dead", line.blocked),
        format!("outboxd redrive --handler {name}, or outboxd discard; or let them pass: on_dead_key = \"skip\""),
    );
}

/// Why it takes so long, as far as that can be told.
fn behind(line: &Backlog) -> String {
    let rate = line.finished_per_second.unwrap_or(0.0);
    if rate < 0.01 {
        return "nothing of it ends: see that a daemon leads, and what its attempts do: outboxd show ID, outbox.open"
            .to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
    let left = (line.pending + line.retrying) as f64 / rate;
    format!(
        "at the present {rate:.1} a second it takes {} if nothing comes; raise its `concurrency`, or hand over many in one call (`batch`)",
        age(left)
    )
}

/// What is dead, and what to do about it as far as the newest error tells.
fn died(findings: &mut Findings, dead: &DeadLetters, kind: &str) {
    let DeadLetters { handler, dead, event, error, age: ago, .. } = dead;
    let says = |texts: &[&str]| texts.iter().any(|text| error.contains(text));
    let advice = if says(&[": 401 ", ": 403 "]) {
        "its target refuses the credentials: mend `secret` or `headers`, then systemctl reload outboxd"
    } else if says(&["SQLSTATE 42501", "permission denied"]) {
        "the daemon's role may not do that: GRANT it the right that the error names"
    } else if says(&["SQLSTATE 42883", "SQLSTATE 42P01", "SQLSTATE 3F000"]) {
        "what the error names is not there: outboxd check says which function is meant"
    } else if says(&["timed out after"]) {
        "it takes longer than `timeout`: raise that, or let it say that it is alive (`max_timeout`)"
    } else if says(&["only if `allow` has it"]) {
        "its event names a private address: if that is meant, let `allow` have the net, then systemctl reload outboxd"
    } else if kind == "command" && says(&["cannot run"]) {
        "the program cannot be started: mend `command`, then systemctl reload outboxd"
    } else {
        "mend what the error says"
    };
    findings.problem(
        format!("{handler}: {dead} dead, the newest {} ago, event {event}: {}", age(ago.as_secs_f64()), shown(error)),
        format!("{advice}; outboxd show {event} tells more; then outboxd redrive --handler {handler}"),
    );
}

/// Whether the daemon has read the configuration as it is in the file.
fn compare(findings: &mut Findings, config: &Config, known: &[Known]) {
    let mut written: BTreeMap<String, (&str, Vec<&str>)> = BTreeMap::new();
    for handler in &config.handlers {
        let topics = handler.delivery.topics.iter().map(Pattern::as_str).collect();
        written.insert(handler.name.to_string(), (handler.kind.as_str(), topics));
    }
    for flow in &config.flows {
        let topics = flow.delivery.topics.iter().map(Pattern::as_str).collect();
        written.insert(flow.name.to_string(), ("flow", topics));
    }
    let mut other: Vec<String> = Vec::new();
    for (name, (kind, topics)) in &written {
        match known.iter().find(|known| known.name == *name && !known.absent) {
            None => other.push(format!("{name} is not registered")),
            Some(known) if known.kind != *kind => other.push(format!("{name} is {}", known.kind)),
            Some(known) if known.topics != *topics => other.push(format!("{name} has other topics")),
            Some(_) => {}
        }
    }
    let steps = |known: &Known| known.name.contains('/');
    let gone = known.iter().filter(|known| !known.absent && !steps(known) && !written.contains_key(&known.name));
    // Handlers in Rust are in no file.
    other.extend(gone.filter(|known| known.kind != "rust").map(|known| format!("{} is not in the file", known.name)));
    if other.is_empty() {
        findings.good("the daemon's handlers are those of the configuration");
    } else {
        findings.problem(
            format!("the daemon's handlers are not those of the configuration: {}", other.join(", ")),
            "systemctl reload outboxd; if it refuses, its log says why",
        );
    }
}

fn shown(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(ERROR_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
