//! Whatever a handler answers, its own delivery has a clear end, and nothing else suffers: not the handler's next event,
//! not another handler, not the daemon's memory.

use std::fmt::Write as _;
use std::time::Duration;

use expect_test::expect;
use outboxd::config::DeliveryConfig;
use outboxd::postgres::Session;
use outboxd::{Attempt, Event, Failure, Observation, Outcome, RetryPolicy};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{ConfigFile, Database, Process, Running, daemon, deliveries, publish_many, texts, until};

/// The most memory the daemon may have used, in MiB, whatever was answered to it.
const MEMORY_MAX: u64 = 256;

const ONCE: &str = "retry = { max_attempts = 1, base = \"1ms\", max = \"1ms\" }";

/// Longer than an answer is read, shorter than the depth that overflows a stack of 2 MiB by recursion.
const DEEP: usize = 100_000;

/// What a web service answers to the bad event: its beginning, and what it repeats until nobody listens.
fn response(case: &str) -> (Vec<u8>, Vec<u8>) {
    let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let json = |body: &str| (format!("{ok}\r\n{body}").into_bytes(), Vec::new());
    let error = |body: &[u8]| ([b"HTTP/1.1 404 No\r\nconnection: close\r\n\r\n", body].concat(), Vec::new());
    let spaces = vec![b' '; 65_536];
    let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    match case {
        "a_gigabyte" => (format!("{ok}content-length: 1073741824\r\n\r\n").into_bytes(), spaces),
        "endless_error" => (error(b"").0, spaces),
        "endless_headers" => (ok.into(), "x-more: 1\r\n".repeat(1000).into()),
        "headers_101" | "headers_10000" => {
            let mut head = ok.to_owned();
            let given = ok.lines().count() - 1;
            (given..case["headers_".len()..].parse().unwrap()).for_each(|n| write!(head, "x-{n}: 1\r\n").unwrap());
            (format!("{head}\r\n").into_bytes(), Vec::new())
        }
        "header_line_1_mb" => (format!("{ok}x-long: {}\r\n\r\n", "x".repeat(1_000_000)).into_bytes(), Vec::new()),
        "no_text" => error(b"\xff\xfe\0no"),
        "no_text_as_json" => ([format!("{ok}\r\n").as_bytes(), b"{\"outcome\": \"dead\xff\0\"}"].concat(), Vec::new()),
        "no_http" => (b"\x16\x03\x01 what?\r\n\r\n".to_vec(), Vec::new()),
        "nonsense" => json("{\"outcome\": [\"done\", {]}"),
        "unknown_outcome" => json("{\"outcome\": {\"done\": true}}"),
        "keys_twice" => json("{\"outcome\": \"done\", \"outcome\": \"dead\", \"error\": \"a\", \"error\": \"b\"}"),
        "deep" => json(&nested(DEEP)),
        "deep_within_an_answer" => json(&nested(30_000)),
        "deep_result" => json(&format!("{{\"outcome\": \"done\", \"result\": {}}}", nested(30_000))),
        "huge_number" => json("{\"outcome\": \"done\", \"result\": 1e400}"),
        "huge_after" => json("{\"outcome\": \"snooze\", \"after\": 1e400}"),
        "long_number" => json(&format!("{{\"outcome\": \"done\", \"result\": {}}}", "9".repeat(300))),
        "many_numbers" => json(&format!("[{}0]", "0,".repeat(16_000))),
        "retry_after_nonsense" => (
            b"HTTP/1.1 503 Busy\r\nretry-after: 99999999999999999999\r\ncontent-length: 0\r\n\r\n".to_vec(),
            Vec::new(),
        ),
        other => panic!("{other}"),
    }
}

const RESPONSES: [&str; 20] = [
    "a_gigabyte",
    "endless_error",
    "endless_headers",
    "headers_101",
    "headers_10000",
    "header_line_1_mb",
    "no_text",
    "no_text_as_json",
    "no_http",
    "nonsense",
    "unknown_outcome",
    "keys_twice",
    "deep",
    "deep_within_an_answer",
    "deep_result",
    "huge_number",
    "huge_after",
    "long_number",
    "many_numbers",
    "retry_after_nonsense",
];

/// What a command does with the bad event.
const SCRIPTS: [(&str, &str); 8] = [
    ("stdout_flood", "exec yes"),
    ("stderr_flood", "exec yes >&2"),
    ("stderr_10_mb", "yes 0123456789 | head -c 10000000 >&2; exit 65"),
    ("no_text", "printf 'a\\377\\000b' >&2; exit 65"),
    ("no_text_as_answer", "printf '{\"outcome\": \"dead\\377\\000\"}'"),
    ("nonsense", "echo '{\"outcome\": \"done\", \"outcome\": 7}'"),
    (
        "deep",
        "printf '{\"outcome\": \"done\", \"result\": '; yes '[' | tr -d '\\n' | head -c 30000; yes ']' | tr -d '\\n' | head -c 30000; echo '}'",
    ),
    ("deeper", "yes '[' | tr -d '\\n' | head -c 100000; yes ']' | tr -d '\\n' | head -c 100000"),
];

