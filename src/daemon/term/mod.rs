//! A term: from taking the leader's lock to losing it. One task owns every lane and decides everything; what takes
//! time happens elsewhere (reads as one future, settling in its own task, attempts in the runner) and comes back as an
//! [`Input`].
//!
//! Restart, reconnect and takeover are the same thing: a new term, which begins by reading the positions and the log.

mod beat;
mod change;
mod deliveries;
mod doubt;
mod flows;
mod gate;
mod reading;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, select_all};
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::doubt::Doubts;
pub(super) use self::doubt::Pids;
use self::flows::Flows;
use self::gate::Gate;
use super::beat::News;
use super::bell::{Bell, Next};
use super::breaker::Breaker;
use super::context::{Context, HandlerSpec, Handlers, Positions};
use super::lane::Lane;
use super::read::{Answer, Earlier};
use super::runner::Runner;
use super::settle::{self, Reply, Request};
use super::tail::Tail;
use super::write::{LaneId, Ticket};
use crate::callback::CallbackKey;
use crate::metrics::{Series, Shown};
use crate::observe::Observation;
use crate::outcome::Outcome;
use crate::store::registry::{Beginning, Checkpoint, Limits};
use crate::store::{Error, Store};

/// Positions are stored this often at most; a crash costs reading so much of the log again.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// The leader's session says something at least this often, so that a standby can tell it from a frozen one.
const PULSE_EVERY: Duration = Duration::from_secs(5);
/// How long the last writes of a stopping daemon may take.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Inputs taken together before the term acts on them.
const INPUTS_TOGETHER: usize = 256;

/// Why a term ended.
pub(super) enum End {
    Stopped {
        cut_off: usize,
    },
    /// The outcomes of so many attempts are not written any more: they run again, here or elsewhere.
    Lost {
        reason: String,
        unwritten: usize,
    },
}

/// What a term works with.
pub(super) struct Links {
    /// The session that holds the lock.
    pub(super) leader: Store,
    /// The session that reads the log.
    pub(super) tail: Store,
    /// The session that listens, and what it rings.
    pub(super) bell: Store,
    pub(super) wake: Arc<Notify>,
    pub(super) pids: Pids,
    pub(super) installation: Uuid,
    pub(super) callback_key: CallbackKey,
    pub(super) earlier: Earlier,
    /// The registered handlers, and the watch that tells of others.
    pub(super) handlers: (Arc<[HandlerSpec]>, Handlers),
    pub(super) beginnings: Vec<Beginning>,
}

/// One handler in this term.
struct Slot {
    spec: HandlerSpec,
    lane: Lane,
    gate: Gate,
    /// What counts instead of its configuration.
    limits: Limits,
    /// The newest event that was read for it, and whether the log went on behind that.
    newest: Option<i64>,
    goes_on: bool,
    /// It left the configuration: it ends what runs and goes.
    leaving: bool,
    /// What was stored last.
    stored: Checkpoint,
    /// What is counted of it; `None`: it has left the configuration.
    series: Option<Arc<Series>>,
}

impl Drop for Slot {
    /// A handler that no term runs has nothing in flight and no breaker.
    fn drop(&mut self) {
        if let Some(series) = &self.series {
            series.show(&Shown::default());
        }
    }
}

/// Something that happened.
enum Input {
    Lost(String),
    Settler(Result<(), Error>),
    Stop,
    Replied(Reply),
    Ended(Ticket, Outcome),
    News(News<Ticket>),
    Answered(Result<Answer, Error>),
    Opinion(Option<String>),
    Woken,
    /// The flag in the database is to be set again.
    Flag,
    Reload,
    Time,
}

