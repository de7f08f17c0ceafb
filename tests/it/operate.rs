//! The verbs that change something: what they do, and what they say when there is nothing to do.

use std::fmt::Write as _;

use expect_test::expect;
use outboxd::postgres::Session;
use serde_json::{Value, json};

use crate::harness::{Database, outboxd_output, text, texts};

/// Exit code and what was printed: stdout, then stderr. Times are replaced.
async fn run(database: &Database, line: &str) -> (i32, String) {
    // `_` stands for a space within a word.
    let arguments: Vec<String> = line.split(' ').map(|word| word.replace('_', " ")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = outboxd_output(Some(database), &arguments).await;
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), said.split('\n').map(steady).collect::<Vec<_>>().join("\n"))
}

/// Times and ages differ from run to run.
fn steady(line: &str) -> String {
    let steady = |word: &str| {
        let bare = word.trim_end_matches([':', ';', ',']);
        let end = &word[bare.len()..];
        if bare.len() >= 20 && bare.starts_with("20") && bare.ends_with('Z') {
            return format!("TIME{end}");
        }
        let is_age = bare.strip_suffix('s').is_some_and(|age| age.contains('.') && age.parse::<f64>().is_ok());
        if is_age { "AGE".to_owned() } else { word.to_owned() }
    };
    line.split(' ').map(steady).collect::<Vec<_>>().join(" ")
}

/// Every line, its exit code and what it said.
async fn session_of(database: &Database, lines: &[&str]) -> String {
    let mut told = String::new();
    for line in lines {
        let (code, said) = run(database, line).await;
        let _ = write!(told, "$ {line}\n{said}");
        if code != 0 {
            let _ = writeln!(told, "exit {code}");
        }
    }
    told
}

async fn json_of(database: &Database, line: &str) -> Value {
    let (code, said) = run(database, &format!("{line} --json")).await;
    assert_eq!(code, 0, "{said}");
    serde_json::from_str(&said).unwrap()
}

/// Handlers `mail` and `sms`; events 1 to 3 dead for `mail`, 1 pending for `sms`, 2 and 3 done for `sms`; 4 retries for `mail`.
async fn rows(database: &Database) -> Session {
    let session = database.session().await;
    let rows = "
        INSERT INTO outbox.handler (name, topics, topic_regex, kind, settings, first_id)
        SELECT name, '{user.#}', outbox.topic_regex('{user.#}'), 'http', '{}', 0 FROM unnest(ARRAY['mail', 'sms']) name;
        SELECT outbox.publish(topic, '{}') FROM unnest(ARRAY['user.new', 'user.new', 'user.left', 'user.new']) topic;
        INSERT INTO outbox.open (event_id, handler, topic, payload, headers, priority, created_at, state, attempt, failures, last_error,
                                 due_at, updated_at)
        SELECT id, 'mail', topic, payload, headers, priority, created_at, CASE WHEN id = 4 THEN 'retrying' ELSE 'dead' END, 2, 2,
               CASE id WHEN 2 THEN 'Mailbox full' ELSE 'no route to host' END, CASE WHEN id = 4 THEN now() + interval '1 hour' END,
               now() - (5 - id) * interval '1 day'
        FROM outbox.event;
        INSERT INTO outbox.done (event_id, handler, outcome, attempt, started_at, finished_at)
        SELECT id, 'sms', 'done', 1, now(), now() FROM outbox.event WHERE id IN (2, 3)";
    session.client.batch_execute(rows).await.unwrap();
    session
}

