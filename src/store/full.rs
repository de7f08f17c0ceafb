//! Handlers for which as many deliveries wait as may.

use super::{Error, Store, sql};

/// A handler that has become full, or is not any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    pub handler: String,
    /// How many deliveries may wait, and whether events are refused; `None`: it is not full any more.
    pub full: Option<(i64, bool)>,
}

impl Store {
    /// Notes which of these handlers are full, given how many deliveries may wait for each and whether events are refused then. Returns
    /// what has changed.
    pub async fn find_full(&self, limits: &[(&str, u32, bool)]) -> Result<Vec<Changed>, Error> {
        let handlers: Vec<&str> = limits.iter().map(|limit| limit.0).collect();
        let events: Vec<i64> = limits.iter().map(|limit| limit.1.into()).collect();
        let refuses: Vec<bool> = limits.iter().map(|limit| limit.2).collect();
        let rows = self.query(sql!("find_full"), &[&handlers, &events, &refuses]).await?;
        let changed = |row: &tokio_postgres::Row| Changed {
            handler: row.get("handler"),
            full: row.get::<_, bool>("is_full").then(|| (row.get("events"), row.get("refuses"))),
        };
        Ok(rows.iter().map(changed).collect())
    }
}
