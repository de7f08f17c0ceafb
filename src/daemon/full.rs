//! Handlers for which as many deliveries wait as may: their topics take no more events, until there is room again. It works beside the
//! term, which is told when producers are to be asked.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::context::Context;
use crate::observe::Observation;
use crate::store::Store;

/// Between two looks, and how long one may take.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_MAX: Duration = Duration::from_secs(30);
/// So many times as long as a look takes it rests: it counts up to the limits.
const LOOK_RESTS: u32 = 19;

/// Works until it is dropped.
pub(super) async fn run(context: &Context) {
    let mut watched = context.handlers.clone();
    let mut session = None;
    loop {
        let handlers = std::sync::Arc::clone(&watched.borrow_and_update());
        let limits: Vec<(&str, u32, bool)> = handlers
            .iter()
            .filter_map(|spec| spec.delivery.max_backlog.map(|max| (&*spec.name, max.events, max.refuses)))
            .collect();
        let began = Instant::now();
        let failed = match timeout(LOOK_MAX, look(context, &limits, &mut session)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("PostgreSQL did not answer in time".to_owned()),
        };
        // What was full of a handler without a limit is not any more; without limits there is nothing more to look at.
        let is_over = failed.is_none() && limits.is_empty();
        if is_over || failed.is_some() {
            session = None;
        }
        if let Some(error) = failed {
            context.observer.tell(&Observation::Hiccup { doing: "looking whether a handler is full", error });
        }
        let rest = async {
            if is_over {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LOOK_EVERY.max(began.elapsed() * LOOK_RESTS)).await;
        };
        tokio::select! {
            () = rest => {}
            changed = watched.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

async fn look(
    context: &Context,
    limits: &[(&str, u32, bool)],
    session: &mut Option<Store>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let store = match session {
        Some(store) => store,
        None => session.insert(Store::new(context.target.connect("limits").await?)),
    };
    let changed = store.find_full(limits).await?;
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
