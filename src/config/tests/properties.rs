//! What holds for every configuration and for every text.

use proptest::prelude::*;

use super::*;
use crate::flow::{Graph, OnDeadStep, Step, Undo};
use crate::outcome::{Backoff, PollPolicy};

fn durations(min_ms: u64, max_ms: u64) -> impl Strategy<Value = Duration> {
    (min_ms..max_ms).prop_map(Duration::from_millis)
}

fn kinds() -> impl Strategy<Value = Kind> {
    let url = "https?://[a-z]{1,8}(\\.[a-z]{2,3})?(:80[0-9]{2})?/[a-z$%é' ]{0,8}(\\?[a-z$=]{0,8})?";
    let net = any::<(std::net::IpAddr, u8)>().prop_map(|(address, bits)| {
        IpNet::new(address, bits % if address.is_ipv4() { 33 } else { 96 }).unwrap().trunc()
    });
    let allow = prop::collection::btree_set(net, 0..3);
    let taken = prop::sample::select(vec![
        "{payload.a.b}",
        "https://{key}.example.com/a?b={id}",
        "https://${TENANT}.{payload.a}.example.com/",
    ]);
    prop_oneof![
        (taken, allow).prop_map(|(url, allow)| {
            let expanded = url.replace("${TENANT}", "hunter2");
            let url = HttpUrl::parse(&expanded).unwrap().written_as(url);
            Kind::Http(HttpConfig {
                url,
                allow: allow.into_iter().collect(),
                secrets: vec![],
                headers: BTreeMap::new(),
            })
        }),
        "https://example\\.com/\\{topic\\}/[a-z$]{0,8}".prop_map(|url| {
            let url = HttpUrl::parse(&url).unwrap();
            Kind::Http(HttpConfig { url, allow: vec![], secrets: vec![], headers: BTreeMap::new() })
        }),
        url.prop_filter_map("a URL", |url| {
            let url = reqwest::Url::parse(url.trim()).ok()?;
            let url = url.into();
            Some(Kind::Http(HttpConfig { url, allow: vec![], secrets: vec![], headers: BTreeMap::new() }))
        }),
        prop::collection::vec("[^\0]{1,12}", 1..5)
            .prop_map(|argv| Kind::Command(CommandConfig { argv, env: BTreeMap::new() })),
        ("[A-Za-z_][A-Za-z0-9_$]{0,62}", "[A-Za-z_][A-Za-z0-9_$]{0,62}")
            .prop_map(|(schema, function)| Kind::Sql(SqlConfig { schema, function })),
    ]
}

