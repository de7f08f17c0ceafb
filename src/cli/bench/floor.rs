//! What is the least that the same work can cost: what the daemon asks of PostgreSQL or of a web service, without the daemon.

use std::sync::Arc;
use std::time::Instant;

use futures_util::TryStreamExt as _;
use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::Failure;
use super::clock;
use super::part::{posting, say};
use crate::config::{Config, HttpConfig, Kind};
use crate::event::{Attempt, Event, EventId, Heartbeats};
use crate::handler::Handler as _;
use crate::handler::http::{self, Clients, HttpHandler};
use crate::outcome::Outcome;
use crate::postgres::Target;
use crate::store::Store;
use crate::store::log::{Cursor, PageLimit};
use crate::store::settle::Finished;

/// As large as the daemon's own pages and batches.
const PAGE: PageLimit = PageLimit { events: 1000, bytes: 4 * 1024 * 1024 };
const BATCH: usize = 1000;
/// Pages that have been read and are not written yet.
const PAGES_AHEAD: usize = 4;

/// Reads the log to its end and appends an outcome for each event and handler: two sessions, the same statements as the daemon's,
/// and nothing decided between them.
pub(super) async fn drain(target: &Target, handlers: u32, stop: &CancellationToken) -> Result<(), Failure> {
    let reader = Store::new(target.connect("bench floor reads").await?);
    reader.pin_plans().await?;
    let writer = Store::new(target.connect("bench floor writes").await?);
    writer.pin_leader_plans().await?;
    let names: Vec<Arc<str>> = (1..=handlers).map(|n| format!("bench_{n}").into()).collect();
    let (pages, mut read) = mpsc::channel(PAGES_AHEAD);
    let reader = &reader;
    let reads = async move {
        let beginning = "1:1:".parse().map_err(|_| Failure::internal("1:1: is no snapshot"))?;
        let mut cursor = Cursor::at(beginning);
        loop {
            let page = reader.tail_head(&cursor, PAGE).await?;
            cursor = page.cursor;
            let ids: Vec<i64> = page.events.iter().map(|logged| logged.event.id.0).collect();
            // A writer that has failed says so itself.
            if ids.is_empty() || pages.send(ids).await.is_err() {
                return Ok(());
            }
        }
    };
    let writes = async {
        let mut first = true;
        while let Some(ids) = read.recv().await {
            if std::mem::take(&mut first) {
                say(&format!("first {}", clock::now()));
            }
            let deliveries: Vec<(i64, &Arc<str>)> =
                ids.iter().flat_map(|&id| names.iter().map(move |name| (id, name))).collect();
            for batch in deliveries.chunks(BATCH) {
                writer.append_done(&finished(batch)).await?;
            }
        }
        Ok::<(), Failure>(())
    };
    tokio::try_join!(reads, writes)?;
    say(&format!("last {}", clock::now()));
    // What its sessions used is counted while they are there.
    stop.cancelled().await;
    Ok(())
}

fn finished(batch: &[(i64, &Arc<str>)]) -> Finished {
    let rows = batch.len();
    Finished {
        event_ids: batch.iter().map(|&(id, _)| id).collect(),
        handlers: batch.iter().map(|&(_, name)| Arc::clone(name)).collect(),
        outcomes: vec!["done"; rows],
        attempts: vec![1; rows],
        began: vec![Some(1); rows],
        ended: vec![0; rows],
        results: vec![None; rows],
    }
}

/// Listens; says "heard" with the time whenever a notification has come and one fetch after it has found something.
pub(super) async fn listen(target: &Target, stop: &CancellationToken) -> Result<(), Failure> {
    let wake = Arc::new(Notify::new());
    let listener = target.listen("bench floor listens", Arc::clone(&wake)).await?;
    listener.client.batch_execute("LISTEN bench_floor").await?;
    let reader = target.connect("bench floor reads").await?;
    let fetch = "SELECT id, payload::text FROM outbox.event WHERE id > $1 ORDER BY id LIMIT 100";
    let fetch = reader.client.prepare(fetch).await?;
    let mut after = 0i64;
    say("ready");
    loop {
        tokio::select! {
            () = wake.notified() => {}
            () = stop.cancelled() => return Ok(()),
        }
        for row in reader.client.query(&fetch, &[&after]).await? {
            after = row.get(0);
            say(&format!("{after} {}", clock::now()));
        }
    }
}

/// Posts to a web service what the daemon would, with its HTTP handler; says how long that took.
pub(super) async fn post(url: &str, requests: u32, concurrency: usize) -> Result<(), Failure> {
    let client = http::client().map_err(|error| Failure::internal(error.to_string()))?;
    let handler = HttpHandler::new(&http_config(posting(url)?)?, &Clients::new(client));
    let handler = handler.map_err(|error| Failure::internal(error.to_string()))?;
    let handler = &handler;
    let name: Arc<str> = "bench".into();
    let installation = Uuid::new_v4();
    let began = Instant::now();
    stream::iter(1..=requests)
        .map(|n| Ok::<_, Failure>((n, Arc::clone(&name))))
        .try_for_each_concurrent(concurrency, |(n, name)| async move {
            let attempt = attempt(n, name, installation);
            match handler.run(&attempt).await {
                Outcome::Done { .. } => Ok(()),
                other => Err(Failure::new(format!("the sink did not take a request: {other:?}"))),
            }
        })
        .await?;
    say(&format!("took {}", began.elapsed().as_nanos()));
    Ok(())
}

fn http_config(config: Config) -> Result<HttpConfig, Failure> {
    match config.handlers.into_iter().next().map(|handler| handler.kind) {
        Some(Kind::Http(kind)) => Ok(kind),
        _ => Err(Failure::internal("the bench's handler is not an HTTP handler")),
    }
}

fn attempt(n: u32, handler: Arc<str>, installation: Uuid) -> Attempt {
    let event = Event {
        id: EventId(n.into()),
        topic: "bench.event".to_owned(),
        key: Some(format!("k{n}")),
        payload: format!("{{\"n\": {n}, \"pad\": \"{}\"}}", "x".repeat(180)),
        headers: "{}".to_owned(),
        created_at: Timestamp::now(),
    };
    Attempt {
        event: Arc::new(event),
        handler,
        number: 1,
        has_row: false,
        installation,
        callback: None,
        results: None,
        trace: None,
        heartbeats: Heartbeats::default(),
    }
}
