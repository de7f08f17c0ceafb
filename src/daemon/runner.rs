//! The runner: attempts as tasks, each with a deadline, which heartbeats put off. It turns a time-out and a panic into
//! outcomes, and owns the tasks: when it is dropped they end, and what they hold (child processes, requests) ends with
//! them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{self, Either};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, sleep_until, timeout_at};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::beat::News;
use crate::config::DeliveryConfig;
use crate::config::duration::format;
use crate::event::{Attempt, Heartbeat};
use crate::handler::Handler;
use crate::outcome::{Failure, Fault, Outcome, bounded_as};

/// An attempt's heartbeats are passed on this often at most.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Attempts that one task asks for the first time.
const GROUP: usize = 32;
/// When they have taken so long to be asked, one of them computes. Nobody waits behind it: the rest get tasks at once.
const GROUP_PATIENCE: Duration = Duration::from_micros(200);

/// How long an attempt may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Without a heartbeat.
    silence: Duration,
    /// With as many as it likes.
    in_all: Duration,
}

impl From<&DeliveryConfig> for Limits {
    fn from(config: &DeliveryConfig) -> Self {
        let in_all = config.max_timeout.unwrap_or(config.timeout);
        Self { silence: config.timeout.min(in_all), in_all }
    }
}

/// An attempt that is about to run.
struct Begin<T> {
    ticket: T,
    handler: Arc<dyn Handler>,
    attempt: Attempt,
    limits: Limits,
}

/// What a task tells.
enum Told<T> {
    /// These have ended.
    Ended(Vec<(T, Outcome)>),
    /// This one goes on in a task of its own.
    Goes(T, AbortHandle),
}

/// The attempts that run.
///
/// They begin in groups: a task asks each of a group for the first time, and those that do not end with that go on in tasks of their
/// own. Many attempts have little to do, and a task for each of them costs more than they do.
pub(super) struct Runner<T> {
    fresh: Vec<Begin<T>>,
    tasks: Tasks<T>,
    told: UnboundedReceiver<Told<T>>,
    ended: VecDeque<(T, Outcome)>,
    /// Those whose outcome is still wanted.
    wanted: FxHashMap<T, Task>,
}

/// Where an attempt runs.
enum Task {
    /// In its group, as far as is known.
    Group,
    Own(AbortHandle),
    /// With the others of its batch. It ends when none of them is wanted any more.
    Batch(#[expect(dead_code, reason = "it is held, and does something when nobody does")] Arc<AbortOnDropHandle<()>>),
}

/// How a task is started, from wherever.
struct Tasks<T> {
    tracker: TaskTracker,
    tell: UnboundedSender<Told<T>>,
    news: UnboundedSender<News<T>>,
}

impl<T> Clone for Tasks<T> {
    fn clone(&self) -> Self {
        Self { tracker: self.tracker.clone(), tell: self.tell.clone(), news: self.news.clone() }
    }
}

impl<T> Drop for Runner<T> {
    fn drop(&mut self) {
        self.abort();
    }
}

impl<T> Runner<T> {
    /// Ends all tasks. One that a group starts from here on, it ends itself: it cannot tell of it any more.
    fn abort(&mut self) {
        self.fresh.clear();
        self.told.close();
        while let Ok(told) = self.told.try_recv() {
            if let Told::Goes(_, task) = told {
                task.abort();
            }
        }
        for (_, task) in self.wanted.drain() {
            task.abort();
        }
    }
}

impl Task {
    fn abort(self) {
        if let Self::Own(task) = self {
            task.abort();
        }
    }
}

impl<T: Copy + Eq + Hash + Send + Sync + 'static> Runner<T> {
    #[must_use]
    pub(super) fn new(news: UnboundedSender<News<T>>) -> Self {
        let (tell, told) = unbounded_channel();
        let tasks = Tasks { tracker: TaskTracker::new(), tell, news };
        Self { fresh: Vec::new(), tasks, told, ended: VecDeque::new(), wanted: FxHashMap::default() }
    }

    /// Takes an attempt that [`go`](Self::go) starts; `ticket` comes back with its outcome.
    pub(super) fn start(&mut self, ticket: T, handler: Arc<dyn Handler>, attempt: Attempt, limits: Limits) {
        self.wanted.insert(ticket, Task::Group);
        self.fresh.push(Begin { ticket, handler, attempt, limits });
    }

