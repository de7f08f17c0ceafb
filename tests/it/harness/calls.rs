//! What a handler was called with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use outboxd::Attempt;

use super::until;

/// Every call, as its event and its idempotency key.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<(i64, String)>>>);

impl Calls {
    pub(crate) fn take(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push((attempt.event.id.0, attempt.idempotency_key()));
    }

    /// How many calls there were.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// How many calls there were for this event.
    pub(crate) fn of(&self, event: i64) -> usize {
        self.0.lock().unwrap().iter().filter(|(called, _)| *called == event).count()
    }

    /// The idempotency keys of each event.
    pub(crate) fn keys(&self) -> BTreeMap<i64, BTreeSet<String>> {
        let mut keys: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (event, key) in self.0.lock().unwrap().iter() {
            keys.entry(*event).or_default().insert(key.clone());
        }
        keys
    }

    /// Waits until there were so many calls.
    #[track_caller]
    pub(crate) fn reached(&self, calls: usize) -> impl Future<Output = ()> {
        until(&format!("{calls} calls"), move || {
            let reached = self.0.lock().unwrap().len() >= calls;
            async move { reached }
        })
    }
}
