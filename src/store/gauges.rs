//! What `/metrics` and alerts show of the database.

use deadpool_postgres::Client;
use tokio_postgres::GenericClient;

use super::{Error, Store, query_on, sql};
use crate::metrics::{OPEN_STATES, Stored};

/// How the configured handlers stand, and the last id that the log has given out.
pub async fn gauges(client: &Client) -> Result<(Vec<Stored>, i64), Error> {
    ask(&***client).await
}

impl Store {
    /// The same on a session.
    pub async fn gauges(&self) -> Result<(Vec<Stored>, i64), Error> {
        ask(&self.session.client).await
    }
}

async fn ask(client: &impl GenericClient) -> Result<(Vec<Stored>, i64), Error> {
    let rows = query_on(client, sql!("gauges"), &[]).await?;
    let stored = |row: &tokio_postgres::Row| Stored {
        handler: row.get("handler"),
        open: OPEN_STATES.map(|state| row.get(state)),
        overdue: row.get("overdue"),
    };
    let last_id = rows.first().map_or(0, |row| row.get("last_id"));
    Ok((rows.iter().map(stored).collect(), last_id))
}