    /// Starts a batch, in one call. Each of its tickets comes back with its own outcome.
    pub(super) fn start_batch(&mut self, attempts: Vec<(T, Attempt)>, handler: Arc<dyn Handler>, limits: Limits) {
        let (tickets, attempts): (Vec<T>, Vec<Attempt>) = attempts.into_iter().unzip();
        let (tasks, of) = (self.tasks.clone(), tickets.clone());
        let task = self.tasks.tracker.spawn(async move {
            let outcomes = run_batch(&tickets, &*handler, &attempts, limits, &tasks.news).await;
            tasks.tell(tickets.into_iter().zip(outcomes).collect());
        });
        let task = Arc::new(AbortOnDropHandle::new(task));
        self.wanted.extend(of.into_iter().map(|ticket| (ticket, Task::Batch(Arc::clone(&task)))));
    }

    /// Starts what was taken.
    pub(super) fn go(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh).into_iter();
        loop {
            let group: Vec<Begin<T>> = fresh.by_ref().take(GROUP).collect();
            if group.is_empty() {
                return;
            }
            self.tasks.tracker.spawn(self.tasks.clone().begin(group));
        }
    }

    /// Ends one attempt now: what it holds (child processes, requests) ends with it, and its outcome never arrives, not
    /// even if it had ended already. Returns whether there was one.
    pub(super) fn cancel(&mut self, ticket: &T) -> bool {
        // One without a task of its own is ended when that is heard of.
        self.wanted.remove(ticket).map(Task::abort).is_some()
    }

    /// Waits for the next attempt to end. Pending for ever while nothing runs.
    pub(super) async fn ended(&mut self) -> (T, Outcome) {
        loop {
            if let Some(ended) = self.try_ended() {
                return ended;
            }
            match self.told.recv().await {
                Some(told) => self.hear(told),
                None => std::future::pending().await,
            }
        }
    }

    /// An attempt that has ended already, if there is one.
    pub(super) fn try_ended(&mut self) -> Option<(T, Outcome)> {
        loop {
            while let Some(ended) = self.ended.pop_front() {
                if self.wanted.remove(&ended.0).is_some() {
                    return Some(ended);
                }
            }
            let told = self.told.try_recv().ok()?;
            self.hear(told);
        }
    }

    /// Ends every attempt now and waits until they are gone.
    pub(super) async fn cut_off(&mut self) {
        self.abort();
        self.tasks.tracker.close();
        self.tasks.tracker.wait().await;
    }

    fn hear(&mut self, told: Told<T>) {
        match told {
            Told::Ended(ended) => self.ended.extend(ended),
            Told::Goes(ticket, task) => match self.wanted.get_mut(&ticket) {
                Some(known) => *known = Task::Own(task),
                // Cancelled meanwhile.
                None => task.abort(),
            },
        }
    }
}

impl<T: Copy + Send + Sync + 'static> Tasks<T> {
    /// Asks each of a group for the first time.
    async fn begin(self, group: Vec<Begin<T>>) {
        let mut ended = Vec::with_capacity(group.len());
        let mut group = group.into_iter();
        let started = Instant::now();
        for begin in group.by_ref() {
            let ticket = begin.ticket;
            let mut running = Box::pin(run(begin, self.news.clone()));
            match poll_fn(|context| Poll::Ready(running.as_mut().poll(context))).await {
                Poll::Ready(outcome) => ended.push((ticket, outcome)),
                Poll::Pending => self.goes_on(ticket, running),
            }
            if started.elapsed() > GROUP_PATIENCE {
                break;
            }
        }
        self.tell(ended);
        for begin in group {
            self.goes_on(begin.ticket, Box::pin(run(begin, self.news.clone())));
        }
    }

    fn goes_on(&self, ticket: T, running: Pin<Box<impl Future<Output = Outcome> + Send + 'static>>) {
        let tasks = self.clone();
        let task = self.tracker.spawn(async move {
            let outcome = running.await;
            tasks.tell(vec![(ticket, outcome)]);
        });
        if let Err(SendError(Told::Goes(_, task))) = self.tell.send(Told::Goes(ticket, task.abort_handle())) {
            task.abort();
        }
    }

    fn tell(&self, ended: Vec<(T, Outcome)>) {
        // Nobody asks any more when the term is over.
        let _ = self.tell.send(Told::Ended(ended));
    }
}

