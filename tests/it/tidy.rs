//! Rules about the source itself. What clippy can hold (no `unwrap` outside of tests) is left to clippy.
//!
//! Files are found in the folder of the package, not by git: a source archive is held to the same rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines a file of Rust may have.
const LINES_MAX: usize = 500;

/// Where SQL may stand beside `sql/` and `migrations/`, and why.
const SQL_ALLOWED: [(&str, &str); 5] = [
    ("src/store/", "the module that knows SQL"),
    ("src/postgres/", "asks what is there before the schema is, and writes the script for psql"),
    ("src/cli/bench", "stands for apps under load, and looks at the server from outside"),
    ("src/cli/demo", "stands for an app, which brings its own"),
    ("src/cli/doctor", "says what somebody should type"),
];

/// Where a task may be spawned on nothing but the runtime, and what ends it. Everywhere else a `JoinSet` owns it.
const SPAWN_ALLOWED: [(&str, &str); 3] = [
    ("src/postgres/connect.rs", "drives a connection; an AbortOnDropHandle ends it with the session"),
    ("src/cli/demo/screen.rs", "a thread that may hang on a terminal, which only the end of the process ends then"),
    ("src/handler/tests/", "servers of a test, which end with its runtime"),
];

/// What decides and does not act: no clock, no chance, no waiting. Their tests may do as they like.
const PURE: [&str; 22] = [
    "src/daemon/bell.rs",
    "src/daemon/breaker.rs",
    "src/daemon/lane/away.rs",
    "src/daemon/lane/delivery.rs",
    "src/daemon/lane/due.rs",
    "src/daemon/lane/flow.rs",
    "src/daemon/lane/keys.rs",
    "src/daemon/lane/mod.rs",
    "src/daemon/lane/order.rs",
    "src/daemon/lane/places.rs",
    "src/daemon/lane/rate.rs",
    "src/daemon/spans.rs",
    "src/daemon/tail.rs",
    "src/daemon/windows.rs",
    "src/callback.rs",
    "src/emit.rs",
    "src/flow.rs",
    "src/outcome/mod.rs",
    "src/snapshot.rs",
    "src/timetable.rs",
    "src/topic.rs",
    "src/trace.rs",
];

/// One file of the package.
struct Source {
    /// From the folder of the package, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The lines without their comments, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }

    fn is_in(&self, allowed: &[(&str, &str)]) -> bool {
        allowed.iter().any(|(path, _)| self.path.starts_with(path))
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(package().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below these folders with one of these endings, sorted.
fn sources(folders: &[&str], endings: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        walk(&package().join(folder), &mut paths);
    }
    paths.sort();
    let fits = |path: &PathBuf| path.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending));
    let sources: Vec<Source> = paths
        .iter()
        .filter(|path| fits(path))
        .map(|path| {
            let path = path.strip_prefix(package()).unwrap().to_str().unwrap().to_owned();
            Source { text: read(&path), path }
        })
        .collect();
    assert!(!sources.is_empty(), "no {endings:?} in {folders:?}");
    sources
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, paths) } else { paths.push(path) }
    }
}

/// A `//` that follows a `:` belongs to a URL.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices("//").find(|&(at, _)| !line[..at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

