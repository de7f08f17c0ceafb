//! What goes wrong. The seed chooses the faults, their order, their length and the pauses between them before the first one
//! begins; every kind comes once before any comes again.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::daemons::Daemon;
use crate::ledger::Ledger;
use crate::proxy::{Fault, Way};
use crate::server::Server;
use crate::sink::Sinks;

/// The sessions of a daemon; `""` is all of them.
const ROLES: [&str; 6] = ["leader", "tail", "bell", "janitor", "pool", ""];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL
    KillLeader,
    KillStandby,
    KillBoth,
    /// SIGSTOP, and SIGCONT later
    PauseLeader,
    PauseStandby,
    PauseBoth,
    /// SIGTERM
    StopLeader,
    StopStandby,
    StopBoth,
    /// kill -9 of one PostgreSQL backend
    KillBackend,
    /// PostgreSQL stops as in a crash and starts again
    Immediate,
    /// PostgreSQL stops in order and starts again
    Restart,
    /// pg_terminate_backend of one role
    Terminate,
    /// Nothing arrives for a while, then everything
    Hold,
    /// Half-open: what is sent is lost
    Swallow,
    /// Notifications do not arrive
    Deaf,
    /// The connection ends in the middle of a message
    Cut,
    Delay,
    Reset,
    /// The HTTP endpoints reset every connection
    SinkDown,
    /// outbox.event in ACCESS EXCLUSIVE mode
    LockEvent,
    /// The trigger that rings is disabled
    Silence,
}

impl Kind {
    /// These, or all.
    pub(crate) fn chosen(kinds: &[Self]) -> Vec<Self> {
        if kinds.is_empty() { Self::value_variants().to_vec() } else { kinds.to_vec() }
    }

    /// Whether an attempt that succeeded may run again because of it. An orderly end loses nothing, and what does not touch
    /// the leader, its sessions or its answers does not either.
    pub(crate) fn may_repeat(self) -> bool {
        let harmless = [Self::KillStandby, Self::PauseStandby, Self::SinkDown, Self::Silence];
        let orderly = [Self::StopLeader, Self::StopStandby, Self::StopBoth];
        !harmless.contains(&self) && !orderly.contains(&self)
    }
}

/// A fault as the seed chose it.
#[derive(Debug, Clone, Copy)]
struct Blow {
    /// After the one before it.
    pause: Duration,
    kind: Kind,
    role: &'static str,
    way: Way,
    lasts: Duration,
    bytes: u64,
}

pub(crate) struct Nemesis {
    rng: Rng,
    mean: Duration,
    kinds: Vec<Kind>,
    /// What comes before any kind comes again.
    bag: Vec<Kind>,
    world: World,
}

/// What it can reach.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) daemons: [Arc<Daemon>; 2],
    pub(crate) sinks: Arc<Sinks>,
    pub(crate) ledger: Ledger,
}

impl Nemesis {
    pub(crate) fn new(seed: u64, mean: Duration, kinds: Vec<Kind>, world: World) -> Self {
        Self { rng: Rng::with_seed(!seed), mean, kinds, bag: Vec::new(), world }
    }

    fn next(&mut self) -> Blow {
        if self.bag.is_empty() {
            self.bag.clone_from(&self.kinds);
            self.rng.shuffle(&mut self.bag);
        }
        let exponential = -(1.0 - self.rng.f64()).ln();
        let ways = [Way::ToServer, Way::ToClient, Way::Both];
        // Most faults are short; some outlast the patience of whoever notices them.
        let longest = (self.mean * 3).min(Duration::from_mins(1));
        Blow {
            pause: self.mean.mul_f64(exponential.min(4.0)),
            kind: self.bag.pop().unwrap(),
            role: ROLES[self.rng.usize(..ROLES.len())],
            way: ways[self.rng.usize(..ways.len())],
            lasts: Duration::from_millis(200) + longest.mul_f64(self.rng.f64().powi(2)),
            bytes: self.rng.u64(..5000),
        }
    }

    /// Faults for so long; returns when the last one has ended.
    pub(crate) async fn storm(&mut self, length: Duration) {
        let end = Instant::now() + length;
        let mut blows = JoinSet::new();
        // A storm begins with a fault: what was done in the calm just before is part of the test.
        let mut at = Instant::now();
        loop {
            let blow = self.next();
            sleep_until(at).await;
            let world = self.world.clone();
            let blow = Blow { lasts: blow.lasts.min(end.saturating_duration_since(at)), ..blow };
            blows.spawn(async move { world.strike(blow).await });
            at += blow.pause + Duration::from_millis(100);
            if at >= end {
                break;
            }
        }
        while let Some(ended) = blows.join_next().await {
            ended.unwrap();
        }
    }
}

impl World {
    /// The daemons that lead, or do not.
    fn daemons(&self, lead: bool) -> Vec<Arc<Daemon>> {
        self.daemons.iter().filter(|daemon| daemon.leads() == lead).cloned().collect()
    }

