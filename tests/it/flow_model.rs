//! Random histories of a flow that has rows, against a reference model: whatever the daemon, a callback or an operator does, in any order,
//! every step is in the state in which it should be.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use outboxd::event::EventId;
use outboxd::flow::{Graph, Step, Undo};
use outboxd::postgres::Session;
use outboxd::store::Store;
use outboxd::store::settle::{Finished, Opened, Wanted};

use crate::flow_changes::HANDLERS;
use crate::harness::{Database, publish, texts};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    None,
    Scheduled,
    Running,
    Retrying,
    Waiting,
    Dead,
    Done,
    Cancelled,
    Discarded,
}

impl State {
    fn is_open(self) -> bool {
        matches!(self, Self::Scheduled | Self::Running | Self::Retrying | Self::Waiting | Self::Dead)
    }

    fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A step, or a compensation.
#[derive(Debug, Clone)]
struct Delivery {
    state: State,
    attempt: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Going,
    /// A dead step waits for somebody.
    Held,
    Undoing,
    /// A dead compensation does.
    Stuck,
    Ended(&'static str),
}

/// What ought to be.
struct Model {
    graph: Graph,
    holds: bool,
    steps: Vec<Delivery>,
    undone: Vec<Delivery>,
    flow: Flow,
    cancelled: bool,
}

impl Model {
    fn to_undo(&self, place: usize) -> bool {
        match self.graph.steps()[place].compensate {
            None => false,
            Some(Undo::Done) => self.steps[place].state == State::Done,
            Some(Undo::Begun) => self.steps[place].attempt > 0,
        }
    }

    fn places(&self) -> std::ops::Range<usize> {
        0..self.steps.len()
    }

    /// What follows from what has happened.
    fn settle(&mut self) {
        if matches!(self.flow, Flow::Going | Flow::Held) {
            let given_up = self.steps.iter().any(|step| matches!(step.state, State::Cancelled | State::Discarded));
            let dead = self.steps.iter().any(|step| step.state == State::Dead);
            if given_up || dead && !self.holds && self.places().any(|place| self.to_undo(place)) {
                self.flow = Flow::Undoing;
            } else {
                self.flow = if dead { Flow::Held } else { Flow::Going };
            }
        }
        match self.flow {
            Flow::Going => self.go_on(),
            Flow::Undoing | Flow::Stuck => self.undo(),
            Flow::Held | Flow::Ended(_) => {}
        }
    }

    fn go_on(&mut self) {
        let done: Vec<Arc<str>> = self
            .places()
            .filter(|&place| self.steps[place].state == State::Done)
            .map(|place| Arc::clone(&self.graph.steps()[place].name))
            .collect();
        if done.len() == self.steps.len() {
            self.flow = Flow::Ended("done");
        }
        for place in self.places() {
            let goes = self.graph.steps()[place].after.iter().all(|before| done.contains(before));
            if goes && self.steps[place].state == State::None {
                self.steps[place].state = State::Scheduled;
            }
        }
    }

    fn undo(&mut self) {
        for step in &mut self.steps {
            if matches!(step.state, State::Scheduled | State::Retrying | State::Waiting) {
                step.state = State::Cancelled;
            }
        }
        self.flow = Flow::Undoing;
        if self.steps.iter().any(|step| step.state == State::Running) {
            return;
        }
        if self.undone.iter().any(|undo| undo.state == State::Dead) {
            self.flow = Flow::Stuck;
        }
        if self.undone.iter().any(|undo| undo.state.is_open()) {
            return;
        }
        let next = self.places().rev().find(|&place| self.to_undo(place) && self.undone[place].state == State::None);
        if let Some(place) = next {
            self.undone[place].state = State::Scheduled;
            return;
        }
        let undone = self.undone.iter().any(|undo| undo.state == State::Done);
        self.flow = Flow::Ended(match (self.cancelled, undone) {
            (true, _) => "cancelled",
            (false, true) => "compensated",
            (false, false) => "discarded",
        });
        for step in self.steps.iter_mut().filter(|step| step.state == State::Dead) {
            step.state = State::Discarded;
        }
    }

    fn is_being_undone(&self) -> bool {
        matches!(self.flow, Flow::Undoing | Flow::Stuck | Flow::Ended(_))
    }

    /// Whether a verb for this delivery does anything.
    fn can_retry(&self, of: Of) -> bool {
        match self.of(of).state {
            State::Dead => of.1 || !self.is_being_undone(),
            State::Retrying | State::Scheduled | State::Waiting => true,
            _ => false,
        }
    }

    fn retry(&mut self, of: Of) {
        let delivery = self.of_mut(of);
        delivery.state = match delivery.state {
            State::Dead | State::Retrying => State::Retrying,
            _ => State::Scheduled,
        };
    }

    fn of(&self, (place, undo): Of) -> &Delivery {
        if undo { &self.undone[place] } else { &self.steps[place] }
    }

