//! Figures, their medians over several runs, and how they are shown.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::output::table;

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    AtMost(f64),
    /// Compared with its floor.
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

/// One thing measured in one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    /// What, with its unit: "deliveries/s".
    pub(super) what: &'static str,
    pub(super) value: f64,
    /// The least, or the most, that is possible: measured in the same run, without the daemon.
    pub(super) floor: Option<f64>,
    pub(super) target: Option<Target>,
}

/// One run of one scenario.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    pub(super) scenario: &'static str,
    /// How large: "300000 events".
    pub(super) size: String,
    /// Which of several, from 1.
    #[serde(rename = "run")]
    pub(super) number: u32,
    pub(super) figures: Vec<Figure>,
}

impl Figure {
    pub(super) fn new(what: &'static str, value: f64) -> Self {
        Self { what, value, floor: None, target: None }
    }

    pub(super) fn floor(self, floor: f64) -> Self {
        Self { floor: Some(floor), ..self }
    }

    pub(super) fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }
}

/// A table with a line for each figure: the median of its runs, their range, the median of the floors and of the ratios.
pub(super) fn table_of(runs: &[Run]) -> String {
    let mut order: Vec<(&str, &str, &str)> = Vec::new();
    let mut figures: BTreeMap<(&str, &str, &str), Vec<&Figure>> = BTreeMap::new();
    for run in runs {
        for figure in &run.figures {
            let line = (run.scenario, run.size.as_str(), figure.what);
            let of_line = figures.entry(line).or_default();
            if of_line.is_empty() {
                order.push(line);
            }
            of_line.push(figure);
        }
    }
    let mut before = ("", "");
    let lines = order.iter().map(|line| {
        let &(scenario, size, what) = line;
        let named = std::mem::replace(&mut before, (scenario, size)) == (scenario, size);
        let (scenario, size) = if named { ("", "") } else { (scenario, size) };
        let [value, range, floor, ratio, target] = columns(&figures[line]);
        [scenario.to_owned(), size.to_owned(), what.to_owned(), value, range, floor, ratio, target]
    });
    table(["SCENARIO", "SIZE", "FIGURE", "MEDIAN", "RANGE", "FLOOR", "RATIO", "TARGET"], lines.collect::<Vec<_>>())
}

fn columns(figures: &[&Figure]) -> [String; 5] {
    let values = sorted(figures.iter().map(|figure| figure.value));
    let floors = sorted(figures.iter().filter_map(|figure| figure.floor));
    let ratios = sorted(figures.iter().filter_map(|figure| Some(figure.value / figure.floor?)));
    let range = match (values.first(), values.last()) {
        (Some(least), Some(most)) if values.len() > 1 => format!("{} to {}", number(*least), number(*most)),
        _ => String::new(),
    };
    let shown = |values: &[f64]| if values.is_empty() { String::new() } else { number(median(values)) };
    let ratio = if ratios.is_empty() { String::new() } else { format!("{:.2}", median(&ratios)) };
    let target = figures.first().and_then(|figure| figure.target);
    let target = target.map_or_else(String::new, |target| verdict(target, &values, &ratios));
    [shown(&values), range, shown(&floors), ratio, target]
}

fn verdict(target: Target, values: &[f64], ratios: &[f64]) -> String {
    let (text, met) = match target {
        Target::AtMost(most) => (format!("at most {}", number(most)), median(values) <= most),
        Target::RatioAtLeast(least) => (format!("ratio at least {least}"), median(ratios) >= least),
        Target::RatioAtMost(most) => (format!("ratio at most {most}"), median(ratios) <= most),
    };
    format!("{text}: {}", if met { "met" } else { "missed" })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values; the mean of the two in the middle if there are two. None: not a number.
fn median(values: &[f64]) -> f64 {
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    values.get(low).zip(values.get(high)).map_or(f64::NAN, |(low, high)| f64::midpoint(*low, *high))
}

/// The value below which this share of the values lies (nearest rank); they need not be sorted.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let values = sorted(values.iter().copied());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rank lies between 0 and the number of values"
    )]
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Three significant digits, or all of those before the point, in groups.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        let whole = format!("{value:.0}");
        let (sign, digits) = whole.strip_prefix('-').map_or(("", whole.as_str()), |digits| ("-", digits));
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
        return format!("{sign}{}", groups.join(","));
    }
    match size {
        _ if size == 0.0 => "0".to_owned(),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_groups() {
        let table = [
            (0.0, "0"),
            (0.0312, "0.0312"),
            (0.5, "0.500"),
            (2.345, "2.35"),
            (45.67, "45.7"),
            (999.6, "1,000"),
            (126_401.3, "126,401"),
            (-1234.0, "-1,234"),
        ];
        for (value, text) in table {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn the_median_and_the_percentiles_are_ranks() {
        assert_eq!(median(&[1.0, 2.0, 9.0]).to_bits(), 2.0f64.to_bits());
        assert_eq!(median(&[1.0, 2.0]).to_bits(), 1.5f64.to_bits());
        assert!(median(&[]).is_nan());
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5).to_bits(), 100.0f64.to_bits());
        assert_eq!(percentile(&values, 0.99).to_bits(), 198.0f64.to_bits());
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_table_has_the_median_of_the_runs_and_of_their_ratios() {
        let run = |number, value, floor| Run {
            scenario: "drain",
            size: "10 events".to_owned(),
            number,
            figures: vec![
                Figure::new("deliveries/s", value).floor(floor).target(Target::RatioAtLeast(0.7)),
                Figure::new("WAL bytes/delivery", 210.0).target(Target::AtMost(200.0)),
            ],
        };
        let text = table_of(&[run(1, 80_000.0, 100_000.0), run(2, 60_000.0, 100_000.0), run(3, 90_000.0, 120_000.0)]);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines[1],
            "drain 10 events deliveries/s 80,000 60,000 to 90,000 100,000 0.75 ratio at least 0.7: met"
        );
        assert_eq!(lines[2], "WAL bytes/delivery 210 210 to 210 at most 200: missed");
    }
}
