//! `outboxd demo order`: orders whose payment, parcel and message are done by others, who fail in every way; the daemon and PostgreSQL
//! are killed in the middle. At the end an audit holds the books of all of them against each other.

mod parties;

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use self::parties::{Faults, Parties};
use super::super::Failure;
use super::super::output::print_json;
use super::screen::Screen;
use super::system::{System, free_address};
use crate::postgres::Session;

const CONFIG: &str = include_str!("order.toml");
const TABLES: &str = include_str!("order.sql");
/// Sessions of the shop that insert orders at the same time.
const SESSIONS: u32 = 4;
/// Orders of which every step is shown.
const SHOWN: i64 = 5;
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long all orders may take: this, and so much for each.
const END_MAX: Duration = Duration::from_mins(3);
const END_MAX_EACH: Duration = Duration::from_millis(50);
/// Between the faults that come while nothing ends.
const BETWEEN: Duration = Duration::from_millis(1500);
/// How long a service stays away that was killed.
const AWAY: Duration = Duration::from_millis(500);

const HELP: &str = "\
A shop on a PostgreSQL of its own. Each order locks stock (SQL), is paid (a provider that calls back), is sent (a carrier) and told to the
seller. The provider loses 30 % of its callbacks, sends 10 % twice and 5 % before its own answer, and refuses 5 % of the cards;
the carrier is slow, is down for a while and knows no such address now and then; shelves run empty. The daemon is killed with -9, and PostgreSQL
crashes. What fails is undone. Then an audit compares stock, payments, refunds and parcels for every order.

Exit codes: 0; 1 if the audit found something; 69 if PostgreSQL is not installed.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct OrderDemo {
    /// How many orders
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    orders: u32,
    /// Print the verdict as JSON, and nothing else
    #[arg(long)]
    json: bool,
}

/// How far it has come.
#[derive(Debug, Default, Clone, Copy)]
struct Ended {
    done: i64,
    compensated: i64,
}

