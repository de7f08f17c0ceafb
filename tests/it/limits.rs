//! How much a handler may do in a time and at the same time, as configured and as changed while the daemon runs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outboxd::config::{BatchConfig, DeliveryConfig};
use outboxd::daemon::lane::{Lane, Offer, Step};
use outboxd::daemon::write::{LaneId, Ticket};
use outboxd::snapshot::Snapshot;
use outboxd::store::registry::{Checkpoint, Held};
use outboxd::store::settle::{Claimed, Found};
use outboxd::{Event, EventId, Observation, Outcome};

use crate::harness::workload::Gate;
use crate::harness::{Database, Running, daemon, done, outboxd_output, publish_many, text, until};

fn delivery(concurrency: usize) -> DeliveryConfig {
    let topics = vec!["a".parse().unwrap()];
    DeliveryConfig { concurrency, timeout: Duration::from_hours(1), ..DeliveryConfig::new(topics) }
}

const OFFER: Offer = Offer { priority: 0, due_in: None, expires_in: None, begun: false };

fn event(id: i64) -> Event {
    let (payload, headers) = ("{}".to_owned(), "{}".to_owned());
    let created_at = jiff::Timestamp::UNIX_EPOCH;
    Event { id: EventId(id), topic: "a".to_owned(), key: None, payload, headers, created_at }
}

/// A lane with some events, and a clock.
struct Clocked {
    lane: Lane,
    now: Instant,
}

impl Clocked {
    fn new(config: DeliveryConfig, events: i64) -> Self {
        let now = Instant::now();
        let checkpoint = Checkpoint { handler: "h".into(), position: Snapshot::beginning(), finished: 0 };
        let mut lane = Lane::new(LaneId(0), config, &checkpoint, &Held::default(), now);
        for id in 1..=events {
            lane.offer(&Arc::new(event(id)), &OFFER, now, &mut Vec::new());
        }
        Self { lane, now }
    }

    /// How many begin now, each of which ends at once.
    fn begin(&mut self) -> usize {
        let mut begun = 0;
        loop {
            let mut steps = Vec::new();
            self.lane.start(usize::MAX, self.now, &mut steps);
            self.lane.record(self.now, &mut steps);
            let started = |step: Step| match step {
                Step::Start(start) => vec![start.ticket],
                Step::StartBatch(starts) => starts.iter().map(|start| start.ticket).collect(),
                _ => Vec::new(),
            };
            let running: Vec<Ticket> = steps.into_iter().flat_map(started).collect();
            if running.is_empty() {
                return begun;
            }
            begun += running.len();
            for ticket in running {
                let mut steps = Vec::new();
                self.lane.ended(ticket, Outcome::done(), None, self.now, 0.5, &mut steps).unwrap();
                for step in steps {
                    if let Step::Write(write) = step {
                        self.lane.written(write.ticket, write.ended.fate(), self.now, &mut Vec::new());
                    }
                }
            }
        }
    }

    /// Moves the clock to when the lane wants to be asked again.
    fn wait(&mut self) -> Duration {
        let at = self.lane.wake_at(true, false).expect("it wants to be asked again");
        let waited = at - self.now;
        assert!(!waited.is_zero(), "it would be asked for ever");
        self.now = at;
        waited
    }
}

#[test]
fn no_more_begin_in_a_time_than_the_rate_and_it_is_asked_again_when_the_next_may() {
    let mut lane = Clocked::new(DeliveryConfig { rate: Some("10/s".parse().unwrap()), ..delivery(100) }, 100);
    assert_eq!(lane.begin(), 10, "a second's worth at once");
    let start = lane.now;
    let mut begun = 0;
    while begun < 50 {
        lane.wait();
        begun += lane.begin();
    }
    let seconds = (lane.now - start).as_secs_f64();
    assert!((4.9..5.2).contains(&seconds), "50 in {seconds} s");
    let mut lane = Clocked::new(DeliveryConfig { rate: Some("6/m".parse().unwrap()), ..delivery(100) }, 3);
    assert_eq!(lane.begin(), 1);
    assert!((9.9..10.1).contains(&lane.wait().as_secs_f64()));
    assert_eq!(lane.begin(), 1);
}

#[test]
fn a_batch_is_no_larger_than_the_rate_lets_it_be() {
    let batch = Some(BatchConfig { max: 20, wait: Duration::ZERO });
    let mut lane = Clocked::new(DeliveryConfig { rate: Some("10/s".parse().unwrap()), batch, ..delivery(8) }, 30);
    let mut begun = lane.begin();
    assert_eq!(begun, 10);
    while begun < 30 {
        lane.wait();
        begun += lane.begin();
    }
    assert_eq!(begun, 30);
}

