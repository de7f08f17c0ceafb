//! `outboxd doctor`: what is stuck, why, since when and what to do; everything that `check` looks at, and what has gone wrong since.

mod handlers;
mod server;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::check::{configured, functions, set_up};
use super::findings::Findings;
use super::output::age;
use super::{Failure, Global};
use crate::config::{Config, duration};
use crate::handler::http;
use crate::postgres::Target;
use crate::store::Store;

/// How long a notification, or the daemon's own port, may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A leader says something every five seconds.
const SILENT_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// How long a transaction or an attempt may last, and a delivery wait, before it is worth a word
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    lasting: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut findings = Findings::default();
        let config = read(&mut findings, global);
        let target = global.target()?;
        let session = target.connect("doctor").await?;
        if let Some(store) = set_up(&mut findings, session).await? {
            if let Some(config) = &config {
                functions(&mut findings, &store, config).await?;
            }
            server::look(&mut findings, &store, self.lasting).await?;
            hears(&mut findings, &target).await?;
            leads(&mut findings, &store).await?;
            if let Some(config) = &config {
                port(&mut findings, config).await?;
            }
            handlers::look(&mut findings, &store, config.as_ref(), self.lasting).await?;
        }
        findings.tell(self.json, Failure::new(""))
    }
}

/// The configuration, if there is one that can be read. Without it, the database is looked at all the same.
fn read(findings: &mut Findings, global: &Global) -> Option<Config> {
    if global.file().is_none() {
        findings.notice("no configuration was found, so nothing is compared with it", "name it: --config FILE");
        return None;
    }
    match global.load() {
        Ok(config) => {
            configured(findings, &config);
            Some(config)
        }
        Err(failure) => {
            findings.problem(failure.to_string(), "mend it; a running daemon keeps the one it has read");
            None
        }
    }
}

/// Whether a notification comes back.
async fn hears(findings: &mut Findings, target: &Target) -> Result<(), Failure> {
    let heard = Arc::new(Notify::new());
    let listener = Store::new(target.listen("doctor", Arc::clone(&heard)).await?);
    listener.listen().await?;
    listener.ring().await?;
    match timeout(ANSWER_MAX, heard.notified()).await {
        Ok(()) => findings.good("a notification comes back"),
        Err(_) => findings.problem(
            format!("a notification did not come back within {} s: events wait for the poll", ANSWER_MAX.as_secs()),
            "look for a connection pooler in between, and for a full queue of notifications",
        ),
    }
    Ok(())
}

async fn leads(findings: &mut Findings, store: &Store) -> Result<(), Failure> {
    let Some(leader) = store.leader().await? else {
        findings.problem(
            "no daemon leads: nothing is dispatched",
            "start one: systemctl start outboxd, or outboxd run; its log says why it ended: journalctl -u outboxd",
        );
        return Ok(());
    };
    if !leader.may_lead {
        findings.problem(
            format!(
                "no daemon leads: session {} holds its lock, whose role {} is no daemon's; every role may take every advisory lock",
                leader.pid, leader.role
            ),
            format!(
                "SELECT pg_terminate_backend({}); GRANT pg_signal_backend to the daemon's role lets it do that itself; \
                 REVOKE CONNECT keeps {} out",
                leader.pid, leader.role
            ),
        );
        return Ok(());
    }
    let session = format!("session {} from {}", leader.pid, leader.address);
    match leader.silent.filter(|silent| *silent > SILENT_MAX) {
        None => findings.good(format!("a daemon leads: {session}")),
        Some(silent) => findings.problem(
            format!("the daemon that leads, {session}, has said nothing for {}", age(silent.as_secs_f64())),
            format!(
                "it hangs or is cut off; another daemon would take over; or end it: SELECT pg_terminate_backend({})",
                leader.pid
            ),
        ),
    }
    Ok(())
}

/// What the daemon on this machine says of itself.
async fn port(findings: &mut Findings, config: &Config) -> Result<(), Failure> {
    let Some(address) = config.daemon.listen else { return Ok(()) };
    let client = http::client().map_err(|error| Failure::internal(error.to_string()))?;
    let asked = client.get(format!("http://{address}/readyz")).timeout(ANSWER_MAX).send();
    let answered = match asked.await {
        Ok(response) => {
            let ready = response.status().is_success();
            response.text().await.map(|text| (ready, text.trim().to_owned()))
        }
        Err(error) => Err(error),
    };
    match answered {
        Ok((true, text)) => findings.good(format!("the daemon at {address} is ready: {text}")),
        Ok((false, text)) => {
            findings
                .problem(format!("the daemon at {address} is not ready: {text}"), "see its log: journalctl -u outboxd");
        }
        Err(_) => findings.notice(
            format!("nothing answers at {address}, where `listen` says that the daemon does"),
            "look on the machine that it runs on, or start it",
        ),
    }
    Ok(())
}