/// What a function in the database does with the bad event.
const FUNCTIONS: [(&str, &str); 7] = [
    ("message_10_mb", "RAISE EXCEPTION '%', repeat('x', 10000000);"),
    ("detail_10_mb", "RAISE EXCEPTION 'no' USING DETAIL = repeat('x', 10000000);"),
    ("result_10_mb", "RETURN to_jsonb(repeat('x', 10000000));"),
    ("deep", "RETURN (repeat('[', 5000) || repeat(']', 5000))::jsonb;"),
    ("deeper", "RETURN (repeat('[', 100000) || repeat(']', 100000))::jsonb;"),
    ("huge_number", "RETURN jsonb_build_object('n', 10::numeric ^ 1000);"),
    ("many_numbers", "RETURN (SELECT jsonb_agg(0) FROM generate_series(1, 16000));"),
];

/// A web service that answers by path, and well to every event but the bad one.
async fn service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // The daemon hangs up in the middle of an answer.
                let _ = serve(stream).await;
            });
        }
    });
    url
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    use tokio::io::AsyncBufReadExt as _;
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if let Some(bytes) = line.strip_prefix("content-length: ") {
            length = bytes.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if !String::from_utf8(body).unwrap().contains("bad") {
        return stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    }
    let case = head.split([' ', '/']).find(|word| RESPONSES.contains(word)).unwrap();
    let (beginning, repeated) = response(case);
    stream.write_all(&beginning).await?;
    while !repeated.is_empty() {
        stream.write_all(&repeated).await?;
    }
    stream.shutdown().await
}

/// A handler for each case, and one that is always good.
fn config(url: &str) -> String {
    let mut config = format!("[handler.good]\ntopics = [\"#\"]\ncommand = [\"true\"]\n{ONCE}\n");
    for case in RESPONSES {
        let kind = format!("http.url = \"{url}/{case}\"");
        write!(config, "[handler.http_{case}]\ntopics = [\"#\"]\n{kind}\n{ONCE}\n").unwrap();
    }
    for (case, script) in SCRIPTS {
        let kind = format!("command = [\"/bin/sh\", \"-c\", '''grep -q bad || exit 0; {script}''']\ntimeout = \"3s\"");
        write!(config, "[handler.command_{case}]\ntopics = [\"#\"]\n{kind}\n{ONCE}\n").unwrap();
    }
    for (case, _) in FUNCTIONS {
        write!(config, "[handler.sql_{case}]\ntopics = [\"#\"]\nsql = \"app.{case}\"\n{ONCE}\n").unwrap();
    }
    config
}