fn handlers() -> impl Strategy<Value = HandlerConfig> {
    let base = durations(1, 86_400_000);
    let backoff = prop_oneof![
        base.prop_flat_map(|base| prop::sample::select(vec![Backoff::Exponential, Backoff::Linear, Backoff::Fixed])
            .prop_map(move |backoff| (backoff, base))),
        prop::collection::vec(durations(1, 86_400_000), 1..=100)
            .prop_map(|pauses| (Backoff::List(pauses), RetryPolicy::default().base)),
    ];
    let limits = (prop::option::of(1usize..=1000), prop::option::of(1u32..=100_000));
    let retry = (1u32..=1000, backoff, durations(86_400_000, 2_592_000_000), limits).prop_map(
        |(max_attempts, (backoff, base), max, (concurrency, rate))| RetryPolicy {
            max_attempts,
            backoff,
            base,
            max,
            concurrency,
            rate,
        },
    );
    let more = (
        prop::option::of(prop::sample::select(vec![OnDeadKey::Block, OnDeadKey::Skip])),
        prop::sample::select(vec![Record::Start, Record::Late]),
        any::<bool>(),
        prop::option::of("[a-z:_-]{1,5}(\\.[A-Z0-9]{1,5}){0,3}"),
        prop::option::of("[a-z:_-]{1,5}(\\.[A-Z0-9]{1,5}){0,3}"),
        prop::option::of(durations(1, 86_400_000)),
        (any::<(bool, bool)>(), prop::option::of(1usize..=1000)),
        prop::option::of(
            (1u32..=1_000_000, any::<bool>()).prop_map(|(events, refuses)| MaxBacklog { events, refuses }),
        ),
        prop::option::of(
            (1u32..=100_000, prop::sample::select(vec!["s", "m", "h"]))
                .prop_map(|(count, per)| format!("{count}/{per}").parse().unwrap()),
        ),
        prop::option::of((2usize..=1000, durations(0, 600_000)).prop_map(|(max, wait)| BatchConfig { max, wait })),
        prop::option::of((durations(100, 86_400_000), 0u64..86_400_000, durations(1000, 2_592_000_000)).prop_map(
            |(base, more, timeout)| {
                let max = (base + Duration::from_millis(more)).min(Duration::from_hours(24));
                PollPolicy { base, max, timeout }
            },
        )),
    );
    let topics = prop::collection::btree_set("([a-z:_-]{1,5}|\\*|#)(\\.([a-z]{1,5}|\\*|#)){0,3}", 1..5);
    let start = prop_oneof![Just(Start::Now), Just(Start::Beginning)];
    ("[A-Za-z0-9_-]{1,63}", kinds(), topics, 1usize..=1000, durations(1, 86_400_000), retry, start, more).prop_map(
        |(name, kind, topics, concurrency, timeout, mut retry, start, more)| {
            let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
            let (
                ordered,
                record,
                breaker,
                on_done,
                on_dead,
                max_timeout,
                ((callback, coalesce), per_key),
                max_backlog,
                rate,
                batch,
                poll,
            ) = more;
            let ordered = if coalesce { Some(OnDeadKey::Skip) } else { ordered };
            let concurrency_per_key = per_key.filter(|_| ordered.is_none()).map(|most| most.min(concurrency));
            // What may be answered at any time has a row from the beginning.
            let record = if callback { Record::Start } else { record };
            let max_timeout = max_timeout.filter(|longest| *longest > timeout);
            // What one event's target does says nothing about another's.
            let url = if let Kind::Http(http) = &kind { Some(&http.url) } else { None };
            let breaker = breaker && url.is_none_or(|url| !url.takes_host());
            let batch = batch.filter(|_| url.is_none_or(|url| url.fixed().is_some()));
            retry.concurrency = retry.concurrency.map(|retries| retries.min(concurrency));
            let delivery = DeliveryConfig {
                topics,
                concurrency,
                timeout,
                max_timeout,
                rate,
                retry,
                poll,
                callback,
                ordered,
                coalesce,
                concurrency_per_key,
                batch,
                max_backlog,
                record,
                breaker,
                on_done,
                on_dead,
                start,
            };
            HandlerConfig { name: name.into(), kind, delivery }
        },
    )
}

/// What a step or a compensation is called with: what a handler is, without topics, order and beginning.
fn called() -> impl Strategy<Value = (Kind, DeliveryConfig)> {
    handlers().prop_map(|HandlerConfig { kind, delivery, .. }| {
        let (topics, start) = (Vec::new(), Start::Now);
        (
            kind,
            DeliveryConfig {
                topics,
                ordered: None,
                coalesce: false,
                batch: None,
                max_backlog: None,
                start,
                ..delivery
            },
        )
    })
}

