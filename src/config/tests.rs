//! What a file means, and what is said about one that means nothing.

use std::collections::BTreeSet;
use std::io::Write as _;

use expect_test::{Expect, expect};

use super::*;
use crate::outcome::PollPolicy;

mod delivery;
mod effective;
mod flow;
mod http;
mod properties;
mod secrets;
mod traces;

const DEFAULT_FILE: &str = include_str!("../../systemd/outboxd.toml");

/// A key of 32 zero bytes.
const SIGNING_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn env(name: &str) -> Option<String> {
    match name {
        "WELCOME_SECRET" | "HOOKS_NEW" => Some(SIGNING_SECRET.to_owned()),
        "HOOKS_OLD" => Some(SIGNING_SECRET.replace("AAAA=", "BBBA=")),
        "EMPTY" => Some(String::new()),
        "TWO_LINES" => Some("hunter2\nhunter2".to_owned()),
        _ if name.starts_with("MISSING") => None,
        _ => Some("hunter2".to_owned()),
    }
}

fn parse(text: &str) -> Result<Config, Errors> {
    Config::parse(text, "outboxd.toml", &env)
}

fn check(text: &str, expected: &Expect) {
    expected.assert_eq(&parse(text).unwrap_err().to_string());
}

/// The default file with its examples uncommented.
fn uncommented() -> String {
    let mut in_example = false;
    let mut text = String::new();
    for line in DEFAULT_FILE.lines() {
        let marker = line.starts_with("# >>> ") || line == "# <<<";
        in_example = if marker { line != "# <<<" } else { in_example };
        let shown = if in_example && !marker { line.strip_prefix('#').unwrap().trim_start() } else { line };
        text.push_str(shown);
        text.push('\n');
    }
    text
}

#[test]
fn the_default_file_says_what_happens_without_it() {
    let mut default = Config::default();
    assert_eq!(default.daemon.listen, None, "a program opens no port that it was not told to");
    default.daemon.listen = Some(DEFAULT_LISTEN);
    assert_eq!(parse(DEFAULT_FILE).unwrap(), default);
    assert_eq!(parse("").unwrap(), default);
    assert_eq!(parse("[daemon]").unwrap(), default);
    let daemon = &toml::from_str::<toml::Table>(DEFAULT_FILE).unwrap()["daemon"];
    let keys = ["dedup_window", "drain_timeout", "listen", "once_window", "poll_interval", "pool_size", "retention"];
    assert_eq!(daemon.as_table().unwrap().keys().collect::<Vec<_>>(), keys, "every key is there");
}

