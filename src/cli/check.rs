//! `outboxd check`: everything that can be found wrong before the daemon runs, in one go.

use clap::Args;
use serde_json::json;

use super::output::{print, print_json};
use super::{Failure, Global};
use crate::config::{Config, Kind, StepConfig};
use crate::handler::sql::quoted;
use crate::postgres::{SchemaStatus, Session, migrate};
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Check the configuration only, without a database
    #[arg(long)]
    offline: bool,
    /// Print the configuration with every default filled in, as TOML, secrets hidden
    #[arg(long, conflicts_with = "json")]
    print_config: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Default)]
struct Findings {
    good: Vec<String>,
    bad: Vec<String>,
}

impl Check {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let config = global.load()?;
        if self.print_config {
            return print(&config.to_toml());
        }
        let mut findings = Findings::default();
        let count = |count: usize, what: &str| match count {
            0 => None,
            1 => Some(format!("1 {what}")),
            count => Some(format!("{count} {what}s")),
        };
        match (count(config.handlers.len(), "handler"), count(config.flows.len(), "flow")) {
            (None, None) => {
                let nothing = "no [handler.NAME] or [flow.NAME] is configured: the daemon has nothing to do";
                findings.bad.push(nothing.to_owned());
            }
            (Some(some), None) | (None, Some(some)) => findings.good.push(format!("the configuration has {some}")),
            (Some(handlers), Some(flows)) => {
                findings.good.push(format!("the configuration has {handlers} and {flows}"));
            }
        }
        if !self.offline {
            let session = global.target()?.connect("check").await?;
            findings.database(session, &config).await?;
        }
        findings.tell(self.json)
    }
}

impl Findings {
    async fn database(&mut self, session: Session, config: &Config) -> Result<(), Failure> {
        self.good.push(format!("PostgreSQL {} answers", version(session.version)));
        self.bad.extend(session.warnings.iter().cloned());
        match migrate::status(&session.client).await? {
            SchemaStatus::Current => self.good.push("the schema is up to date".to_owned()),
            status => {
                self.bad.push(status.to_string());
                return Ok(());
            }
        }
        let store = Store::new(session);
        if store.is_pooled().await? {
            self.bad.push(
                "a connection pooler stands in between: LISTEN and the leader's lock need a direct connection"
                    .to_owned(),
            );
        }
        for missing in store.missing_rights().await? {
            self.bad
                .push(format!("this role may not {missing}: run the daemon as the role that migrated, or grant it"));
        }
        if !store.trigger_enabled().await? {
            self.bad.push(
                "the trigger `ring` on outbox.event is disabled: events wait for the poll; \
                 ALTER TABLE outbox.event ENABLE TRIGGER ring"
                    .to_owned(),
            );
        }
        self.functions(&store, config).await?;
        match store.leader().await? {
            Some(leader) => self.good.push(format!("a daemon leads: session {} from {}", leader.pid, leader.address)),
            None => self.good.push("no daemon leads at the moment".to_owned()),
        }
        Ok(())
    }

    /// SQL handlers must name a function that takes an event and returns jsonb.
    async fn functions(&mut self, store: &Store, config: &Config) -> Result<(), Failure> {
        let handlers = config.handlers.iter().map(|handler| {
            let arguments = if handler.delivery.batch.is_some() { "(outbox.event[])" } else { "(outbox.event)" };
            (handler.name.to_string(), &handler.kind, arguments)
        });
        let steps = config.flows.iter().flat_map(|flow| {
            let step = |step: &'_ StepConfig| format!("{}/{}", flow.name, step.name);
            flow.steps
                .iter()
                .flat_map(move |of| of.handlers().map(move |(kind, _)| (step(of), kind, "(outbox.event, jsonb)")))
        });
        for (name, kind, arguments) in handlers.chain(steps) {
            let Kind::Sql(sql) = kind else { continue };
            let written = format!("{}.{}", sql.schema, sql.function);
            let function = store.sql_handler_function(&format!("{}{arguments}", quoted(sql))).await?;
            match (function.returns.as_deref(), function.allowed) {
                (None, _) => self.bad.push(format!("handler {name}: there is no function {written}{arguments}")),
                (Some("jsonb"), Some(true)) => self.good.push(format!("handler {name}: {written} is there")),
                (Some("jsonb"), _) => self.bad.push(format!("handler {name}: this role may not execute {written}")),
                (Some(other), _) => {
                    self.bad.push(format!("handler {name}: {written} must return jsonb, but returns {other}"));
                }
            }
        }
        Ok(())
    }

    fn tell(self, json: bool) -> Result<(), Failure> {
        if json {
            print_json(&json!({ "ok": self.bad.is_empty(), "good": self.good, "bad": self.bad }))?;
        } else {
            let lines = self.good.iter().map(|line| format!("ok       {line}\n"));
            let text: String = lines.chain(self.bad.iter().map(|line| format!("problem  {line}\n"))).collect();
            print(&text)?;
        }
        // Everything has been said.
        if self.bad.is_empty() { Ok(()) } else { Err(Failure::config("")) }
    }
}

fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
