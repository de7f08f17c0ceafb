//! Whether everything is as it should be: what the tables, the receiver and the folder say, held against each other.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;
use tokio_postgres::{Client, Row};

use super::super::Failure;
use super::app::{BROKEN, fails_first};
use super::command::{permissions_file, render, thumbnail_file};

/// One thing that must hold.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) what: String,
    /// What does not hold.
    pub(super) wrong: Vec<String>,
}

/// One delivery and what is known of it.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    event: i64,
    handler: String,
    state: String,
    attempts: i32,
    last_error: Option<String>,
    user: Option<i64>,
    file: Option<i64>,
    name: String,
    /// Attempts kept with an error and with what the program said.
    failures: i64,
    /// Attempts kept.
    history: i64,
    /// Profiles of this event.
    profiles: i64,
}

/// What the deliveries left outside of the database.
pub(super) struct Left<'a> {
    pub(super) mails: &'a HashMap<i64, u32>,
    pub(super) folder: &'a Path,
}

/// How many users and files there are.
pub(super) struct Inserted {
    pub(super) users: usize,
    pub(super) files: usize,
}

impl Inserted {
    /// Three handlers want a user, one wants a file.
    pub(super) fn deliveries(&self) -> usize {
        3 * self.users + self.files
    }
}

pub(super) async fn facts(client: &Client) -> Result<Vec<Fact>, Failure> {
    let rows = client.query(include_str!("facts.sql"), &[]).await?;
    let fact = |row: &Row| Fact {
        event: row.get("event_id"),
        handler: row.get("handler"),
        state: row.get("state"),
        attempts: row.get("attempts"),
        last_error: row.get("last_error"),
        user: row.get("user"),
        file: row.get("file"),
        name: row.get("name"),
        failures: row.get("failures"),
        history: row.get("history"),
        profiles: row.get("profiles"),
    };
    Ok(rows.iter().map(fact).collect())
}

pub(super) fn checks(facts: &[Fact], left: &Left<'_>, inserted: &Inserted) -> Vec<Check> {
    let (users, files) = (inserted.users, inserted.files);
    let (good, broken): (Vec<_>, Vec<_>) = of("thumbnail", facts).partition(|fact| fact.name != BROKEN);
    let (first, later): (Vec<_>, Vec<_>) = good.iter().partition(|fact| !fact.fails_first());
    let once = facts.iter().filter(|fact| fact.handler != "thumbnail").chain(first.iter().copied().copied());
    let broken_count = broken.len();
    vec![
        Check::new(format!("all {} deliveries ended, none is pending", inserted.deliveries()), facts.iter(), |fact| {
            ["done", "dead"].contains(&&*fact.state)
        })
        .counting(facts.len(), inserted.deliveries()),
        Check::new(format!("each of {users} users got exactly one mail, signed"), of("welcome_mail", facts), |fact| {
            fact.user.and_then(|user| left.mails.get(&user)) == Some(&1)
        })
        .counting(left.mails.len(), users),
        Check::new(format!("each of {users} users has exactly one profile"), of("profile", facts), |fact| {
            fact.profiles == 1
        })
        .counting(of("profile", facts).count(), users),
        Check::new(format!("each of {users} users has permissions"), of("permissions", facts), |fact| {
            left.permissions(fact)
        })
        .counting(of("permissions", facts).count(), users),
        Check::new(format!("each of {} good files has its thumbnail", files - 1), good.iter().copied(), |fact| {
            left.thumbnail(fact)
        })
        .counting(good.len(), files - 1),
        Check::new(
            format!("{} attempts failed on purpose, ran again, and are kept with their errors", later.len()),
            later.iter().copied().copied(),
            |fact| fact.state == "done" && fact.attempts == 2 && fact.failures == 1 && fact.history == 2,
        )
        .counting(later.len(), (1..=files).filter(|n| n % 3 == 0).count()),
        Check::new(
            format!("{BROKEN} is dead after 3 attempts, all kept with their errors"),
            broken.into_iter(),
            |fact| {
                let error = fact.last_error.as_ref().is_some_and(|error| !error.is_empty());
                fact.state == "dead" && error && (fact.attempts, fact.failures, fact.history) == (3, 3, 3)
            },
        )
        .counting(broken_count, 1),
        Check::new("everything else was done by its first attempt".to_owned(), once, |fact| {
            fact.state == "done" && fact.attempts == 1 && fact.history == 0
        }),
    ]
}

fn of<'a>(handler: &'a str, facts: &'a [Fact]) -> impl Iterator<Item = &'a Fact> {
    facts.iter().filter(move |fact| fact.handler == handler)
}

impl Check {
    fn new<'a>(what: String, facts: impl Iterator<Item = &'a Fact>, holds: impl Fn(&Fact) -> bool) -> Self {
        Self { what, wrong: facts.filter(|fact| !holds(fact)).map(Fact::told).collect() }
    }

    /// An empty list would hold everything.
    fn counting(mut self, count: usize, wanted: usize) -> Self {
        if count != wanted {
            self.wrong.push(format!("there are {count} of {wanted}"));
        }
        self
    }
}

impl Fact {
    fn fails_first(&self) -> bool {
        self.file.is_some_and(|file| fails_first(file, &self.name))
    }

    fn told(&self) -> String {
        let Self { event, name, handler, state, attempts, .. } = self;
        let error = self.last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        format!("event {event} ({name}) for {handler} is {state} after {attempts} attempts{error}")
    }
}

impl Left<'_> {
    fn permissions(&self, fact: &Fact) -> bool {
        let text = std::fs::read(self.folder.join(permissions_file(&fact.event.to_string()))).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        json["name"] == *fact.name && json["may"].is_array()
    }

    fn thumbnail(&self, fact: &Fact) -> bool {
        let image = std::fs::read(self.folder.join(thumbnail_file(&fact.event.to_string())));
        image.is_ok_and(|image| image == render(&fact.name))
    }
}
