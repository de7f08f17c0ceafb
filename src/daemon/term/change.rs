//! What changes a term: handlers that come, change and go, and the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::breaker::Breaker;
use super::super::context::{HandlerSpec, Part, registrations};
use super::super::lane::Lane;
use super::super::settle::{Reply, Request};
use super::super::write::LaneId;
use super::gate::Gate;
use super::{Ears, End, LAST_WRITES, Slot, Term};
use crate::config::DeliveryConfig;
use crate::observe::Observation;
use crate::store::registry::{Beginning, Checkpoint, Limits};
use crate::trace::Traced;

impl Slot {
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            handler: Arc::clone(&self.spec.name),
            position: self.lane.position().clone(),
            finished: self.lane.finished(),
        }
    }
}

/// A configuration with the limits that count instead of its own.
fn limited(delivery: &DeliveryConfig, limits: Limits) -> DeliveryConfig {
    let mut delivery = delivery.clone();
    delivery.concurrency = limits.concurrency.unwrap_or(delivery.concurrency);
    delivery.rate = limits.rate.or(delivery.rate);
    delivery
}

impl Term<'_> {
    pub(super) fn add_slot(&mut self, spec: HandlerSpec, beginning: &Beginning, now: Instant) -> LaneId {
        let id = LaneId(self.next_lane);
        self.next_lane += 1;
        let Beginning { checkpoint, pause, limits, broken, held } = beginning;
        let traced = self.context.tracer.as_ref();
        let traced = traced.map(|tracer| Traced { installation: self.installation, sample: tracer.sample });
        let mut lane = Lane::new(id, limited(&spec.delivery, *limits), checkpoint, held, now).traced(traced);
        if matches!(spec.part, Part::Flow(_)) {
            lane = lane.of_flow();
            self.has_flows = true;
        }
        let gate = Gate::new(spec.delivery.breaker, *broken, *pause, now);
        if let Some(host) = &spec.host {
            // Which of the two was open is not known; a probe finds out about both.
            let made = || if *broken && spec.delivery.breaker { Breaker::open(now) } else { Breaker::new() };
            self.hosts.entry(Arc::clone(host)).or_insert_with(made);
        }
        let series = self.context.metrics.handler(&spec.name);
        self.slots.insert(
            id,
            Slot {
                spec,
                lane,
                gate,
                limits: *limits,
                newest: None,
                goes_on: false,
                leaving: false,
                stored: checkpoint.clone(),
                series,
            },
        );
        self.routes.clear();
        self.flows.forget_lanes();
        id
    }

    /// What the database says about a handler's limits.
    pub(super) fn heard_limits(&mut self, id: LaneId, limits: Limits, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.limits != limits) else { return };
        slot.limits = limits;
        slot.lane.configure(limited(&slot.spec.delivery, limits), now);
        let handler = Arc::clone(&slot.spec.name);
        let rate = limits.rate.map(|rate| rate.to_string());
        self.context.observer.tell(&Observation::Limited { handler, concurrency: limits.concurrency, rate });
    }

    /// Takes the next configuration, as soon as no handler of it is still leaving.
    pub(super) fn reload(&mut self, now: Instant) {
        self.remove_left(now);
        self.leave_for_another_shape(now);
        let leaving = |name: &str| self.slots.values().any(|slot| slot.leaving && *slot.spec.name == *name);
        let ready = |specs: &mut Arc<[HandlerSpec]>| !specs.iter().any(|spec| leaving(&spec.name));
        if self.registering.is_none()
            && let Some(specs) = self.reload.take_if(ready)
        {
            // Settings and topics apply from here on, before they are registered: an event that is read while they are
            // being written is matched by the topics that SQL will show.
            for slot in self.slots.values_mut() {
                if let Some(spec) = specs.iter().find(|spec| spec.name == slot.spec.name) {
                    slot.lane.configure(limited(&spec.delivery, slot.limits), now);
                    slot.gate.configure(spec.delivery.breaker);
                    slot.spec = spec.clone();
                    // It may have left the configuration and come back before this was noticed.
                    slot.series = self.context.metrics.handler(&spec.name);
                }
            }
            let hosts = specs.iter().filter_map(|spec| spec.host.clone());
            let known = std::mem::take(&mut self.hosts);
            self.hosts = hosts.map(|host| (host, Breaker::new())).collect();
            self.hosts
                .extend(known.into_iter().filter(|(host, _)| specs.iter().any(|s| s.host.as_ref() == Some(host))));
            self.routes.clear();
            self.request(Request::Register(registrations(&specs), self.tail.head().clone()));
            self.registering = Some(specs);
        }
    }

    /// The handlers of the next configuration are registered: what runs goes on, what is new begins.
    pub(super) fn registered(&mut self, beginnings: &[Beginning], now: Instant) {
        let Some(specs) = self.registering.take() else { return };
        self.leave(|slot| !specs.iter().any(|spec| spec.name == slot.spec.name), now);
        for spec in specs.iter() {
            let known = self.slots.values().any(|slot| slot.spec.name == spec.name);
            let beginning = beginnings.iter().find(|beginning| beginning.checkpoint.handler == spec.name);
            if let (false, Some(beginning)) = (known, beginning) {
                let id = self.add_slot(spec.clone(), beginning, now);
                if spec.reads() {
                    self.tail.add(id, beginning.checkpoint.position.clone());
                }
            }
        }
        self.routes.clear();
        self.tell_gates();
        self.dirty = true;
        self.bell.ring(now);
        self.context.observer.tell(&Observation::Reloaded { handlers: specs.len() });
    }

    /// A lane looks at keys in one way from its beginning, and a flow has its steps: with others, a handler leaves and comes again.
    fn leave_for_another_shape(&mut self, now: Instant) {
        let Some(specs) = self.reload.clone() else { return };
        let other = |slot: &Slot| {
            let spec = specs.iter().find(|spec| spec.name == slot.spec.name);
            let keys = |spec: &HandlerSpec| (spec.delivery.ordered, spec.delivery.concurrency_per_key.is_some());
            spec.is_some_and(|spec| keys(spec) != keys(&slot.spec) || spec.part != slot.spec.part)
        };
        self.leave(other, now);
    }

    /// These handlers end what runs and go.
    fn leave(&mut self, which: impl Fn(&Slot) -> bool, now: Instant) {
        let (mut steps, mut left) = (Vec::new(), Vec::new());
        for (&id, slot) in self.slots.iter_mut().filter(|(_, slot)| !slot.leaving) {
            if which(slot) {
                slot.leaving = true;
                slot.lane.drop_queue(now, &mut steps);
                self.tail.remove(id);
                left.push(id);
            }
        }
        self.flows.forget_lanes();
        self.take(steps);
        self.stop_instances(|lane| left.contains(&lane));
    }

    /// Handlers that have ended what ran go, and their position is stored.
    fn remove_left(&mut self, now: Instant) {
        let left: Vec<LaneId> =
            self.slots.iter().filter(|(_, slot)| slot.leaving && slot.lane.is_idle()).map(|(&id, _)| id).collect();
        for id in left {
            if let Some(slot) = self.slots.remove(&id) {
                self.request(Request::Checkpoint(vec![slot.checkpoint()]));
            }
            self.routes.clear();
            self.checkpoint_at = now;
        }
    }

    /// Nothing new begins; what runs goes on.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        self.job = None;
        let running = self.slots.values().map(|slot| slot.lane.running()).sum();
        self.context.observer.tell(&Observation::Draining { running });
        let mut steps = Vec::new();
        for slot in self.slots.values_mut() {
            slot.lane.drop_queue(now, &mut steps);
        }
        self.take(steps);
        self.stop_instances(|_| true);
    }

    pub(super) fn lost(&self, reason: String) -> End {
        End::Lost { reason, unwritten: self.slots.values().map(|slot| slot.lane.in_flight()).sum() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots.values().all(|slot| slot.lane.is_idle())
    }

    /// The end of a stopping daemon: what still runs is cut off and given back, everything is written.
    pub(super) async fn finish(&mut self, ears: &mut Ears<'_>) -> End {
        let now = Instant::now();
        let claimed = async {
            while self.claiming {
                match ears.replies.recv().await {
                    Some(Reply::Claimed(claim)) => self.claimed(claim, now),
                    Some(Reply::Written(written)) => self.written(written, now),
                    Some(Reply::Registered(_) | Reply::Rung | Reply::FlowBegun) => {}
                    None => break,
                }
            }
        };
        // What was being claimed has begun in the database; it ends like everything else that runs.
        let _ = tokio::time::timeout(LAST_WRITES, claimed).await;
        // What has ended by itself is no cut-off.
        while let Some((ticket, outcome)) = self.runner.try_ended() {
            self.ended(ticket, outcome, now);
        }
        let cut_off = self.slots.values().map(|slot| slot.lane.running()).sum();
        self.runner.cut_off().await;
        let mut steps = Vec::new();
        for slot in self.slots.values_mut() {
            slot.lane.release(now, &mut steps);
        }
        self.take(steps);
        let written = async {
            while !self.slots.values().all(|slot| slot.lane.has_written()) {
                match ears.replies.recv().await {
                    Some(Reply::Written(written)) => self.written(written, now),
                    Some(_) => {}
                    None => break,
                }
            }
        };
        let in_time = tokio::time::timeout(LAST_WRITES, written).await.is_ok();
        self.dirty = true;
        self.checkpoint_at = now;
        self.checkpoint(now, Duration::ZERO);
        // Closing the queue ends the settling task, and with it the session that holds the lock.
        let (closed, _) = tokio::sync::mpsc::unbounded_channel();
        self.requests = closed;
        let settled = tokio::time::timeout(LAST_WRITES, ears.settler.join_next()).await;
        match settled {
            Ok(Some(Ok(Ok(())))) if in_time => End::Stopped { cut_off },
            Ok(Some(Ok(Err(error)))) => self.lost(error.to_string()),
            _ => self.lost(format!("the last writes took longer than {} s", LAST_WRITES.as_secs())),
        }
    }
}