#[test]
fn the_examples_of_the_default_file_show_every_key_with_its_default() {
    let config = parse(&uncommented()).unwrap();
    assert_eq!(config.daemon.database_url, Some(Secret::new("hunter2".to_owned())));
    let names: Vec<&str> = config.handlers.iter().map(|handler| &*handler.name).collect();
    assert_eq!(names, ["account", "hooks", "ledger", "payment", "search", "thumbnail", "welcome_email"]);
    let special = ["account", "hooks", "payment", "search"];
    for handler in config.handlers.iter().filter(|handler| !special.contains(&&*handler.name)) {
        assert_eq!(handler.delivery, DeliveryConfig::new(handler.delivery.topics.clone()));
    }
    let written: toml::Table = toml::from_str(&uncommented()).unwrap();
    let (mut shown, mut retry) = (BTreeSet::new(), BTreeSet::new());
    for (name, handler) in written["handler"].as_table().unwrap() {
        let table = handler.as_table().unwrap();
        for optional in ["concurrency", "timeout", "max_timeout", "ordered", "callback", "record", "breaker", "start"] {
            assert!(special.contains(&name.as_str()) || table.contains_key(optional), "{name}: {optional}");
        }
        shown.extend(table.keys().map(String::as_str));
        retry.extend(
            table.get("retry").into_iter().flat_map(|retry| retry.as_table().unwrap().keys().map(String::as_str)),
        );
        if let Some(written) = table.get("poll") {
            assert_eq!(written.as_table().unwrap().len(), keys::POLL.len());
            let payment = config.handlers.iter().find(|handler| &*handler.name == name).unwrap();
            assert_eq!(payment.delivery.poll, Some(PollPolicy::default()));
        }
    }
    assert_eq!(shown, keys::HANDLER.iter().copied().collect());
    assert_eq!(retry, keys::RETRY.iter().copied().collect());
    let [nightly] = &config.schedules[..] else { panic!("{:?}", config.schedules) };
    assert_eq!(nightly.payload, r#"{"kind":"daily","pages":[1,2]}"#);
    let schedule = written["schedule"]["nightly"].as_table().unwrap();
    assert_eq!(schedule.keys().map(String::as_str).collect::<BTreeSet<_>>(), keys::SCHEDULE.iter().copied().collect());
    let traces = written["traces"].as_table().unwrap();
    assert_eq!(traces.keys().map(String::as_str).collect::<BTreeSet<_>>(), keys::TRACES.iter().copied().collect());
    let alert = written["alert"]["dead_mail"].as_table().unwrap();
    assert_eq!(alert.keys().map(String::as_str).collect::<BTreeSet<_>>(), keys::ALERT.iter().copied().collect());
    assert_eq!(config.daemon.callback_url.unwrap().as_str(), "https://hooks.example.com/outboxd");
    let http = ["welcome_email", "hooks"].map(|name| written["handler"][name]["http"].as_table().unwrap());
    let shown: BTreeSet<&str> = http.into_iter().flat_map(|http| http.keys().map(String::as_str)).collect();
    assert_eq!(shown, keys::HTTP.iter().copied().collect());
}

#[test]
fn every_error_of_a_file_is_told_at_once() {
    check(
        r##"poll_interval = "5s"
[daemon]
poll_intervall = "5s"
poll_interval = "Off"
drain_timeout = "2h"
dedup_window = "10 parsecs"
pool_size = 0

[databse]
[database]
url = "postgresql://app:hunter2@${MISSING_HOST}/$"

[handler.nothing]
concurrency = "8"
timeout = 10
retry = { max_attempts = 99999999999999999999, base = "2h", jitter = true }
start = "yesterday"

[handler."two words"]
topics = ["a..b", "a.b", "a.b", "a b", 7]
sql = "apply_payment"

[handler.http]
topics = []
env = { LANG = "C" }

[handler.http.http]
url = "ftp://user:hunter2@example.com/#x"
secret = "whsec_hunter2"
[handler.http.http.headers]
Content-Type = "text/plain"
Webhook-Id = "1"
"X Y" = "hunter2"
X-Two = "${TWO_LINES}"
x-two = "${EMPTY} ${MISSING}"
X-Number = 7777

[handler.missing_url]
topics = ["#"]
http = { secret = 7777 }
retry = { base = "P1M", max = "-5s" }

[handler.many]
topics = ["x"]
sql = "app.f"
command = []
env = { OUTBOX_ID = "1", "1X" = "$hunter2" }

[handler.command]
topics = "x"
command = ["", "a\u0000b"]
"##,
        &expect![[r##"
            outboxd.toml:1: poll_interval: this key is unknown; known here: database, daemon, traces, handler, flow, schedule, alert
            outboxd.toml:3: daemon.poll_intervall: this key is unknown (did you mean `poll_interval`?); known here: poll_interval, drain_timeout, dedup_window, once_window, retention, pool_size, listen, callback_url
            outboxd.toml:4: daemon.poll_interval: "Off" is not a duration; write for example "500ms", "10s", "1h 30m" or "7d", or "off"
            outboxd.toml:5: daemon.drain_timeout: "2h" is out of range; write a duration from "0s" to "1h"
            outboxd.toml:6: daemon.dedup_window: "10 parsecs" is not a duration; write for example "500ms", "10s", "1h 30m" or "7d"
            outboxd.toml:7: daemon.pool_size: 0 is out of range; write an integer from 1 to 1000
            outboxd.toml:9: databse: this key is unknown (did you mean `database`?); known here: database, daemon, traces, handler, flow, schedule, alert
            outboxd.toml:11: database.url: ${MISSING_HOST} is not set; put it into the environment, or into a systemd credential of this name
            outboxd.toml:11: database.url: a "$" stands alone; write ${NAME} for a variable, ${file:/PATH} for a file, or "$$" for the character
            outboxd.toml:13: handler.nothing: `topics` is missing; write an array of topic patterns such as ["user.registered", "payment.*"]
            outboxd.toml:13: handler.nothing: nothing to call; write one of `http`, `command` and `sql`
            outboxd.toml:14: handler.nothing.concurrency: "8" is a string; write an integer from 1 to 1000
            outboxd.toml:15: handler.nothing.timeout: 10 is an integer; write a duration from "1ms" to "24h"
            outboxd.toml:16: handler.nothing.retry: `base` "2h" is longer than `max` "1h" (the default); write `base` at most as long as `max`
            outboxd.toml:16: handler.nothing.retry.jitter: this key is unknown; known here: max_attempts, backoff, base, max, concurrency, rate
            outboxd.toml:16: handler.nothing.retry.max_attempts: 99999999999999999999 is out of range; write an integer from 1 to 1000
            outboxd.toml:17: handler.nothing.start: "yesterday" is not a place to start; write "now" or "beginning"
            outboxd.toml:19: handler."two words": "two words" is not the name of a handler; write 1 to 63 letters, digits, `_` and `-`
            outboxd.toml:20: handler."two words".topics: "a.b" is there already; write each topic once
            outboxd.toml:20: handler."two words".topics: 7 is an integer; write an array of topic patterns such as ["user.registered", "payment.*"]
            outboxd.toml:20: handler."two words".topics: a topic pattern is words separated by single dots, but word 2 of "a..b" is empty
            outboxd.toml:20: handler."two words".topics: the word "a b" must be `*`, `#`, or letters, digits, `_`, `:` and `-`
            outboxd.toml:21: handler."two words".sql: "apply_payment" is not the name of a function; write "schema.function", each of letters, digits, `_` and `$`, at most 63 and no digit first
            outboxd.toml:24: handler.http.topics: the array is empty; write an array of topic patterns such as ["user.registered", "payment.*"], or ["#"] for every topic
            outboxd.toml:25: handler.http.env: only a command has an environment; write `env` beside `command`, or remove it
            outboxd.toml:28: handler.http.http.url: the URL has a fragment (#...), which is never sent; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:28: handler.http.http.url: the URL holds credentials, which logs would show (send them in `headers`); write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:28: handler.http.http.url: the scheme is neither http nor https; write http://HOST/PATH or https://HOST/PATH
            outboxd.toml:29: handler.http.http.secret: what follows whsec_ is not base64; write whsec_ and the base64 of 24 to 64 random bytes, best as "${NAME}"
            outboxd.toml:31: handler.http.http.headers.Content-Type: "Content-Type" is set by outboxd; remove it
            outboxd.toml:32: handler.http.http.headers.Webhook-Id: "Webhook-Id" is set by outboxd; remove it
            outboxd.toml:33: handler.http.http.headers."X Y": "X Y" is not the name of a header; write letters, digits and `-`
            outboxd.toml:34: handler.http.http.headers.X-Two: this is not the value of a header; write a string of visible ASCII characters and spaces
            outboxd.toml:35: handler.http.http.headers.x-two: "x-two" is there already; names differ in more than case
            outboxd.toml:35: handler.http.http.headers.x-two: ${EMPTY} is empty; give it a value
            outboxd.toml:35: handler.http.http.headers.x-two: ${MISSING} is not set; put it into the environment, or into a systemd credential of this name
            outboxd.toml:36: handler.http.http.headers.X-Number: this is an integer; write a string of visible ASCII characters and spaces
            outboxd.toml:40: handler.missing_url.http: `url` is missing; write where to POST, such as "https://example.com/hooks"
            outboxd.toml:40: handler.missing_url.http.secret: this is an integer; write whsec_ and the base64 of 24 to 64 random bytes, best as "${NAME}"
            outboxd.toml:41: handler.missing_url.retry.base: "P1M" has months or years, which differ in length; write days or weeks
            outboxd.toml:41: handler.missing_url.retry.max: "-5s" is negative; a duration counts forward
            outboxd.toml:43: handler.many: `command` and `sql` exclude each other; write one of `http`, `command` and `sql`
            outboxd.toml:46: handler.many.command: the command is empty; write a program and its arguments, such as ["/usr/local/bin/thumbnail", "--stdin"]
            outboxd.toml:47: handler.many.env.1X: "1X" is not the name of a variable; write letters, digits and `_`, no digit first
            outboxd.toml:47: handler.many.env.1X: a "$" stands alone; write ${NAME} for a variable, ${file:/PATH} for a file, or "$$" for the character
            outboxd.toml:47: handler.many.env.OUTBOX_ID: "OUTBOX_ID" is set by outboxd; choose another name
            outboxd.toml:50: handler.command.topics: "x" is a string; write an array of topic patterns such as ["user.registered", "payment.*"]
            outboxd.toml:51: handler.command.command: "a\0b" holds a NUL, which no argument can; remove it
            outboxd.toml:51: handler.command.command: the command is empty; write a program and its arguments, such as ["/usr/local/bin/thumbnail", "--stdin"]"##]],
    );
}

#[test]
fn a_syntax_error_hides_no_other_error_and_causes_none() {
    check(
        r#"[daemon]
pool_size
poll_interval = 5s
drain_timeout = "soon"

[handler.mail]
topics
sql = "app.mail"

[handler.mail]
topics = ["x"]
sql = "app.mail_again"
timeout = "0s"

[handler.open]
topics = ["x"]
http = { url = "http://example.com", url = "http://example.com" }
timeout = "1s
timeout = "2s"
start = "never"

[handler.hook
topics = ["x"]

[handler.last]
topics = ["x"]
http = { url "https://hunter2" }
concurrency = 1_000_0
"#,
        &expect![[r#"
            outboxd.toml:2: daemon: this is not TOML: key with no value, expected `=`
            outboxd.toml:3: daemon.poll_interval: this is not TOML: string values must be quoted
            outboxd.toml:4: daemon.drain_timeout: "soon" is not a duration; write for example "500ms", "10s", "1h 30m" or "7d"
            outboxd.toml:7: handler.mail: this is not TOML: key with no value, expected `=`
            outboxd.toml:10: handler.mail: there is a handler "mail" already; the name of a handler is unique
            outboxd.toml:13: handler.mail.timeout: "0s" is out of range; write a duration from "1ms" to "24h"
            outboxd.toml:17: handler.open.http.url: this key is there already; write it once
            outboxd.toml:18: handler.open.timeout: this is not TOML: invalid basic string, expected `"`
            outboxd.toml:19: handler.open.timeout: this key is there already; write it once
            outboxd.toml:20: handler.open.start: "never" is not a place to start; write "now" or "beginning"
            outboxd.toml:22: handler.hook: this is not TOML: unclosed table, expected `]`
            outboxd.toml:27: handler.last.http: this is not TOML: missing assignment between key-value pairs, expected `=`
            outboxd.toml:28: handler.last.concurrency: 10000 is out of range; write an integer from 1 to 1000"#]],
    );
}

#[test]
fn the_port_of_the_daemon_is_an_address() {
    check(
        "[daemon]\nlisten = \"localhost:7474\"",
        &expect![[
            r#"outboxd.toml:2: daemon.listen: "localhost:7474" is not an address with a port; write an address with a port such as "127.0.0.1:7474", or "off""#
        ]],
    );
    check(
        "[daemon]\nlisten = 7474",
        &expect![[
            r#"outboxd.toml:2: daemon.listen: 7474 is an integer; write an address with a port such as "127.0.0.1:7474", or "off""#
        ]],
    );
}

#[test]
fn a_key_without_a_value_does_not_end_the_file() {
    let errors = parse("[daemon]\npool_size\n[handler.a]\nsql = \"f\"\n").unwrap_err();
    assert_eq!(errors.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn an_unreadable_file_has_a_bounded_list_of_errors() {
    let errors = parse(&"x\n[\n".repeat(100_000)).unwrap_err();
    assert_eq!(errors.errors.len(), 1001);
    let long = parse(&format!("{0} = 1\n[daemon]\npoll_interval = \"{0}\"", "x".repeat(100_000))).unwrap_err();
    assert!(long.to_string().len() < 1000, "{long}");
}

#[test]
fn there_are_at_most_500_handlers() {
    let file = |count: usize| {
        let handlers = (0..count).map(|i| format!("[handler.h{i}]\ntopics = [\"x\"]\nsql = \"app.f\"\n"));
        handlers.collect::<Vec<_>>().concat()
    };
    let handlers = parse(&file(500)).unwrap().handlers;
    assert!(handlers.is_sorted_by_key(|handler| handler.name.clone()));
    check(&file(501), &expect!["outboxd.toml:1: handler: 501 handlers are too many; write at most 500"]);
}

#[test]
fn special_values_are_understood() {
    let config = parse(
        r#"
        [daemon]
        poll_interval = "off"
        pool_size = 0x10
        listen = "[::1]:0"
        [handler.a]
        topics = ["x"]
        http.url = "https://example.com/a$$b?token=${TOKEN}"
        http.secret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        start = "beginning"
        retry.max = "30d"
        "#,
    )
    .unwrap();
    assert_eq!(config.daemon.poll_interval, None);
    assert_eq!(config.daemon.pool_size, 16);
    assert_eq!(config.daemon.listen, Some("[::1]:0".parse().unwrap()));
    assert_eq!(parse("[daemon]\nlisten = \"off\"").unwrap().daemon.listen, None);
    let HandlerConfig { kind: Kind::Http(http), delivery, .. } = &config.handlers[0] else { panic!() };
    assert_eq!(http.url.fixed().unwrap().as_str(), "https://example.com/a$b?token=hunter2");
    assert_eq!(http.secrets[0].expose(), [0; 32]);
    assert_eq!((delivery.start, delivery.retry.max), (Start::Beginning, Duration::from_hours(720)));
}

#[test]
fn durations_are_read_and_written_as_people_do() {
    let (second, hour) = (Duration::from_secs(1), Duration::from_hours(1));
    let table = [
        ("0s", Duration::ZERO, "0s"),
        ("500ms", second / 2, "500ms"),
        ("0.5s", second / 2, "500ms"),
        ("10s", 10 * second, "10s"),
        ("90 minutes", 3 * hour / 2, "1h 30m"),
        ("1h 30m", 3 * hour / 2, "1h 30m"),
        ("1h30m", 3 * hour / 2, "1h 30m"),
        ("PT5M", 300 * second, "5m"),
        ("1d", 24 * hour, "24h"),
        ("P1DT12H", 36 * hour, "36h"),
        ("7d", 168 * hour, "7d"),
        ("2w", 336 * hour, "14d"),
        ("49h 1us 1ns", 49 * hour + Duration::from_nanos(1001), "2d 1h 1us 1ns"),
    ];
    for (text, duration, written) in table {
        assert_eq!(duration::parse(text), Ok(duration), "{text}");
        assert_eq!(duration::format(duration), written);
    }
    for text in ["", "5", "s", "5 parsecs", " 5s", "5s5", "99999999999999999999d", "5S"] {
        assert_eq!(duration::parse(text), Err(DurationError::Unreadable(text.to_owned())));
    }
    for text in ["-5s", "5s ago", "-P1D"] {
        assert_eq!(duration::parse(text), Err(DurationError::Negative(text.to_owned())));
    }
    for text in ["1mo", "P1M", "1y", "2 years 1s"] {
        assert_eq!(duration::parse(text), Err(DurationError::Calendar(text.to_owned())));
    }
}

#[test]
fn a_file_is_loaded_with_its_limits_and_credentials() {
    let directory = std::env::temp_dir().join(format!("outboxd-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    assert_eq!(Config::load(&write("good", DEFAULT_FILE.as_bytes())).unwrap(), parse("").unwrap());
    // Cargo sets this variable for its tests.
    let from_env = Config::load(&write("env", b"[database]\nurl = \"${CARGO_PKG_NAME}\"\n")).unwrap();
    assert_eq!(from_env.daemon.database_url, Some(Secret::new("outboxd".to_owned())));
    let large = vec![b'\n'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
    assert!(matches!(Config::load(&write("large", &large)), Err(LoadError::TooLarge { .. })));
    assert!(matches!(Config::load(&directory.join("absent")), Err(LoadError::Read { .. })));
    let latin1 = Config::load(&write("latin1", b"[daemon]\n# caf\xe9\n")).unwrap_err().to_string();
    assert!(latin1.ends_with("latin1:2: this is not UTF-8; a configuration is UTF-8 text"), "{latin1}");

    write("TOKEN", b"hunter2\n");
    write("LARGE", &vec![b'x'; 65_537]);
    assert_eq!(load::secret(&directory.join("TOKEN")).as_deref(), Some("hunter2"));
    assert_eq!(load::secret(&directory.join("LARGE")), None);
    assert_eq!(load::secret(&directory.join("ABSENT")), None);
    std::fs::remove_dir_all(&directory).unwrap();
}
