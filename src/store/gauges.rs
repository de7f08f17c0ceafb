//! What `/metrics` shows of the database.

use deadpool_postgres::Client;

use super::{Error, query_on, sql};
use crate::metrics::{OPEN_STATES, Stored};

/// How the configured handlers stand, and the last id that the log has given out.
pub async fn gauges(client: &Client) -> Result<(Vec<Stored>, i64), Error> {
    let rows = query_on(&***client, sql!("gauges"), &[]).await?;
    let stored = |row: &tokio_postgres::Row| Stored {
        handler: row.get("handler"),
        open: OPEN_STATES.map(|state| row.get(state)),
        overdue: row.get("overdue"),
    };
    let last_id = rows.first().map_or(0, |row| row.get("last_id"));
    Ok((rows.iter().map(stored).collect(), last_id))
}
