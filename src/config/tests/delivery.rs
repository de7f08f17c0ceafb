//! How a handler is run: retries, order, time-outs, and how they fit together.

use super::*;
use crate::outcome::{Backoff, PollPolicy};

#[test]
fn how_a_handler_is_run_is_understood() {
    let second = Duration::from_secs(1);
    let of = |text: &str| {
        let text = format!("[handler.a]\ntopics = [\"x\"]\nsql = \"app.f\"\n{text}");
        parse(&text).unwrap().handlers.remove(0).delivery
    };
    let ordered = |text| of(text).ordered;
    assert_eq!(ordered("ordered = false"), None);
    assert_eq!(ordered("ordered = true"), Some(OnDeadKey::Block));
    assert_eq!(ordered("ordered = true\non_dead_key = \"skip\""), Some(OnDeadKey::Skip));
    assert_eq!(of("record = \"start\"").record, Record::Start);
    assert!(!of("breaker = \"off\"").breaker);
    assert_eq!(of("on_dead = \"x.dead\"").on_dead.as_deref(), Some("x.dead"));
    assert_eq!(of("on_done = \"x.done\"").on_done.as_deref(), Some("x.done"));
    let poll = |text: &str| of(&format!("poll = {{ {text} }}")).poll.unwrap();
    assert_eq!(poll(""), PollPolicy::default());
    let (base, max, timeout) = (second / 10, 86_400 * second, 3600 * second);
    assert_eq!(poll("base = \"100ms\", max = \"1d\", timeout = \"1h\""), PollPolicy { base, max, timeout });
    assert_eq!((of("").callback, of("").record), (false, Record::Late));
    assert_eq!((of("callback = true").callback, of("callback = true").record), (true, Record::Start));
    let nowhere = |more: &str| {
        format!("daemon.listen = \"off\"\n{more}[handler.a]\ntopics = [\"x\"]\nsql = \"app.f\"\ncallback = true\n")
    };
    assert!(parse(&nowhere("daemon.callback_url = \"https://hooks.example.com\"\n")).is_ok());
    check(
        &nowhere(""),
        &expect![[r"
            outboxd.toml:2: handler: handler a takes callbacks, and none can reach this daemon; write `callback_url`, or let `listen` be an address"]],
    );
    assert_eq!(of("max_timeout = \"1h\"").max_timeout, Some(3600 * second));
    assert_eq!(of("max_timeout = \"30s\"").max_timeout, None, "that is `timeout`");
    let backoff = |value: &str| of(&format!("retry.backoff = {value}")).retry.backoff;
    assert_eq!(backoff("\"exponential\""), Backoff::Exponential);
    assert_eq!(backoff("\"linear\""), Backoff::Linear);
    assert_eq!(backoff("\"fixed\""), Backoff::Fixed);
    assert_eq!(backoff("[\"1s\", \"1h\", \"1ms\"]"), Backoff::List(vec![second, 3600 * second, second / 1000]));
    // The base that means nothing is not compared with `max`.
    assert_eq!(of("retry = { backoff = [\"1ms\"], max = \"1ms\" }").retry.max, second / 1000);
    let retry = of("concurrency = 9\nretry = { concurrency = 9, rate = 100_000 }").retry;
    assert_eq!((retry.concurrency, retry.rate), (Some(9), Some(100_000)));
    assert_eq!(parse("daemon.once_window = \"3660d\"").unwrap().daemon.once_window, 86_400 * 3660 * second);
}

#[test]
fn how_a_handler_is_run_is_checked_in_all_its_relations() {
    check(
        r#"[daemon]
once_window = "3661d"

[handler.a]
topics = ["x"]
sql = "app.f"
concurrency = 4
timeout = "10s"
max_timeout = "9s"
retry = { backoff = "quadratic", concurrency = 5, rate = 0 }
on_dead_key = "skip"
on_dead = "x.*"

[handler.b]
topics = ["x"]
sql = "app.f"
max_timeout = "1s"
retry = { backoff = ["1s", "2h", "soon", 5], base = "1s", concurrency = 9, rate = 100001 }
ordered = "yes"
on_dead_key = "stop"
record = "never"
breaker = true
on_dead = "a b"

[handler.c]
topics = ["x"]
sql = "app.f"
concurrency = 0
retry = { backoff = [], max = "1m", concurrency = 1000 }
ordered = false
on_dead_key = "block"
on_dead = ""

[handler.d]
topics = ["x"]
sql = "app.f"
timeout = "never"
max_timeout = "1s"
retry = { backoff = 2, max = "0.5s" }

[handler.e]
topics = ["x"]
sql = "app.f"
record = "late"
callback = true
poll = { base = "1h", timeout = "31d", every = "5s" }
on_done = "x.#"

[handler.f]
topics = ["x"]
sql = "app.f"
callback = "yes"
poll = "5s"
"#,
        &expect![[r#"
            outboxd.toml:2: daemon.once_window: "3661d" is out of range; write a duration from "1s" to "3660d"
            outboxd.toml:9: handler.a.max_timeout: "9s" is shorter than `timeout` "10s"; write it at least as long
            outboxd.toml:10: handler.a.retry: `concurrency` 5 is more than the handler's 4; write at most as many
            outboxd.toml:10: handler.a.retry.backoff: "quadratic" is not a backoff; write "exponential", "linear", "fixed" or an array of pauses such as ["1s", "5s", "1m"]
            outboxd.toml:10: handler.a.retry.rate: 0 is out of range; write an integer from 1 to 100000
            outboxd.toml:11: handler.a.on_dead_key: without order nobody waits for a dead delivery; write `ordered = true`, or remove it
            outboxd.toml:12: handler.a.on_dead: "x.*" is not a topic; write one topic, without wildcards, such as "payment.dead"
            outboxd.toml:17: handler.b.max_timeout: "1s" is shorter than `timeout` "30s" (the default); write it at least as long
            outboxd.toml:18: handler.b.retry: `concurrency` 9 is more than the handler's 8 (the default); write at most as many
            outboxd.toml:18: handler.b.retry.backoff: "2h" is longer than `max` "1h" (the default); write pauses at most as long as `max`
            outboxd.toml:18: handler.b.retry.backoff: "soon" is not a duration; write for example "500ms", "10s", "1h 30m" or "7d"
            outboxd.toml:18: handler.b.retry.backoff: 5 is an integer; write "exponential", "linear", "fixed" or an array of pauses such as ["1s", "5s", "1m"]
            outboxd.toml:18: handler.b.retry.base: an array of pauses has no base; remove `base`, or write another `backoff`
            outboxd.toml:18: handler.b.retry.rate: 100001 is out of range; write an integer from 1 to 100000
            outboxd.toml:19: handler.b.ordered: "yes" is a string; write true or false
            outboxd.toml:20: handler.b.on_dead_key: "stop" is not a way to go on; write "block" or "skip"
            outboxd.toml:21: handler.b.record: "never" is not a time to record; write "late" or "start"
            outboxd.toml:22: handler.b.breaker: true is a boolean; write "on" or "off"
            outboxd.toml:23: handler.b.on_dead: "a b" is not a topic; write one topic, without wildcards, such as "payment.dead"
            outboxd.toml:28: handler.c.concurrency: 0 is out of range; write an integer from 1 to 1000
            outboxd.toml:29: handler.c.retry.backoff: an array of 0 pauses; write 1 to 100
            outboxd.toml:31: handler.c.on_dead_key: without order nobody waits for a dead delivery; write `ordered = true`, or remove it
            outboxd.toml:32: handler.c.on_dead: "" is not a topic; write one topic, without wildcards, such as "payment.dead"
            outboxd.toml:37: handler.d.timeout: "never" is not a duration; write for example "500ms", "10s", "1h 30m" or "7d"
            outboxd.toml:39: handler.d.retry: `base` "1s" (the default) is longer than `max` "500ms"; write `base` at most as long as `max`
            outboxd.toml:39: handler.d.retry.backoff: 2 is an integer; write "exponential", "linear", "fixed" or an array of pauses such as ["1s", "5s", "1m"]
            outboxd.toml:44: handler.e.record: with `callback` every attempt has a row from its beginning: an answer may come before the attempt has ended; write "start", or remove it
            outboxd.toml:46: handler.e.poll: `base` "1h" is longer than `max` "5m" (the default); write `base` at most as long as `max`
            outboxd.toml:46: handler.e.poll.every: this key is unknown; known here: base, max, timeout
            outboxd.toml:46: handler.e.poll.timeout: "31d" is out of range; write a duration from "1s" to "30d"
            outboxd.toml:47: handler.e.on_done: "x.#" is not a topic; write one topic, without wildcards, such as "payment.dead"
            outboxd.toml:52: handler.f.callback: "yes" is a string; write true or false
            outboxd.toml:53: handler.f.poll: this is a string; write a table such as { base = "5s", max = "5m", timeout = "1d" }"#]],
    );
}

#[test]
fn a_rate_is_so_many_in_a_time() {
    let handler =
        |name: &str, rate: &str| format!("[handler.{name}]\ntopics = [\"x\"]\nsql = \"a.f\"\nrate = {rate}\n");
    let config = parse(&handler("a", "\"10/m\"")).unwrap();
    assert_eq!(config.handlers[0].delivery.rate, Some(RateLimit { count: 10, per: Period::Minute }));
    check(
        &[("a", "50"), ("b", "\"0/s\""), ("c", "\"5 a day\"")].map(|(name, rate)| handler(name, rate)).concat(),
        &expect![[r#"
            outboxd.toml:4: handler.a.rate: 50 is an integer; write so many in a second, a minute or an hour, from 1 to 100000, such as "50/s", "10/m" or "1000/h"
            outboxd.toml:8: handler.b.rate: "0/s" is not a rate; write so many in a second, a minute or an hour, from 1 to 100000, such as "50/s", "10/m" or "1000/h"
            outboxd.toml:12: handler.c.rate: "5 a day" is not a rate; write so many in a second, a minute or an hour, from 1 to 100000, such as "50/s", "10/m" or "1000/h""#]],
    );
}

#[test]
fn attempts_of_a_key_are_a_part_of_the_handlers_and_of_ordered_keys_there_is_one() {
    let handler = |name: &str, keys: &str| {
        format!("[handler.{name}]\ntopics = [\"x\"]\nsql = \"a.f\"\nconcurrency_per_key = {keys}\n")
    };
    let config = parse(&(handler("a", "8") + &handler("b", "1\nconcurrency = 1"))).unwrap();
    let most: Vec<_> = config.handlers.iter().map(|handler| handler.delivery.concurrency_per_key).collect();
    assert_eq!(most, [Some(8), Some(1)]);
    let wrong = [
        ("a", "0"),
        ("b", "9"),
        ("c", "3\nconcurrency = 2"),
        ("d", "1\nordered = true"),
        ("e", "1\ncoalesce = \"key\""),
    ];
    check(
        &(wrong.map(|(name, keys)| handler(name, keys)).concat()
            + "[flow.f]\non = \"x\"\nconcurrency_per_key = 2\nstep.a = { sql = \"a.f\" }\n"),
        &expect![[r"
            outboxd.toml:4: handler.a.concurrency_per_key: 0 is out of range; write an integer from 1 to 1000
            outboxd.toml:8: handler.b.concurrency_per_key: `concurrency_per_key` 9 is more than the handler's 8 (the default); write at most as many
            outboxd.toml:12: handler.c.concurrency_per_key: `concurrency_per_key` 3 is more than the handler's 2; write at most as many
            outboxd.toml:17: handler.d.concurrency_per_key: with `ordered` one of a key runs at a time; remove one of the two
            outboxd.toml:22: handler.e.concurrency_per_key: with `coalesce` one of a key runs at a time; remove one of the two
            outboxd.toml:26: flow.f.concurrency_per_key: this key is unknown; known here: on, ordered, on_dead_key, on_dead_step, on_done, on_dead, start, step"]],
    );
}

#[test]
fn a_batch_has_two_events_at_least_and_does_not_wait_for_ever() {
    let handler =
        |name: &str, batch: &str| format!("[handler.{name}]\ntopics = [\"x\"]\nsql = \"a.f\"\nbatch = {batch}\n");
    let config = parse(&(handler("a", "{ max = 2 }") + &handler("b", "{ max = 1000, wait = \"0s\" }"))).unwrap();
    let batches: Vec<_> = config.handlers.iter().filter_map(|handler| handler.delivery.batch).collect();
    let expected = [(2, 1), (1000, 0)].map(|(max, wait)| BatchConfig { max, wait: Duration::from_secs(wait) });
    assert_eq!(batches, expected);
    let wrong = [("a", "100"), ("b", "{}"), ("c", "{ max = 1 }"), ("d", "{ max = 1001, wait = \"11m\", size = 3 }")];
    check(
        &(wrong.map(|(name, batch)| handler(name, batch)).concat()
            + "[flow.f]\non = \"x\"\nstep.a = { sql = \"a.f\", batch = { max = 2 } }\n"),
        &expect![[r#"
            outboxd.toml:4: handler.a.batch: this is an integer; write a table such as { max = 100, wait = "1s" }
            outboxd.toml:8: handler.b.batch: `max` is missing, how many events are handed over together; write a table such as { max = 100, wait = "1s" }
            outboxd.toml:12: handler.c.batch.max: 1 is out of range; write an integer from 2 to 1000
            outboxd.toml:16: handler.d.batch.max: 1001 is out of range; write an integer from 2 to 1000
            outboxd.toml:16: handler.d.batch.size: this key is unknown; known here: max, wait
            outboxd.toml:16: handler.d.batch.wait: "11m" is out of range; write a duration from "0s" to "10m"
            outboxd.toml:19: flow.f.step.a.batch: this key is unknown; known here: after, http, command, env, sql, concurrency, concurrency_per_key, rate, timeout, max_timeout, retry, poll, callback, record, breaker, on_done, on_dead, compensate, retired"#]],
    );
}

#[test]
fn what_is_merged_keeps_the_order_of_keys_and_what_is_dead_holds_up_nobody() {
    let config = parse("[handler.a]\ntopics = [\"x\"]\nsql = \"a.f\"\ncoalesce = \"key\"").unwrap();
    let delivery = &config.handlers[0].delivery;
    assert!(delivery.coalesce && delivery.ordered == Some(OnDeadKey::Skip));
    check(
        "[handler.a]\ntopics = [\"x\"]\nsql = \"a.f\"\ncoalesce = \"id\"\n\
         [handler.b]\ntopics = [\"x\"]\nsql = \"a.f\"\ncoalesce = \"key\"\nordered = false\n\
         [handler.c]\ntopics = [\"x\"]\nsql = \"a.f\"\ncoalesce = \"key\"\nordered = true\non_dead_key = \"block\"\n\
         [daemon]\nlisten = \"0.0.0.0:7474\"\n\
         [handler.d]\ntopics = [\"x\"]\nsql = \"a.f\"\ncallback = true",
        &expect![[r#"
            outboxd.toml:1: handler: handler d takes callbacks, and `listen` is 0.0.0.0:7474; write `callback_url`, the address of this machine that they reach
            outboxd.toml:4: handler.a.coalesce: "id" is not what events are merged by; write "key"
            outboxd.toml:9: handler.b.ordered: with `coalesce` events of one key are merged in their order; write true, or remove it
            outboxd.toml:15: handler.c.on_dead_key: with `coalesce` a later event does the work of a dead one; write "skip", or remove it"#]],
    );
}
