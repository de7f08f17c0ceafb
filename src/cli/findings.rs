//! What `check` and `doctor` find, and what to do about it.

use serde::Serialize;
use serde_json::json;

use super::Failure;
use super::output::{print, print_json};

/// Everything that was found, in the order in which it was looked at.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// In the order in which they are shown: what is last is what is left on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// It works, and somebody should know.
    Notice,
    Problem,
}

impl Findings {
    pub(super) fn good(&mut self, what: impl Into<String>) {
        self.add(Level::Ok, what.into(), None);
    }

    pub(super) fn notice(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Notice, what.into(), Some(remedy.into()));
    }

    pub(super) fn problem(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Problem, what.into(), Some(remedy.into()));
    }

    /// One whose text says what to do already.
    pub(super) fn bad(&mut self, what: impl Into<String>) {
        self.add(Level::Problem, what.into(), None);
    }

    fn add(&mut self, level: Level, what: String, remedy: Option<String>) {
        self.0.push(Finding { level, what, remedy });
    }

    /// Prints them. If there is a problem, this is how the verb fails.
    pub(super) fn tell(mut self, json: bool, failed: Failure) -> Result<(), Failure> {
        self.0.sort_by_key(|finding| finding.level);
        let ok = self.0.iter().all(|finding| finding.level < Level::Problem);
        if json {
            print_json(&json!({ "ok": ok, "findings": self.0 }))?;
        } else {
            print(&self.0.iter().map(Finding::text).collect::<String>())?;
        }
        if ok { Ok(()) } else { Err(failed) }
    }
}

impl Finding {
    fn text(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Notice => "notice",
            Level::Problem => "problem",
        };
        let remedy = self.remedy.as_ref().map(|remedy| format!("         -> {remedy}\n")).unwrap_or_default();
        format!("{level:<8} {}\n{remedy}", self.what)
    }
}