    fn of_mut(&mut self, (place, undo): Of) -> &mut Delivery {
        if undo { &mut self.undone[place] } else { &mut self.steps[place] }
    }

    fn handler(&self, (place, undo): Of) -> String {
        format!("f/{}{}", self.graph.steps()[place].name, if undo { "/compensate" } else { "" })
    }

    fn all(&self) -> Vec<Of> {
        self.places().flat_map(|place| [(place, false), (place, true)]).collect()
    }

    fn expected(&self) -> BTreeMap<String, String> {
        let flow = match self.flow {
            Flow::Going | Flow::Undoing => "waiting",
            Flow::Held | Flow::Stuck => "dead",
            Flow::Ended(how) => how,
        };
        let all = self.all().into_iter().filter(|&of| self.of(of).state != State::None);
        let all = all.map(|of| (self.handler(of), self.of(of).state.word()));
        all.chain([("f".to_owned(), flow.to_owned())]).collect()
    }
}

/// A step by its place, and whether its compensation is meant.
type Of = (usize, bool);

struct World<'a> {
    session: &'a Session,
    store: &'a Store,
    event: i64,
    model: Model,
    said: Vec<String>,
}

impl World<'_> {
    async fn ask(&self, verb: &str) -> bool {
        texts(self.session, &format!("SELECT {verb}")).await == ["true"]
    }

    /// Ends a running attempt as the daemon does; `None`: done.
    async fn end(&mut self, of: Of, state: Option<State>) {
        let (handler, attempt): (Arc<str>, _) = (self.model.handler(of).into(), self.model.of(of).attempt);
        match state {
            None => {
                let rows = Finished {
                    event_ids: vec![self.event],
                    handlers: vec![handler],
                    outcomes: vec!["done"],
                    attempts: vec![attempt],
                    began: vec![Some(1)],
                    ended: vec![0],
                    results: vec![None],
                };
                assert_eq!(self.store.finish_open(&rows).await.unwrap().len(), 1);
            }
            Some(state) => {
                let word = match state {
                    State::Retrying => "retrying",
                    State::Waiting => "waiting",
                    _ => "dead",
                };
                let rows = Opened {
                    event_ids: vec![self.event],
                    handlers: vec![handler],
                    states: vec![word],
                    attempts: vec![attempt],
                    failures: vec![0],
                    due: vec![match state {
                        State::Retrying => Some(0),
                        State::Waiting => Some(3_600_000_000),
                        _ => None,
                    }],
                    polls: vec![0],
                    answers: vec![None],
                    began: vec![None],
                    errors: vec![Some("no".to_owned())],
                    results: vec![None],
                };
                assert_eq!(self.store.reopen(&rows).await.unwrap().len(), 1);
            }
        }
        self.model.of_mut(of).state = state.unwrap_or(State::Done);
    }

    /// Starts what is due, as the daemon does.
    async fn claim(&mut self) {
        let wanted = |of| Wanted { handler: self.model.handler(of).into(), due: 100, parked: Vec::new() };
        let want: Vec<Wanted> = self.model.all().into_iter().map(wanted).collect();
        self.store.claim_due(&want).await.unwrap();
        for of in self.model.all() {
            let delivery = self.model.of_mut(of);
            if matches!(delivery.state, State::Scheduled | State::Retrying) {
                (delivery.state, delivery.attempt) = (State::Running, delivery.attempt + 1);
            }
        }
    }

    async fn act(&mut self, rng: &mut Rng) {
        let all = self.model.all();
        let of = all[rng.usize(..all.len())];
        let running: Vec<Of> = all.iter().copied().filter(|&of| self.model.of(of).state == State::Running).collect();
        let (event, handler) = (self.event, self.model.handler(of));
        let state = self.model.of(of).state;
        let begun = self.model.of(of).attempt > 0;
        match rng.u8(..16) {
            0..4 => {
                self.said.push("claim".to_owned());
                self.claim().await;
            }
            4..9 if !running.is_empty() => {
                let of = running[rng.usize(..running.len())];
                let states = [None, None, Some(State::Retrying), Some(State::Dead), Some(State::Waiting)];
                let end = states[rng.usize(..states.len())];
                self.said.push(format!("{} ends: {end:?}", self.model.handler(of)));
                self.end(of, end).await;
            }
            9 => {
                let fits =
                    begun && matches!(state, State::Scheduled | State::Running | State::Retrying | State::Waiting);
                self.verb(format!("outbox.complete({event}, '{handler}')"), fits).await;
                if fits {
                    self.model.of_mut(of).state = State::Done;
                }
            }
            10 => {
                let fits = begun && matches!(state, State::Running | State::Waiting | State::Scheduled);
                self.verb(format!("outbox.fail({event}, '{handler}', 'no', dead => true)"), fits).await;
                if fits {
                    self.model.of_mut(of).state = State::Dead;
                }
            }
            11 => {
                let fits = state.is_open() && state != State::Dead;
                self.verb(format!("outbox.cancel({event}, '{handler}')"), fits).await;
                if fits {
                    self.model.of_mut(of).state = State::Cancelled;
                }
            }
            12 if rng.u8(..3) == 0 => {
                let fits = self.model.flow == Flow::Going;
                self.verb(format!("outbox.cancel({event}, 'f')"), fits).await;
                if fits {
                    (self.model.flow, self.model.cancelled) = (Flow::Undoing, true);
                }
            }
            13 => {
                let fits = self.model.can_retry(of);
                self.verb(format!("outbox.retry({event}, '{handler}')"), fits).await;
                if fits {
                    self.model.retry(of);
                }
            }
            14 => {
                let dead = |of: &Of| self.model.of(*of).state == State::Dead && self.model.can_retry(*of);
                let dead: Vec<Of> = all.into_iter().filter(dead).collect();
                self.verb(format!("outbox.retry({event}, 'f')"), !dead.is_empty()).await;
                for of in dead {
                    self.model.retry(of);
                }
            }
            15 => {
                let fits = state == State::Dead;
                self.verb(format!("outbox.discard({event}, '{handler}', 'why')"), fits).await;
                if fits {
                    self.model.of_mut(of).state = State::Discarded;
                }
            }
            _ => {}
        }
        self.model.settle();
        self.compare().await;
    }

