//! Rates: how many attempts may begin in a second, a minute or an hour.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// So many in such a time, evenly: `50/s`, `10/m`, `1000/h`. After a pause as many may begin at once as in a second, and one in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// 1 to 100,000.
    pub count: u32,
    pub per: Period,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    Second,
    Minute,
    Hour,
}

/// What a text must look like.
pub(crate) const RULE: &str =
    "write so many in a second, a minute or an hour, from 1 to 100000, such as \"50/s\", \"10/m\" or \"1000/h\"";

impl RateLimit {
    /// What it comes to in a second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        let period = match self.per {
            Period::Second => Duration::from_secs(1),
            Period::Minute => Duration::from_mins(1),
            Period::Hour => Duration::from_hours(1),
        };
        f64::from(self.count) / period.as_secs_f64()
    }
}

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a rate; {RULE}");
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let per = match per {
            "s" => Period::Second,
            "m" => Period::Minute,
            "h" => Period::Hour,
            _ => return Err(wrong()),
        };
        let count = count.parse().ok().filter(|count| (1..=100_000).contains(count)).ok_or_else(wrong)?;
        Ok(Self { count, per })
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            Period::Second => 's',
            Period::Minute => 'm',
            Period::Hour => 'h',
        };
        write!(f, "{}/{per}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::RateLimit;

    #[test]
    fn a_rate_is_read_and_written() {
        for (text, per_second) in [("50/s", 50.0), ("60/m", 1.0), ("7200/h", 2.0)] {
            let rate: RateLimit = text.parse().unwrap();
            assert!((rate.per_second() - per_second).abs() < 1e-9);
            assert_eq!(rate.to_string(), text);
        }
        for wrong in ["", "50", "0/s", "100001/s", "-1/s", "5/d", "1.5/s", "5 /s", "/s"] {
            assert!(wrong.parse::<RateLimit>().unwrap_err().contains("is not a rate"), "{wrong}");
        }
    }
}
