//! Schedules: an event for every tick of a timetable, inserted by whoever leads. It works beside the term, on a session that it keeps
//! only while it inserts.
//!
//! What time it is, PostgreSQL says: it is the same for all daemons, and for the events.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::context::Context;
use crate::config::ScheduleConfig;
use crate::event::EventId;
use crate::observe::Observation;
use crate::store::schedule::Ticked;
use crate::store::{Error, Store};

/// The longest it goes without asking for the time: a clock may be set.
const ASK_EVERY: Duration = Duration::from_mins(5);
/// After something went wrong; doubled from the first to the second.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_mins(1);

/// Works until it is dropped.
pub(super) async fn run(context: &Context) {
    let mut watched = context.schedules.clone();
    let mut again = AGAIN_MIN;
    loop {
        let schedules = Arc::clone(&watched.borrow_and_update());
        let pause = match round(context, &schedules).await {
            Ok(pause) => {
                again = AGAIN_MIN;
                pause
            }
            Err(error) => {
                let error = error.to_string();
                context.observer.tell(&Observation::Hiccup { doing: "inserting the events of schedules", error });
                let pause = again;
                again = (again * 2).min(AGAIN_MAX);
                Some(pause)
            }
        };
        let rest = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = rest => {}
            changed = watched.changed() => if changed.is_err() { std::future::pending::<()>().await },
        }
    }
}

/// Inserts what is due; how long there is nothing to do then. Never again, if there is no schedule.
async fn round(
    context: &Context,
    schedules: &[ScheduleConfig],
) -> Result<Option<Duration>, Box<dyn std::error::Error + Send + Sync>> {
    let store = Store::new(context.target.connect("schedules").await?);
    let mut pause = None;
    for Ticked { name, at, now } in store.register_schedules(schedules).await? {
        let Some(schedule) = schedules.iter().find(|schedule| *schedule.name == *name) else { continue };
        catch_up(context, &store, schedule, at, now).await?;
        let next = schedule.timetable.next_after(now).map_or(ASK_EVERY, |next| until(now, next));
        pause = Some(pause.map_or(next, |pause: Duration| pause.min(next)).min(ASK_EVERY));
    }
    Ok(pause)
}

async fn catch_up(
    context: &Context,
    store: &Store,
    schedule: &ScheduleConfig,
    ticked: Timestamp,
    now: Timestamp,
) -> Result<(), Error> {
    let (ticks, more) = schedule.timetable.between(ticked, now, schedule.catch_up);
    if let (true, Some(&first)) = (more, ticks.first()) {
        let schedule = Arc::clone(&schedule.name);
        context.observer.tell(&Observation::TicksMissed { schedule, before: first.to_string() });
    }
    for tick in ticks {
        if let Some(event) = store.tick(schedule, tick, schedule.timetable.next_after(tick)).await? {
            context.observer.tell(&Observation::Ticked { schedule: Arc::clone(&schedule.name), event: EventId(event) });
        }
    }
    Ok(())
}

/// Up to the next tick; a little later rather than too early, so that it has come when time is asked for again.
fn until(now: Timestamp, next: Timestamp) -> Duration {
    Duration::try_from(next.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)
}
