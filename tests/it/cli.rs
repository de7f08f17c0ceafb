//! The command line: what an operator reads, and what a program parses.

use std::fmt::Write as _;

use expect_test::{expect, expect_file};
use outboxd::config::DeliveryConfig;
use outboxd::postgres::Session;
use outboxd::{Event, Failure, Outcome, RetryPolicy};
use serde_json::{Value, json};

use crate::harness::{Database, Running, daemon, deliveries, outboxd, outboxd_output, text, until};

/// Exit code, stdout and stderr.
async fn run(database: &Database, arguments: &[&str]) -> (i32, String, String) {
    let output = outboxd_output(Some(database), arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn json(database: &Database, arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = run(database, &[arguments, &["--json"]].concat()).await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    serde_json::from_str(&stdout).unwrap()
}

/// Replaces what differs from run to run: times, session numbers, ids of installations.
fn steady(text: &str) -> String {
    let mut steady = String::new();
    for word in text.split_inclusive([' ', '\n']) {
        let (word, end) = word.split_at(word.trim_end().len());
        let is_time = word.len() >= 20 && word.ends_with('Z') && word[..4].bytes().all(|b| b.is_ascii_digit());
        steady += if is_time { "TIME" } else { word };
        steady += end;
    }
    steady
}

/// Three events: 1 is done by `mail` and dead for `broken`, 2 nobody wants, 3 is scheduled for `mail`.
async fn story(database: &Database, session: &Session) -> Running {
    let retry = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
    let once = DeliveryConfig { retry, ..DeliveryConfig::new(vec!["user.registered".parse().unwrap()]) };
    let running = Running::start(
        daemon(database)
            .handler("mail", ["user.*"], async |_: Event| Outcome::done_with(json!({ "sent": true })))
            .handler_with("broken", once, async |_| Outcome::Retry {
                after: None,
                failure: Failure::new("no such mailbox").with_response("550 go\naway"),
            }),
    )
    .await;
    let publish = "SELECT outbox.publish('user.registered', '{\"name\": \"Ada\"}', key => 'ada', headers => '{\"h\": \"v\"}'), \
                   outbox.publish('order.paid', '{}'), outbox.publish('user.left', '[1]', delay => '1 hour')";
    session.client.batch_execute(publish).await.unwrap();
    until("the story is told", async || {
        deliveries(session, 1).await == ["broken|dead|1", "mail|done|1"]
            && deliveries(session, 3).await == ["mail|scheduled|0"]
    })
    .await;
    running
}

#[tokio::test]
async fn the_help_of_every_verb_is_the_one_that_was_reviewed() {
    let mut all = String::new();
    let verbs = [
        "run",
        "migrate",
        "check",
        "doctor",
        "status",
        "events",
        "show",
        "retry",
        "redrive",
        "replay",
        "discard",
        "cancel",
        "pause",
        "resume",
        "limit",
        "forget",
        "bench",
        "completions",
        "man",
    ];
    for verb in std::iter::once(&[][..]).chain(verbs.iter().map(std::slice::from_ref)) {
        for help in if verb.is_empty() { &["--help", "-h"][..] } else { &["--help"] } {
            let arguments = [verb, &[*help]].concat();
            let output = outboxd(None, &arguments).output().await.unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            let _ = writeln!(all, "$ outboxd {}\n{text}", arguments.join(" "));
        }
    }
    expect_file!["../snapshots/help.txt"].assert_eq(&all);
}

#[tokio::test]
async fn a_package_gets_completions_and_a_page_for_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let output = outboxd_output(None, &["completions", shell]).await;
        assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("redrive"), "{shell}");
    }
    let folder = format!("{}/man-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::create_dir_all(&folder).unwrap();
    assert!(outboxd_output(None, &["man", "--to", &folder]).await.status.success());
    let page = |name: &str| std::fs::read_to_string(format!("{folder}/{name}.1")).unwrap();
    assert!(page("outboxd").contains(".SH SUBCOMMANDS") && page("outboxd-replay").contains("dry\\-run"));
    assert!(!std::fs::exists(format!("{folder}/outboxd-demo-daemon.1")).unwrap(), "what is hidden has no page");
    std::fs::remove_dir_all(&folder).unwrap();
    let output = outboxd_output(None, &["man", "--to", "/nonexistent"]).await;
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot write /nonexistent/outboxd.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_show_and_status_tell_the_story_to_people_and_to_programs() {
    let database = Database::new().await;
    let session = database.session().await;
    let (_, empty, _) = run(&database, &["status"]).await;
    expect![[r#"
        no daemon leads: nothing is dispatched until `outboxd run` runs

        no handler is registered yet
    "#]]
    .assert_eq(&empty);
    assert_eq!(run(&database, &["events"]).await, (0, "no event fits\n".to_owned(), String::new()));
    assert_eq!(json(&database, &["events"]).await, json!([]));

    let running = story(&database, &session).await;
    let (_, events, _) = run(&database, &["events"]).await;
    expect![[r#"
        ID  TOPIC            KEY  CREATED                   DELIVERIES
        3   user.left        -    TIME  mail scheduled
        2   order.paid       -    TIME  no handler wants it
        1   user.registered  ada  TIME  broken dead, mail done
    "#]]
    .assert_eq(&steady(&events));
    let listed = json(&database, &["events"]).await;
    let ids: Vec<i64> = listed.as_array().unwrap().iter().map(|event| event["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [3, 2, 1]);
    assert_eq!(listed[2]["deliveries"], json!({ "broken": "dead", "mail": "done" }));

    let (_, shown, _) = run(&database, &["show", "1"]).await;
    let shown = steady(&shown);
    let ran = shown.split_once("dead after ").and_then(|(_, rest)| rest.split_once("after ")).unwrap().1;
    let ran = ran.split(' ').next().unwrap();
    expect![[r#"
        event 1  user.registered
          key        ada
          created    TIME
          headers    {"h":"v"}
          payload    {"name": "Ada"}

        broken  dead after 1 attempt
          error      no such mailbox
          attempt 1  TIME  dead after N s  no such mailbox
                     answered: 550 go away

        mail  done after 1 attempt
          started    TIME
          finished   TIME
          result     {"sent":true}
    "#]]
    .assert_eq(&shown.replace(&format!("after {ran} s"), "after N s"));
    let shown = json(&database, &["show", "1"]).await;
    assert_eq!(shown["payload"], json!({ "name": "Ada" }));
    assert_eq!(shown["deliveries"][0]["history"][0]["response"], "550 go\naway");
    assert_eq!(shown["deliveries"][1]["result"], json!({ "sent": true }));
    let (_, scheduled, _) = run(&database, &["show", "3"]).await;
    expect![[r#"
        event 3  user.left
          created    TIME
          due        TIME
          payload    [1]

        mail  scheduled
          due        TIME
    "#]]
    .assert_eq(&steady(&scheduled));
    let (_, unwanted, _) = run(&database, &["show", "2"]).await;
    expect![[r#"
        event 2  order.paid
          created    TIME
          payload    {}

        no handler wants it
    "#]]
    .assert_eq(&steady(&unwanted));

    let status = json(&database, &["status"]).await;
    assert!(status["leader"]["pid"].is_i64() && status["leader"]["address"] == "local", "{status}");
    assert_eq!(status["handlers"][0]["dead"], 1);
    assert_eq!((&status["handlers"][1]["scheduled"], &status["handlers"][1]["pending"]), (&json!(1), &json!(0)));
    let (_, status, _) = run(&database, &["status"]).await;
    let lines: Vec<&str> = status.lines().collect();
    assert!(lines[0].starts_with("a daemon leads: session ") && lines[0].contains(" from local since "), "{status}");
    expect!["HANDLER  KIND  PENDING  RUNNING  RETRYING  SCHEDULED  DEAD  OLDEST  PER SECOND  FINISHED"]
        .assert_eq(lines[2].trim_end());
    let missing = (1, String::new(), "outboxd: there is no event 99 in the log or in outbox.open\n".to_owned());
    assert_eq!(run(&database, &["show", "99"]).await, missing);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_filtered_by_topic_key_state_and_page() {
    let database = Database::new().await;
    let running = story(&database, &database.session().await).await;
    let table = [
        (&["--topic", "user.*"][..], &[3, 1][..]),
        (&["--topic", "#.paid"], &[2]),
        (&["--topic", "user"], &[]),
        (&["--key", "ada"], &[1]),
        (&["--state", "dead"], &[1]),
        (&["--state", "scheduled"], &[3]),
        (&["--state", "pending"], &[]),
        (&["--state", "done", "--topic", "user.left"], &[]),
        (&["--limit", "2"], &[3, 2]),
        (&["--limit", "2", "--below", "2"], &[1]),
    ];
    for (filter, expected) in table {
        let listed = json(&database, &[&["events"], filter].concat()).await;
        let ids: Vec<i64> = listed.as_array().unwrap().iter().map(|event| event["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_runs_a_dead_delivery_again_and_says_when_there_is_none() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = story(&database, &session).await;
    let again = (0, "event 1 runs again now for broken\n".to_owned(), String::new());
    assert_eq!(run(&database, &["retry", "1"]).await, again);
    until("it ran again and is dead again", async || deliveries(&session, 1).await[0] == "broken|dead|2").await;
    assert_eq!(json(&database, &["retry", "1", "broken"]).await, json!({ "event": 1, "retried": ["broken"] }));
    until("it ran again and is dead again", async || deliveries(&session, 1).await[0] == "broken|dead|3").await;

    // A scheduled one runs at once, if it is asked for by name.
    let mut said = String::new();
    for arguments in [&["retry", "3"][..], &["retry", "1", "mail"], &["retry", "1", "nobody"], &["retry", "99"]] {
        let (code, stdout, stderr) = run(&database, arguments).await;
        assert_eq!((code, stdout.as_str()), (1, ""));
        said += &stderr;
    }
    expect![[r#"
        outboxd: event 3 has no dead delivery; `outboxd retry 3 HANDLER` runs a retrying, scheduled or waiting one now
        outboxd: handler mail has no dead, retrying, scheduled or waiting delivery of event 1; `outboxd show 1` tells where it stands
        outboxd: handler nobody has no dead, retrying, scheduled or waiting delivery of event 1; `outboxd show 1` tells where it stands
        outboxd: there is no event 99 in the log or in outbox.open
    "#]].assert_eq(&said);
    assert_eq!(run(&database, &["retry", "3", "mail"]).await.0, 0);
    until("it ran", async || deliveries(&session, 3).await == ["mail|done|1"]).await;
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.attempt WHERE handler = 'broken'").await, "3");
    running.stop().await;
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let database = Database::new().await;
    let session = database.session().await;
    let many = "INSERT INTO outbox.event (topic, payload) SELECT 'a', '{}' FROM generate_series(1, 5000)";
    session.client.batch_execute(many).await.unwrap();
    // `exit` tells the code of outboxd, which has more to say than a pipe holds.
    let script =
        format!("{{ {} events --limit 5000; echo \"exit $?\" >&2; }} | head -n 1", env!("CARGO_BIN_EXE_outboxd"));
    let mut shell = tokio::process::Command::new("/bin/sh");
    let output =
        shell.args(["-c", &script]).env("DATABASE_URL", crate::harness::url(&database)).output().await.unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "exit 0\n");
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("ID "));
}
