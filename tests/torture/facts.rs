//! What the database says at the end, in one snapshot, and what the programs have written down.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::ledger::Number;
use crate::server::Server;

/// Deliveries that have not ended, pending ones included.
const UNFINISHED: &str = "
SELECT (SELECT sum(pending + scheduled + retrying + running + waiting + blocked) FROM outbox.backlog)::bigint
     + (SELECT count(*) FROM pg_prepared_xacts)";

pub(crate) struct Event {
    pub(crate) id: i64,
    pub(crate) topic: String,
    /// Whether the producer's number and key are stored as they were sent.
    pub(crate) key: Option<String>,
}

/// Where a delivery ended.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// `done`, `expired`, or the state of a row in `outbox.open`.
    pub(crate) state: String,
    pub(crate) attempt: u32,
    pub(crate) failures: Option<u32>,
}

pub(crate) struct Facts {
    pub(crate) events: BTreeMap<Number, Event>,
    pub(crate) ends: HashMap<(i64, String), Vec<End>>,
    /// The numbers of attempts in the history.
    pub(crate) attempts: HashMap<(i64, String), Vec<u32>>,
    /// How often the SQL function's work stands.
    pub(crate) effects: HashMap<(i64, Number), i64>,
    /// `(event, attempt, payload)` as the program was given them.
    pub(crate) program: Vec<(i64, u32, String)>,
    /// What the view of all deliveries counts: in all, pending.
    pub(crate) view: (i64, i64),
    pub(crate) sessions: i64,
}

impl Facts {
    /// `None` while that cannot be known.
    pub(crate) async fn unfinished(server: &Server) -> Option<i64> {
        let session = server.session().await;
        session.client.query_one(UNFINISHED, &[]).await.ok()?.get(0)
    }

    pub(crate) async fn read(server: &Server, folder: &Path) -> Self {
        let session = server.session().await;
        let query = async |sql: &str| session.client.query(sql, &[]).await.unwrap();
        session.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.unwrap();
        let events =
            query("SELECT (payload->>'n')::bigint, id, topic, key FROM outbox.event WHERE topic NOT LIKE 'outboxd.%'")
                .await;
        let number = |n: i64| Number::try_from(n).unwrap();
        let events =
            events.iter().map(|row| (number(row.get(0)), Event { id: row.get(1), topic: row.get(2), key: row.get(3) }));
        let mut facts = Self {
            events: events.collect(),
            ends: HashMap::new(),
            attempts: HashMap::new(),
            effects: HashMap::new(),
            program: program(folder),
            view: (0, 0),
            sessions: 0,
        };
        let ends = "SELECT event_id, handler, outcome, attempt, NULL::integer FROM outbox.done
                    UNION ALL SELECT event_id, handler, state, attempt, failures FROM outbox.open";
        let count = |n: i32| u32::try_from(n).unwrap();
        for row in query(ends).await {
            let failures: Option<i32> = row.get(4);
            let end = End { state: row.get(2), attempt: count(row.get(3)), failures: failures.map(count) };
            facts.ends.entry((row.get(0), row.get(1))).or_default().push(end);
        }
        for row in query("SELECT event_id, handler, attempt FROM outbox.attempt").await {
            facts.attempts.entry((row.get(0), row.get(1))).or_default().push(count(row.get(2)));
        }
        for row in query("SELECT event_id, n, count(*) FROM torture.effect GROUP BY 1, 2").await {
            facts.effects.insert((row.get(0), number(row.get(1))), row.get(2));
        }
        let view = &query("SELECT count(*), count(*) FILTER (WHERE state = 'pending') FROM outbox.delivery").await[0];
        facts.view = (view.get(0), view.get(1));
        let sessions =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'outboxd %' AND pid <> pg_backend_pid()
                        AND application_name NOT LIKE '%torture'";
        facts.sessions = query(sessions).await[0].get(0);
        facts
    }
}

/// The lines that the program has written. One that a fault cut off does not count.
fn program(folder: &Path) -> Vec<(i64, u32, String)> {
    let text = std::fs::read_to_string(folder.join("program")).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}
