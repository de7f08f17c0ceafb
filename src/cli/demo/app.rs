//! The app: it registers users and takes files, and inserts an event in the same transaction. It knows of outboxd only
//! the table `outbox.event`.

use serde_json::{Value, json};

use super::super::Failure;
use crate::postgres::Session;

const NAMES: [&str; 20] = [
    "Ada",
    "Alan",
    "Barbara",
    "Dennis",
    "Donald",
    "Edsger",
    "Frances",
    "Grace",
    "Jean",
    "Jim",
    "John",
    "Katherine",
    "Ken",
    "Leslie",
    "Margaret",
    "Michael",
    "Niklaus",
    "Radia",
    "Shafi",
    "Tony",
];
const PICTURES: [&str; 6] = ["sunset", "harbour", "cat", "mountain", "bicycle", "rain"];
/// The one that no attempt can read.
pub(super) const BROKEN: &str = "broken.png";

/// The app's own session.
pub(super) struct App(pub(super) Session);

impl App {
    /// Commits a user together with the event that tells of it.
    pub(super) async fn register_user(&mut self) -> Result<(), Failure> {
        let name = NAMES[fastrand::usize(..NAMES.len())];
        let transaction = self.0.client.transaction().await?;
        let insert = "INSERT INTO demo.app_user (name) VALUES ($1) RETURNING id";
        let user: i64 = transaction.query_one(insert, &[&name]).await?.get(0);
        let payload = json!({ "user": user, "name": name });
        publish(&transaction, "user.registered", &format!("user-{user}"), &payload).await?;
        Ok(transaction.commit().await?)
    }

    /// Commits a file together with the event that tells of it.
    pub(super) async fn upload_file(&mut self) -> Result<(), Failure> {
        let transaction = self.0.client.transaction().await?;
        let file: i64 = transaction.query_one("SELECT nextval('demo.file_id_seq')", &[]).await?.get(0);
        let name = file_name(file);
        let insert = "INSERT INTO demo.file (id, name) OVERRIDING SYSTEM VALUE VALUES ($1, $2)";
        transaction.execute(insert, &[&file, &name]).await?;
        let payload = json!({ "file": file, "name": name });
        publish(&transaction, "file.uploaded", &format!("file-{file}"), &payload).await?;
        Ok(transaction.commit().await?)
    }
}

async fn publish(
    transaction: &tokio_postgres::Transaction<'_>,
    topic: &str,
    key: &str,
    payload: &Value,
) -> Result<(), Failure> {
    let insert = "INSERT INTO outbox.event (topic, key, payload) VALUES ($1, $2, $3)";
    transaction.execute(insert, &[&topic, &key, payload]).await?;
    Ok(())
}

/// One in twenty is broken.
pub(super) fn file_name(file: i64) -> String {
    if file % 20 == 10 {
        return BROKEN.to_owned();
    }
    format!("{}-{file}.png", PICTURES[fastrand::usize(..PICTURES.len())])
}

/// Whether its first attempt fails: one in three. Never a broken one, which fails anyway.
pub(super) fn fails_first(file: i64, name: &str) -> bool {
    file % 3 == 0 && name != BROKEN
}