    fn both(&self) -> Vec<Arc<Daemon>> {
        self.daemons.to_vec()
    }

    async fn strike(&self, blow: Blow) {
        let began = self.ledger.now();
        let Blow { kind, role, lasts, way, .. } = blow;
        match kind {
            Kind::KillLeader => end(self.daemons(true), Signal::KILL, lasts).await,
            Kind::KillStandby => end(self.daemons(false), Signal::KILL, lasts).await,
            Kind::KillBoth => end(self.both(), Signal::KILL, lasts).await,
            Kind::StopLeader => end(self.daemons(true), Signal::TERM, lasts).await,
            Kind::StopStandby => end(self.daemons(false), Signal::TERM, lasts).await,
            Kind::StopBoth => end(self.both(), Signal::TERM, lasts).await,
            Kind::PauseLeader => pause(&self.daemons(true), lasts).await,
            Kind::PauseStandby => pause(&self.daemons(false), lasts).await,
            Kind::PauseBoth => pause(&self.both(), lasts).await,
            Kind::KillBackend => {
                let role = if role.is_empty() { "leader" } else { role };
                let _ = self.server.kill_backend(role).await || self.server.kill_backend("leader").await;
            }
            Kind::Immediate => self.server.immediate(lasts / 4).await,
            Kind::Restart => self.server.restart().await,
            Kind::Terminate => self.terminate(role).await,
            Kind::Hold => self.network(role, Fault::Hold(way), lasts).await,
            Kind::Swallow => self.network(role, Fault::Swallow(way), lasts).await,
            Kind::Deaf => {
                self.network("bell", Fault::Deaf, lasts).await;
                // What it has not heard it will not hear; its daemon would notice within a minute.
                self.each(|daemon| {
                    daemon.proxy.reset("bell");
                });
            }
            Kind::Cut => self.network(role, Fault::CutAfter(blow.bytes), lasts).await,
            Kind::Delay => self.network(role, Fault::Delay(Duration::from_millis(200)), lasts).await,
            Kind::Reset => self.each(|daemon| {
                daemon.proxy.reset(role);
            }),
            Kind::SinkDown => {
                self.sinks_are_down(true);
                sleep(lasts).await;
                self.sinks_are_down(false);
            }
            Kind::LockEvent => self.lock_event(lasts).await,
            Kind::Silence => self.silence(lasts).await,
        }
        let name = kind.to_possible_value().unwrap();
        let role = if [Kind::Terminate, Kind::Hold, Kind::Swallow, Kind::Cut, Kind::Delay, Kind::Reset].contains(&kind)
        {
            format!(" {role:?}")
        } else {
            String::new()
        };
        self.ledger.window(&format!("{}{role}", name.get_name()), began);
    }

    fn each(&self, act: impl Fn(&Daemon)) {
        self.daemons.iter().for_each(|daemon| act(daemon));
    }

    async fn network(&self, role: &str, fault: Fault, lasts: Duration) {
        self.each(|daemon| daemon.proxy.set(role, fault));
        sleep(lasts).await;
        self.each(|daemon| daemon.proxy.lift(role));
    }

    async fn terminate(&self, role: &str) {
        let session = self.server.session().await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name LIKE 'outboxd ' || CASE $1 WHEN '' THEN '%' ELSE $1 END AND pid <> pg_backend_pid()";
        let _ = session.client.execute(sql, &[&role]).await;
    }

    /// Not the endpoint of `picky`, whose attempts are numbered.
    fn sinks_are_down(&self, down: bool) {
        self.sinks.iter().filter(|(handler, _)| **handler != "picky").for_each(|(_, sink)| sink.set_down(down));
    }

    async fn lock_event(&self, lasts: Duration) {
        let session = self.server.session().await;
        let lock = "BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE";
        if session.client.batch_execute(lock).await.is_ok() {
            sleep(lasts.min(Duration::from_secs(10))).await;
        }
    }

    async fn silence(&self, lasts: Duration) {
        self.trigger("DISABLE").await;
        sleep(lasts).await;
        while !self.trigger("ENABLE").await {
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn trigger(&self, verb: &str) -> bool {
        let session = self.server.session().await;
        let sql = format!("SET lock_timeout = '5s'; ALTER TABLE outbox.event {verb} TRIGGER ring");
        session.client.batch_execute(&sql).await.is_ok()
    }
}

async fn end(daemons: Vec<Arc<Daemon>>, signal: Signal, lasts: Duration) {
    let ends = daemons.iter().map(|daemon| daemon.end(signal, lasts));
    futures_util::future::join_all(ends).await;
}

async fn pause(daemons: &[Arc<Daemon>], lasts: Duration) {
    for daemon in daemons {
        daemon.signal(Signal::STOP);
    }
    sleep(lasts).await;
    for daemon in daemons {
        daemon.signal(Signal::CONT);
    }
}