    async fn verb(&mut self, verb: String, fits: bool) {
        let did = self.ask(&verb).await;
        self.said.push(format!("{verb}: {did}"));
        assert_eq!(did, fits, "{:#?}\n{:?} {:?} {:?}", self.said, self.model.flow, self.model.steps, self.model.undone);
    }

    async fn compare(&self) {
        let query = format!(
            "SELECT handler, state FROM outbox.delivery WHERE event_id = {} AND state <> 'pending'",
            self.event
        );
        let rows = self.session.client.query(&query, &[]).await.unwrap();
        let found: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(found, self.model.expected(), "{:#?}\n{:?}", self.said, self.model.graph);
    }
}

fn random_graph(rng: &mut Rng) -> Graph {
    let steps = (0..rng.usize(1..6)).map(|i| Step {
        name: format!("s{i}").into(),
        after: (0..i).filter(|_| rng.u8(..3) == 0).map(|j| format!("s{j}").into()).collect(),
        compensate: [None, Some(Undo::Done), Some(Undo::Begun)][rng.usize(..3)],
    });
    Graph::new(steps.collect::<Vec<_>>()).unwrap()
}

/// An instance of which some steps were done in memory.
async fn begin<'a>(session: &'a Session, store: &'a Store, rng: &mut Rng) -> World<'a> {
    let graph = random_graph(rng);
    let (holds, event) = (rng.bool(), publish(session, "placed").await);
    let steps = serde_json::json!(graph.steps()).to_string();
    let define = format!("SELECT outbox.define_flow('f', '{steps}', '{}')", if holds { "hold" } else { "compensate" });
    session.client.batch_execute(&define).await.unwrap();
    let nothing = vec![Delivery { state: State::None, attempt: 0 }; graph.steps().len()];
    let mut model =
        Model { graph, holds, steps: nothing.clone(), undone: nothing, flow: Flow::Going, cancelled: false };
    let mut done = Finished::default();
    for place in model.places() {
        let before = &model.graph.steps()[place].after;
        let is_done = |name: &Arc<str>| {
            model
                .places()
                .any(|other| model.graph.steps()[other].name == *name && model.steps[other].state == State::Done)
        };
        if before.iter().all(is_done) && rng.u8(..3) == 0 {
            model.steps[place] = Delivery { state: State::Done, attempt: 1 };
            done.event_ids.push(event);
            done.handlers.push(model.handler((place, false)).into());
            done.outcomes.push("done");
            done.attempts.push(1);
            done.began.push(Some(1));
            done.ended.push(0);
            done.results.push(None);
        }
    }
    store.append_done(&done).await.unwrap();
    store.begin_flows(&[event], &["f".into()]).await.unwrap();
    model.settle();
    let world = World { session, store, event: EventId(event).0, model, said: Vec::new() };
    world.compare().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_of_a_flow_are_those_of_the_model() {
    let database = Database::new().await;
    let session = database.session().await;
    let store = Store::new(database.session().await);
    session.client.batch_execute(HANDLERS).await.unwrap();
    let mut ends: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in 0..150 {
        let mut rng = Rng::with_seed(seed);
        let mut world = begin(&session, &store, &mut rng).await;
        world.said.push(format!("seed {seed}"));
        for _ in 0..40 {
            if let Flow::Ended(how) = world.model.flow {
                *ends.entry(how).or_default() += 1;
                // What comes later changes nothing.
                world.act(&mut rng).await;
                break;
            }
            world.act(&mut rng).await;
        }
    }
    // The histories come to every end there is.
    for end in ["done", "compensated", "discarded", "cancelled"] {
        assert!(ends.get(end).is_some_and(|&times| times >= 5), "{ends:?}");
    }
}
