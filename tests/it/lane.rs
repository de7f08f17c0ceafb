//! Handlers are independent: a slow one holds up nobody, a new one begins where it was told to.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use outboxd::Observation;
use outboxd::config::{DeliveryConfig, Start};
use outboxd::daemon::lane::Lane;
use outboxd::daemon::write::LaneId;
use outboxd::snapshot::Snapshot;
use outboxd::store::registry::{Checkpoint, Held};
use outboxd::store::settle::Found;

use crate::harness::workload::{COMMON, Gate, Ledger, NARROW, Receipts, assert_done, insert, scaled};
use crate::harness::{Database, Running, daemon};

const BACKLOG: usize = 20_000;

/// The defaults for one topic, and a deadline that no test reaches.
fn delivery(topic: &str) -> DeliveryConfig {
    DeliveryConfig { timeout: Duration::from_hours(1), ..DeliveryConfig::new(vec![topic.parse().unwrap()]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_keeps_no_other_from_finishing_and_catches_up_later() {
    let database = Database::new().await;
    let (ledger, gate) = (Ledger::default(), Gate::closed());
    let (stuck, quick) = (Receipts::default(), Receipts::default());
    let one_at_a_time = DeliveryConfig { concurrency: 1, ..delivery("#") };
    let running =
        Running::start(daemon(&database).handler_with("stuck", one_at_a_time, stuck.handler_behind(&gate)).handler(
            "quick",
            ["#"],
            quick.handler(),
        ))
        .await;
    let session = database.session().await;
    for _ in 0..20 {
        ledger.note_committed(COMMON, insert(&session, COMMON, scaled(BACKLOG) / 20).await);
    }
    quick.complete(&ledger, None).await;
    assert_done(&database, "quick", &ledger.events(None)).await;
    assert_eq!(stuck.len(), 0);
    let of_stuck = |handler: &str| handler == "stuck";
    running
        .observed("stuck fell behind", |o| matches!(o, Observation::FellBehind { handler } if of_stuck(handler)))
        .await;
    gate.open();
    stuck.complete(&ledger, None).await;
    running.observed("stuck caught up", |o| matches!(o, Observation::CaughtUp { handler } if of_stuck(handler))).await;
    assert_done(&database, "stuck", &ledger.events(None)).await;
    assert_eq!((quick.repeated(), stuck.repeated()), (0, 0));
    assert_eq!(running.count(|o| matches!(o, Observation::FellBehind { handler } if !of_stuck(handler))), 0);
    running.stop().await;
}

#[test]
fn what_falls_due_during_a_claim_is_not_forgotten() {
    let now = Instant::now();
    let checkpoint = Checkpoint { handler: "slow".into(), position: Snapshot::beginning(), finished: 0 };
    let mut lane = Lane::new(LaneId(0), delivery("#"), &checkpoint, &Held::default(), now);
    assert!(!lane.claim(usize::MAX, now).is_empty());
    // A retry is put off while the claim, which cannot know of it, is under way.
    lane.due_within(Duration::from_millis(5), now);
    lane.claimed(Found::default(), now, 0.5, &mut Vec::new());
    assert_eq!(lane.wake_at(true, true), Some(now + Duration::from_millis(5)));
    // What the claim itself says counts as well, and an old note does not come back.
    let later = now + Duration::from_millis(5);
    assert!(!lane.claim(usize::MAX, later).is_empty());
    lane.claimed(Found { due_in: Some(Duration::from_secs(1)), ..Found::default() }, later, 0.5, &mut Vec::new());
    assert_eq!(lane.wake_at(true, true), Some(later + Duration::from_secs(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_handler_begins_now_or_at_the_beginning_as_it_was_told() {
    let database = Database::new().await;
    let session = database.session().await;
    let receipts: [Receipts; 3] = Default::default();
    let [first, later, historian] = &receipts;

    // The first handlers of an installation get everything, even what was inserted before the first daemon.
    let mut all = insert(&session, COMMON, 10).await;
    let running = Running::start(daemon(&database).handler("first", ["#"], first.handler())).await;
    all.extend(insert(&session, COMMON, 10).await);
    assert_done(&database, "first", &all).await;
    running.stop().await;

    // While no daemon runs.
    all.extend(insert(&session, COMMON, 10).await);
    let from_beginning = DeliveryConfig { start: Start::Beginning, ..delivery("#") };
    let open = Gate::closed();
    open.open();
    let running = Running::start(
        daemon(&database)
            .handler("first", ["#"], first.handler())
            .handler("later", ["#"], later.handler())
            .handler_with("historian", from_beginning, historian.handler_behind(&open)),
    )
    .await;
    let since = insert(&session, COMMON, 10).await;
    all.extend(&since);
    assert_done(&database, "first", &all).await;
    assert_done(&database, "historian", &all).await;
    assert_done(&database, "later", &since).await;
    running.stop().await;
    assert_eq!([first.events(), historian.events(), later.events()], [all.clone(), all, since]);
    assert!(receipts.iter().all(|receipts| receipts.repeated() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_whose_topics_were_widened_gets_the_new_ones_from_then_on() {
    let database = Database::new().await;
    let session = database.session().await;
    let (receipts, ledger, others) = (Receipts::default(), Ledger::default(), Receipts::default());
    let with = |topics: &[&str]| {
        let topics: Vec<String> = topics.iter().map(ToString::to_string).collect();
        daemon(&database).handler("wider", topics, receipts.handler()).handler("all", ["#"], others.handler())
    };
    let running = Running::start(with(&[COMMON])).await;
    ledger.note_committed(COMMON, insert(&session, COMMON, 5).await);
    let mut everything: BTreeSet<i64> = ledger.events(None);
    everything.extend(insert(&session, NARROW, 5).await);
    assert_done(&database, "all", &everything).await;
    receipts.complete(&ledger, None).await;
    running.stop().await;

    // Inserted while no daemon runs: nobody's position has passed them.
    for topic in [NARROW, COMMON] {
        ledger.note_committed(topic, insert(&session, topic, 5).await);
    }
    let running = Running::start(with(&[COMMON, NARROW])).await;
    for topic in [NARROW, COMMON] {
        ledger.note_committed(topic, insert(&session, topic, 5).await);
    }
    receipts.complete(&ledger, None).await;
    assert_done(&database, "wider", &ledger.events(None)).await;
    assert_eq!(receipts.repeated(), 0);
    running.stop().await;
}
