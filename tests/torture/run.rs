//! One run: rounds of calm and storm, a drain, and the comparison.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::arguments::Plan;
use crate::check;
use crate::daemons::{Daemon, HANDLERS, Kind};
use crate::facts::Facts;
use crate::ledger::{Ledger, Number};
use crate::nemesis::{Nemesis, World};
use crate::producers::{Mode, Producer, resolve};
use crate::server::Server;
use crate::sink::Sink;

const PRODUCERS: u64 = 6;
const PROBERS: u64 = 3;
/// How long nothing may end once nothing is wrong any more: a silent leader is deposed after 10 s, a poll comes
/// after 20 s, a pause between attempts has 0.4 s, and the machine may be busy with other things.
const DRAIN_MAX: Duration = Duration::from_mins(1);
/// A deaf listener is noticed within 70 s.
const DEAF_MAX: Duration = Duration::from_secs(90);

/// Everything there is in a run.
struct Run {
    plan: Plan,
    world: World,
    mode: watch::Sender<Mode>,
    probers: Vec<Producer>,
    rng: Rng,
    _producing: JoinSet<()>,
    _supervisors: Vec<AbortOnDropHandle<()>>,
    _sampling: AbortOnDropHandle<()>,
    _pinning: AbortOnDropHandle<()>,
}

/// Runs the plan; returns whether everything was as it should be.
pub(crate) async fn run(plan: &Plan) -> bool {
    let folder = folder(plan.seed);
    println!(
        "torture: seed {}, {} rounds of {:?} calm and {:?} storm; {}",
        plan.seed,
        plan.rounds,
        plan.calm,
        plan.storm,
        folder.display()
    );
    let mut run = Run::start(plan.clone(), &folder).await;
    let ledger = run.world.ledger.clone();
    let mut nemesis = Nemesis::new(plan.seed, plan.mean, plan.faults.clone(), run.world.clone());
    for _ in 0..plan.rounds {
        run.calm().await;
        run.mode.send_replace(Mode::Load);
        if plan.has_faults() {
            nemesis.storm(plan.storm).await;
        } else {
            sleep(plan.storm).await;
        }
        // What has been found is enough, and easier to read without what follows from it.
        if !ledger.entries().violations.is_empty() {
            break;
        }
    }
    run.reach(plan.events).await;
    run.drain("at the end").await;
    if plan.deaf {
        run.deaf().await;
    }
    let facts = Facts::read(&run.world.server, &folder).await;
    for daemon in &run.world.daemons {
        daemon.stop().await;
    }
    check::compare(plan, &ledger, &facts, &run.world.daemons);
    let well = crate::report::print(plan, &ledger, &facts, &run.world.daemons);
    if !well {
        let log = folder.join("postgres.log");
        let _ = std::fs::copy(&run.world.server.log_file, &log);
        println!("the ledger, the daemons' logs and PostgreSQL's: {}", folder.display());
    }
    let Run { world: World { server, .. }, probers, _producing: producing, _pinning: pinning, .. } = run;
    drop((nemesis, probers, producing, pinning));
    server.stop().await;
    if well {
        let _ = std::fs::remove_dir_all(&folder);
    }
    well
}

