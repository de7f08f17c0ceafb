//! `[flow.NAME]`: what it means, and what is wrong with it.

use super::super::Config;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    let errors = |errors: super::super::Errors| errors.errors.iter().map(ToString::to_string).collect();
    Config::parse(text, "test.toml", &|_| None).map_err(errors)
}

const ORDER: &str = r#"
    [flow.order]
    on = "order.placed"
    on_done = "order.done"

    [flow.order.step.stock]
    sql = "shop.lock"
    compensate = { sql = "shop.unlock", retry = { max_attempts = 50 } }

    [flow.order.step.payment]
    after = ["stock"]
    http = { url = "http://localhost/pay" }
    callback = true

    [flow.order.step.payment.compensate]
    when = "begun"
    http = { url = "http://localhost/refund" }

    [flow.order.step.old]
    retired = true
    sql = "shop.old"
"#;

#[test]
fn a_flow_is_its_steps_and_what_is_written_again_means_the_same() {
    let config = parse(ORDER).unwrap();
    let flow = &config.flows[0];
    let names: Vec<_> = flow.graph.steps().iter().map(|step| &*step.name).collect();
    assert_eq!(names, ["stock", "payment"], "what is retired is no part of it");
    let handlers: Vec<_> = flow.steps.iter().map(|step| (&*step.name, step.handlers().count())).collect();
    assert_eq!(handlers, [("old", 1), ("payment", 2), ("stock", 2)]);
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
}

#[test]
fn what_is_wrong_with_a_flow_is_said_where_it_is() {
    let wrong = |text: &str, errors: &[&str]| assert_eq!(parse(text).unwrap_err(), errors, "{text}");
    wrong(
        "[flow.f]",
        &[
            "1: flow.f: `on` is missing; write a topic pattern such as \"order.placed\", or an array of them",
            "1: flow.f: the flow has no step; write a table for each: [flow.NAME.step.STEP]",
        ],
    );
    wrong(
        "[flow.f]\non = \"a\"\n[flow.f.step.s]\nsql = \"a.b\"\nafter = [\"t\"]",
        &[
            "5: flow.f.step.s.after: step s comes after t, and there is no such step; write the names of steps of this flow",
        ],
    );
    let circle = "[flow.f]\non = \"a\"\n[flow.f.step.s]\nsql = \"a.b\"\nafter = [\"t\"]\n[flow.f.step.t]\nsql = \"a.b\"\nafter = [\"s\"]";
    wrong(
        circle,
        &[
            "5: flow.f.step.s.after: the steps s, t wait for each other; none of them could begin; remove one of their `after`",
        ],
    );
    wrong(
        "[flow.f]\non = \"a\"\n[flow.f.step.s]\nafter = [\"x\", \"x\"]\ncompensate = { when = \"never\" }",
        &[
            "3: flow.f.step.s: nothing to call; write one of `http`, `command` and `sql`",
            "4: flow.f.step.s.after: \"x\" is there already; write each step once",
            "4: flow.f.step.s.after: step s comes after x, and there is no such step; write the names of steps of this flow",
            "5: flow.f.step.s.compensate: nothing to call; write one of `http`, `command` and `sql`",
            "5: flow.f.step.s.compensate.when: \"never\" is not a time to compensate; write \"done\" or \"begun\"",
        ],
    );
    wrong(
        "[handler.f]\ntopics = [\"a\"]\nsql = \"a.b\"\n[flow.f]\non = \"a\"\n[flow.f.step.s]\nsql = \"a.b\"\ntopics = [\"a\"]",
        &[
            "4: flow.f: there is a handler \"f\" already; give the flow another name",
            "8: flow.f.step.s.topics: this key is unknown; known here: after, http, command, env, sql, concurrency, concurrency_per_key, rate, timeout, max_timeout, retry, poll, callback, record, breaker, on_done, on_dead, compensate, retired",
        ],
    );
    wrong(
        "[daemon]\nlisten = \"off\"\n[flow.f]\non = []\n[flow.f.step.s]\nsql = \"a.b\"\ncallback = true",
        &[
            "3: flow: step s of flow f takes callbacks, and none can reach this daemon; write `callback_url`, or let `listen` be an address",
            "4: flow.f.on: the array is empty; write a topic pattern such as \"order.placed\", or an array of them, or [\"#\"] for every topic",
        ],
    );
    wrong(
        "[flow.f]\non = \"a\"\n[flow.f.step.s]\nsql = \"a.b\"\n[flow.f.step.t]\nretired = true\nafter = [\"s\"]\nsql = \"a.b\"",
        &[
            "7: flow.f.step.t.after: a retired step follows none: only instances that began with it take it; remove `after`",
        ],
    );
    wrong(
        "[flow.f]\non = \"a\"\n[flow.f.step.s]\nretired = true\nsql = \"a.b\"",
        &["3: flow.f.step: a flow has at least one step; write one [flow.NAME.step.STEP] at least"],
    );
}
