//! What is wrong is told before anything runs: the place, the rule, and an exit code that says who can help.

use std::fmt::Write as _;

use expect_test::{Expect, expect};

use crate::harness::{ConfigFile, Database, Gate, Process, cluster, outboxd, outboxd_output, url};

/// The exit code and everything that was written, without what differs from run to run.
fn told(output: std::process::Output, database: Option<&Database>, config: Option<&ConfigFile>) -> String {
    let code = output.status.code().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let mut text = format!("{code}\n{text}").replace(cluster().socket_dir().to_str().unwrap(), "SOCKETS");
    if let Some(config) = config {
        text = text.replace(config.path(), "outboxd.toml");
    }
    if let Some(database) = database {
        text = text.replace(&format!("\"{}\"", database.name()), "\"DATABASE\"");
    }
    match text.split_once("PostgreSQL ").and_then(|(_, rest)| rest.split_once(" answers")) {
        Some((version, _)) => text.replace(&format!("PostgreSQL {version} answers"), "PostgreSQL VERSION answers"),
        None => text,
    }
}

async fn offline(config: &str) -> String {
    let config = ConfigFile::verbatim(config);
    let output = outboxd_output(None, &["check", "--offline", "--config", config.path()]).await;
    told(output, None, Some(&config))
}

const GOOD: &str = "[handler.mail]\ntopics = [\"user.*\"]\ncommand = [\"/bin/true\"]\n";

/// What `run`, `check` and `status` say of a database, each in turn.
async fn each(database: &Database, url: &str) -> String {
    let config = ConfigFile::new(GOOD);
    let mut all = String::new();
    for arguments in [&["run", "--config", config.path()][..], &["check", "--config", config.path()], &["status"]] {
        let output = outboxd(None, arguments).env("DATABASE_URL", url).env("RUST_LOG", "error").output().await.unwrap();
        let _ = write!(all, "{}: {}", arguments[0], told(output, Some(database), Some(&config)));
    }
    all
}

async fn says(database: &Database, expected: Expect) {
    expected.assert_eq(&each(database, &url(database)).await);
}