/// An empty folder for what a person may want to look at.
fn folder(seed: u64) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{seed}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Run {
    async fn start(plan: Plan, folder: &Path) -> Self {
        let ledger = Ledger::create(folder);
        let server = Server::start(plan.has_faults()).await;
        let mut sinks = BTreeMap::new();
        for handler in &HANDLERS {
            if let Kind::Http { moody } = handler.kind {
                let moody = moody && plan.has_faults();
                sinks.insert(handler.name, Sink::start(handler.name, moody, plan.seed, &ledger).await);
            }
        }
        let daemons = [
            Daemon::new('a', &plan, &server, &sinks, &ledger).await,
            Daemon::new('b', &plan, &server, &sinks, &ledger).await,
        ];
        let supervisors = daemons.iter().map(Daemon::supervise).collect();
        let world = World { server, daemons, sinks: Arc::new(sinks), ledger };
        let mode = watch::Sender::new(Mode::Idle);
        let producer = |index, rate| {
            let held_max = Duration::from_secs(if plan.rounds > 1 { 20 } else { 5 });
            Producer::new(index, plan.seed, rate, held_max, &world.server, &world.ledger)
        };
        let mut producing = JoinSet::new();
        for index in 1..=PRODUCERS {
            let rate = f64::from(plan.rate) / f64::from(u32::try_from(PRODUCERS).unwrap());
            producing.spawn(producer(index, rate).run(mode.subscribe()));
        }
        let probers = (1..=PROBERS).map(|index| producer(PRODUCERS + index, 1.0)).collect();
        let sampling = AbortOnDropHandle::new(tokio::spawn(sample(world.daemons.clone())));
        let pinning = AbortOnDropHandle::new(tokio::spawn(pin(world.server.clone())));
        let rng = Rng::with_seed(plan.seed.rotate_left(7));
        let run = Self {
            plan,
            world,
            mode,
            probers,
            rng,
            _producing: producing,
            _supervisors: supervisors,
            _sampling: sampling,
            _pinning: pinning,
        };
        run.lead().await;
        run
    }

    /// Waits until somebody leads.
    async fn lead(&self) {
        let began = Instant::now();
        while !self.world.daemons.iter().any(|daemon| daemon.leads()) {
            if began.elapsed() > DRAIN_MAX {
                return self.world.ledger.violation(format_args!("I9: nobody leads for {DRAIN_MAX:?}"));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// A time without faults. First the apps pause and an event must arrive at once, however it falls into the daemon's
    /// falling asleep. When all that is settled there is load, so that a storm begins in the middle of it.
    async fn calm(&mut self) {
        self.drain("before a calm").await;
        let ledger = self.world.ledger.clone();
        let began = ledger.now();
        let end = began + self.plan.calm;
        let quiet = began + self.plan.calm * 2 / 3;
        while ledger.now() < quiet && ledger.entries().violations.is_empty() {
            self.burst().await;
        }
        self.drain("in a calm").await;
        ledger.window("settled", began);
        self.mode.send_replace(Mode::Load);
        sleep(end.saturating_sub(ledger.now())).await;
        ledger.window("calm", began);
    }

    /// A few events, then silence until all of them have arrived.
    async fn burst(&mut self) {
        let numbers: Vec<Number> =
            join_all(self.probers.iter_mut().map(Producer::probe)).await.into_iter().flatten().collect();
        self.arrive(&numbers, self.plan.patience).await;
        sleep(Duration::from_millis(self.rng.u64(..60))).await;
    }

    async fn arrive(&self, numbers: &[Number], longest: Duration) {
        let ledger = &self.world.ledger;
        let began = Instant::now();
        let waits = |number: &&Number| !ledger.is_received("probe", **number) || !ledger.is_received("audit", **number);
        while let Some(number) = numbers.iter().find(waits) {
            if began.elapsed() > longest {
                return ledger.violation(format_args!("I9: event {number} waits for more than {longest:?} in a calm"));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Load until so many events are committed.
    async fn reach(&self, events: u64) {
        self.mode.send_replace(Mode::Load);
        while self.world.ledger.committed() < events && self.world.ledger.entries().violations.is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing new; everything ends.
    async fn drain(&self, when: &str) {
        let ledger = &self.world.ledger;
        self.mode.send_replace(Mode::Idle);
        // Whoever holds a transaction open ends it first.
        while ledger.is_under_way() {
            sleep(Duration::from_millis(10)).await;
        }
        resolve(&self.world.server).await;
        let began = Instant::now();
        // What counts is that it goes on, not how fast the machine is.
        let (mut fewest, mut progress) = (i64::MAX, Instant::now());
        loop {
            let open = Facts::unfinished(&self.world.server).await;
            match open {
                Some(0) => break,
                Some(open) if open < fewest => (fewest, progress) = (open, Instant::now()),
                _ => {}
            }
            if progress.elapsed() > DRAIN_MAX {
                let open = open.map_or("?".to_owned(), |open| open.to_string());
                return ledger.violation(format_args!("I9: {open} deliveries do not end, for {DRAIN_MAX:?} {when}"));
            }
            sleep(Duration::from_millis(100)).await;
        }
        ledger.append(format!("{} drained in {:?}\n", ledger.now().as_micros(), began.elapsed()));
    }

    /// The listener answers and hears nothing: that is noticed without a poll, too.
    async fn deaf(&mut self) {
        let deafened: usize = self.world.daemons.iter().map(|daemon| daemon.proxy.deafen("bell")).sum();
        if deafened == 0 {
            return self.world.ledger.violation("no session listens");
        }
        // The next change of the flag is not heard either, so the daemon sleeps from here on.
        let numbers = self.probers[0].probe().await;
        self.arrive(&numbers, DEAF_MAX).await;
    }
}

/// What the daemons use, once a second.
async fn sample(daemons: [Arc<Daemon>; 2]) {
    loop {
        for daemon in &daemons {
            daemon.sample();
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Somebody's snapshot that is never given up: nothing that was deleted since can be vacuumed.
async fn pin(server: Server) {
    loop {
        let session = server.session().await;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.handler";
        if session.client.batch_execute(begin).await.is_ok() {
            session.closed().await;
        }
        sleep(Duration::from_millis(100)).await;
    }
}
