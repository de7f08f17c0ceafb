//! The checks of the fuzz targets, on their seeds and on inputs of a known shape, so that they hold between two fuzzings.

use std::path::Path;

use proptest::prelude::*;

#[allow(unreachable_pub, reason = "the fuzz targets use the file as a library")]
mod checks;

/// Runs a check on every seed of its target.
fn seeds(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fuzz/seeds").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        check(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 3, "{count} seeds of {target}");
}

#[test]
fn the_checks_hold_for_every_seed() {
    seeds("config", checks::config);
    seeds("pattern", checks::pattern);
    seeds("answer", checks::answer);
    seeds("waiting", checks::waiting);
    seeds("kept", checks::kept);
}

#[test]
fn every_target_has_its_check_and_its_seeds() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(package.join("tests/fuzz/Cargo.toml")).unwrap();
    let checks = std::fs::read_to_string(package.join("tests/it/fuzz/checks.rs")).unwrap();
    let functions: Vec<&str> =
        checks.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split_once('(')).map(|(name, _)| name).collect();
    assert!(functions.len() >= 5, "{functions:?}");
    for name in functions {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "no target runs checks::{name}");
        assert!(package.join("tests/it/fuzz/seeds").join(name).is_dir(), "no seeds for checks::{name}");
    }
}

/// Lines of a configuration, some of them right.
fn lines() -> impl Strategy<Value = String> {
    let key = "(\\[handler\\.[a-b]\\]|\\[daemon\\]|\\[database\\]|topics|http|http\\.url|secret|command|sql|env|timeout|retry|url|start|pool_size)";
    let value = "(\"(a|#|app\\.f|5s|https://a/\\$\\{A\\}|\\$\\{KEY\\}|\\$\\{MISSING\\}|now|\u{85})\"|\\[\"a\"(, \"b\")?\\]|\\{ a = \"b\" \\}|5|true)";
    prop::collection::vec((key, prop::option::of(value)), 0..12).prop_map(|lines| {
        let line = |(key, value): (String, Option<String>)| match value {
            Some(value) if !key.starts_with('[') => format!("{key} = {value}\n"),
            _ => format!("{key}\n"),
        };
        lines.into_iter().map(line).collect()
    })
}

proptest! {
    #[test]
    fn the_checks_hold_for_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        checks::config(&bytes);
        checks::pattern(&bytes);
        checks::answer(&bytes);
        checks::waiting(&bytes);
        checks::kept(&bytes);
    }

    #[test]
    fn the_checks_hold_for_any_text(text in "(\\PC|[\0\r\n\t\u{85}\u{2028}\"\\\\]){0,100}") {
        checks::config(text.as_bytes());
        checks::pattern(text.as_bytes());
        checks::answer(text.as_bytes());
        checks::waiting(text.as_bytes());
    }

    #[test]
    fn configurations_are_refused_or_read_back(text in lines()) {
        checks::config(text.as_bytes());
    }

    #[test]
    fn patterns_select_what_the_rule_says(text in "([ab*#]\\.){0,6}[ab*#]\n([ab]\\.){0,6}[ab]?") {
        checks::pattern(text.as_bytes());
    }

    #[test]
    fn answers_are_understood(
        outcome in "\"(done|retry|snooze|dead|x)\"|7|null",
        key in "outcome|after|error|result|x",
        value in "\"[a-z0-9 \\\\]{0,9}\"|-?[0-9]{0,40}(\\.[0-9]{1,3})?(e[0-9]{1,4})?|\\[{0,200}|null",
    ) {
        checks::answer(format!("{{\"outcome\": {outcome}, \"{key}\": {value}}}").as_bytes());
    }

    #[test]
    fn durations_and_dates_are_read(text in "-?[0-9]{0,20}( ?(ns|us|ms|s|m|h|d|w|mo|y))?( [0-9]{1,5}(ms|m|s))?|P[0-9TDHMSWY.]{0,12}|[A-Z][a-z]{2}, [0-9]{1,2} (Jan|Oct) [0-9]{4} [0-9:]{8} (GMT|[+-][0-9]{4})") {
        checks::waiting(text.as_bytes());
    }

    #[test]
    fn long_texts_are_cut(text in "(a|ü|😀|\0){0,20}", times in 1usize..400) {
        checks::kept(text.repeat(times).as_bytes());
    }
}