/// What the loop of a term waits for.
struct Ears<'a> {
    wake: Arc<Notify>,
    replies: UnboundedReceiver<Reply>,
    news: UnboundedReceiver<News<Ticket>>,
    settler: JoinSet<Result<(), Error>>,
    handlers: Handlers,
    stop: &'a CancellationToken,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question the loop asks, and they do not exclude each other"
)]
struct Term<'a> {
    context: &'a Context,
    installation: Uuid,
    callback_key: CallbackKey,
    earlier: Arc<Earlier>,
    store: Arc<Store>,
    slots: BTreeMap<LaneId, Slot>,
    next_lane: u32,
    routes: HashMap<String, Vec<LaneId>>,
    flows: Flows,
    /// There is one; without, nothing of them is asked for each delivery.
    has_flows: bool,
    tail: Tail,
    bell: Bell,
    runner: Runner<Ticket>,
    said: beat::Said,
    requests: UnboundedSender<Request>,
    job: Option<BoxFuture<'static, Result<Answer, Error>>>,
    claiming: bool,
    /// Something may have been done by hand: the next claim asks for all handlers.
    look: bool,
    /// The breakers that handlers with one host share.
    hosts: BTreeMap<Arc<str>, Breaker>,
    doubts: Doubts,
    /// The next read of the log is the poll's, not the bell's.
    polled: bool,
    /// The claim under way is the poll's: its snapshot says whether there can be anything to read. So a daemon that has nothing to do
    /// asks one thing where it asked two.
    poll_asked: bool,
    /// When the log has been read after the bell, it is asked what was done by hand.
    look_next: bool,
    poll_at: Option<Instant>,
    /// What the daemon's clock said at this moment, in microseconds.
    clock: (Instant, i64),
    pulse_at: Instant,
    checkpoint_at: Instant,
    /// What the bell's flag says depends on which handlers are full, and that has changed.
    flag_is_stale: bool,
    /// Something was read or settled since positions were stored last.
    dirty: bool,
    positions: &'a watch::Sender<Positions>,
    /// Handlers that wait until no slot of one of their names is leaving.
    reload: Option<Arc<[HandlerSpec]>>,
    /// Handlers that are being registered.
    registering: Option<Arc<[HandlerSpec]>>,
    stopping: bool,
}

/// Leads until the database is lost or the daemon stops.
pub(super) async fn lead(
    context: &Context,
    links: Links,
    positions: &watch::Sender<Positions>,
    stop: &CancellationToken,
) -> End {
    let lost = select_all([&links.leader, &links.tail, &links.bell].map(|store| Box::pin(store.closed())));
    let lost = async move { lost.await.0.to_string() };
    let (requests, queue) = unbounded_channel();
    let (answers, replies) = unbounded_channel();
    let (teller, news) = unbounded_channel();
    let mut settler = JoinSet::new();
    let (leader, observer, tracer) = (links.leader, context.observer.clone(), context.tracer.clone());
    settler.spawn(async move { settle::run(&leader, queue, answers, observer, tracer).await });
    let (specs, handlers) = links.handlers;
    let mut ears = Ears { wake: links.wake, replies, news, settler, handlers, stop };
    let now = Instant::now();
    let mut term = Term {
        context,
        installation: links.installation,
        callback_key: links.callback_key,
        tail: Tail::new(&BTreeMap::new(), links.earlier.snapshot.clone()),
        earlier: Arc::new(links.earlier),
        store: Arc::new(links.tail),
        slots: BTreeMap::new(),
        next_lane: 0,
        routes: HashMap::new(),
        flows: Flows::default(),
        has_flows: false,
        bell: Bell::new(now),
        runner: Runner::new(teller),
        said: beat::Said::new(),
        requests,
        job: None,
        claiming: false,
        look: true,
        hosts: BTreeMap::new(),
        doubts: Doubts::new(links.pids, now),
        polled: false,
        poll_asked: false,
        look_next: false,
        poll_at: context.daemon.poll_interval.map(|interval| now + interval),
        clock: (now, Timestamp::now().as_microsecond()),
        pulse_at: now + PULSE_EVERY,
        checkpoint_at: now + CHECKPOINT_EVERY,
        flag_is_stale: false,
        dirty: true,
        positions,
        reload: None,
        registering: None,
        stopping: false,
    };
    term.begin(&specs, &links.beginnings, now);
    let end = term.run(&mut ears, lost).await;
    term.runner.cut_off().await;
    // The listening session lives as long as the term.
    drop(links.bell);
    end
}

