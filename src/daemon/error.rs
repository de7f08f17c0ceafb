//! Why there is no daemon, or no more.

use std::net::SocketAddr;

use crate::flow::GraphError;
use crate::postgres::ConnectError;
use crate::topic::PatternError;

/// Why a daemon could not be built or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("handler {name}: {source}")]
    Pattern { name: String, source: PatternError },
    #[error("two handlers have the name {0}")]
    SameName(String),
    #[error("flow {name}: {source}")]
    Graph { name: String, source: GraphError },
    #[error("the HTTP client could not be set up: {0}")]
    Http(#[source] reqwest::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot listen on {address}, as `listen` in [daemon] says")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the metrics could not be set up: {0}")]
    Metrics(#[source] prometheus::Error),
    /// The database is not as the daemon needs it; trying again does not help.
    #[error("{0}")]
    Setup(String),
}
