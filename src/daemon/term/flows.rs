//! Flows: instances that run in memory, from step to step. [`Course`] says what is next; what becomes of an instance that has a row is
//! decided in the database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;
use serde_json::Value;

use super::super::context::{Flow, Part};
use super::super::lane::Start;
use super::super::settle::Request;
use super::super::write::{Fate, LaneId, Ticket};
use super::Term;
use crate::event::{Event, EventId};
use crate::flow::{Course, Next};
use crate::observe::Observation;
use crate::outcome::{Outcome, Settlement};
use crate::trace::Trace;

/// Instances begin so far ahead of a first step at least, or twice as many as it has slots.
const AHEAD_MIN: usize = 64;

/// The instances in memory, and the lanes of their steps.
#[derive(Default)]
pub(super) struct Flows {
    instances: FxHashMap<Ticket, Instance>,
    steps: FxHashMap<Ticket, StepOf>,
    /// By the lane of a flow: those of its steps, in the order of the graph. Forgotten whenever a lane comes or goes.
    lanes: BTreeMap<LaneId, Arc<[Option<LaneId>]>>,
    /// A step waits in its lane that has just been passed on.
    passed_on: bool,
}

struct Instance {
    course: Course,
    event: Arc<Event>,
    lanes: Arc<[Option<LaneId>]>,
    /// Told of; a claim tells of it again until it has its row.
    cancelled: bool,
}

/// A step that is active in memory.
struct StepOf {
    instance: Ticket,
    place: usize,
    /// It has succeeded with this result, which is being written.
    succeeded: Option<Value>,
}

impl Flows {
    /// A lane has come or gone.
    pub(super) fn forget_lanes(&mut self) {
        self.lanes.clear();
    }

    /// Whether a step was passed on since this was asked last.
    pub(super) fn take_passed_on(&mut self) -> bool {
        std::mem::take(&mut self.passed_on)
    }
}