fn flows() -> impl Strategy<Value = FlowConfig> {
    let undo = prop_oneof![Just(Undo::Done), Just(Undo::Begun)];
    let step = (called(), prop::option::of((undo, called())), prop::bool::weighted(0.2));
    let on_dead_step = prop_oneof![Just(OnDeadStep::Compensate), Just(OnDeadStep::Hold)];
    let steps = prop::collection::btree_map("[A-Za-z0-9_-]{1,63}", step, 1..5);
    (handlers(), on_dead_step, steps, any::<u32>()).prop_map(|(flow, on_dead_step, steps, edges)| {
        let HandlerConfig { name, delivery, .. } = flow;
        let DeliveryConfig { topics, ordered, on_done, on_dead, start, .. } = delivery;
        let delivery = DeliveryConfig { ordered, on_done, on_dead, start, ..DeliveryConfig::of_flow(topics) };
        let mut written: Vec<Step> = Vec::new();
        let mut configs = Vec::new();
        for (i, (name, ((kind, delivery), undo, retired))) in steps.into_iter().enumerate() {
            let name: Arc<str> = name.into();
            // One at least is a part of it.
            let retired = retired && i > 0;
            if !retired {
                let after = written.iter().enumerate().filter(|(j, _)| edges & 1 << (i * 5 + j) != 0);
                let after = after.map(|(_, step)| Arc::clone(&step.name)).collect();
                let compensate = undo.as_ref().map(|(when, _)| *when);
                written.push(Step { name: Arc::clone(&name), after, compensate });
            }
            // When what is retired was undone is said by the versions that have it.
            let compensate = undo.map(|(_, (kind, delivery))| CompensationConfig { kind, delivery });
            configs.push(StepConfig { name, kind, delivery, retired, compensate });
        }
        FlowConfig { name, delivery, on_dead_step, graph: Arc::new(Graph::new(written).unwrap()), steps: configs }
    })
}

fn alerts() -> impl Strategy<Value = AlertConfig> {
    let condition = prop_oneof![
        (0u32..10_000).prop_map(|above| Condition::Dead { above }),
        (0u32..=1_000_000_000).prop_map(|above| Condition::Backlog { above }),
        durations(1000, 2_592_000_000).prop_map(|above| Condition::Oldest { above }),
        Just(Condition::BreakerOpen),
        Just(Condition::ListenerDeaf),
    ];
    let name = || "[A-Za-z0-9_-]{1,63}";
    (name(), condition, prop::option::of(name()), durations(0, 86_400_000)).prop_map(
        |(name, condition, handler, lasting)| {
            let handler = handler.filter(|_| condition != Condition::ListenerDeaf).map(Into::into);
            AlertConfig { name: name.into(), condition, handler, lasting }
        },
    )
}

fn schedules() -> impl Strategy<Value = ScheduleConfig> {
    let zone = prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York"]);
    let payload = prop::collection::btree_map("[^\0]{0,5}", "[^\0]{0,5}|[0-9]{1,5}", 0..4);
    let topic = "[a-z:_-]{1,5}(\\.[A-Z0-9]{1,5}){0,3}";
    ("[A-Za-z0-9_-]{1,63}", 0u32..60, zone, topic, payload, prop::option::of("[a-z\"' ]{1,9}"), 1usize..=1000).prop_map(
        |(name, minute, zone, topic, payload, key, catch_up)| ScheduleConfig {
            name: name.into(),
            timetable: Timetable::new(&format!("{minute} */2 * * MON"), zone).unwrap(),
            topic,
            payload: serde_json::json!(payload).to_string(),
            key,
            catch_up,
        },
    )
}