#[track_caller]
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The modules in the order in which the documentation of `src/lib.rs` lists them.
fn layout() -> Vec<String> {
    let text = read("src/lib.rs");
    let listed = text.lines().filter_map(|line| line.strip_prefix("//! * "));
    let names = listed.flat_map(|line| line.split("[`").skip(1).filter_map(|rest| rest.split_once("`]")));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_module_has_its_place_in_the_layout() {
    let text = read("src/lib.rs");
    let declared: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .map(ToOwned::to_owned)
        .collect();
    let layout = layout();
    assert_eq!(layout.iter().cloned().collect::<BTreeSet<_>>(), declared, "src/lib.rs: # Layout and `pub mod` differ");
    assert_eq!(layout.len(), declared.len(), "src/lib.rs: # Layout names a module twice");
}

#[test]
fn a_module_uses_only_those_above_it() {
    let layout = layout();
    let place = |name: &str| layout.iter().position(|module| module == name);
    let mut broken = Vec::new();
    for source in sources(&["src"], &["rs"]) {
        let module = source.path["src/".len()..].split(['/', '.']).next().unwrap();
        // main.rs and lib.rs stand above all modules and use what they like.
        let Some(own) = place(module) else { continue };
        for (line, code) in source.code() {
            for (at, _) in code.match_indices("crate::") {
                if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let used: String =
                    code[at + "crate::".len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if place(&used).is_none_or(|used| used > own) {
                    broken.push(format!("{}:{line}: {module} uses crate::{used}", source.path));
                }
            }
        }
    }
    none("a module names only modules above it in the layout of src/lib.rs", &broken);
}

#[test]
fn the_code_map_is_the_folder() {
    let text = read("ARCHITECTURE.md");
    let section = text.split_once("\n## Code map\n").expect("ARCHITECTURE.md has a section `## Code map`").1;
    let block = section.split("```").nth(1).expect("the code map is a fenced list");
    let mapped: Vec<&str> = block.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let there: BTreeSet<String> = fs::read_dir(package().join("src"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let folder = if entry.path().is_dir() { "/" } else { "" };
            format!("src/{}{folder}", entry.file_name().to_str().unwrap())
        })
        .collect();
    let set: BTreeSet<String> = mapped.iter().map(ToString::to_string).collect();
    assert_eq!(set, there, "ARCHITECTURE.md: the code map and `ls src` differ");
    let name = |path: &str| path["src/".len()..].trim_end_matches(".rs").trim_end_matches('/').to_owned();
    let modules: Vec<String> = mapped.iter().map(|path| name(path)).filter(|n| n != "main" && n != "lib").collect();
    assert_eq!(modules, layout(), "ARCHITECTURE.md: the code map is not in the order of src/lib.rs");
}

#[test]
fn sql_stands_in_its_own_files() {
    let keywords = ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM "];
    let mut broken = Vec::new();
    for source in sources(&["src"], &["rs"]).iter().filter(|source| !source.is_in(&SQL_ALLOWED)) {
        for (line, code) in source.code() {
            if keywords.iter().any(|keyword| code.contains(keyword)) {
                broken.push(format!("{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    none("SQL belongs into a file of sql/ and a method of src/store", &broken);
}

#[test]
fn every_statement_says_what_it_does() {
    let silent = sources(&["sql", "migrations"], &["sql"]).into_iter().filter(|source| !source.text.starts_with("-- "));
    let broken: Vec<_> = silent.map(|source| format!("{}:1", source.path)).collect();
    none("a file of SQL begins with a comment: what it does, its parameters, its result, what zero rows mean", &broken);
}

#[test]
fn every_statement_is_used() {
    let store: String = sources(&["src/store"], &["rs"]).into_iter().map(|source| source.text).collect();
    let unused = sources(&["sql"], &["sql"]).into_iter().filter(|source| {
        let name = source.path["sql/".len()..].trim_end_matches(".sql").to_owned();
        !store.contains(&format!("sql!(\"{name}\")")) && !store.contains(&format!("sql/{name}.sql"))
    });
    let broken: Vec<_> = unused.map(|source| source.path).collect();
    none("a statement in sql/ has a method in src/store", &broken);
}

#[test]
fn every_task_has_an_owner() {
    let mut broken = Vec::new();
    for source in sources(&["src"], &["rs"]).iter().filter(|source| !source.is_in(&SPAWN_ALLOWED)) {
        for (line, code) in source.code() {
            if ["tokio::spawn(", "task::spawn(", "thread::spawn("].iter().any(|spawn| code.contains(spawn)) {
                broken.push(format!("{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    none("a task is spawned on a JoinSet that ends it, or its file is listed here with the reason", &broken);
}

#[test]
fn what_decides_does_not_act() {
    let acts = ["tokio", "async ", ".await", "Instant::now", "Timestamp::now", "SystemTime", "fastrand"];
    let mut broken = Vec::new();
    for path in PURE {
        let text = read(path);
        let production = text.split("#[cfg(test)]").next().unwrap().to_owned();
        let source = Source { path: path.to_owned(), text: production };
        for (line, code) in source.code() {
            broken.extend(acts.iter().filter(|act| code.contains(*act)).map(|act| format!("{path}:{line}: {act}")));
        }
    }
    none("clocks and random numbers are arguments here, and nothing waits", &broken);
}

/// The files of `src/daemon/` in the order of ARCHITECTURE.md, a folder as one.
fn daemon_files() -> Vec<String> {
    let text = read("ARCHITECTURE.md");
    let list = text.split("Inside `src/daemon/`").nth(1).and_then(|text| text.split("```").nth(1)).unwrap();
    let name = |line: &str| line.split_whitespace().next().map(|name| name.trim_end_matches(['/']).replace(".rs", ""));
    // A line that is indented goes on with the one before.
    list.lines().skip(1).filter(|line| !line.starts_with(' ')).filter_map(name).collect()
}

#[test]
fn inside_the_daemon_a_file_uses_only_those_above_it() {
    let order = daemon_files();
    let place = |name: &str| order.iter().position(|listed| listed == name);
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources(&["src/daemon"], &["rs"]) {
        let inside = source.path.trim_start_matches("src/daemon/");
        let file = inside.split('/').next().unwrap().trim_end_matches(".rs");
        let Some(at) = place(file) else {
            broken.push(format!("{}: not in the list of ARCHITECTURE.md", source.path));
            continue;
        };
        seen.insert(file.to_owned());
        let up = if inside.contains('/') && !inside.ends_with("/mod.rs") { "super::super::" } else { "super::" };
        let up = if inside == "mod.rs" { "self::" } else { up };
        for (line, code) in source.code() {
            let Some(used) = code.trim().strip_prefix("use ").and_then(|path| path.strip_prefix(up)) else { continue };
            let used = used.split([':', ';', '{']).next().unwrap();
            // A module's own tests use all of it.
            if used != "*" && place(used).is_none_or(|used| used >= at) {
                broken.push(format!(
                    "{}:{line}: {} stands at or below it",
                    source.path,
                    if used.is_empty() { "mod" } else { used }
                ));
            }
        }
    }
    broken.extend(order.iter().filter(|name| !seen.contains(*name)).map(|name| format!("{name}: listed, not there")));
    none("data flows one way inside the daemon too", &broken);
}

#[test]
fn a_file_can_be_read_in_one_go() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "examples"], &["rs"]) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            broken.push(format!("{}:{lines}: at most {LINES_MAX} lines", source.path));
        }
    }
    none("a file is one idea", &broken);
}

#[test]
fn nothing_is_left_for_later() {
    // Taken apart, so that this file does not find itself.
    let marks = [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("to", "do!"), ("unimpl", "emented!"), ("db", "g!")];
    let marks = marks.map(|(a, b)| format!("{a}{b}"));
    let folders = ["src", "tests", "examples", "sql", "migrations", "systemd", ".ci"];
    let mut broken = Vec::new();
    for source in sources(&folders, &["rs", "sql", "sh", "toml", "md", "service", "conf"]) {
        for (i, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    none("what is open stands in the section \"Absences\" of ARCHITECTURE.md", &broken);
}

#[test]
fn the_readme_begins_with_two_commands() {
    let text = read("README.md");
    let first: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("cargo ")).take(2).collect();
    let commands: Vec<&str> = first.iter().map(|line| line.split('#').next().unwrap().trim()).collect();
    assert_eq!(commands, ["cargo run --release -- demo", "cargo test"], "README.md: the two commands come first");
}