#[tokio::test]
async fn every_mistake_in_a_configuration_is_told_at_once_with_its_line_and_the_rule() {
    let text = offline(
        r#"[daemon]
poll_intervall = "5s"
drain_timeout = 30
dedup_window = "1 fortnight"

[handler.mail]
topics = ["user..registered", "user.%"]
http = { url = "https://example.com/hooks", secret = "${NO_SUCH_SECRET}" }
concurrency = "many"
timeout = "-1s"
retry = { max_attempts = 0, base = "2h", max = "1h" }

[handler.mail]
topics = ["a"]

[handler.nothing]
topics = []

[handler."two words"]
topics = ["a"]
sql = "apply"
command = ["/bin/true"]
start = "tomorrow"
"#,
    )
    .await;
    expect![[r##"
        78
        outboxd: outboxd.toml:2: daemon.poll_intervall: this key is unknown (did you mean `poll_interval`?); known here: poll_interval, drain_timeout, dedup_window, once_window, retention, pool_size, listen, callback_url
        outboxd.toml:3: daemon.drain_timeout: 30 is an integer; write a duration from "0s" to "1h"
        outboxd.toml:4: daemon.dedup_window: "1 fortnight" is not a duration; write for example "500ms", "10s", "1h 30m" or "7d"
        outboxd.toml:7: handler.mail.topics: a topic pattern is words separated by single dots, but word 2 of "user..registered" is empty
        outboxd.toml:7: handler.mail.topics: the word "%" must be `*`, `#`, or letters, digits, `_`, `:` and `-`
        outboxd.toml:8: handler.mail.http.secret: ${NO_SUCH_SECRET} is not set; put it into the environment, or into a systemd credential of this name
        outboxd.toml:9: handler.mail.concurrency: "many" is a string; write an integer from 1 to 1000
        outboxd.toml:10: handler.mail.timeout: "-1s" is negative; a duration counts forward
        outboxd.toml:11: handler.mail.retry: `base` "2h" is longer than `max` "1h"; write `base` at most as long as `max`
        outboxd.toml:11: handler.mail.retry.max_attempts: 0 is out of range; write an integer from 1 to 1000
        outboxd.toml:13: handler.mail: there is a handler "mail" already; the name of a handler is unique
        outboxd.toml:16: handler.nothing: nothing to call; write one of `http`, `command` and `sql`
        outboxd.toml:17: handler.nothing.topics: the array is empty; write an array of topic patterns such as ["user.registered", "payment.*"], or ["#"] for every topic
        outboxd.toml:19: handler."two words": "two words" is not the name of a handler; write 1 to 63 letters, digits, `_` and `-`
        outboxd.toml:19: handler."two words": `command` and `sql` exclude each other; write one of `http`, `command` and `sql`
        outboxd.toml:21: handler."two words".sql: "apply" is not the name of a function; write "schema.function", each of letters, digits, `_` and `$`, at most 63 and no digit first
        outboxd.toml:23: handler."two words".start: "tomorrow" is not a place to start; write "now" or "beginning"
    "##]].assert_eq(&text);
}

#[tokio::test]
async fn a_file_that_is_no_toml_says_where() {
    expect![[r#"
        78
        outboxd: outboxd.toml:1: handler.mail: this is not TOML: unclosed table, expected `]`
    "#]]
    .assert_eq(&offline("[handler.mail\ntopics = [\"a\"]\ntimeout = 10s\n").await);
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_told() {
    let missing = ["run", "--config", "/nonexistent/outboxd.toml"];
    expect![[r#"
        78
        outboxd: /nonexistent/outboxd.toml: the configuration cannot be read: No such file or directory (os error 2)
    "#]]
    .assert_eq(&told(outboxd_output(None, &missing).await, None, None));
    let folder = ["check", "--config", "/"];
    expect![[r#"
        78
        outboxd: /: the configuration cannot be read: Is a directory (os error 21)
    "#]]
    .assert_eq(&told(outboxd_output(None, &folder).await, None, None));
    let default = ["run"];
    expect![[r#"
        78
        outboxd: there is no configuration: /etc/outboxd/outboxd.toml does not exist and no --config was given
    "#]]
    .assert_eq(&told(outboxd_output(None, &default).await, None, None));
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    let mut all = String::new();
    for arguments in [
        &[][..],
        &["runn"],
        &["run", "--verbose"],
        &["show"],
        &["show", "first"],
        &["events", "--state", "lost"],
        &["events", "--topic", "user..x"],
        &["events", "--limit", "0"],
        &["check", "--print-config", "--json"],
        &["run", "--log-format", "xml"],
    ] {
        let output = outboxd_output(None, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        // Without a verb it prints the help, which another test pins.
        let _ = writeln!(all, "{arguments:?}\n{}", text.split("\n\n").next().unwrap());
    }
    expect![[r#"
        []
        A daemon beside PostgreSQL: an inserted row reaches its handlers, and its state comes back
        ["runn"]
        error: unrecognized subcommand 'runn'
        ["run", "--verbose"]
        error: unexpected argument '--verbose' found
        ["show"]
        error: the following required arguments were not provided:
          <ID>
        ["show", "first"]
        error: invalid value 'first' for '<ID>': invalid digit found in string
        ["events", "--state", "lost"]
        error: invalid value 'lost' for '--state <STATE>'
          [possible values: pending, scheduled, retrying, running, waiting, blocked, dead, done, expired, cancelled, discarded]
        ["events", "--topic", "user..x"]
        error: invalid value 'user..x' for '--topic <PATTERN>': a topic pattern is words separated by single dots, but word 2 of "user..x" is empty
        ["events", "--limit", "0"]
        error: invalid value '0' for '--limit <LIMIT>': 0 is not in 1..=10000
        ["check", "--print-config", "--json"]
        error: the argument '--print-config' cannot be used with '--json'
        ["run", "--log-format", "xml"]
        error: invalid value 'xml' for '--log-format <LOG_FORMAT>'
          [possible values: text, json, journald]
    "#]].assert_eq(&all);
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_69() {
    let database = Database::new().await;
    let url = "postgres://outboxd@/app?host=/nonexistent";
    expect![[r#"
        run: 69
        outboxd: cannot reach database "app" on /nonexistent/.s.PGSQL.5432 as "outboxd" (from DATABASE_URL): No such file or directory (os error 2)
        check: 69
        outboxd: cannot reach database "app" on /nonexistent/.s.PGSQL.5432 as "outboxd" (from DATABASE_URL): No such file or directory (os error 2)
        status: 69
        outboxd: cannot reach database "app" on /nonexistent/.s.PGSQL.5432 as "outboxd" (from DATABASE_URL): No such file or directory (os error 2)
    "#]].assert_eq(&each(&database, url).await);
    let url = "postgres://outboxd:secret@127.0.0.1:1/app";
    let text = each(&database, url).await;
    expect![[r#"
        run: 69
        outboxd: cannot reach database "app" on 127.0.0.1:1 as "outboxd" (from DATABASE_URL): Connection refused (os error 111)
        check: 69
        outboxd: cannot reach database "app" on 127.0.0.1:1 as "outboxd" (from DATABASE_URL): Connection refused (os error 111)
        status: 69
        outboxd: cannot reach database "app" on 127.0.0.1:1 as "outboxd" (from DATABASE_URL): Connection refused (os error 111)
    "#]].assert_eq(&text);
}

#[tokio::test]
async fn a_database_that_does_not_exist_and_a_url_that_is_none_are_78() {
    let database = Database::new().await;
    let url = url(&database).replace(database.name(), "nowhere");
    expect![[r#"
        run: 78
        outboxd: database "nowhere" on SOCKETS/.s.PGSQL.5432 as "outboxd" (from DATABASE_URL) refused the connection: database "nowhere" does not exist (SQLSTATE 3D000)
        check: 78
        outboxd: database "nowhere" on SOCKETS/.s.PGSQL.5432 as "outboxd" (from DATABASE_URL) refused the connection: database "nowhere" does not exist (SQLSTATE 3D000)
        status: 78
        outboxd: database "nowhere" on SOCKETS/.s.PGSQL.5432 as "outboxd" (from DATABASE_URL) refused the connection: database "nowhere" does not exist (SQLSTATE 3D000)
    "#]].assert_eq(&each(&database, &url).await);
    expect![[r#"
        run: 78
        outboxd: cannot connect to PostgreSQL as DATABASE_URL says: it is neither a postgresql:// url nor keyword=value pairs
        check: 78
        outboxd: cannot connect to PostgreSQL as DATABASE_URL says: it is neither a postgresql:// url nor keyword=value pairs
        status: 78
        outboxd: cannot connect to PostgreSQL as DATABASE_URL says: it is neither a postgresql:// url nor keyword=value pairs
    "#]].assert_eq(&each(&database, "mysql://root:secret@localhost/app").await);
}

#[tokio::test]
async fn a_database_without_the_schema_is_78() {
    says(
        &Database::empty().await,
        expect![[r#"
        run: 78
        outboxd: there is no schema yet: run outboxd migrate
        check: 78
        ok       the configuration has 1 handler
        ok       PostgreSQL VERSION answers
        problem  there is no schema yet: run outboxd migrate
        status: 78
        outboxd: there is no schema yet: run outboxd migrate
    "#]],
    )
    .await;
}

async fn with_history(statement: &str) -> Database {
    let database = Database::new().await;
    database.session().await.client.batch_execute(statement).await.unwrap();
    database
}

#[tokio::test]
async fn a_schema_that_is_behind_is_78() {
    let database = with_history("DELETE FROM outbox.refinery_schema_history WHERE version > 1").await;
    says(
        &database,
        expect![[r#"
            run: 78
            outboxd: the schema is at version 1, this outboxd needs 9: run outboxd migrate
            check: 78
            ok       the configuration has 1 handler
            ok       PostgreSQL VERSION answers
            problem  the schema is at version 1, this outboxd needs 9: run outboxd migrate
            status: 78
            outboxd: the schema is at version 1, this outboxd needs 9: run outboxd migrate
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_schema_that_is_newer_is_78() {
    let newer = "INSERT INTO outbox.refinery_schema_history VALUES (9999, 'later', '2030-01-01T00:00:00Z', '1')";
    says(
        &with_history(newer).await,
        expect![[r#"
            run: 78
            outboxd: the schema was made by a newer outboxd (it is at version 9999, this one knows 9): update outboxd
            check: 78
            ok       the configuration has 1 handler
            ok       PostgreSQL VERSION answers
            problem  the schema was made by a newer outboxd (it is at version 9999, this one knows 9): update outboxd
            status: 78
            outboxd: the schema was made by a newer outboxd (it is at version 9999, this one knows 9): update outboxd
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_role_without_rights_is_78_and_says_which() {
    let database = Database::new().await;
    let session = database.session().await;
    let role = format!("role_{}", database.name());
    let url = url(&database).replace("outboxd@", &format!("{role}@"));
    let after = async |statement: &str| {
        session.client.batch_execute(&statement.replace("ROLE", &role)).await.unwrap();
        each(&database, &url).await.replace(&role, "ROLE")
    };
    expect![[r#"
        run: 78
        outboxd: ROLE may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant ROLE USAGE on schema outbox and what it needs of its tables
        check: 78
        outboxd: ROLE may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant ROLE USAGE on schema outbox and what it needs of its tables
        status: 78
        outboxd: ROLE may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant ROLE USAGE on schema outbox and what it needs of its tables
    "#]].assert_eq(&after("CREATE USER ROLE").await);
    expect![[r#"
        run: 78
        outboxd: ROLE may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant ROLE USAGE on schema outbox and what it needs of its tables
        check: 78
        outboxd: ROLE may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant ROLE USAGE on schema outbox and what it needs of its tables
        status: 78
        outboxd: ROLE may not read schema outbox: run outboxd as the role that ran `outboxd migrate`, or let that role grant ROLE USAGE on schema outbox and what it needs of its tables
    "#]].assert_eq(&after("GRANT USAGE ON SCHEMA outbox TO ROLE").await);
    expect![[r#"
        run: 78
        outboxd: the daemon's role lacks rights: INSERT on outbox.done; INSERT on outbox.open; UPDATE on outbox.open; DELETE on outbox.open; INSERT on outbox.event; INSERT on outbox.attempt; INSERT on outbox.handler; UPDATE on outbox.handler; INSERT on outbox.position; DELETE on outbox.position; UPDATE on outbox.installation; UPDATE on outbox.dedup; DELETE on outbox.dedup; UPDATE on outbox.consumed; DELETE on outbox.consumed; DELETE on outbox.cancelling; INSERT on outbox.flow_version; DELETE on outbox.flow_version; DELETE on outbox.done; INSERT on outbox.schedule; UPDATE on outbox.schedule; DELETE on outbox.schedule; INSERT on outbox.alert; DELETE on outbox.alert; INSERT on outbox.full_handler; DELETE on outbox.full_handler; DELETE on outbox.operation; UPDATE on outbox.operation; UPDATE on outbox.event; set the sequence outbox.bell; call 61 of the functions of schema outbox, add_partitions for example. Run the daemon as the role that ran `outboxd migrate`, or make its role a member of that one, or of outbox_daemon, which `outboxd migrate --roles` makes and keeps up to date
        check: 78
        ok       the configuration has 1 handler
        ok       PostgreSQL VERSION answers
        ok       the schema is up to date
        ok       no daemon leads at the moment
        problem  this role may not INSERT on outbox.done, INSERT on outbox.open, UPDATE on outbox.open, DELETE on outbox.open, INSERT on outbox.event, INSERT on outbox.attempt, INSERT on outbox.handler, UPDATE on outbox.handler, INSERT on outbox.position, DELETE on outbox.position, UPDATE on outbox.installation, UPDATE on outbox.dedup, DELETE on outbox.dedup, UPDATE on outbox.consumed, DELETE on outbox.consumed, DELETE on outbox.cancelling, INSERT on outbox.flow_version, DELETE on outbox.flow_version, DELETE on outbox.done, INSERT on outbox.schedule, UPDATE on outbox.schedule, DELETE on outbox.schedule, INSERT on outbox.alert, DELETE on outbox.alert, INSERT on outbox.full_handler, DELETE on outbox.full_handler, DELETE on outbox.operation, UPDATE on outbox.operation, UPDATE on outbox.event, set the sequence outbox.bell, call 61 of the functions of schema outbox, add_partitions for example
                 -> run the daemon as the role that migrated, or as a member of outbox_daemon (`outboxd migrate --roles`)
        status: 0
        no daemon leads: nothing is dispatched until `outboxd run` runs

        no handler is registered yet
    "#]].assert_eq(&after("GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO ROLE").await);
    session.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn check_tells_what_works_and_what_does_not() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let session = database.session().await;
    let functions = "CREATE SCHEMA app; \
        CREATE FUNCTION app.good(outbox.event) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'; \
        CREATE FUNCTION app.void(outbox.event) RETURNS void LANGUAGE sql AS ''; \
        ALTER TABLE outbox.event DISABLE TRIGGER ring";
    session.client.batch_execute(functions).await.unwrap();
    let handlers: String = ["good", "void", "missing"]
        .map(|name| format!("[handler.{name}]\ntopics = [\"#\"]\nsql = \"app.{name}\"\n"))
        .concat();
    let config = ConfigFile::new(&handlers);
    let check = async |more: &[&str]| {
        let arguments = [&["check", "--config", config.path()], more].concat();
        told(outboxd_output(Some(&database), &arguments).await, Some(&database), Some(&config))
    };
    expect![[r#"
        78
        ok       the configuration has 3 handlers
        ok       PostgreSQL VERSION answers
        ok       the schema is up to date
        ok       handler good: app.good is there
        ok       no daemon leads at the moment
        problem  the trigger `ring` on outbox.event is disabled: events wait for the poll
                 -> ALTER TABLE outbox.event ENABLE TRIGGER ring
        problem  handler missing: there is no function app.missing(outbox.event)
        problem  handler void: app.void must return jsonb, but returns void
    "#]]
    .assert_eq(&check(&[]).await);
    expect![[r#"
        78
        {
          "findings": [
            {
              "level": "ok",
              "what": "the configuration has 3 handlers"
            },
            {
              "level": "ok",
              "what": "PostgreSQL VERSION answers"
            },
            {
              "level": "ok",
              "what": "the schema is up to date"
            },
            {
              "level": "ok",
              "what": "handler good: app.good is there"
            },
            {
              "level": "ok",
              "what": "no daemon leads at the moment"
            },
            {
              "level": "problem",
              "remedy": "ALTER TABLE outbox.event ENABLE TRIGGER ring",
              "what": "the trigger `ring` on outbox.event is disabled: events wait for the poll"
            },
            {
              "level": "problem",
              "what": "handler missing: there is no function app.missing(outbox.event)"
            },
            {
              "level": "problem",
              "what": "handler void: app.void must return jsonb, but returns void"
            }
          ],
          "ok": false
        }
    "#]]
    .assert_eq(&check(&["--json"]).await);

    session.client.batch_execute("ALTER TABLE outbox.event ENABLE TRIGGER ring").await.unwrap();
    config.write(&format!("[handler.slow]\ntopics = [\"#\"]\n{}", gate.command()));
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let text = check(&[]).await;
    let leader = text.split_once("session ").and_then(|(_, rest)| rest.split_once(' ')).unwrap().0;
    expect![[r#"
        0
        ok       the configuration has 1 handler
        ok       PostgreSQL VERSION answers
        ok       the schema is up to date
        ok       a daemon leads: session PID from local
    "#]]
    .assert_eq(&text.replace(leader, "PID"));
}

#[tokio::test]
async fn check_prints_the_configuration_with_its_defaults_and_without_its_secrets() {
    let config = ConfigFile::verbatim(
        "[database]\nurl = \"postgres://app:hunter2@localhost/app\"\n\
         [handler.mail]\ntopics = [\"user.*\"]\n\
         http = { url = \"https://example.com/hooks\", headers = { Authorization = \"Bearer hunter2\" } }\n\
         [handler.thumbnail]\ntopics = [\"#\"]\ncommand = [\"/bin/true\"]\nenv = { TOKEN = \"hunter2\" }\n",
    );
    let output = outboxd_output(None, &["check", "--print-config", "--config", config.path()]).await;
    expect![[r##"
        0
        [database]
        url = "***"

        [daemon]
        poll_interval = "5s"
        drain_timeout = "30s"
        dedup_window = "24h"
        once_window = "30d"
        retention = "7d"
        pool_size = 8
        listen = "127.0.0.1:7474"

        [handler.mail]
        topics = ["user.*"]
        http = { url = "https://example.com/hooks", headers = { Authorization = "***" } }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = false
        record = "late"
        breaker = "on"
        start = "now"

        [handler.thumbnail]
        topics = ["#"]
        command = ["/bin/true"]
        env = { TOKEN = "***" }
        concurrency = 8
        timeout = "30s"
        max_timeout = "30s"
        retry = { max_attempts = 12, backoff = "exponential", base = "1s", max = "1h" }
        callback = false
        ordered = false
        record = "late"
        breaker = "on"
        start = "now"
    "##]]
    .assert_eq(&told(output, None, Some(&config)));
    let output = outboxd_output(None, &["check", "--offline", "--json", "--config", config.path()]).await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "ok": true, "findings": [{ "level": "ok", "what": "the configuration has 2 handlers" }] })
    );
}