/// How many run now, and how many did at most.
type Counts = Arc<Mutex<(u32, u32)>>;

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_changed_while_the_daemon_runs_shown_and_taken_back() {
    let (database, gate, counts) = (Database::new().await, Gate::closed(), Counts::default());
    let session = database.session().await;
    let builder = || {
        let (gate, counts) = (gate.clone(), Arc::clone(&counts));
        daemon(&database).handler_with("mail", delivery(2), move |_| {
            let (gate, counts) = (gate.clone(), Arc::clone(&counts));
            async move {
                {
                    let mut counts = counts.lock().unwrap();
                    counts.0 += 1;
                    counts.1 = counts.1.max(counts.0);
                }
                gate.passed().await;
                counts.lock().unwrap().0 -= 1;
            }
        })
    };
    let running = Running::start(builder()).await;
    let ids = publish_many(&session, "a", 40).await;
    until("two run", async || counts.lock().unwrap().0 == 2).await;
    let limit = async |arguments: &[&str]| {
        let output = outboxd_output(Some(&database), &[&["limit", "mail"], arguments].concat()).await;
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let told = limit(&["--concurrency", "7", "--rate", "1000/s"]).await;
    assert_eq!(told, "mail is limited to 7 at the same time, 1000/s\n");
    until("seven run", async || counts.lock().unwrap().0 == 7).await;
    running.observed("it is told", |o| matches!(o, Observation::Limited { concurrency: Some(7), .. })).await;
    let status = outboxd_output(Some(&database), &["status"]).await;
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("mail is limited to 7 at the same time, 1000/s since"), "{status}");
    // Another daemon takes it over.
    running.kill().await;
    *counts.lock().unwrap() = (0, 0);
    let running = Running::start(builder()).await;
    until("seven run again", async || counts.lock().unwrap().0 == 7).await;
    assert_eq!(limit(&["--reset"]).await, "mail has the limits of its configuration\n");
    let back = |o: &Observation| matches!(o, Observation::Limited { concurrency: None, rate: None, .. });
    running.observed("it is told", back).await;
    gate.open();
    until("all are done", async || done(&session, "mail").await == ids).await;
    assert_eq!(counts.lock().unwrap().1, 7);
    for wrong in [&["--concurrency", "0"][..], &["--rate", "0/s"], &["--rate", "5/d"], &[]] {
        let told = limit(wrong).await;
        assert!(told.contains("error: ") || told.contains("limit needs"), "{told}");
    }
    let refused = session.client.batch_execute("SELECT outbox.set_limits('mail', rate => '999999/s')").await;
    let refused = refused.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("limit_rate_is_1_to_100000"), "{refused:?}");
    assert_eq!(text(&session, "SELECT outbox.set_limits('nobody', 3)").await, "false");
    running.stop().await;
}

#[test]
fn what_is_due_and_may_not_begin_yet_is_waited_for() {
    let batch = Some(BatchConfig { max: 10, wait: Duration::from_mins(1) });
    let config = DeliveryConfig { concurrency: 1, batch, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let mut clocked = Clocked::new(config, 0);
    let (now, mut steps) = (clocked.now, Vec::new());
    // A delivery that was due has had its turn.
    assert!(!clocked.lane.claim(usize::MAX, now).is_empty());
    let claimed = Claimed {
        event: event(1),
        handler: "h".to_owned(),
        attempt: 2,
        failures: 1,
        polls: 0,
        answer_in: None,
        expires_in: None,
        results: None,
        unanswered: false,
        overdue: Duration::ZERO,
        alone: true,
        parked: false,
    };
    let found = Found { claimed: vec![claimed], due_in: Some(Duration::ZERO), ..Found::default() };
    clocked.lane.claimed(found, now, 0.5, &mut steps);
    let Some(Step::StartBatch(starts)) = steps.pop() else { panic!("it begins") };
    clocked.lane.ended(starts[0].ticket, Outcome::done(), None, now, 0.5, &mut steps);
    // The next turn is that of one that waits for company, though another one is due.
    clocked.lane.offer(&Arc::new(event(2)), &OFFER, now, &mut steps);
    assert!(clocked.lane.claim(usize::MAX, now).is_empty());
    assert_eq!(clocked.lane.wake_at(true, true), Some(now + Duration::from_mins(1)));
}
