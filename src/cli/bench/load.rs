//! Producers: sessions that commit one event at a time.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use super::super::Failure;
use super::clock;
use super::stand::Stand;
use crate::postgres::Session;

const INSERT: &str = "INSERT INTO outbox.event (topic, key, payload) \
                      VALUES ('bench.event', $1, jsonb_build_object('n', $2::bigint, 'pad', repeat('x', 180))) RETURNING id";

/// An event whose commit was acknowledged at this time of [`clock`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Committed {
    pub(super) id: i64,
    pub(super) at: i64,
}

/// Sessions that insert.
pub(super) struct Producers {
    sessions: Vec<(Session, tokio_postgres::Statement)>,
}

impl Producers {
    pub(super) async fn connect(stand: &Stand, producers: u32) -> Result<Self, Failure> {
        let connect = |_| async {
            let session = stand.target().connect("bench produces").await?;
            let statement = session.client.prepare(INSERT).await?;
            Ok::<_, Failure>((session, statement))
        };
        Ok(Self { sessions: try_join_all((0..producers).map(connect)).await? })
    }

    /// One event, committed.
    pub(super) async fn one(&self, n: i64) -> Result<Committed, Failure> {
        let (session, statement) = self.sessions.first().ok_or_else(|| Failure::internal("no producer"))?;
        commit(session, statement, n).await
    }

    /// Every session commits as fast as it can; returns the commits in a second.
    pub(super) async fn flood(&self, how_long: Duration) -> Result<f64, Failure> {
        let began = Instant::now();
        let each = self.sessions.iter().map(|(session, statement)| async move {
            let mut commits = 0u32;
            while began.elapsed() < how_long {
                commit(session, statement, commits.into()).await?;
                commits += 1;
            }
            Ok::<_, Failure>(f64::from(commits))
        });
        let commits: f64 = try_join_all(each).await?.into_iter().sum();
        Ok(commits / began.elapsed().as_secs_f64())
    }

    /// So many commits a second, spread over the sessions. A session that is late does not skip any, so that what a hiccup does is seen.
    pub(super) async fn paced(self, rate: u32, how_long: Duration) -> Result<Vec<Committed>, Failure> {
        let sessions = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let every = Duration::from_secs(1) * sessions / rate;
        let began = tokio::time::Instant::now();
        let mut tasks = JoinSet::new();
        for (n, (session, statement)) in (0u32..).zip(self.sessions) {
            tasks.spawn(async move {
                let mut committed = Vec::new();
                let mut next = every * n / sessions;
                while next < how_long {
                    tokio::time::sleep_until(began + next).await;
                    committed.push(commit(&session, &statement, n.into()).await?);
                    next += every;
                }
                Ok::<_, Failure>(committed)
            });
        }
        let mut all = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            all.extend(joined.map_err(|error| Failure::internal(format!("a producer panicked: {error}")))??);
        }
        all.sort_by_key(|committed| committed.at);
        Ok(all)
    }
}

async fn commit(session: &Session, statement: &tokio_postgres::Statement, n: i64) -> Result<Committed, Failure> {
    let row = session.client.query_one(statement, &[&format!("k{n}"), &n]).await?;
    Ok(Committed { id: row.get(0), at: clock::now() })
}