impl OrderDemo {
    /// Plays it. Everything is removed when this returns, whatever it returns.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), Failure> {
        let screen = Screen::stdout();
        let result = tokio::select! {
            result = self.play(&screen) => result,
            () = stop.cancelled() => Err(Failure::new("stopped before it was finished")),
        };
        screen.finish().await;
        result
    }

    async fn play(&self, screen: &Screen) -> Result<(), Failure> {
        let tell = |text: &str| {
            if !self.json {
                screen.print(text);
            }
        };
        let parties = Parties::start().await?;
        let listen = free_address()?;
        let config = CONFIG.replace("${LISTEN}", &listen).replace("${PARTIES}", &parties.url());
        let mut system = System::start(&config, TABLES).await?;
        let played = self.deliver(&mut system, &parties, &tell).await;
        let verdict = match played {
            Ok(verdict) => verdict,
            Err(failure) => {
                let _ = system.remove().await;
                return Err(failure);
            }
        };
        system.remove().await?;
        if self.json {
            print_json(&serde_json::json!({
                "ok": verdict.wrong.is_empty(), "orders": self.orders, "done": verdict.ended.done,
                "compensated": verdict.ended.compensated, "seconds": verdict.seconds, "wrong": verdict.wrong,
            }))?;
        } else {
            tell(&verdict.told(screen));
        }
        // Everything has been said.
        if verdict.wrong.is_empty() { Ok(()) } else { Err(Failure::new("")) }
    }

    async fn deliver(&self, system: &mut System, parties: &Parties, tell: &impl Fn(&str)) -> Result<Verdict, Failure> {
        let orders = i64::from(self.orders);
        let session = system.session().await?;
        // So much that one order in ten finds an empty shelf.
        let stock = "INSERT INTO demo.article (id, stocked, stock) SELECT i, n, n FROM generate_series(0, 19) i, \
                     LATERAL (SELECT greatest(1, $1::integer * 2 / 20 * 9 / 10)) AS of (n)";
        session.client.execute(stock, &[&self.orders.cast_signed()]).await?;
        tell(&format!(
            "{orders} orders. Look at them in another terminal:\n\n    {}\n    SELECT * FROM outbox.flow WHERE state <> 'done';\n\n",
            system.psql_line()
        ));
        system.start_daemon()?;
        let began = Instant::now();
        let mut watch = Watch { session, shown: Vec::new(), second: 0 };
        let mut placing = tokio::task::JoinSet::new();
        for nth in 1..=SESSIONS {
            placing.spawn(place(system.session().await?, nth, self.orders));
        }
        let mut faults = vec![Fault::CarrierDown, Fault::DaemonKilled, Fault::CarrierUp, Fault::PostgresCrashed]
            .into_iter()
            .peekable();
        let mut struck = began;
        let deadline = began + END_MAX + END_MAX_EACH * self.orders;
        loop {
            let ended = watch.look(parties.faults(), began, tell).await?;
            let all = ended.done + ended.compensated;
            if all >= orders {
                break;
            }
            if Instant::now() > deadline {
                tell("Not all of them have ended in time.\n");
                break;
            }
            if let Some(fault) = faults.next_if(|fault| fault.is_due(all * 100 / orders, struck.elapsed())) {
                struck = Instant::now();
                // The shop's sessions end with PostgreSQL, so it has placed its orders by then.
                if fault == Fault::PostgresCrashed {
                    placed(&mut placing).await?;
                }
                tell(fault.told());
                watch.session = fault.strike(system, parties, watch.session).await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        placed(&mut placing).await?;
        let seconds = began.elapsed().as_secs_f64();
        // Whatever ran once too often has ended as well then.
        system.stop_daemon().await?;
        let Watch { session, .. } = watch;
        let wrong = audit(&session.client, parties).await?;
        Ok(Verdict { ended: ended(&session.client).await?, wrong, seconds, faults: counted(parties.faults()) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    CarrierDown,
    DaemonKilled,
    CarrierUp,
    PostgresCrashed,
}

impl Fault {
    /// When so many of a hundred orders have ended, and so long after the fault before. While the carrier is down, hardly any ends.
    fn is_due(self, percent: i64, since: Duration) -> bool {
        match self {
            Self::CarrierDown => percent >= 15,
            Self::DaemonKilled | Self::CarrierUp => since >= BETWEEN,
            Self::PostgresCrashed => percent >= 60,
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::CarrierDown => "---- the carrier goes down\n",
            Self::DaemonKilled => "---- the daemon is killed with -9\n",
            Self::CarrierUp => "---- the carrier is back\n",
            Self::PostgresCrashed => "---- PostgreSQL crashes\n",
        }
    }

    /// Strikes; returns a session with PostgreSQL, whose sessions it may have ended.
    async fn strike(self, system: &mut System, parties: &Parties, session: Session) -> Result<Session, Failure> {
        match self {
            Self::CarrierDown => parties.carrier(true),
            Self::CarrierUp => parties.carrier(false),
            Self::DaemonKilled => {
                system.kill_daemon().await?;
                tokio::time::sleep(AWAY).await;
                system.start_daemon()?;
            }
            Self::PostgresCrashed => {
                system.crash_postgres().await?;
                return system.session().await;
            }
        }
        Ok(session)
    }
}

/// One of the shop's sessions: commits every order that is its own together with the event that tells of it.
async fn place(session: Session, nth: u32, orders: u32) -> Result<(), Failure> {
    let order = "WITH placed AS (
            INSERT INTO demo.customer_order (id, article, pieces, cents) VALUES ($1, $1 % 20, 1 + $1 % 3, 100 * (1 + $1 % 90))
            RETURNING id, cents
        )
        INSERT INTO outbox.event (topic, key, payload)
        SELECT 'order.placed', 'order-' || id, jsonb_build_object('order', id, 'cents', cents) FROM placed";
    let order = session.client.prepare(order).await?;
    for id in (nth..=orders).step_by(SESSIONS.try_into().unwrap_or(1)) {
        session.client.execute(&order, &[&id.cast_signed()]).await?;
    }
    Ok(())
}

async fn placed(placing: &mut tokio::task::JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(ended) = placing.join_next().await {
        ended.map_err(|error| Failure::internal(format!("the shop ended: {error}")))??;
    }
    Ok(())
}

async fn ended(client: &Client) -> Result<Ended, Failure> {
    let counts = "SELECT count(*) FILTER (WHERE outcome = 'done'), count(*) FILTER (WHERE outcome = 'compensated')
                  FROM outbox.done WHERE handler = 'order'";
    let row = client.query_one(counts, &[]).await?;
    Ok(Ended { done: row.get(0), compensated: row.get(1) })
}

/// Tells what happens, as far as a person can read it.
struct Watch {
    session: Session,
    /// The lines of the first orders that have been told.
    shown: Vec<String>,
    second: u64,
}

impl Watch {
    async fn look(&mut self, faults: &Faults, began: Instant, tell: &impl Fn(&str)) -> Result<Ended, Failure> {
        let steps = "SELECT format('order %s  %s %s', e.payload->>'order', rpad(substr(d.handler, 7), 20),
                                   concat_ws(': ', d.state, coalesce(d.result->>'error', d.last_error, d.result->>'reason', d.result::text)))
                     FROM outbox.event e JOIN outbox.delivery d ON d.event_id = e.id
                     WHERE e.id <= $1 AND d.handler LIKE 'order%' AND d.state NOT IN ('pending', 'running', 'scheduled')
                     ORDER BY e.id, d.finished_at, d.handler";
        for row in self.session.client.query(steps, &[&SHOWN]).await? {
            let line: String = row.get(0);
            if !self.shown.contains(&line) {
                tell(&format!("{:6.1} s  {line}\n", began.elapsed().as_secs_f64()));
                self.shown.push(line);
            }
        }
        let ended = ended(&self.session.client).await?;
        let second = began.elapsed().as_secs();
        if second > self.second {
            self.second = second;
            let Ended { done, compensated } = ended;
            let faults = counted(faults);
            tell(&format!("{second:4} s    {done} done, {compensated} undone; {faults}\n"));
        }
        Ok(ended)
    }
}

fn counted(faults: &Faults) -> String {
    let Faults { lost, doubled, early, refused, down } = faults;
    let [lost, doubled, early, refused, down] =
        [lost, doubled, early, refused, down].map(|count| count.load(Ordering::Relaxed));
    format!(
        "callbacks: {lost} lost, {doubled} doubled, {early} early; {refused} cards refused, {down} times \"carrier is down\""
    )
}

/// Writes down what the third parties say, and holds all of it against each other.
async fn audit(client: &Client, parties: &Parties) -> Result<Vec<String>, Failure> {
    let insert = client
        .prepare("INSERT INTO demo.party (what, customer_order, times) VALUES ($1, $2::bigint::integer, $3)")
        .await?;
    for (what, order, times) in parties.done() {
        client.execute(&insert, &[&what, &order, &times.cast_signed()]).await?;
    }
    client.batch_execute("ANALYZE").await?;
    let rows = client.query(include_str!("audit.sql"), &[]).await?;
    Ok(rows.iter().map(|row| row.get("wrong")).collect())
}

struct Verdict {
    ended: Ended,
    wrong: Vec<String>,
    seconds: f64,
    faults: String,
}

impl Verdict {
    fn told(&self, screen: &Screen) -> String {
        let Self { ended: Ended { done, compensated }, wrong, seconds, faults } = self;
        let mut text = format!("\n{done} orders done and {compensated} undone in {seconds:.1} s; {faults}.\n\n");
        // Writing to a String cannot fail.
        for wrong in wrong {
            let _ = writeln!(text, "{}  {wrong}", screen.paint.red("problem"));
        }
        let verdict = if wrong.is_empty() {
            screen.paint.green("The audit finds nothing: stock, payments, refunds and parcels agree for every order.")
        } else {
            screen.paint.red("The books do not agree.")
        };
        let _ = writeln!(text, "{verdict}");
        text
    }
}
