//! Handlers for which as many deliveries wait as may: their topics take no more events, until there is room again. It works beside the
//! term, which is told when producers are to be asked.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::context::{Context, HandlerSpec};
use super::look::{Failed, Look};
use crate::observe::Observation;

/// Between two looks, and how long one may take.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_MAX: Duration = Duration::from_secs(30);
/// So many times as long as a look takes it rests: it counts up to the limits.
const LOOK_RESTS: u32 = 19;

/// Works until it is dropped.
pub(super) async fn run(context: &Context) {
    let mut looking = Look::new("limits", "looking whether a handler is full", context.handlers.clone());
    loop {
        let handlers = looking.wanted();
        let limited = handlers.iter().filter_map(|spec| Some((&*spec.name, spec.delivery.max_backlog?)));
        let limits: Vec<_> = limited.map(|(name, max)| (name, max.events, max.refuses)).collect();
        let began = Instant::now();
        let looked = timeout(LOOK_MAX, look(context, &limits, &mut looking)).await;
        // Of a handler without a limit, what was full is not any more by the look above.
        let pause = (!limits.is_empty()).then(|| LOOK_EVERY.max(began.elapsed() * LOOK_RESTS));
        looking.rest(context, looked.map(|looked| looked.map(|()| pause))).await;
    }
}

async fn look(context: &Context, limits: &[(&str, u32, bool)], looking: &mut Look<HandlerSpec>) -> Result<(), Failed> {
    let changed = looking.store(context).await?.find_full(limits).await?;
    if !changed.is_empty() {
        // The table is read when the flag is set, so that comes after it.
        context.flag.notify_one();
    }
    for change in changed {
        let handler = change.handler.into();
        context.observer.tell(&match change.full {
            Some((events, refuses)) => Observation::Full { handler, events, refuses },
            None => Observation::NotFull { handler },
        });
    }
    Ok(())
}
