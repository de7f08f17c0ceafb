//! Flows: which step follows which, and how far one that runs is. Pure: knows neither what a step does nor how it is stored.
//!
//! A step is a handler of its own, `order/stock`; what undoes it is `order/stock/compensate`. `outbox.advance_flow` in
//! `migrations/` decides the same for an instance that has rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

/// Steps of one flow at most.
pub const STEPS_MAX: usize = 32;

/// A step as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub name: Arc<str>,
    /// The steps that must be done before it begins.
    pub after: Vec<Arc<str>>,
    /// Whether it is undone when the flow fails; `None`: there is nothing to undo.
    pub compensate: Option<Undo>,
}

/// When a step is undone that a flow has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Undo {
    /// When it is done.
    Done,
    /// Also when it has begun and died or was cancelled: nobody knows then what it has done.
    Begun,
}

impl Undo {
    /// The word for it: `done` or `begun`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Begun => "begun",
        }
    }
}

/// What a flow does when a step of it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDeadStep {
    /// It undoes what is done.
    #[default]
    Compensate,
    /// It waits until somebody retries the step or gives it up.
    Hold,
}

impl OnDeadStep {
    /// The word for it: `compensate` or `hold`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compensate => "compensate",
            Self::Hold => "hold",
        }
    }
}

/// The steps of a flow, each behind those that must be done before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    steps: Vec<Step>,
    /// For each step, those that must be done before it.
    before: Vec<Steps>,
}

/// A set of steps by their places in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Steps(u32);

impl Steps {
    fn with(self, place: usize) -> Self {
        Self(self.0 | 1 << place)
    }

    fn without(self, place: usize) -> Self {
        Self(self.0 & !(1 << place))
    }

    fn has(self, place: usize) -> bool {
        self.0 & 1 << place != 0
    }

    fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Why steps are no flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    #[error("a flow has at least one step")]
    Empty,
    #[error("{0} steps are too many; a flow has at most {STEPS_MAX}")]
    TooMany(usize),
    #[error("two steps have the name {0}")]
    SameName(Arc<str>),
    #[error("step {step} comes after {after}, and there is no such step")]
    Unknown { step: Arc<str>, after: Arc<str> },
    #[error("the steps {} wait for each other; none of them could begin", .0.join(", "))]
    Cycle(Vec<String>),
}

impl Graph {
    /// Puts the steps in an order in which each comes behind those before it; among those that could go first, by name.
    ///
    /// # Errors
    /// If there is none, or a step that others come after does not exist.
    pub fn new(mut steps: Vec<Step>) -> Result<Self, GraphError> {
        if steps.is_empty() {
            return Err(GraphError::Empty);
        }
        if steps.len() > STEPS_MAX {
            return Err(GraphError::TooMany(steps.len()));
        }
        steps.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = steps.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(GraphError::SameName(Arc::clone(&pair[0].name)));
        }
        for step in &steps {
            if let Some(after) = step.after.iter().find(|after| !steps.iter().any(|other| other.name == **after)) {
                return Err(GraphError::Unknown { step: Arc::clone(&step.name), after: Arc::clone(after) });
            }
        }
        let mut ordered: Vec<Step> = Vec::with_capacity(steps.len());
        while !steps.is_empty() {
            let goes = |step: &Step| step.after.iter().all(|after| ordered.iter().any(|done| done.name == *after));
            let Some(next) = steps.iter().position(goes) else {
                return Err(GraphError::Cycle(circle(&steps)));
            };
            ordered.push(steps.remove(next));
        }
        let place = |name: &Arc<str>| ordered.iter().position(|step| step.name == *name).unwrap_or_default();
        let before = ordered
            .iter()
            .map(|step| step.after.iter().fold(Steps::default(), |all, name| all.with(place(name))))
            .collect();
        Ok(Self { steps: ordered, before })
    }

    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The places of the steps with which an instance begins.
    pub fn first(&self) -> impl Iterator<Item = usize> {
        self.before.iter().enumerate().filter(|(_, before)| **before == Steps::default()).map(|(place, _)| place)
    }
}