/// An attempt that runs, as its deadline sees it.
struct Watch<'a, T> {
    /// More than one for a batch: what is said of the call is said of each.
    tickets: &'a [T],
    limits: Limits,
    began: Instant,
    said: watch::Receiver<Option<Heartbeat>>,
    news: &'a UnboundedSender<News<T>>,
}

async fn run<T: Copy>(begin: Begin<T>, news: UnboundedSender<News<T>>) -> Outcome {
    let Begin { ticket, handler, attempt, limits } = &begin;
    let tickets = std::slice::from_ref(ticket);
    // A handler may panic before it returns its future, too.
    let handled = async { handler.run(attempt).await };
    guarded(handled, tickets, attempt, *limits, &news).await.unwrap_or_else(|failed| failed)
}

/// The outcomes of a batch, one for each of its attempts.
async fn run_batch<T: Copy>(
    tickets: &[T],
    handler: &dyn Handler,
    attempts: &[Attempt],
    limits: Limits,
    news: &UnboundedSender<News<T>>,
) -> Vec<Outcome> {
    let Some(first) = attempts.first() else { return Vec::new() };
    let handled = async { handler.run_batch(attempts).await };
    let failed = match guarded(handled, tickets, first, limits, news).await {
        Ok(outcomes) if outcomes.len() == attempts.len() => return outcomes,
        Ok(outcomes) => {
            let (given, events) = (outcomes.len(), attempts.len());
            let error =
                format!("the handler gave {given} outcomes for a batch of {events} events; it must give one for each");
            Outcome::Retry { after: None, failure: Failure::new(error) }
        }
        Err(failed) => failed,
    };
    vec![failed; attempts.len()]
}

/// What a handler gives, or how its call ended that gave nothing.
async fn guarded<T: Copy, R>(
    handled: impl Future<Output = R>,
    tickets: &[T],
    attempt: &Attempt,
    limits: Limits,
    news: &UnboundedSender<News<T>>,
) -> Result<R, Outcome> {
    let began = Instant::now();
    let mut handled = pin!(AssertUnwindSafe(handled).catch_unwind());
    // What ends at once needs no deadline. The watch is in a box of its own, so that such an attempt does not pay for its size.
    let ended = match poll_fn(|context| Poll::Ready(handled.as_mut().poll(context))).await {
        Poll::Ready(ended) => Ok(ended),
        Poll::Pending => {
            let watch = Watch { tickets, limits, began, said: attempt.heartbeats.listen(), news };
            // Unconstrained: a handler that always has something to do, such as a flood to read, must not use up the turns
            // in which the time-out would be noticed.
            let given_up = Box::pin(tokio::task::unconstrained(watch.until_given_up()));
            match future::select(handled, given_up).await {
                Either::Left((ended, _)) => Ok(ended),
                Either::Right((error, _)) => Err(error),
            }
        }
    };
    match ended {
        Ok(Ok(given)) => Ok(given),
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Outcome::Retry { after: None, failure: Failure::new(format!("the handler panicked: {text}")) })
        }
        Err(error) => Err(Outcome::Retry { after: None, failure: Failure::new(error).with_fault(Fault::Failing) }),
    }
}

