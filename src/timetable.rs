//! When a schedule ticks: a cron expression in a time zone. Pure.
//!
//! The expression is that of POSIX and Vixie cron, five fields, with the names of days and months, `L`, `W`, `#` and nicknames such as
//! `@hourly` (<https://github.com/Hexagon/croner-rust>). Times that a change of the clock leaves out or repeats follow that library.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// A cron expression in a time zone.
#[derive(Clone)]
pub struct Timetable {
    expression: String,
    cron: Cron,
    zone: TimeZone,
    zone_name: String,
}

/// Why a text is no timetable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimetableError {
    #[error("{0:?} is not a cron expression ({1}); write minute, hour, day, month and weekday, such as \"30 3 * * *\"")]
    Expression(String, String),
    #[error("{0:?} never comes true")]
    Never(String),
    #[error(
        "{0:?} is not a time zone that this system knows; write one such as \"Europe/Berlin\" (Debian: apt-get install tzdata), or \"UTC\""
    )]
    Zone(String),
}

impl Timetable {
    /// Reads an expression and the name of a time zone (<https://www.iana.org/time-zones>).
    pub fn new(expression: &str, zone_name: &str) -> Result<Self, TimetableError> {
        let zone = match zone_name {
            "UTC" => TimeZone::UTC,
            name => TimeZone::get(name).map_err(|_| TimetableError::Zone(name.to_owned()))?,
        };
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let expression = expression.trim().to_owned();
        let cron = parser
            .parse(&expression)
            .map_err(|error| TimetableError::Expression(expression.clone(), error.to_string()))?;
        let timetable = Self { expression, cron, zone, zone_name: zone_name.to_owned() };
        // What comes true at all has come true in some year.
        match timetable.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(timetable),
            None => Err(TimetableError::Never(timetable.expression)),
        }
    }

    #[must_use]
    pub fn expression(&self) -> &str {
        &self.expression
    }

    #[must_use]
    pub fn zone_name(&self) -> &str {
        &self.zone_name
    }

    /// The first tick after this moment.
    #[must_use]
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let zoned: Zoned = moment.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&zoned, false).ok().map(|tick| tick.timestamp())
    }

    /// The ticks after the one moment and not after the other, the last of them only, at most so many, in order; and whether there
    /// were more.
    #[must_use]
    pub fn between(&self, after: Timestamp, until: Timestamp, most: usize) -> (Vec<Timestamp>, bool) {
        let mut ticks = Vec::new();
        let mut before = until.to_zoned(self.zone.clone());
        let mut inclusive = true;
        while let Ok(tick) = self.cron.find_previous_occurrence(&before, inclusive) {
            if tick.timestamp() <= after {
                break;
            }
            if ticks.len() == most {
                ticks.reverse();
                return (ticks, true);
            }
            ticks.push(tick.timestamp());
            before = tick;
            inclusive = false;
        }
        ticks.reverse();
        (ticks, false)
    }
}

impl PartialEq for Timetable {
    fn eq(&self, other: &Self) -> bool {
        (&self.expression, &self.zone_name) == (&other.expression, &other.zone_name)
    }
}

impl Eq for Timetable {}

impl std::fmt::Debug for Timetable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in {}", self.expression, self.zone_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn ticks_are_those_of_the_zones_clock() {
        let nightly = Timetable::new("30 3 * * *", "Europe/Berlin").unwrap();
        assert_eq!(nightly.next_after(at("2026-01-10T12:00:00Z")), Some(at("2026-01-11T02:30:00Z")));
        assert_eq!(nightly.next_after(at("2026-07-10T12:00:00Z")), Some(at("2026-07-11T01:30:00Z")));
        let utc = Timetable::new("@hourly", "UTC").unwrap();
        assert_eq!(utc.next_after(at("2026-01-10T12:00:00Z")), Some(at("2026-01-10T13:00:00Z")));
    }

    #[test]
    fn every_day_has_one_tick_when_the_clock_is_changed() {
        // 02:30 does not exist on 29 March, and exists twice on 25 October.
        let nightly = Timetable::new("30 2 * * *", "Europe/Berlin").unwrap();
        for (after, until) in
            [("2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z"), ("2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z")]
        {
            let (ticks, more) = nightly.between(at(after), at(until), 10);
            assert_eq!((ticks.len(), more), (2, false), "{ticks:?}");
        }
    }

    #[test]
    fn what_was_missed_is_bounded_and_the_newest_counts() {
        let minutely = Timetable::new("* * * * *", "UTC").unwrap();
        let (from, to) = (at("2026-01-01T00:00:30Z"), at("2026-03-01T00:00:00Z"));
        let newest = vec![at("2026-02-28T23:59:00Z"), at("2026-03-01T00:00:00Z")];
        assert_eq!(minutely.between(from, to, 2), (newest, true));
        assert_eq!(minutely.between(from, at("2026-01-01T00:01:00Z"), 2), (vec![at("2026-01-01T00:01:00Z")], false));
        assert_eq!(minutely.between(from, at("2026-01-01T00:00:59Z"), 2), (vec![], false));
        assert_eq!(minutely.between(to, from, 2), (vec![], false), "a clock that was set back");
    }

    #[test]
    fn what_is_no_timetable_is_said_to_be_none() {
        for (expression, zone, error) in [
            ("", "UTC", "is not a cron expression"),
            ("61 * * * *", "UTC", "is not a cron expression"),
            ("* * * *", "UTC", "is not a cron expression"),
            ("0 * * * * *", "UTC", "is not a cron expression"),
            ("0 0 30 2 *", "UTC", "\"0 0 30 2 *\" never comes true"),
            ("* * * * *", "Europe/Atlantis", "\"Europe/Atlantis\" is not a time zone"),
        ] {
            let said = Timetable::new(expression, zone).unwrap_err().to_string();
            assert!(said.contains(error), "{said}");
        }
    }

    proptest! {
        /// Forwards and backwards the same ticks are found.
        #[test]
        fn what_lies_between_is_what_comes_next_after_each_other(
            minute in 0u32..60, hour in 0u32..24, weekday in 0u32..7, from in 1_600_000_000i64..1_900_000_000, days in 0i64..40,
        ) {
            let zone = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"][weekday as usize % 4];
            let timetable = Timetable::new(&format!("{minute} {hour} * * {weekday},3"), zone).unwrap();
            let from = Timestamp::from_second(from).unwrap();
            let until = Timestamp::from_second(from.as_second() + days * 86_400).unwrap();
            let mut forwards = Vec::new();
            let mut last = from;
            while let Some(tick) = timetable.next_after(last).filter(|&tick| tick <= until) {
                prop_assert!(tick > last);
                forwards.push(tick);
                last = tick;
            }
            prop_assert_eq!(timetable.between(from, until, 1000), (forwards, false));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9*/,@LW#?a-zA-Z -]{0,30}") {
            let _ = Timetable::new(&text, "UTC");
        }
    }
}