/// The names of steps that wait for each other, of those of which none can go first.
fn circle(steps: &[Step]) -> Vec<String> {
    let mut walked: Vec<&Step> = Vec::new();
    let mut at = &steps[0];
    // Each of them waits for another one of them, so the walk comes back.
    loop {
        if let Some(first) = walked.iter().position(|step| step.name == at.name) {
            return walked[first..].iter().map(|step| step.name.to_string()).collect();
        }
        walked.push(at);
        match at.after.iter().find_map(|after| steps.iter().find(|step| step.name == *after)) {
            Some(before) => at = before,
            None => return walked.iter().map(|step| step.name.to_string()).collect(),
        }
    }
}

/// The name of a step's handler.
#[must_use]
pub fn step_handler(flow: &str, step: &str) -> Arc<str> {
    format!("{flow}/{step}").into()
}

/// The name of the handler that undoes a step.
#[must_use]
pub fn compensation_handler(flow: &str, step: &str) -> Arc<str> {
    format!("{flow}/{step}/compensate").into()
}

/// How far an instance is that has no rows but those of what is done: the daemon alone knows of it.
#[derive(Debug)]
pub struct Course {
    graph: Arc<Graph>,
    done: Steps,
    /// Begun, and not known to have ended.
    active: Steps,
    results: BTreeMap<Arc<str>, Value>,
    /// It goes on with rows as soon as nothing of it is active here.
    wants_rows: bool,
}

/// What is next for an instance.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// These steps begin, by their places in the graph; none, while others are active.
    Begin(Vec<usize>),
    /// All steps are done.
    Finished,
    /// It gets rows, which decide from here on.
    Rows,
}

impl Course {
    /// An instance begins, or one that has begun before, of which only the rows know how far it is.
    #[must_use]
    pub fn new(graph: Arc<Graph>, begun_before: bool) -> Self {
        let (done, active) = Default::default();
        Self { graph, done, active, results: BTreeMap::new(), wants_rows: begun_before }
    }

    /// What begins now.
    pub fn advance(&mut self) -> Next {
        if self.wants_rows {
            return if self.active == Steps::default() { Next::Rows } else { Next::Begin(Vec::new()) };
        }
        let places = 0..self.graph.steps.len();
        if places.clone().all(|place| self.done.has(place)) {
            return Next::Finished;
        }
        let begun = Steps(self.done.0 | self.active.0);
        let goes = |&place: &usize| !begun.has(place) && self.done.includes(self.graph.before[place]);
        let next: Vec<usize> = places.filter(goes).collect();
        self.active = next.iter().fold(self.active, |active, &place| active.with(place));
        Next::Begin(next)
    }

    /// A step is done with this result, `null` if it has none, and that is written.
    pub fn done(&mut self, place: usize, result: Value) {
        self.active = self.active.without(place);
        self.done = self.done.with(place);
        if let Some(step) = self.graph.steps.get(place) {
            self.results.insert(Arc::clone(&step.name), result);
        }
    }

    /// A step has a row, or was taken away before it began: it is not active here any more.
    pub fn left(&mut self, place: usize) {
        self.active = self.active.without(place);
        self.wants_rows = true;
    }

    /// Nothing more begins here.
    pub fn stop(&mut self) {
        self.wants_rows = true;
    }

    /// The results of the steps that are done, by name; `null` for one without.
    #[must_use]
    pub fn results(&self) -> Value {
        let all = self.results.iter().map(|(name, result)| (name.to_string(), result.clone()));
        Value::Object(all.collect::<Map<_, _>>())
    }

