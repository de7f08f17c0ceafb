//! What a verb prints: tables for people, JSON for programs.

use std::fmt::Display;
use std::io::Write as _;
use std::time::Duration;

use comfy_table::{Row, Table, presets};
use serde::Serialize;

use super::Failure;

/// Prints text. A reader that has closed the pipe (`outboxd events | head`) has seen enough: that is success.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("the output could not be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::internal(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// A table with a header and no lines.
pub(super) fn table<R: Into<Row>>(header: impl Into<Row>, rows: impl IntoIterator<Item = R>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// A value, or a dash.
pub(super) fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// An age in the two largest units that say something: `4d 3h`, `12m 5s`, `0.3s`.
pub(super) fn age(secs: f64) -> String {
    let secs = secs.max(0.0);
    if secs < 10.0 {
        return format!("{secs:.1}s");
    }
    let whole = Duration::from_secs_f64(secs.round()).as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let parts = units.iter().scan(whole, |rest, &(size, unit)| {
        let count = *rest / size;
        *rest %= size;
        Some((count, unit))
    });
    let shown: Vec<_> = parts.skip_while(|&(count, _)| count == 0).take(2).collect();
    shown
        .iter()
        .filter(|&&(count, _)| count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn an_age_names_two_units() {
        let table =
            [(0.04, "0.0s"), (9.96, "10.0s"), (59.0, "59s"), (60.0, "1m"), (3725.0, "1h 2m"), (90_061.0, "1d 1h")];
        for (secs, text) in table {
            assert_eq!(age(secs), text);
        }
    }
}
