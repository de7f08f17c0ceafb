//! outboxd inside a Rust program: two handlers, a throwaway PostgreSQL, and ten events.
//!
//! `cargo run --example embed`; with `DATABASE_URL` set you would use `.database(url)` instead.

use std::time::Duration;

use outboxd::config::DeliveryConfig;
use outboxd::postgres::throwaway::{Options, ThrowawayPostgres};
use outboxd::{Attempt, CancellationToken, Daemon, Event, Failure, Outcome};
use serde::Deserialize;

#[derive(Deserialize)]
struct User {
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let postgres = ThrowawayPostgres::start(Options::default()).await?;
    let target = postgres.target("postgres");
    outboxd::postgres::migrate::migrate(&target).await?;

    let delivery = DeliveryConfig { timeout: Duration::from_secs(2), ..DeliveryConfig::new(vec!["user.*".parse()?]) };
    let (greeted, mut greetings) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let daemon = Daemon::builder()
        .target(target.clone())
        // The simplest form: an error it returned would be a failed attempt.
        .handler("greet", ["user.registered"], move |event: Event| {
            let greeted = greeted.clone();
            async move {
                let user: User = event.payload_as()?;
                let _ = greeted.send(user.name);
                Ok::<_, serde_json::Error>(())
            }
        })
        // With its own settings, and every outcome there is: this one fails the first time.
        .handler_with("audit", delivery, async |attempt: Attempt| match attempt.number {
            1 => Outcome::Retry { after: Some(Duration::from_millis(50)), failure: Failure::new("not yet") },
            _ => Outcome::done_with(serde_json::json!({ "key": attempt.idempotency_key() })),
        })
        .build()?;
    let running = tokio::spawn(daemon.run(stop.clone()));

    let app = target.connect("app").await?;
    for name in ["Ada", "Grace", "Edsger", "Barbara", "Donald", "Radia", "Tony", "Leslie", "Jim", "Michael"] {
        let payload = serde_json::json!({ "name": name });
        app.client
            .execute("INSERT INTO outbox.event (topic, payload) VALUES ('user.registered', $1)", &[&payload])
            .await?;
    }
    for _ in 0..10 {
        println!("hello {}", greetings.recv().await.unwrap_or_default());
    }
    stop.cancel();
    running.await??;
    for row in app.client.query("SELECT handler, pending, retrying, dead, finished FROM outbox.backlog", &[]).await? {
        let (handler, pending, retrying, dead, finished): (String, i64, i64, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        println!("{handler}: {finished} finished, {pending} pending, {retrying} retrying, {dead} dead");
    }
    drop(app);
    postgres.stop().await?;
    Ok(())
}