impl<T: Copy> Watch<'_, T> {
    /// Passes on what the attempt says, until its time is over; returns why it is.
    async fn until_given_up(self) -> String {
        match future::select(pin!(self.deadline()), pin!(self.tell())).await {
            Either::Left((error, _)) => error,
            Either::Right((never, _)) => match never {},
        }
    }

    async fn deadline(&self) -> String {
        let Self { limits: Limits { silence, in_all }, began, .. } = *self;
        let end = began + in_all;
        let mut heard = began;
        loop {
            let until = end.min(heard + silence);
            sleep_until(until.into()).await;
            if until == end {
                let limit = if silence == in_all { "" } else { ", its max_timeout" };
                return format!("timed out after {}{limit}", format(in_all));
            }
            // The database is asked only when nothing was said here; what was said while it was asked counts, too.
            let before = heard;
            heard = self.last_said().map_or(heard, |said| heard.max(said));
            if heard == before {
                let elsewhere = self.last_heard_of(end).await;
                heard = [Some(heard), elsewhere, self.last_said()].into_iter().flatten().fold(began, Instant::max);
            }
            if heard + silence <= Instant::now() {
                return format!("timed out after {} without a heartbeat", format(silence));
            }
        }
    }

    fn last_said(&self) -> Option<Instant> {
        self.said.borrow().as_ref().map(|said| said.at)
    }

    /// When the attempt was heard of in the database, for example from the service that an HTTP request went to.
    async fn last_heard_of(&self, end: Instant) -> Option<Instant> {
        let ages = self.tickets.iter().map(|&ticket| {
            let (answer, answered) = oneshot::channel();
            let _ = self.news.send(News::Silent(ticket, answer));
            answered
        });
        let ages = timeout_at(end.into(), future::join_all(ages)).await.ok()?;
        let age = ages.into_iter().filter_map(Result::ok).min()?;
        Instant::now().checked_sub(age)
    }

    async fn tell(&self) -> Infallible {
        let mut said = self.said.clone();
        while said.changed().await.is_ok() {
            let newest = said.borrow_and_update().clone();
            if let Some(mut heartbeat) = newest {
                heartbeat.progress = heartbeat.progress.map(|progress| bounded_as("progress", progress));
                for &ticket in self.tickets {
                    let _ = self.news.send(News::Said(ticket, heartbeat.clone()));
                }
            }
            sleep(TELL_EVERY).await;
        }
        future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::event::{Event, EventId};
    use crate::handler::OutcomeFuture;

    /// Says when it is called and when its future is dropped; ends if it is told to.
    struct Told {
        says: UnboundedSender<&'static str>,
        ends: bool,
    }

    struct Says(UnboundedSender<&'static str>);

    impl Drop for Says {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    impl Handler for Told {
        fn run<'a>(&'a self, _: &'a Attempt) -> OutcomeFuture<'a> {
            Box::pin(async move {
                let _says = Says(self.says.clone());
                self.says.send("begun").unwrap();
                if !self.ends {
                    std::future::pending::<()>().await;
                }
                Outcome::done()
            })
        }
    }

    fn attempt() -> Attempt {
        let event = Event {
            id: EventId(1),
            topic: "a".to_owned(),
            key: None,
            payload: "{}".to_owned(),
            headers: "{}".to_owned(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        Attempt {
            event: Arc::new(event),
            handler: "told".into(),
            number: 1,
            has_row: false,
            installation: uuid::Uuid::nil(),
            callback: None,
            results: None,
            trace: None,
            heartbeats: crate::event::Heartbeats::default(),
        }
    }

    #[tokio::test]
    async fn a_cancelled_attempt_is_dropped_and_its_outcome_never_arrives() {
        let (says, mut said) = unbounded_channel();
        let mut runner = Runner::new(unbounded_channel().0);
        let long = Limits { silence: Duration::from_hours(1), in_all: Duration::from_hours(1) };
        let hangs: Arc<dyn Handler> = Arc::new(Told { says: says.clone(), ends: false });
        runner.start(1, hangs, attempt(), long);
        runner.go();
        assert_eq!(said.recv().await, Some("begun"));
        assert!(runner.cancel(&1), "it runs");
        assert!(!runner.cancel(&1), "it runs no more");
        // Whoever waits for the next outcome drives the tasks.
        let ends: Arc<dyn Handler> = Arc::new(Told { says: says.clone(), ends: true });
        runner.start(2, Arc::clone(&ends), attempt(), long);
        runner.go();
        assert_eq!(runner.ended().await.0, 2);
        let mut rest = vec![said.recv().await, said.recv().await, said.recv().await];
        rest.sort_unstable();
        assert_eq!(rest, [Some("begun"), Some("dropped"), Some("dropped")]);

        runner.start(3, ends, attempt(), long);
        runner.go();
        assert_eq!((said.recv().await, said.recv().await), (Some("begun"), Some("dropped")));
        tokio::task::yield_now().await;
        assert!(runner.cancel(&3), "it has ended and nobody has heard of it");
        assert!(runner.try_ended().is_none());
        assert!(!runner.cancel(&4), "there was none");
    }
}