async fn states(session: &Session) -> String {
    let query = "SELECT event_id || ' ' || handler || ' ' || state FROM outbox.delivery ORDER BY event_id, handler";
    texts(session, query).await.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_paused_and_resumed_and_status_tells_of_it() {
    let database = Database::new().await;
    let session = rows(&database).await;
    let lines = [
        "pause mail --reason the_printer_burns",
        "pause sms --for 2h",
        "status",
        "resume mail",
        "resume mail",
        "resume nobody",
        "pause nobody",
        "pause mail --until 2001-01-01T00:00:00Z",
        "pause mail --until tomorrow",
    ];
    expect![[r#"
        $ pause mail --reason the_printer_burns
        handler mail is paused until `outboxd resume mail`; what runs goes on
        $ pause sms --for 2h
        handler sms is paused until TIME; what runs goes on
        $ status
        no daemon leads: nothing is dispatched until `outboxd run` runs

        HANDLER  KIND  PENDING  RUNNING  RETRYING  SCHEDULED  DEAD  OLDEST  PER SECOND  FINISHED
        mail     http  0        0        1         0          3     AGE    -           -
        sms      http  0        0        0         0          0     -       -           -

        mail is paused since TIME by outboxd until it is resumed: the printer burns
        sms is paused since TIME by outboxd until TIME
        $ resume mail
        handler mail goes on
        $ resume mail
        outboxd: handler mail is not paused
        exit 1
        $ resume nobody
        outboxd: there is no handler nobody; registered are: mail, sms
        exit 1
        $ pause nobody
        outboxd: there is no handler nobody; registered are: mail, sms
        exit 1
        $ pause mail --until 2001-01-01T00:00:00Z
        outboxd: the end of the pause must lie ahead
        exit 2
        $ pause mail --until tomorrow
        error: invalid value 'tomorrow' for '--until <TIME>': write a time as in TIME

        For more information, try '--help'.
        exit 2
    "#]]
    .assert_eq(&session_of(&database, &lines).await);
    assert_eq!(
        json_of(&database, "pause mail --reason x").await,
        json!({ "paused": "mail", "until": null, "reason": "x" })
    );
    let handlers = &json_of(&database, "status").await["handlers"];
    assert_eq!((&handlers[0]["paused"], &handlers[0]["pause_reason"]), (&json!(true), &json!("x")));
    assert_eq!(json_of(&database, "resume mail").await, json!({ "resumed": "mail" }));
    // A pause that is over by itself is none.
    let over =
        "UPDATE outbox.handler SET paused_at = now() - interval '2 hours', paused_until = now() - interval '1 hour'";
    session.client.batch_execute(over).await.unwrap();
    assert!(!run(&database, "status").await.1.contains("paused"));
    let broken =
        "UPDATE outbox.handler SET breaker = 'open', breaker_since = now(), breaker_error = 'connection refused'
                  WHERE name = 'sms';
                  UPDATE outbox.open SET state = 'waiting' WHERE event_id = 4;
                  UPDATE outbox.open SET state = 'blocked', key = 'k' WHERE event_id = 3";
    session.client.batch_execute(broken).await.unwrap();
    let status = run(&database, "status").await.1;
    expect![[r#"
        HANDLER  KIND  PENDING  RUNNING  RETRYING  SCHEDULED  WAITING  BLOCKED  DEAD  OLDEST  PER SECOND  FINISHED
        mail     http  0        0        0         0          1        1        2     -       -           -
        sms      http  0        0        0         0          0        0        0     -       -           -

        sms sends nothing but probes since TIME, its breaker is open: connection refused
    "#]]
    .assert_eq(&status[status.find("HANDLER").unwrap()..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_deliveries_are_redriven_by_handler_topic_time_and_error() {
    let database = Database::new().await;
    let session = rows(&database).await;
    let lines = [
        "redrive",
        "redrive --all --handler mail",
        "redrive --handler mail --dry-run",
        "redrive --handler sms --dry-run",
        "redrive --handler nobody",
        "redrive --topic user.left --dry-run",
        "redrive --topic user..left",
        "redrive --since 60h --dry-run",
        "redrive --until 60h --dry-run",
        "redrive --since 84h --until 60h --dry-run",
        "redrive --since yesterday",
        "redrive --error mailbox --rate 0",
        "redrive --error mailbox",
        "redrive --error mailbox",
        "redrive --all --rate 0.5",
    ];
    expect![[r#"
        $ redrive
        outboxd: redrive needs --handler, --topic, --since, --until or --error; --all means every dead delivery
        exit 2
        $ redrive --all --handler mail
        outboxd: --all goes with no filter
        exit 2
        $ redrive --handler mail --dry-run
        3 dead deliveries fit
        $ redrive --handler sms --dry-run
        0 dead deliveries fit
        $ redrive --handler nobody
        outboxd: there is no handler nobody; registered are: mail, sms
        exit 1
        $ redrive --topic user.left --dry-run
        1 dead delivery fits
        $ redrive --topic user..left
        error: invalid value 'user..left' for '--topic <PATTERN>': a topic pattern is words separated by single dots, but word 2 of "user..left" is empty

        For more information, try '--help'.
        exit 2
        $ redrive --since 60h --dry-run
        1 dead delivery fits
        $ redrive --until 60h --dry-run
        2 dead deliveries fit
        $ redrive --since 84h --until 60h --dry-run
        1 dead delivery fits
        $ redrive --since yesterday
        error: invalid value 'yesterday' for '--since <TIME>': write a time as in TIME, or how long ago as in 2h or 3d

        For more information, try '--help'.
        exit 2
        $ redrive --error mailbox --rate 0
        error: invalid value '0' for '--rate <N>': it must be above 0 and at most 1000000

        For more information, try '--help'.
        exit 2
        $ redrive --error mailbox
        1 dead delivery fits
        1 runs again now
        $ redrive --error mailbox
        0 dead deliveries fit
        outboxd: no dead delivery fits; `outboxd status` counts them, `outboxd events --state dead` lists them
        exit 1
        $ redrive --all --rate 0.5
        2 dead deliveries fit
        2 run again, 0.5 a second
    "#]].assert_eq(&session_of(&database, &lines).await);
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.open WHERE state = 'retrying' AND failures = 0").await, "3");
    // Half a one a second: the first is due, the second in two seconds.
    let apart =
        "SELECT extract(epoch FROM max(due_at) - min(due_at))::integer FROM outbox.open WHERE event_id IN (1, 3)";
    assert_eq!(text(&session, apart).await, "2");
    session.client.batch_execute("UPDATE outbox.open SET state = 'dead', due_at = NULL").await.unwrap();
    assert_eq!(json_of(&database, "redrive --all --dry-run").await, json!({ "fit": 4, "redriven": 0 }));
    assert_eq!(json_of(&database, "redrive --all").await, json!({ "fit": 4, "redriven": 4 }));
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one session at the terminal, with what it printed")]
async fn dead_deliveries_are_discarded_and_others_cancelled_and_show_tells_by_whom() {
    let database = Database::new().await;
    let session = rows(&database).await;
    let lines = [
        "discard 1 mail",
        "discard 1 --reason gone",
        "discard 1 mail --reason gone",
        "discard 1 mail --reason gone",
        "discard 4 mail --reason gone",
        "discard 1 nobody --reason gone",
        "discard 99 mail --reason gone",
        "discard --reason gone",
        "discard --error mailbox --dry-run",
        "discard --handler mail --topic user.new --reason no_such_people",
        "discard --handler mail --topic user.new --reason no_such_people",
        "cancel 3 mail",
        "cancel 3 sms",
        "cancel 3",
        "cancel 99",
        "cancel 4 nobody",
        "cancel 4 --reason not_wanted",
        "cancel 4 mail",
        "show 4",
    ];
    expect![[r#"
        $ discard 1 mail
        error: the following required arguments were not provided:
          --reason <TEXT>

        Usage: outboxd discard --reason <TEXT> <ID> <HANDLER>

        For more information, try '--help'.
        exit 2
        $ discard 1 --reason gone
        error: the following required arguments were not provided:
          <HANDLER>

        Usage: outboxd discard --reason <TEXT> <ID> <HANDLER>

        For more information, try '--help'.
        exit 2
        $ discard 1 mail --reason gone
        event 1 is discarded for mail
        $ discard 1 mail --reason gone
        outboxd: event 1 is discarded for mail already
        exit 1
        $ discard 4 mail --reason gone
        outboxd: event 4 is retrying for mail, not dead; `outboxd cancel 4 mail` ends it
        exit 1
        $ discard 1 nobody --reason gone
        outboxd: handler nobody has no delivery of event 1
        exit 1
        $ discard 99 mail --reason gone
        outboxd: there is no event 99 in the log or in outbox.open
        exit 1
        $ discard --reason gone
        outboxd: discard needs --handler, --topic, --since, --until or --error; --all means every dead delivery
        exit 2
        $ discard --error mailbox --dry-run
        1 dead delivery fits
        $ discard --handler mail --topic user.new --reason no_such_people
        1 dead delivery fits
        1 is discarded
        $ discard --handler mail --topic user.new --reason no_such_people
        0 dead deliveries fit
        outboxd: no dead delivery fits; `outboxd status` counts them, `outboxd events --state dead` lists them
        exit 1
        $ cancel 3 mail
        outboxd: event 3 is dead for mail; `outboxd discard 3 mail --reason TEXT` gives it up for good
        exit 1
        $ cancel 3 sms
        outboxd: event 3 is done for sms already
        exit 1
        $ cancel 3
        outboxd: event 3 has no delivery that could be cancelled; `outboxd show 3` tells where they stand
        exit 1
        $ cancel 99
        outboxd: there is no event 99 in the log or in outbox.open
        exit 1
        $ cancel 4 nobody
        outboxd: handler nobody has no delivery of event 4
        exit 1
        $ cancel 4 --reason not_wanted
        event 4 is cancelled for mail, sms; an attempt that runs is ended, and what a flow has done is undone
        $ cancel 4 mail
        outboxd: event 4 is cancelled for mail already
        exit 1
        $ show 4
        event 4  user.new
          created    TIME
          payload    {}

        mail  cancelled after 2 attempts
          finished   TIME
          by         outboxd
          reason     not wanted
          error      no route to host

        sms  cancelled
          finished   TIME
          by         outboxd
          reason     not wanted

        TIME  cancel mail by outboxd: reason "not wanted"

        TIME  cancel sms by outboxd: reason "not wanted"
    "#]]
    .assert_eq(&session_of(&database, &lines).await);
    expect!["1 mail discarded, 1 sms pending, 2 mail discarded, 2 sms done, 3 mail dead, 3 sms done, 4 mail cancelled, 4 sms cancelled"].assert_eq(&states(&session).await);
    assert_eq!(json_of(&database, "cancel 1").await, json!({ "event": 1, "cancelled": ["sms"] }));
    assert_eq!(json_of(&database, "discard 3 mail --reason x").await, json!({ "event": 3, "discarded": ["mail"] }));
    let killed = "UPDATE outbox.open SET state = 'dead', due_at = NULL; DELETE FROM outbox.done WHERE handler = 'mail';
                  INSERT INTO outbox.open (event_id, handler, topic, payload, headers, priority, created_at, state, attempt, last_error)
                  SELECT id, 'mail', topic, payload, headers, priority, created_at, 'dead', 1, 'no' FROM outbox.event";
    session.client.batch_execute(killed).await.unwrap();
    assert_eq!(json_of(&database, "discard --all --dry-run").await, json!({ "fit": 4, "discarded": 0 }));
    assert_eq!(json_of(&database, "discard --all --reason x").await, json!({ "fit": 4, "discarded": 4 }));
}