impl Term<'_> {
    /// Instances of the flow in this lane that may begin now: as many as their first steps have work for. The others stay in the log,
    /// where they cost nothing; one that has begun and waits costs rows.
    pub(super) fn room_of_first_steps(&self, id: LaneId, flow: &Flow, now: Instant) -> usize {
        let Some(lanes) = self.flows.lanes.get(&id) else { return 0 };
        let room = |place: usize| {
            let step = lanes.get(place).copied().flatten();
            let Some(slot) = step.and_then(|step| self.slots.get(&step)) else { return 0 };
            if step.is_none_or(|step| self.room(step, now) == 0) {
                return 0;
            }
            (2 * slot.lane.config().concurrency).max(AHEAD_MIN).saturating_sub(slot.lane.waiting())
        };
        flow.graph.first().map(room).min().unwrap_or_default()
    }

    /// Looks the lanes of all flows' steps up, if a lane has come or gone.
    pub(super) fn know_step_lanes(&mut self) {
        if !self.has_flows || !self.flows.lanes.is_empty() {
            return;
        }
        let flows: Vec<(LaneId, Arc<Flow>)> = self
            .slots
            .iter()
            .filter_map(|(&id, slot)| match &slot.spec.part {
                Part::Flow(flow) => Some((id, Arc::clone(flow))),
                Part::Handler | Part::Step { .. } => None,
            })
            .collect();
        for (id, flow) in flows {
            self.step_lanes(id, &flow);
        }
    }

    /// An instance has a slot of its flow.
    pub(super) fn begin_instance(&mut self, flow: &Flow, start: Start) {
        let course = Course::new(Arc::clone(&flow.graph), start.begun || start.has_row);
        let lanes = self.step_lanes(start.ticket.lane, flow);
        self.flows.instances.insert(start.ticket, Instance { course, event: start.event, lanes, cancelled: false });
        self.go_on(start.ticket, start.began);
    }

    fn step_lanes(&mut self, id: LaneId, flow: &Flow) -> Arc<[Option<LaneId>]> {
        let slots = &self.slots;
        let lane = |name: &Arc<str>| {
            let runs = |slot: &super::Slot| !slot.leaving && slot.spec.name == *name;
            slots.iter().find(|(_, slot)| runs(slot)).map(|(&id, _)| id)
        };
        Arc::clone(self.flows.lanes.entry(id).or_insert_with(|| flow.handlers.iter().map(lane).collect()))
    }

    /// Lets begin what may begin, or ends what the instance is here.
    fn go_on(&mut self, ticket: Ticket, now: Instant) {
        let Some(instance) = self.flows.instances.get_mut(&ticket) else { return };
        match instance.course.advance() {
            Next::Begin(places) => {
                for place in places {
                    self.pass_on_step(ticket, place, now);
                }
            }
            Next::Finished => {
                let result = instance.course.result();
                self.flows.instances.remove(&ticket);
                self.ended(ticket, Outcome::Done { result, emit: Vec::new() }, now);
            }
            Next::Rows => {
                self.flows.instances.remove(&ticket);
                let mut steps = Vec::new();
                if let Some(slot) = self.slots.get_mut(&ticket.lane) {
                    slot.lane.stands(ticket, now, &mut steps);
                }
                self.take(steps);
            }
        }
    }

    fn pass_on_step(&mut self, ticket: Ticket, place: usize, now: Instant) {
        let Some(instance) = self.flows.instances.get_mut(&ticket) else { return };
        let lane = instance.lanes.get(place).copied().flatten();
        let slot = lane.and_then(|lane| self.slots.get_mut(&lane)).filter(|slot| !slot.leaving);
        let results = Arc::new(instance.course.results());
        let Some(step) = slot.and_then(|slot| slot.lane.pass_on(&instance.event, results, now)) else {
            // The handler of the step has just left the configuration, or as many of its key as may run do.
            instance.course.left(place);
            return self.go_on(ticket, now);
        };
        self.flows.steps.insert(step, StepOf { instance: ticket, place, succeeded: None });
        self.flows.passed_on = true;
    }

    /// An attempt has ended: it may be that of a step that is active here.
    pub(super) fn step_ended(&mut self, ticket: Ticket, settlement: &Settlement) {
        if let Settlement::Done { result, .. } | Settlement::Committed { result } = settlement
            && let Some(step) = self.flows.steps.get_mut(&ticket)
        {
            step.succeeded = Some(result.clone().unwrap_or_default());
        }
    }

    /// What was asked for is written, or was refused for this event.
    pub(super) fn flow_written(&mut self, ticket: Ticket, fate: Fate, refused: Option<EventId>, now: Instant) {
        if let Some(StepOf { instance, place, succeeded }) = self.flows.steps.remove(&ticket) {
            if let Some(of) = self.flows.instances.get_mut(&instance) {
                match succeeded.filter(|_| fate == Fate::Ended { finished: true }) {
                    Some(result) => of.course.done(place, result),
                    None => of.course.left(place),
                }
            }
            return self.go_on(instance, now);
        }
        let Some(slot) = self.slots.get(&ticket.lane) else { return };
        match &slot.spec.part {
            Part::Handler => {}
            // What ends a step that has a row may let others begin.
            Part::Step { flow } => {
                let flow = Arc::clone(flow);
                self.steps_may_be_due(&flow, now);
            }
            Part::Flow(_) => {
                let flow = Arc::clone(&slot.spec.name);
                self.steps_may_be_due(&flow, now);
                // It was cancelled, and ran to its end all the same.
                if let Some(event) = refused {
                    self.request(Request::BeginFlow { event, flow });
                }
            }
        }
    }

    /// Its step was given back before it began.
    pub(super) fn step_left(&mut self, ticket: Ticket) {
        let Some(StepOf { instance, place, .. }) = self.flows.steps.remove(&ticket) else { return };
        if let Some(of) = self.flows.instances.get_mut(&instance) {
            of.course.left(place);
        }
        self.go_on(instance, Instant::now());
    }

    /// Nothing more of an instance begins here.
    pub(super) fn stop_instance(&mut self, ticket: Ticket) {
        if let Some(instance) = self.flows.instances.get_mut(&ticket) {
            instance.course.stop();
        }
        self.go_on(ticket, Instant::now());
    }

    /// Nothing more begins here of the instances in these lanes.
    pub(super) fn stop_instances(&mut self, which: impl Fn(LaneId) -> bool) {
        let tickets: Vec<Ticket> = self.flows.instances.keys().filter(|ticket| which(ticket.lane)).copied().collect();
        for ticket in tickets {
            self.stop_instance(ticket);
        }
    }

    /// An instance was cancelled that has no row, so it may be here. It gets its row when nothing of it runs here any more, and with
    /// that what is done is undone.
    pub(super) fn cancel_flow(&mut self, event: EventId, flow: String, now: Instant) {
        let named = |(_, slot): &(&LaneId, &mut super::Slot)| *slot.spec.name == *flow;
        let mut steps = Vec::new();
        let here = self.slots.iter_mut().find(named).and_then(|(_, slot)| {
            let here = slot.lane.running_of(event);
            if here.is_none() {
                slot.lane.cancel(event, now, &mut steps);
            }
            here
        });
        self.take(steps);
        match here {
            Some(ticket) => {
                let told = |instance: &mut Instance| std::mem::replace(&mut instance.cancelled, true);
                if let Some(instance) = self.flows.instances.get_mut(&ticket)
                    && !told(instance)
                {
                    let trace = Trace::of_headers(&instance.event.headers).map(|trace| trace.id);
                    // One that is in memory has not been tried before.
                    let (handler, attempt) = (flow.into(), 1);
                    self.context.observer.tell(&Observation::Cancelled { event, handler, attempt, trace });
                }
                self.stop_instance(ticket);
            }
            None => self.request(Request::BeginFlow { event, flow: flow.into() }),
        }
    }

    fn steps_may_be_due(&mut self, flow: &Arc<str>, now: Instant) {
        for slot in self.slots.values_mut() {
            if matches!(&slot.spec.part, Part::Step { flow: of } if of == flow) {
                slot.lane.due_within(std::time::Duration::ZERO, now);
            }
        }
    }
}
