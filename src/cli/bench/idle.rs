//! `idle`: what a daemon costs that has nothing to do.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::Failure;
use super::drain::mib;
use super::part::{Part, Role};
use super::report::{Figure, Target};
use super::stand::Stand;

/// After its start a daemon keeps house more often; until then it does not count.
const SETTLED_AFTER: Duration = Duration::from_secs(70);
/// The daemon's sessions in the log, and the bench's own.
const OURS: &str = "outboxd ";
const BENCH: &str = "outboxd bench";

pub(super) async fn run(stand: &Stand, how_long: Duration) -> Result<Vec<Figure>, Failure> {
    let server = stand.server().ok_or_else(|| {
        Failure::with_code(2, "idle counts the statements in the log of a server of its own: leave --database-url out")
    })?;
    let log = server.log_file();
    stand.fresh().await?;
    stand.log_statements(true).await?;
    let mut daemon = Part::start(stand, &Role::Daemon { handlers: 2, takes: 0, tells: false })?;
    daemon.says_that("ready").await?;
    tokio::time::sleep(SETTLED_AFTER).await;
    let before = (statements(&log)?, daemon.used()?.cpu_seconds, Instant::now());
    tokio::time::sleep(how_long).await;
    let used = daemon.used()?;
    let seconds = before.2.elapsed().as_secs_f64();
    let said = statements(&log)? - before.0;
    daemon.stop().await?;
    stand.log_statements(false).await?;
    Ok(vec![
        Figure::new("statements/min", said * 60.0 / seconds).target(Target::AtMost(20.0)),
        Figure::new("daemon CPU, % of a core", (used.cpu_seconds - before.1) * 100.0 / seconds)
            .target(Target::AtMost(0.1)),
        Figure::new("daemon's peak memory, MiB", mib(used.peak_bytes)).target(Target::AtMost(30.0)),
    ])
}

fn statements(log: &Path) -> Result<f64, Failure> {
    let log = fs::read_to_string(log).map_err(|error| Failure::new(format!("the server's log: {error}")))?;
    let ours = |line: &&str| line.starts_with(OURS) && !line.starts_with(BENCH);
    let statement = |line: &&str| ["|LOG:  statement: ", "|LOG:  execute "].iter().any(|kind| line.contains(kind));
    #[expect(clippy::cast_precision_loss, reason = "a log has no 2^53 lines")]
    Ok(log.lines().filter(ours).filter(statement).count() as f64)
}