fn configs() -> impl Strategy<Value = Config> {
    let windows = (durations(1000, 31_622_400_000), durations(1000, 316_224_000_000));
    let retention = prop::option::of(durations(1000, 316_224_000_000));
    let poll_interval = prop::option::of(durations(100, 3_600_000));
    let port = prop::option::of(any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from));
    let daemon = (poll_interval, durations(0, 3_600_000), windows, retention, 1usize..=1000, port).prop_map(
        |(poll_interval, drain_timeout, (dedup_window, once_window), retention, pool_size, listen)| DaemonConfig {
            database_url: None,
            poll_interval,
            drain_timeout,
            dedup_window,
            once_window,
            retention,
            pool_size,
            listen,
            callback_url: None,
        },
    );
    let callback_url = prop::option::of("https?://[a-z]{1,8}/[a-z$]{0,8}");
    let handlers = prop::collection::vec(handlers(), 0..4);
    let flows = prop::collection::vec(flows(), 0..3);
    let (schedules, alerts) = (prop::collection::vec(schedules(), 0..3), prop::collection::vec(alerts(), 0..3));
    let traces = ("https?://[a-z]{1,8}(:80[0-9]{2})?(/[a-z$]{1,8})?", 0.0f64..=1.0).prop_map(|(endpoint, sample)| {
        TracesConfig { endpoint: reqwest::Url::parse(&endpoint).unwrap(), headers: BTreeMap::new(), sample }
    });
    let daemon = (daemon, prop::option::of(traces));
    let parts = (daemon, callback_url, handlers, flows, schedules, alerts);
    parts.prop_map(|((mut daemon, traces), url, mut handlers, mut flows, mut schedules, mut alerts)| {
        alerts.sort_by(|a, b| a.name.cmp(&b.name));
        alerts.dedup_by(|a, b| a.name == b.name);
        schedules.sort_by(|a, b| a.name.cmp(&b.name));
        schedules.dedup_by(|a, b| a.name == b.name);
        daemon.callback_url = url.map(|url| reqwest::Url::parse(&url).unwrap());
        for handler in &mut handlers {
            // None can reach a daemon that is nowhere.
            let somewhere = daemon.listen.is_some_and(|address| !address.ip().is_unspecified());
            handler.delivery.callback &= somewhere || daemon.callback_url.is_some();
        }
        handlers.sort_by(|a, b| a.name.cmp(&b.name));
        handlers.dedup_by(|a, b| a.name == b.name);
        flows.sort_by(|a, b| a.name.cmp(&b.name));
        flows.dedup_by(|a, b| a.name == b.name);
        flows.retain(|flow| !handlers.iter().any(|handler| handler.name == flow.name));
        for step in flows.iter_mut().flat_map(|flow| &mut flow.steps) {
            let nowhere =
                daemon.callback_url.is_none() && daemon.listen.is_none_or(|address| address.ip().is_unspecified());
            step.delivery.callback &= !nowhere;
            if let Some(undo) = &mut step.compensate {
                undo.delivery.callback &= !nowhere;
            }
        }
        Config { daemon, traces, handlers, flows, schedules, alerts }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(config in configs()) {
        let text = config.to_toml();
        prop_assert_eq!(parse(&text).map_err(|errors| TestCaseError::fail(format!("{errors}\n{text}")))?, config);
    }

    #[test]
    fn a_written_duration_is_read_back(seconds in 0u64..100_000_000_000, nanos in 0u32..1_000_000_000) {
        let duration = Duration::new(seconds, nanos);
        prop_assert_eq!(duration::parse(&duration::format(duration)), Ok(duration));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\PC|[\\[\\]{}=.,\"'#\\\\$\n\r\0]){0,200}") {
        let _ = parse(&text);
        let _ = duration::parse(&text);
    }

    #[test]
    fn no_words_of_the_grammar_make_the_reader_panic(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", " ", "\"", "'", "\"\"\"", "'''", "#", "é", "1", "5s",
                "handler", "daemon", "a", "topics", "http", "url", "secret", "headers", "retry", "base", "timeout", "env",
                "backoff", "ordered", "on_dead_key", "on_dead", "record", "breaker", "max_timeout", "rate", "true", "poll", "callback", "callback_url", "on_done", "flow", "[flow.f]\n", "on", "step", "[flow.f.step.s]\n", "after", "compensate", "when", "schedule", "[schedule.s]\n", "[traces]\n", "endpoint", "sample", "0.5", "cron", "\"* * * * *\"", "topic", "payload",
                "command", "sql", "\"x\"", "[handler.a]\n", "topics = [\"x\"]\n", "${", "$", "allow", "\"{key}\"", "\"http://{\"", "${file:/",
            ]),
            0..60,
        )
    ) {
        let errors = parse(&words.concat()).err();
        prop_assert!(errors.is_none_or(|errors| errors.to_string().lines().count() == errors.errors.len()));
    }

    #[test]
    fn no_mutation_of_a_valid_file_makes_the_reader_panic(
        mutations in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, "\\PC{0,3}|[\\[\\]{}=\"\n]{1,3}"), 1..6)
    ) {
        let mut text: Vec<char> = uncommented().chars().collect();
        for (at, removed, inserted) in mutations {
            let at = at.index(text.len());
            let end = text.len().min(at + removed);
            text.splice(at..end, inserted.chars());
        }
        let _ = parse(&text.into_iter().collect::<String>());
    }
}
