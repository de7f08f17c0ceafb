//! One event per tick, however many daemons there are and however often they begin; what was missed is made good within its bound.

use outboxd::{Config, Event, Observation};

use crate::harness::{ConfigFile, Database, Process, Running, daemon, text, texts, until_within};

fn config(schedule: &str) -> Config {
    Config::parse(schedule, "outboxd.toml", &|_| None).unwrap()
}

const EVERY_MINUTE: &str =
    "[schedule.minutely]\ncron = \"* * * * *\"\ntopic = \"minute\"\npayload = { n = 7 }\nkey = \"k\"\n";
const COUNT: &str = "SELECT count(*) FROM outbox.event WHERE topic = 'minute'";

/// As if the schedule had ticked for the last time so long ago.
async fn missed(session: &outboxd::postgres::Session, interval: &str) {
    let set = format!("UPDATE outbox.schedule SET ticked_at = date_trunc('minute', now()) - interval '{interval}'");
    session.client.batch_execute(&set).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tick_is_one_event_however_many_daemons_there_are() {
    let database = Database::new().await;
    let session = database.session().await;
    let builder = || daemon(&database).config(config(EVERY_MINUTE)).handler("all", ["minute"], async |_: Event| ());
    let first = Running::start(builder()).await;
    let standby = Running::start_only(builder());
    standby.observed("it stands by", |o| matches!(o, Observation::StandingBy { .. })).await;
    // It comes at the next full minute, and not before.
    until_within(90, "a tick has come", async || text(&session, COUNT).await != "0").await;
    let event = "SELECT concat_ws(' ', key, payload, headers->>'outbox-schedule',
                        headers->>'outbox-tick' = to_char(s.ticked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:00\"Z\"'),
                        created_at >= s.ticked_at AND created_at < s.ticked_at + interval '20 seconds', s.next_at - s.ticked_at)
                 FROM outbox.event, outbox.schedule s WHERE event.topic = 'minute' ORDER BY id DESC LIMIT 1";
    assert_eq!(text(&session, event).await, "k {\"n\": 7} minutely t t 00:01:00");
    first.stop().await;
    standby.observed("it leads", |o| matches!(o, Observation::Leading)).await;
    standby.stop().await;
    let twice =
        "SELECT headers->>'outbox-tick' FROM outbox.event WHERE topic = 'minute' GROUP BY 1 HAVING count(*) > 1";
    assert!(texts(&session, twice).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_made_good_within_its_bound() {
    let database = Database::new().await;
    let session = database.session().await;
    let three = format!("{EVERY_MINUTE}catch_up = 3\n");
    let run = async || {
        let running = Running::start(daemon(&database).config(config(&three))).await;
        // The last tick, not the one before: a daemon that stops in between leaves the rest to the next.
        until_within(30, "it has ticked", async || {
            text(&session, "SELECT bool_and(ticked_at > now() - interval '1 minute') FROM outbox.schedule").await
                == "true"
        })
        .await;
        let told = running.count(|o| matches!(o, Observation::TicksMissed { .. }));
        running.stop().await;
        told
    };
    // A new one makes nothing good.
    assert_eq!(run().await, 0);
    let before: usize = text(&session, COUNT).await.parse().unwrap();
    assert!(before <= 1, "{before} at once");
    missed(&session, "10 days").await;
    assert_eq!(run().await, 1);
    let ticks =
        "SELECT count(DISTINCT headers->>'outbox-tick') || ' of ' || count(*) FROM outbox.event WHERE topic = 'minute'";
    let after: usize = text(&session, COUNT).await.parse().unwrap();
    // A full minute may pass meanwhile.
    assert!((before + 3..=before + 4).contains(&after), "{before} before, {after} after");
    assert_eq!(text(&session, ticks).await, format!("{after} of {after}"));
    // Another time is another schedule: it begins now.
    missed(&session, "10 days").await;
    let other = three.replace("* * * * *", "*/7 * * * *");
    let running = Running::start(daemon(&database).config(config(&other))).await;
    until_within(30, "it is registered", async || {
        text(&session, "SELECT max(cron || (ticked_at > now() - interval '1 minute')) FROM outbox.schedule").await
            == "*/7 * * * *true"
    })
    .await;
    running.stop().await;
    assert!(text(&session, COUNT).await.parse::<usize>().unwrap() <= after + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_schedules() {
    let database = Database::new().await;
    let session = database.session().await;
    let file = ConfigFile::new(EVERY_MINUTE);
    let process = Process::run(&database, &file);
    process.logged("leading").await;
    let names = "SELECT string_agg(name || ' ' || cron, ', ' ORDER BY name) FROM outbox.schedule";
    until_within(20, "it is registered", async || text(&session, names).await == "minutely * * * * *").await;
    file.write("[schedule.nightly]\ncron = \"30 3 * * *\"\ntimezone = \"Europe/Berlin\"\ntopic = \"night\"\n");
    process.signal(rustix::process::Signal::HUP);
    until_within(20, "the other one is", async || text(&session, names).await == "nightly 30 3 * * *").await;
    file.write("");
    process.signal(rustix::process::Signal::HUP);
    until_within(20, "none is", async || text(&session, names).await == "null").await;
}

#[test]
fn a_schedule_that_is_none_is_refused() {
    let text = "[schedule.a]\ncron = \"0 0 30 2 *\"\ntopic = \"x\"\n\
                [schedule.b]\ncron = \"every day\"\ntimezone = \"Europe/Atlantis\"\ntopic = \"x.*\"\n\
                [schedule.c]\npayload = { at = nan }\nkey = \"\"\ncatch_up = 0\n\
                [schedule.\"two words\"]\ncron = \"* * * * *\"\ntopic = \"x\"\nwhen = 1\n";
    let errors = Config::parse(text, "f", &|_| None).unwrap_err().to_string();
    for said in [
        "f:2: schedule.a.cron: \"0 0 30 2 *\" never comes true",
        "f:6: schedule.b.timezone: \"Europe/Atlantis\" is not a time zone",
        "f:7: schedule.b.topic: \"x.*\" is not a topic",
        "schedule.c: `cron` is missing",
        "schedule.c: `topic` is missing",
        "f:9: schedule.c.payload: this cannot be JSON",
        "\"two words\" is not the name of a schedule",
        "when",
    ] {
        assert!(errors.contains(said), "{said}\n{errors}");
    }
}
