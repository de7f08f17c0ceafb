//! The search for a state from which a committed event is not delivered.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::daemon::bell::model::state::{Fault, State, Step};

/// Everything that can happen, breadth first.
#[derive(Default)]
pub(super) struct Search {
    /// Each with the one it was first reached from, and by what.
    states: Vec<(usize, &'static str)>,
    index: HashMap<State, usize>,
    lost: Option<usize>,
    seen: BTreeSet<&'static str>,
}

impl Search {
    pub(super) const STEPS: [&str; 24] = [
        "a daemon begins",
        "a daemon that has ended sets the flag",
        "a pause ends",
        "a producer commits",
        "a producer frees its lock",
        "a producer gets its transaction id",
        "a producer inserts",
        "a producer looks at the flag",
        "a producer notifies",
        "a producer rolls back",
        "it has been quiet",
        "PostgreSQL looks at their locks",
        "PostgreSQL reads",
        "PostgreSQL sets the flag",
        "PostgreSQL takes a snapshot of the producers",
        "the bell rings",
        "the daemon ends",
        "the daemon has read",
        "the daemon reads",
        "the daemon wants to sleep",
        "the daemon wants to wake",
        "the flag is set",
        "the flag's transaction commits",
        "drowsy",
    ];

    pub(super) fn states(&self) -> usize {
        self.states.len()
    }

    pub(super) fn saw(&self, step: &str) -> bool {
        self.seen.contains(step)
    }

    /// The shortest way to a state from which an event is not delivered.
    pub(super) fn lost(&self) -> Option<Vec<&'static str>> {
        let mut at = self.lost?;
        let mut path = Vec::new();
        while self.states[at].0 != at {
            path.push(self.states[at].1);
            at = self.states[at].0;
        }
        path.reverse();
        Some(path)
    }

    fn add(&mut self, state: &State, from: Option<usize>, name: &'static str) -> (usize, bool) {
        if let Some(&known) = self.index.get(state) {
            return (known, false);
        }
        let index = self.states.len();
        self.states.push((from.unwrap_or(index), name));
        self.index.insert(state.clone(), index);
        (index, true)
    }
}

/// Searches until an event is not delivered, or until there is nothing more.
pub(super) fn check(transactions: usize, crashes: u8, fault: Option<Fault>) -> Search {
    let mut search = Search::default();
    let mut queue = VecDeque::new();
    for first in State::first(transactions, crashes, fault) {
        let (index, _) = search.add(&first, None, "");
        queue.push_back((index, first));
    }
    // Steps that are certain and deliver nothing, between states in which something is to be delivered.
    let mut waits: Vec<(usize, usize)> = Vec::new();
    while let Some((from, state)) = queue.pop_front() {
        let undelivered = state.undelivered();
        let mut goes_on = undelivered == 0;
        for Step { name, certain, to } in state.steps(fault) {
            search.seen.insert(name);
            if to.is_drowsy() {
                search.seen.insert("drowsy");
            }
            goes_on |= certain;
            let (index, is_new) = search.add(&to, Some(from), name);
            if certain && undelivered > 0 && to.undelivered() == undelivered {
                waits.push((from, index));
            }
            if is_new {
                queue.push_back((index, to));
            }
        }
        if !goes_on {
            search.lost = Some(from);
            return search;
        }
    }
    search.lost = cycle(search.states.len(), &waits);
    search
}

/// A state that can be reached again without a delivery, if there is one.
fn cycle(states: usize, waits: &[(usize, usize)]) -> Option<usize> {
    let mut before = vec![0_u32; states];
    let mut after: HashMap<usize, Vec<usize>> = HashMap::new();
    for &(from, to) in waits {
        before[to] += 1;
        after.entry(from).or_default().push(to);
    }
    let mut free: Vec<usize> = (0..states).filter(|&state| before[state] == 0).collect();
    while let Some(state) = free.pop() {
        for &to in after.get(&state).into_iter().flatten() {
            before[to] -= 1;
            if before[to] == 0 {
                free.push(to);
            }
        }
    }
    before.iter().position(|&count| count > 0)
}