    /// The same without those that have none; `None` if nothing is left.
    #[must_use]
    pub fn result(&self) -> Option<Value> {
        let some = self.results.iter().filter(|(_, result)| !result.is_null());
        let all: Map<_, _> = some.map(|(name, result)| (name.to_string(), result.clone())).collect();
        (!all.is_empty()).then_some(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(name: &str, after: &[&str]) -> Step {
        Step { name: name.into(), after: after.iter().map(|&name| name.into()).collect(), compensate: None }
    }

    fn names(graph: &Graph) -> Vec<&str> {
        graph.steps().iter().map(|step| &*step.name).collect()
    }

    #[test]
    fn steps_stand_behind_those_before_them() {
        let graph = Graph::new(vec![
            step("tell", &["parcel", "pay"]),
            step("parcel", &["stock"]),
            step("stock", &[]),
            step("pay", &["stock"]),
        ]);
        assert_eq!(names(&graph.unwrap()), ["stock", "parcel", "pay", "tell"]);
    }

    #[test]
    fn what_is_no_flow_is_said() {
        assert_eq!(Graph::new(Vec::new()), Err(GraphError::Empty));
        let many = (0..33).map(|i| step(&format!("s{i}"), &[])).collect();
        assert_eq!(Graph::new(many), Err(GraphError::TooMany(33)));
        let error = Graph::new(vec![step("a", &[]), step("a", &[])]).unwrap_err();
        assert_eq!(error.to_string(), "two steps have the name a");
        let error = Graph::new(vec![step("a", &["b"])]).unwrap_err();
        assert_eq!(error.to_string(), "step a comes after b, and there is no such step");
        // `a` waits for the circle and is not in it.
        let error = Graph::new(vec![
            step("a", &["b"]),
            step("b", &["c"]),
            step("c", &["d"]),
            step("d", &["b"]),
            step("e", &[]),
        ]);
        assert_eq!(error.unwrap_err().to_string(), "the steps b, c, d wait for each other; none of them could begin");
    }

    #[test]
    fn an_instance_goes_from_step_to_step() {
        let graph =
            Graph::new(vec![step("a", &[]), step("b", &["a"]), step("c", &["a"]), step("d", &["b", "c"])]).unwrap();
        let mut course = Course::new(Arc::new(graph), false);
        assert_eq!(course.advance(), Next::Begin(vec![0]));
        assert_eq!(course.advance(), Next::Begin(vec![]), "a runs");
        course.done(0, 1.into());
        assert_eq!(course.advance(), Next::Begin(vec![1, 2]));
        course.done(1, Value::Null);
        assert_eq!(course.advance(), Next::Begin(vec![]), "d waits for c");
        course.done(2, "x".into());
        assert_eq!(course.advance(), Next::Begin(vec![3]));
        assert_eq!(course.results(), serde_json::json!({ "a": 1, "b": null, "c": "x" }));
        course.done(3, Value::Null);
        assert_eq!(course.advance(), Next::Finished);
        assert_eq!(course.result(), Some(serde_json::json!({ "a": 1, "c": "x" })));
    }

    #[test]
    fn rows_take_over_when_nothing_is_active_any_more() {
        let graph = Arc::new(Graph::new(vec![step("a", &[]), step("b", &[]), step("c", &["a"])]).unwrap());
        let mut course = Course::new(Arc::clone(&graph), false);
        assert_eq!(course.advance(), Next::Begin(vec![0, 1]));
        course.left(1);
        course.done(0, Value::Null);
        assert_eq!(course.advance(), Next::Rows, "c does not begin here");
        assert_eq!(Course::new(graph, true).advance(), Next::Rows);
    }

    proptest! {
        /// Steps end in any order: every step begins once, behind those before it, and the instance ends.
        #[test]
        fn every_step_begins_once_behind_those_before_it(
            edges in proptest::collection::vec((0usize..10, 0usize..10), 0..30),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 10),
        ) {
            // Edges from higher to lower numbers make no circle.
            let after = |i: usize| -> Vec<Arc<str>> {
                let before = edges.iter().filter(|&&(a, b)| a.max(b) == i && a != b);
                before.map(|&(a, b)| format!("s{}", a.min(b)).into()).collect()
            };
            let step = |i: usize| Step { name: format!("s{i}").into(), after: after(i), compensate: None };
            let steps = (0..10).map(step).collect();
            let graph = Arc::new(Graph::new(steps).unwrap());
            let mut course = Course::new(Arc::clone(&graph), false);
            let (mut running, mut begun, mut done): (Vec<usize>, Vec<usize>, Vec<Arc<str>>) = Default::default();
            for pick in picks {
                let Next::Begin(next) = course.advance() else { panic!("not every step has ended") };
                for &place in &next {
                    prop_assert!(!begun.contains(&place));
                    prop_assert!(graph.steps()[place].after.iter().all(|before| done.contains(before)));
                }
                begun.extend(&next);
                running.extend(&next);
                let place = running.remove(pick.index(running.len()));
                course.done(place, Value::Null);
                done.push(Arc::clone(&graph.steps()[place].name));
            }
            prop_assert_eq!(course.advance(), Next::Finished);
        }
    }
}
