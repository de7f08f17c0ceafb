//! Snapshots: which transactions a reader of the log has seen.
//!
//! A position in the log is a `pg_snapshot`, not an id: ids are given out in another order than transactions commit,
//! so "everything above the last id" loses rows. Positions only grow, and a page boundary inside a large read is a
//! position too (see [`Snapshot::consumed_below`]).

use std::fmt;
use std::str::FromStr;

/// A set of transactions: all below `xmax`, except those in `in_progress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmax: u64,
    /// Ascending, all below `xmax`.
    in_progress: Vec<u64>,
}

/// Why a text is not a `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a pg_snapshot (xmin:xmax:xip_list)")]
pub struct ParseError(String);

impl Snapshot {
    /// The position before every event.
    #[must_use]
    pub fn beginning() -> Self {
        // 3 is PostgreSQL's first ordinary transaction id.
        Self { xmax: 3, in_progress: Vec::new() }
    }

    /// The first transaction id that this snapshot knows nothing of.
    #[must_use]
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The transactions below [`Self::xmax`] that had not ended, ascending.
    #[must_use]
    pub fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Whether the rows of this transaction are visible in the snapshot, provided it committed.
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && self.in_progress.binary_search(&xid).is_err()
    }

    /// Whether everything visible in `other` is visible in this snapshot, now and when what is in progress has ended.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        // A position in the middle of a read may end with transactions in progress, beyond which it sees nothing.
        let unseen = other.in_progress.iter().rev().take_while(|&&xid| xid >= self.xmax).count() as u64;
        other.xmax.saturating_sub(self.xmax) == unseen
            && self.in_progress.iter().take_while(|&&xid| xid < other.xmax).all(|&xid| !other.sees(xid))
    }

    /// The position after reading, from this position on and in the order of transaction ids, what is visible in `now`
    /// and belongs to transactions below `xid`.
    ///
    /// Consumed are: what this position sees, and what `now` sees below `xid`. `now` must include this position.
    #[must_use]
    pub fn consumed_below(&self, xid: u64, now: &Self) -> Self {
        if xid >= self.xmax {
            // `now` includes this position, so below `xid` the two agree with `now` alone.
            let in_progress = now.in_progress.iter().copied().take_while(|&x| x < xid).collect();
            Self { xmax: xid, in_progress }
        } else {
            let in_progress = self.in_progress.iter().copied().filter(|&x| x >= xid || !now.sees(x)).collect();
            Self { xmax: self.xmax, in_progress }
        }
    }
}

impl FromStr for Snapshot {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let _xmin: u64 = parts.next()?.parse().ok()?;
            let xmax: u64 = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let mut in_progress = list
                .split(',')
                .filter(|xid| !xid.is_empty())
                .map(|xid| xid.parse().ok())
                .collect::<Option<Vec<u64>>>()?;
            in_progress.sort_unstable();
            Some(Self { xmax, in_progress })
        };
        parse().ok_or_else(|| ParseError(text.to_owned()))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let xmin = self.in_progress.first().copied().unwrap_or(self.xmax);
        write!(f, "{xmin}:{}:", self.xmax)?;
        for (i, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A snapshot and a later one: transactions only leave the list, and new ones get higher ids.
    fn earlier_and_later() -> impl Strategy<Value = (Snapshot, Snapshot)> {
        (4u64..40, 0u64..20, any::<u64>(), any::<u64>()).prop_map(|(xmax, more, open, ended)| {
            let bit = |bits: u64, x: u64| bits >> (x % 64) & 1 == 1;
            let first: Vec<u64> = (3..xmax).filter(|&x| bit(open, x)).collect();
            let later =
                (3..xmax + more).filter(|&x| bit(open, x) && (x >= xmax || !bit(ended, x))).collect::<Vec<u64>>();
            (Snapshot { xmax, in_progress: first }, Snapshot { xmax: xmax + more, in_progress: later })
        })
    }

    fn visible(snapshot: &Snapshot) -> BTreeSet<u64> {
        (3..100).filter(|&x| snapshot.sees(x)).collect()
    }

    proptest! {
        #[test]
        fn text_and_back_is_the_same((snapshot, _) in earlier_and_later()) {
            prop_assert_eq!(snapshot.to_string().parse::<Snapshot>().unwrap(), snapshot);
        }

        #[test]
        fn inclusion_is_inclusion_of_what_is_visible((a, b) in earlier_and_later(), (c, _) in earlier_and_later()) {
            prop_assert!(b.includes(&a));
            // Never the other way round: `includes` may say no where the highest transactions of `a` are in progress.
            prop_assert!(!c.includes(&a) || visible(&c).is_superset(&visible(&a)));
        }

        #[test]
        fn a_page_boundary_is_exactly_what_was_read((position, now) in earlier_and_later(), xid in 3u64..70) {
            let xid = xid.min(now.xmax());
            let expected: BTreeSet<u64> =
                visible(&position).into_iter().chain(visible(&now).into_iter().filter(|&x| x < xid)).collect();
            prop_assert_eq!(visible(&position.consumed_below(xid, &now)), expected);
        }
    }
}
