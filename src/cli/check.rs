//! `outboxd check`: everything that can be found wrong before the daemon runs, in one go.

use clap::Args;

use super::findings::Findings;
use super::output::print;
use super::{Failure, Global};
use crate::config::{AlertConfig, Config, FlowConfig, Kind, StepConfig};
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

impl Check {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let config = global.load()?;
        if self.print_config {
            return print(&config.to_toml());
        }
        let mut findings = Findings::default();
        configured(&mut findings, &config);
        if !self.offline {
            let session = global.target()?.connect("check").await?;
            if let Some(store) = set_up(&mut findings, session).await? {
                functions(&mut findings, &store, &config).await?;
                match store.leader().await? {
                    Some(leader) if leader.may_lead => {
                        findings.good(format!("a daemon leads: session {} from {}", leader.pid, leader.address));
                    }
                    // `doctor` says who is in the way.
                    _ => findings.good("no daemon leads at the moment"),
                }
            }
        }
        findings.tell(self.json, Failure::config(""))
    }
}

/// What there is to do.
pub(super) fn configured(findings: &mut Findings, config: &Config) {
    let count = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        count => Some(format!("{count} {what}s")),
    };
    match (count(config.handlers.len(), "handler"), count(config.flows.len(), "flow")) {
        (None, None) => {
            findings.bad("no [handler.NAME] or [flow.NAME] is configured: the daemon has nothing to do");
        }
        (Some(some), None) | (None, Some(some)) => findings.good(format!("the configuration has {some}")),
        (Some(handlers), Some(flows)) => findings.good(format!("the configuration has {handlers} and {flows}")),
    }
    for AlertConfig { name, handler, .. } in &config.alerts {
        let Some(handler) = handler else { continue };
        let is_handler = config.handlers.iter().any(|known| known.name == *handler);
        let of_flow = |flow: &FlowConfig| flow.name == *handler || handler.starts_with(&format!("{}/", flow.name));
        if !is_handler && !config.flows.iter().any(of_flow) {
            findings.bad(format!("alert {name}: there is no handler {handler}, so it never tells anything"));
        }
    }
}

/// Whether the database is set up for a daemon; `None`: the rest cannot be looked at.
pub(super) async fn set_up(findings: &mut Findings, session: Session) -> Result<Option<Store>, Failure> {
    findings.good(format!("PostgreSQL {} answers", version(session.version)));
    for warning in &session.warnings {
        findings.bad(warning.clone());
    }
    match migrate::status(&session.client).await? {
        SchemaStatus::Current => findings.good("the schema is up to date"),
        status => {
            findings.bad(status.to_string());
            return Ok(None);
        }
    }
    let store = Store::new(session);
    if store.is_pooled().await? {
        findings.problem(
            "a connection pooler stands in between: LISTEN and the leader's lock need a direct connection",
            "connect to PostgreSQL itself, or give outboxd a pool of the mode `session`",
        );
    }
    let missing = store.missing_rights().await?;
    if !missing.is_empty() && store.leader().await?.is_some_and(|leader| leader.may_lead) {
        findings.notice(
            "this role could not run the daemon; that of the one that leads can",
            "nothing to do, unless it should",
        );
    } else if !missing.is_empty() {
        let what = format!("this role may not {}", missing.join(", "));
        findings.problem(
            what,
            "run the daemon as the role that migrated, or as a member of outbox_daemon (`outboxd migrate --roles`)",
        );
    }
    for (name, enabled) in store.triggers().await? {
        let silent = if name == "ring" { "events wait for the poll" } else { "a dedup key holds nothing back" };
        match enabled.as_deref() {
            Some("O" | "A") => {}
            Some(_) => findings.problem(
                format!("the trigger `{name}` on outbox.event is disabled: {silent}"),
                format!("ALTER TABLE outbox.event ENABLE TRIGGER {name}"),
            ),
            None => findings.problem(
                format!("the trigger `{name}` on outbox.event is not there: {silent}"),
                migrate::trigger(&name)
                    .unwrap_or_else(|| "make it again, as `outboxd migrate --sql` shows it".to_owned()),
            ),
        }
    }
    Ok(Some(store))
}

/// SQL handlers must name a function that takes an event and returns jsonb.
pub(super) async fn functions(findings: &mut Findings, store: &Store, config: &Config) -> Result<(), Failure> {
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
            (None, _) => findings.bad(format!("handler {name}: there is no function {written}{arguments}")),
            (Some("jsonb"), Some(true)) => findings.good(format!("handler {name}: {written} is there")),
            (Some("jsonb"), _) => findings.problem(
                format!("handler {name}: this role may not execute {written}"),
                format!("GRANT EXECUTE ON FUNCTION {written}{arguments} TO the daemon's role"),
            ),
            (Some(other), _) => {
                findings.bad(format!("handler {name}: {written} must return jsonb, but returns {other}"));
            }
        }
    }
    Ok(())
}

fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