/// The most memory a process has had, in MiB.
pub(crate) fn memory_peak(process: &Process) -> u64 {
    let status = format!("/proc/{}/status", process.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
}

/// Publishes these payloads in one transaction; the ids.
async fn publish_both(session: &Session) -> (i64, i64) {
    let sql = "SELECT outbox.publish('a', '{\"bad\": true}'), outbox.publish('a', '{\"good\": true}')";
    let row = session.client.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

/// Waits until every delivery of these events has its end.
async fn ended(session: &Session, handlers: usize) {
    let open = "SELECT handler FROM outbox.delivery WHERE state NOT IN ('done', 'dead', 'scheduled')";
    let all = format!("SELECT count(*) = {} FROM outbox.delivery", 2 * handlers);
    until("each delivery has its end", async || {
        texts(session, &all).await == ["true"] && texts(session, open).await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_hurts_anybody_but_its_own_delivery() {
    let database = Database::new().await;
    let session = database.session().await;
    session.client.batch_execute("CREATE SCHEMA app").await.unwrap();
    for (case, body) in FUNCTIONS {
        let function = format!(
            "CREATE FUNCTION app.{case}(e outbox.event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN \
             IF NOT e.payload ? 'bad' THEN RETURN NULL; END IF; {body} END $$"
        );
        session.client.batch_execute(&function).await.unwrap();
    }
    let url = service().await;
    let config = ConfigFile::new(&config(&url));
    let mut process = Process::run(&database, &config);
    process.logged("leading").await;
    let (bad, good) = publish_both(&session).await;
    ended(&session, 1 + RESPONSES.len() + SCRIPTS.len() + FUNCTIONS.len()).await;

    let suffered =
        format!("SELECT handler FROM outbox.delivery WHERE event_id = {good} AND (state, attempts) <> ('done', 1)");
    assert_eq!(texts(&session, &suffered).await, Vec::<String>::new());
    let ends = format!(
        "SELECT rtrim(concat(handler, ' ', state, ' ', left(coalesce(last_error, result::text), 150))) FROM outbox.delivery \
         WHERE event_id = {bad} ORDER BY handler COLLATE \"C\""
    );
    let ends = texts(&session, &ends).await.join("\n").replace(&url, "URL");
    expect![[r#"
        command_deep dead the answer's "result" is [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…; it must be JSON that c
        command_deeper done
        command_no_text dead exit code 65
        command_no_text_as_answer done
        command_nonsense dead the answer's "outcome" is 7; it must be "done", "retry", "snooze", "wait" or "dead"
        command_stderr_10_mb dead exit code 65
        command_stderr_flood dead timed out after 3s
        command_stdout_flood dead timed out after 3s
        good done
        http_a_gigabyte done
        http_deep done
        http_deep_result dead the answer's "result" is [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…; it must be JSON that c
        http_deep_within_an_answer done
        http_endless_error dead POST URL/endless_error: 404 Not Found
        http_endless_headers dead POST URL/endless_headers: error sending request: client error (SendRequest): message head is too large
        http_header_line_1_mb dead POST URL/header_line_1_mb: error sending request: client error (SendRequest): message head is too large
        http_headers_10000 dead POST URL/headers_10000: error sending request: client error (SendRequest): message head is too large
        http_headers_101 dead POST URL/headers_101: error sending request: client error (SendRequest): message head is too large
        http_huge_after dead the answer's "after" is 1e400; it must be a number of seconds, at least 0, or a duration such as "90s" or "1h 30m"
        http_huge_number dead the answer's "result" is 1e400; it must be JSON that can be kept: number out of range at line 1 column 5
        http_keys_twice dead b
        http_long_number done 100000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
        http_many_numbers done {"outboxd": "the result took more than 65536 bytes as jsonb"}
        http_no_http dead POST URL/no_http: error sending request: client error (SendRequest): invalid HTTP version parsed
        http_no_text dead POST URL/no_text: 404 Not Found
        http_no_text_as_json done
        http_nonsense done
        http_retry_after_nonsense dead POST URL/retry_after_nonsense: 503 Service Unavailable
        http_unknown_outcome dead the answer's "outcome" is {"done": true}; it must be "done", "retry", "snooze", "wait" or "dead"
        sql_deep dead the function returned JSON that cannot be kept: recursion limit exceeded at line 1 column 128
        sql_deeper dead stack depth limit exceeded (SQLSTATE 54001); Increase the configuration parameter "max_stack_depth" (currently 2048kB), after ensuring the platform's
        sql_detail_10_mb dead no (SQLSTATE P0001); xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
        sql_huge_number dead the function returned JSON that cannot be kept: number out of range at line 1 column 1024
        sql_many_numbers done {"outboxd": "the result took more than 65536 bytes as jsonb"}
        sql_message_10_mb dead xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
        sql_result_10_mb done {"outboxd": "the result had 10000002 bytes; at most 32768 are kept"}"#]].assert_eq(&ends);
    let longest = "SELECT max(octet_length(error)) <= 4096 AND max(octet_length(response)) <= 4096 FROM outbox.attempt";
    assert_eq!(texts(&session, longest).await, ["true"]);
    let peak = memory_peak(&process);
    println!("the daemon used {peak} MiB at most");
    assert!(peak < MEMORY_MAX, "{peak} MiB");
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.ended().await.code(), Some(0));
    let lines = process.log();
    let longest = lines.lines().map(str::len).max().unwrap();
    assert!(longest < 10_000, "a line of the log has {longest} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_outcome_of_a_handler_in_rust_hurts_anybody_but_its_own_delivery() {
    let long = || "x".repeat(10_000_000);
    let failed = |error: String, response: String| Failure { error, response: Some(response), ..Failure::default() };
    let once = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
    let delivery = DeliveryConfig { retry: once, ..DeliveryConfig::new(vec!["#".parse().unwrap()]) };
    let outcomes: [(&str, Result<Outcome, String>); 6] = [
        ("error_10_mb", Err(long())),
        ("failure_10_mb", Ok(Outcome::Dead { failure: failed(long(), long()) })),
        ("nul", Ok(Outcome::Dead { failure: failed("a\0b".to_owned(), "\0".to_owned()) })),
        ("result_10_mb", Ok(Outcome::done_with(long()))),
        ("result_nul", Ok(Outcome::done_with(json!({ "a\0": ["b\0"] })))),
        ("snooze", Ok(Outcome::Snooze { after: Some(Duration::MAX) })),
    ];
    let count = outcomes.len();
    let database = Database::new().await;
    let session = database.session().await;
    let mut builder = daemon(&database).handler("good", ["#"], async |_: Event| ());
    for (name, outcome) in outcomes {
        builder = builder.handler_with(name, delivery.clone(), move |attempt: Attempt| {
            let bad = attempt.event.payload.contains("bad");
            std::future::ready(if bad { outcome.clone() } else { Ok(Outcome::done()) })
        });
    }
    let running = Running::start(builder).await;
    let (bad, good) = publish_both(&session).await;
    ended(&session, 1 + count).await;
    assert!(deliveries(&session, good).await.iter().all(|delivery| delivery.ends_with("|done|1")));
    let error = "left(last_error, 10), right(last_error, 24)";
    let ends = format!(
        "SELECT rtrim(concat(handler, ' ', state, ' ', {error}, result)) FROM outbox.delivery \
         WHERE event_id = {bad} ORDER BY handler COLLATE \"C\""
    );
    expect![[r#"
        error_10_mb dead xxxxxxxxxx (10000000 bytes in all)
        failure_10_mb dead xxxxxxxxxx (10000000 bytes in all)
        good done
        nul dead a�ba�b
        result_10_mb done {"outboxd": "the result had 10000002 bytes; at most 32768 are kept"}
        result_nul done {"outboxd": "the result held a NUL character, which PostgreSQL cannot store"}
        snooze scheduled"#]]
    .assert_eq(&texts(&session, &ends).await.join("\n"));
    running.stop().await;
}

/// A batch is one statement; what its table refuses would take the others with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_never_undoes_a_success_whatever_it_is_made_of() {
    let elements = [
        json!(0),
        json!(-1),
        json!(12345.678),
        json!(1.5e-300),
        json!(1.234_567_890_123_456_7e300),
        json!(u64::MAX),
        json!(null),
        json!(true),
        json!(""),
        json!("ü"),
        json!([]),
        json!([[0]]),
        json!({}),
        json!({ "a": 0 }),
        json!({ "": [] }),
    ];
    let results: Vec<Value> = elements
        .into_iter()
        .flat_map(|element| {
            let count = 32_000 / (element.to_string().len() + 1);
            let fields = (0..count / 2).map(|n| (format!("{n:x}"), element.clone())).collect::<serde_json::Map<_, _>>();
            [1, 4, 16].map(|part| Value::from(vec![element.clone(); count / part])).into_iter().chain([fields.into()])
        })
        .collect();
    let count = i32::try_from(results.len()).unwrap();
    let database = Database::new().await;
    let session = database.session().await;
    let running = Running::start(daemon(&database).handler("results", ["#"], move |event: Event| {
        let result = results[usize::try_from(event.id.0).unwrap() - 1].clone();
        std::future::ready(Outcome::done_with(result))
    }))
    .await;
    publish_many(&session, "a", count).await;
    until("each has its end", async || {
        texts(&session, "SELECT count(*) FROM outbox.delivery WHERE state IN ('done', 'dead')").await
            == [count.to_string()]
    })
    .await;
    assert_eq!(texts(&session, "SELECT last_error FROM outbox.open").await, Vec::<String>::new());
    let kept = texts(&session, "SELECT count(*) FROM outbox.done WHERE result ->> 'outboxd' IS NULL").await;
    println!("{} of {count} results were kept as they were", kept[0]);
    assert!(kept[0].parse::<i32>().unwrap() > count / 2);
    running.stop().await;
}

/// What the daemon's own bounds keep away today: an outcome that PostgreSQL refuses.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_cannot_be_written_is_buried_and_its_batch_is_written() {
    let database = Database::new().await;
    let session = database.session().await;
    let refuse = "ALTER TABLE outbox.done ADD CONSTRAINT not_seven CHECK (result <> '7')";
    session.client.batch_execute(refuse).await.unwrap();
    let running = Running::start(
        daemon(&database).handler("all", ["#"], |event: Event| std::future::ready(Outcome::done_with(event.id.0))),
    )
    .await;
    publish_many(&session, "a", 50).await;
    let done = "SELECT count(*) FROM outbox.done";
    until("all others are done", async || texts(&session, done).await == ["49"]).await;
    let buried = "SELECT event_id || ' ' || state || ' ' || split_part(last_error, ' (', 1) FROM outbox.open";
    let expected = "7 dead its outcome could not be written: the statement `append_done` failed: \
                    new row for relation \"done_p0\" violates check constraint \"not_seven\"";
    until("it is buried", async || texts(&session, buried).await == [expected]).await;
    running.observed("told", |o| matches!(o, Observation::Unwritable { event, .. } if event.0 == 7)).await;
    running.stop().await;
}
