//! How far a handler has finished the log: the reads it took part in, and how many of their deliveries are unsettled.

use std::collections::VecDeque;

use crate::snapshot::Snapshot;

/// The reads of a lane that still have unsettled deliveries, oldest first. There are never more of them than
/// unsettled deliveries, plus one.
#[derive(Debug)]
pub struct Windows {
    /// Everything visible in it is settled.
    position: Snapshot,
    /// The number of the window at the front of `open`.
    first: u64,
    open: VecDeque<Window>,
}

#[derive(Debug, Default)]
struct Window {
    unsettled: usize,
    /// Where the read ended; `None` while events are still being offered.
    end: Option<Snapshot>,
}

impl Windows {
    #[must_use]
    pub fn new(position: Snapshot) -> Self {
        Self { position, first: 0, open: VecDeque::new() }
    }

    /// Up to here everything is settled.
    #[must_use]
    pub fn position(&self) -> &Snapshot {
        &self.position
    }

    /// Counts a delivery into the present window and names that window.
    pub fn offer(&mut self) -> u64 {
        if self.open.back().is_none_or(|window| window.end.is_some()) {
            self.open.push_back(Window::default());
        }
        if let Some(window) = self.open.back_mut() {
            window.unsettled += 1;
        }
        self.first + self.open.len() as u64 - 1
    }

    /// Everything offered so far lies before `end`, and nothing before `end` is still to be offered.
    pub fn close(&mut self, end: Snapshot) {
        match self.open.back_mut() {
            // No delivery since the last close: that window reaches further now.
            Some(window) => window.end = Some(end),
            None => self.position = end,
        }
        self.advance();
    }

    /// One delivery of this window is settled.
    pub fn settled(&mut self, window: u64) {
        let index = window.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(window) = index.and_then(|index| self.open.get_mut(index)) {
            window.unsettled = window.unsettled.saturating_sub(1);
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(Window { unsettled: 0, end: Some(end) }) = self.open.front() {
            self.position = end.clone();
            self.open.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(xmax: u64) -> Snapshot {
        format!("{xmax}:{xmax}:").parse().unwrap()
    }

    #[test]
    fn the_position_stops_at_the_oldest_unsettled_delivery() {
        let mut windows = Windows::new(at(10));
        let first = windows.offer();
        windows.close(at(20));
        let second = windows.offer();
        windows.close(at(30));
        windows.settled(second);
        assert_eq!(windows.position(), &at(10));
        windows.settled(first);
        assert_eq!(windows.position(), &at(30));
        windows.close(at(40));
        assert_eq!(windows.position(), &at(40));
    }

    proptest! {
        /// Against a model that keeps every window for ever.
        #[test]
        fn the_position_is_the_end_of_the_settled_prefix(steps in proptest::collection::vec((0u8..3, any::<prop::sample::Index>()), 1..200)) {
            let mut windows = Windows::new(at(3));
            let mut unsettled: Vec<(u64, u64)> = Vec::new(); // (window, end; u64::MAX while open)
            let mut end = 3;
            for (step, which) in steps {
                match step {
                    0 => unsettled.push((windows.offer(), u64::MAX)),
                    1 => {
                        end += 1;
                        windows.close(at(end));
                        for entry in &mut unsettled {
                            if entry.1 == u64::MAX {
                                entry.1 = end;
                            }
                        }
                    }
                    _ if !unsettled.is_empty() => {
                        let (window, _) = unsettled.remove(which.index(unsettled.len()));
                        windows.settled(window);
                    }
                    _ => {}
                }
                // Nothing unsettled may lie before the position.
                let reached = windows.position().xmax();
                prop_assert!(unsettled.iter().all(|&(_, end)| end > reached), "{reached} passes {unsettled:?}");
                if unsettled.is_empty() && step == 1 {
                    prop_assert_eq!(reached, end);
                }
            }
        }
    }
}