impl Term<'_> {
    fn begin(&mut self, specs: &[HandlerSpec], beginnings: &[Beginning], now: Instant) {
        let mut positions = BTreeMap::new();
        for beginning in beginnings {
            if let Some(spec) = specs.iter().find(|spec| spec.name == beginning.checkpoint.handler) {
                let reads = spec.reads();
                let id = self.add_slot(spec.clone(), beginning, now);
                if reads {
                    positions.insert(id, beginning.checkpoint.position.clone());
                }
            }
        }
        self.tail = Tail::new(&positions, self.earlier.snapshot.clone());
        self.tell_gates();
    }

    async fn run(&mut self, ears: &mut Ears<'_>, lost: impl Future<Output = String>) -> End {
        tokio::pin!(lost);
        let mut stop_at = None;
        loop {
            let now = Instant::now();
            self.act(now);
            if self.stopping && (self.is_idle() || stop_at.is_some_and(|at| now >= at)) {
                return self.finish(ears).await;
            }
            let wait_until = stop_at.into_iter().chain([self.wake_at(now)]).min().unwrap_or(now);
            let input = self.hear(ears, lost.as_mut(), wait_until).await;
            let now = Instant::now();
            self.context.progress.made(now);
            if matches!(input, Input::Reload) {
                self.reload = Some(Arc::clone(&ears.handlers.borrow_and_update()));
            }
            if matches!(input, Input::Stop) {
                stop_at = Some(now + self.context.daemon.drain_timeout);
            }
            if let Err(reason) = self.apply(input, now) {
                return self.lost(reason);
            }
            for _ in 0..INPUTS_TOGETHER {
                let ended = self.runner.try_ended().map(|(ticket, outcome)| Input::Ended(ticket, outcome));
                let replied = || ears.replies.try_recv().ok().map(Input::Replied);
                let news = || ears.news.try_recv().ok().map(Input::News);
                let Some(input) = ended.or_else(replied).or_else(news) else { break };
                if let Err(reason) = self.apply(input, now) {
                    return self.lost(reason);
                }
            }
        }
    }

    /// The next thing that happens. Nothing changes in here: an arm that loses the race is asked again.
    async fn hear(
        &mut self,
        ears: &mut Ears<'_>,
        lost: std::pin::Pin<&mut impl Future<Output = String>>,
        until: Instant,
    ) -> Input {
        let job = async {
            match &mut self.job {
                Some(job) => job.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            reason = lost => Input::Lost(reason),
            Some(result) = ears.settler.join_next() => Input::Settler(result.unwrap_or(Ok(()))),
            () = ears.stop.cancelled(), if !self.stopping => Input::Stop,
            Some(reply) = ears.replies.recv() => Input::Replied(reply),
            (ticket, outcome) = self.runner.ended() => Input::Ended(ticket, outcome),
            Some(news) = ears.news.recv() => Input::News(news),
            answer = job => Input::Answered(answer),
            opinion = self.doubts.opinion() => Input::Opinion(opinion),
            () = ears.wake.notified() => Input::Woken,
            () = self.context.flag.notified() => Input::Flag,
            Ok(()) = ears.handlers.changed(), if !self.stopping => Input::Reload,
            () = tokio::time::sleep_until(until.into()) => Input::Time,
        }
    }

    /// Takes note of what happened. An error ends the term.
    fn apply(&mut self, input: Input, now: Instant) -> Result<(), String> {
        match input {
            Input::Lost(reason) => return Err(reason),
            Input::Settler(Err(error)) => return Err(error.to_string()),
            Input::Settler(Ok(())) => return Err("the settling task ended".to_owned()),
            Input::Stop => self.stop(now),
            Input::Replied(Reply::Written(written)) => self.written(written, now),
            Input::Replied(Reply::Claimed(claim)) => self.claimed(claim, now),
            Input::Replied(Reply::Registered(beginnings)) => self.registered(&beginnings, now),
            Input::Replied(Reply::Rung) => self.doubts.rung(now),
            Input::Replied(Reply::FlowBegun) => self.all_may_be_due(now),
            Input::Ended(ticket, outcome) => self.ended(ticket, outcome, now),
            Input::News(news) => self.news(news),
            Input::Answered(answer) => {
                self.job = None;
                self.answered(answer.map_err(|error| error.to_string())?, now);
            }
            Input::Opinion(opinion) => self.doubts.answered(opinion)?,
            Input::Woken => {
                self.context.observer.tell(&Observation::Woken);
                self.polled = false;
                self.doubts.heard();
                self.context.health.heard(now);
                // What most rings are about comes first: an event that somebody waits for.
                if self.bell.is_asleep() && self.job.is_none() && self.tail.wants_head() {
                    self.look_next = true;
                } else {
                    self.look(now);
                }
                self.bell.ring(now);
            }
            Input::Flag => self.flag_is_stale = true,
            // The new handlers have been noted; `act` takes them.
            Input::Reload => {}
            Input::Time => self.time(now)?,
        }
        Ok(())
    }

    /// Does everything that can be done now.
    fn act(&mut self, now: Instant) {
        self.claim(now, false);
        self.start(now);
        self.pass_on();
        if !self.stopping {
            self.ask(now);
            self.reload(now);
        }
        self.checkpoint(now, CHECKPOINT_EVERY);
        self.show(now);
    }

    /// The settling task outlives every request but the last; when it has ended, the term hears of it by itself.
    fn request(&self, request: Request) {
        let _ = self.requests.send(request);
    }

    /// When to act again if nothing happens. At the same `now` as the act before: what has become due since then must
    /// be waited for, not taken for something that is under way.
    fn wake_at(&self, now: Instant) -> Instant {
        let bell = match self.bell.next(now) {
            Next::Wait(at) if self.tail.wants_head() => at,
            // Anything else is under way, or waits for room, which comes with an input.
            _ => None,
        };
        // While a claim is under way, what is due can wait.
        let claims = !self.claiming;
        let lanes = self.slots.iter().filter_map(|(&id, slot)| slot.lane.wake_at(self.room(id, now) > 0, claims)).min();
        let gates = self.slots.values().filter_map(|slot| slot.gate.next(now)).min();
        let hosts = self.hosts.values().filter_map(|breaker| breaker.next(now)).min();
        let checkpoint = self.dirty.then_some(self.checkpoint_at);
        let times = [bell, lanes, gates, hosts, checkpoint, self.poll_at, self.context.progress.due_at()];
        times.into_iter().flatten().fold(self.pulse_at.min(self.doubt_at()), Instant::min)
    }

    fn time(&mut self, now: Instant) -> Result<(), String> {
        if self.poll_at.is_some_and(|at| at <= now) {
            self.poll_at = self.context.daemon.poll_interval.map(|interval| now + interval);
            self.all_may_be_due(now);
            if self.claiming || self.stopping {
                self.poll(now);
            } else {
                self.poll_asked = true;
                self.claim(now, true);
            }
        }
        if self.pulse_at <= now {
            self.pulse_at = now + PULSE_EVERY;
            self.claim(now, true);
        }
        self.doubt(now)
    }

    /// Something may have been done by hand, or be due earlier than was known.
    fn look(&mut self, now: Instant) {
        self.look = true;
        self.all_may_be_due(now);
    }

    /// Reads the log, though nobody has rung.
    fn poll(&mut self, now: Instant) {
        self.polled = true;
        self.bell.ring(now);
    }

    /// Stores the positions that moved, if it is time.
    fn checkpoint(&mut self, now: Instant, again_in: Duration) {
        if !self.dirty || now < self.checkpoint_at {
            return;
        }
        self.dirty = false;
        self.checkpoint_at = now + again_in;
        let mut moved = Vec::new();
        for slot in self.slots.values_mut() {
            let checkpoint = slot.checkpoint();
            // What was finished counts too: inside a large transaction the position stands still, the rate does not.
            if (&slot.stored.position, slot.stored.finished) != (&checkpoint.position, checkpoint.finished) {
                slot.stored.clone_from(&checkpoint);
                moved.push(checkpoint);
            }
        }
        let reading = self.slots.values().filter(|slot| slot.spec.reads());
        let all = reading.map(|slot| (slot.spec.name.to_string(), slot.lane.position().clone()));
        self.positions.send_replace(Some(all.collect()));
        if !moved.is_empty() {
            self.request(Request::Checkpoint(moved));
        }
    }
}
