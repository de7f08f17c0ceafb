//! Alerts: what somebody is to be told of becomes an event when it has been so for long enough, and another one when it has not been
//! so for as long. It works beside the term; what is raised is in the database, so a restart tells nobody twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::context::Context;
use super::look::{Failed, Look};
use crate::config::{AlertConfig, Condition};
use crate::metrics::{Metrics, Standing};
use crate::observe::Observation;
use crate::store::alerts::Alert;
use crate::store::{Error, Store};

/// Between two looks, and how long one may take.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What an alert is about: its name and a handler, or none.
type Subject = (Arc<str>, Arc<str>);

/// Works until it is dropped.
pub(super) async fn run(context: &Context) {
    let mut looking = Look::new("alerts", "looking whether to alert", context.alerts.clone());
    let mut watch = Watch::default();
    loop {
        let alerts = looking.wanted();
        let looked = timeout(LOOK_MAX, look(context, &alerts, &mut watch, &mut looking)).await;
        // What was raised by an alert that has gone is cleared by the look above; without alerts there is nothing more to look at.
        let pause = (!alerts.is_empty()).then_some(LOOK_EVERY);
        looking.rest(context, looked.map(|looked| looked.map(|()| pause))).await;
    }
}

async fn look(
    context: &Context,
    alerts: &[AlertConfig],
    watch: &mut Watch,
    looking: &mut Look<AlertConfig>,
) -> Result<(), Failed> {
    let store = looking.store(context).await?;
    let raised = store.raised_alerts().await?;
    if alerts.is_empty() && raised.is_empty() {
        return Ok(());
    }
    let (stored, last_id) = store.gauges().await?;
    context.metrics.show_handlers(Some((&stored, last_id)));
    let mut found = BTreeMap::new();
    for alert in alerts {
        for (handler, value) in values(&context.metrics, alert) {
            let is_so = value > alert.condition.above().unwrap_or(0.0);
            found.insert((Arc::clone(&alert.name), handler), (alert, value, is_so));
        }
    }
    let now = Instant::now();
    for (subject, &(alert, value, is_so)) in &found {
        let is_raised = raised.contains(&(subject.0.to_string(), subject.1.to_string()));
        if watch.changes(subject, is_raised, is_so, alert.lasting, now) {
            tell(context, store, subject, Some(alert), Some(value), is_so).await?;
        }
    }
    // What nobody watches any more is not raised any more.
    for (name, handler) in raised {
        let subject: Subject = (name.into(), handler.into());
        if !found.contains_key(&subject) {
            tell(context, store, &subject, None, None, false).await?;
        }
    }
    watch.keep(&found);
    Ok(())
}

/// What an alert looks at, of each handler that it is about; of the daemon with no name.
fn values(metrics: &Metrics, alert: &AlertConfig) -> Vec<(Arc<str>, f64)> {
    let one_if = |so: bool| f64::from(u8::from(so));
    let value = |standing: &Standing| match alert.condition {
        Condition::Dead { .. } => Some(standing.dead),
        Condition::Backlog { .. } => Some(standing.backlog),
        Condition::Oldest { .. } => Some(standing.oldest),
        Condition::BreakerOpen => Some(one_if(standing.broken)),
        Condition::ListenerDeaf => None,
    };
    let is_meant = |standing: &Standing| alert.handler.as_ref().is_none_or(|only| *only == standing.handler);
    let standings = metrics.standings().into_iter().filter(is_meant);
    let of_handlers = standings.filter_map(|standing| Some((Arc::clone(&standing.handler), value(&standing)?)));
    let of_daemon = (alert.condition == Condition::ListenerDeaf).then(|| ("".into(), one_if(!metrics.hears())));
    of_handlers.chain(of_daemon).collect()
}

async fn tell(
    context: &Context,
    store: &Store,
    (name, handler): &Subject,
    alert: Option<&AlertConfig>,
    value: Option<f64>,
    raised: bool,
) -> Result<(), Error> {
    let condition = alert.map(|alert| alert.condition);
    let told = Alert {
        name,
        handler,
        when: condition.map(Condition::as_str),
        value,
        above: condition.and_then(Condition::above),
    };
    if store.tell_alert(&told, raised).await? {
        let (name, handler) = (Arc::clone(name), Arc::clone(handler));
        context.observer.tell(&Observation::Alert { name, handler, raised });
    }
    Ok(())
}

/// Since when each subject has been otherwise than what was told of it.
#[derive(Debug, Default)]
struct Watch(BTreeMap<Subject, Instant>);

impl Watch {
    /// Whether it is time to tell that this has changed.
    fn changes(&mut self, subject: &Subject, is_raised: bool, is_so: bool, lasting: Duration, now: Instant) -> bool {
        if is_raised == is_so {
            self.0.remove(subject);
            return false;
        }
        let since = *self.0.entry(subject.clone()).or_insert(now);
        now.saturating_duration_since(since) >= lasting
    }

    fn keep<V>(&mut self, found: &BTreeMap<Subject, V>) {
        self.0.retain(|subject, _| found.contains_key(subject));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_within_the_time_is_not_told() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let subject: Subject = ("dead".into(), "mail".into());
        let lasting = Duration::from_mins(1);
        let mut raised = false;
        let mut told = Vec::new();
        let so = |second: u64| match second {
            // For half a minute, for almost a minute twice, for 70 seconds, and for a moment again.
            10..40 | 100..160 | 165..220 | 230..300 | 320..330 => true,
            _ => false,
        };
        for second in (0..500).step_by(5) {
            let now = start + Duration::from_secs(second);
            if watch.changes(&subject, raised, so(second), lasting, now) {
                raised = !raised;
                told.push((second, raised));
            }
        }
        assert_eq!(told, [(290, true), (390, false)]);
    }
}
