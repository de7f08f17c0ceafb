//! `[flow.NAME]`: steps of which one follows another.

use std::sync::Arc;

use super::names::named;
use super::reader::{Field, Reader, Table};
use super::text::quote;
use super::{CompensationConfig, DeliveryConfig, FlowConfig, Kind, StepConfig, delivery, keys, kind};
use crate::flow::{Graph, GraphError, OnDeadStep, STEPS_MAX, Step, Undo};

/// A step as it is written: its handler, if that is one, and its place in the graph.
struct Written {
    step: Step,
    config: Option<StepConfig>,
}

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<FlowConfig> {
    let table = reader.table(field, "write a table: [flow.NAME]")?;
    reader.know(&table, keys::FLOW);
    let mut flow = DeliveryConfig::of_flow(delivery::on(reader, &table));
    flow.ordered = delivery::ordered(reader, &table);
    delivery::told_and_started(reader, &table, &mut flow);
    let mut on_dead_step = OnDeadStep::default();
    let choices = [OnDeadStep::Compensate, OnDeadStep::Hold].map(|choice| (choice.as_str(), choice));
    reader.set_choice(&table, "on_dead_step", "a way to go on", &choices, &mut on_dead_step);
    let Some(steps_field) = reader.field(&table, "step") else {
        reader.lacks(&table, "the flow has no step; write a table for each: [flow.NAME.step.STEP]");
        return None;
    };
    let steps_table = reader.table(&steps_field, "write a table for each step: [flow.NAME.step.STEP]")?;
    let written = named(reader, &steps_field, &steps_table, "step", step);
    let (steps, configs): (Vec<Step>, Vec<Option<StepConfig>>) =
        written.into_iter().map(|Written { step, config }| (step, config)).unzip();
    let retired = |name: &Arc<str>| configs.iter().flatten().any(|config| config.retired && config.name == *name);
    let graph = match Graph::new(steps.into_iter().filter(|step| !retired(&step.name)).collect()) {
        Ok(graph) => graph,
        Err(error) => return refuse(reader, &steps_field, &steps_table, &error),
    };
    let steps = configs.into_iter().collect::<Option<Vec<_>>>()?;
    Some(FlowConfig { name: Arc::from(field.name), delivery: flow, on_dead_step, graph: Arc::new(graph), steps })
}

/// Says what is wrong with the steps, where it is.
fn refuse<T>(reader: &mut Reader<'_>, all: &Field<'_>, table: &Table<'_>, error: &GraphError) -> Option<T> {
    let (name, rule) = match error {
        GraphError::Unknown { step, .. } => (Some(&**step), "write the names of steps of this flow"),
        GraphError::Cycle(steps) => (steps.first().map(String::as_str), "remove one of their `after`"),
        GraphError::TooMany(_) => (None, "make two flows, the first of which emits what begins the second"),
        GraphError::Empty | GraphError::SameName(_) => (None, "write one [flow.NAME.step.STEP] at least"),
    };
    let step = name.and_then(|name| reader.field(table, name));
    let after = step.as_ref().and_then(|step| reader.table(step, "")).and_then(|step| reader.field(&step, "after"));
    reader.refused(after.as_ref().or(step.as_ref()).unwrap_or(all), format!("{error}; {rule}"))
}

fn step(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Written> {
    let table = reader.table(field, "write a table: [flow.NAME.step.STEP]")?;
    reader.know(&table, keys::STEP);
    let name: Arc<str> = Arc::from(field.name);
    let kind = kind::read(reader, &table);
    let delivery = called(reader, &table, kind.as_ref());
    let after = after(reader, &table);
    let retired = reader.field(&table, "retired").and_then(|field| reader.boolean(&field, "write true or false"));
    let retired = retired.unwrap_or_default();
    if let (true, Some(field)) = (retired, reader.field(&table, "after")) {
        reader.refuse(&field, "a retired step follows none: only instances that began with it take it; remove `after`");
    }
    let (when, compensate) = match reader.field(&table, "compensate") {
        Some(field) => compensation(reader, &field).unzip(),
        None => (None, None),
    };
    let step = Step { name: Arc::clone(&name), after, compensate: when };
    // A compensation that could not be read has said so.
    let config = kind.map(|kind| StepConfig { name, kind, delivery, retired, compensate: compensate.flatten() });
    Some(Written { step, config })
}

/// How a step or a compensation is called that calls this.
fn called(reader: &mut Reader<'_>, table: &Table<'_>, kind: Option<&Kind>) -> DeliveryConfig {
    let mut delivery = delivery::read_for(reader, table, Vec::new());
    if let Some(kind) = kind {
        kind::fits(reader, table, kind, &mut delivery);
    }
    delivery
}

fn after(reader: &mut Reader<'_>, table: &Table<'_>) -> Vec<Arc<str>> {
    let Some(field) = reader.field(table, "after") else { return Vec::new() };
    let rule = "write an array of names of steps such as [\"stock\"]";
    let texts = reader.strings(&field, rule).unwrap_or_default();
    if texts.len() > STEPS_MAX {
        reader.refuse(&field, format!("{} steps are too many; a flow has at most {STEPS_MAX}", texts.len()));
    }
    let mut after: Vec<Arc<str>> = Vec::with_capacity(texts.len());
    for (item, text) in texts {
        if after.iter().any(|known| **known == *text) {
            reader.refuse(&item, format!("{} is there already; write each step once", quote(text)));
        } else {
            after.push(text.into());
        }
    }
    after
}

fn compensation(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<(Undo, Option<CompensationConfig>)> {
    let table = reader.table(field, "write a table such as { sql = \"shop.unlock\" }")?;
    reader.know(&table, keys::COMPENSATION);
    let mut when = Undo::Done;
    let choices = [Undo::Done, Undo::Begun].map(|choice| (choice.as_str(), choice));
    reader.set_choice(&table, "when", "a time to compensate", &choices, &mut when);
    let kind = kind::read(reader, &table);
    let delivery = called(reader, &table, kind.as_ref());
    Some((when, kind.map(|kind| CompensationConfig { kind, delivery })))
}
