//! Long work: an attempt that says it is alive outlives its time-out, one that falls silent does not, and what it says is seen.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use outboxd::config::DeliveryConfig;
use outboxd::event::Attempt;
use outboxd::postgres::Session;
use outboxd::{Config, Failure, Outcome, RetryPolicy};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::handlers::history;
use crate::harness::{Database, Running, daemon, deliveries, lives, outboxd_output, publish, text, texts, until};

/// One attempt, then it is dead.
const ONCE: &str = "retry = { max_attempts = 1 }";
const SILENCE: Duration = Duration::from_secs(2);
/// Between two heartbeats of a handler that is alive.
const BEAT: Duration = Duration::from_millis(100);
/// Longer than any test.
const FOR_EVER: Option<Duration> = Some(Duration::from_hours(1));

/// A daemon with one handler, the command `long`, which may be silent for [`SILENCE`].
async fn start(database: &Database, script: &str, max_timeout: Option<Duration>) -> Running {
    let text = format!(
        "[handler.long]\ntopics = [\"#\"]\ntimeout = \"2s\"\n{ONCE}\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n"
    );
    start_with(database, &text, max_timeout).await
}

async fn start_with(database: &Database, text: &str, max_timeout: Option<Duration>) -> Running {
    let mut config = Config::parse(text, "outboxd.toml", &|_| None).unwrap();
    config.handlers[0].delivery.max_timeout = max_timeout;
    Running::start(daemon(database).config(config)).await
}

fn long(max_timeout: Option<Duration>) -> DeliveryConfig {
    DeliveryConfig {
        timeout: SILENCE,
        max_timeout,
        retry: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() },
        ..DeliveryConfig::new(vec!["#".parse().unwrap()])
    }
}

/// A folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outboxd-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The processes that have written their ids down.
    fn pids(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.0.join("pids")).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
    }

    /// A process that does not listen to SIGTERM, and a child of it that does not either and then does this for ever.
    fn stubborn(&self, first: &str, child: &str) -> String {
        let pids = self.0.join("pids");
        let pids = pids.display();
        format!(
            "trap \"\" TERM; echo $$ >> {pids}
             /bin/sh -c \"trap '' TERM; echo \\$\\$ >> {pids}; while :; do {child} sleep 0.1; done\" &
             {first}
             while :; do sleep 0.1; done"
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether the attempt has run for longer than it may be silent, twice over, and its progress can be seen.
async fn outlives(session: &Session, event: i64) -> bool {
    let query = "SELECT state = 'running' AND attempts = 1 AND progress IS NOT NULL \
                 AND clock_timestamp() - started_at > interval '5 seconds' FROM outbox.delivery WHERE event_id = ";
    text(session, &format!("{query}{event}")).await == "true"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_reports_progress_outlives_its_timeout() {
    let (database, folder) = (Database::new().await, Folder::new("progress"));
    let session = database.session().await;
    let finish = folder.0.join("finish");
    let script = format!(
        r#"n=0; while [ ! -e {} ]; do n=$((n+1)); echo "{{\"progress\": {{\"page\": $n}}}}"; sleep 0.1; done
           echo '{{"outcome": "done", "result": {{"pages": 7}}}}'"#,
        finish.display()
    );
    let running = start(&database, &script, FOR_EVER).await;
    let event = publish(&session, "a").await;
    until("it has outlived its timeout", async || outlives(&session, event).await).await;

    let shown = outboxd_output(Some(&database), &["show", "1"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("\n  progress   {\"page\":") && shown.contains("\n  heartbeat  20"), "{shown}");
    let shown = outboxd_output(Some(&database), &["show", "1", "--json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert!(shown["deliveries"][0]["progress"]["page"].is_i64(), "{shown}");

    std::fs::write(finish, "").unwrap();
    until("it is done", async || deliveries(&session, event).await == ["long|done|1"]).await;
    assert_eq!(text(&session, "SELECT result FROM outbox.done").await, "{\"pages\": 7}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_falls_silent_is_killed_with_its_whole_group() {
    let (database, folder) = (Database::new().await, Folder::new("silent"));
    let session = database.session().await;
    let script = folder.stubborn(r#"echo "{\"progress\": \"nearly\"}""#, "");
    let running = start(&database, &script, FOR_EVER).await;
    let event = publish(&session, "a").await;
    until("it is given up", async || deliveries(&session, event).await == ["long|dead|1"]).await;
    assert_eq!(history(&session, event).await, ["dead timed out after 2s without a heartbeat"]);
    let pids = folder.pids();
    assert_eq!(pids.len(), 2);
    until("both processes are killed", async || !pids.iter().any(|&pid| lives(pid))).await;
    let kept = text(&session, "SELECT progress FROM outbox.delivery").await;
    assert_eq!(kept, "\"nearly\"", "what it said last is kept");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn max_timeout_ends_even_a_talkative_one_and_all_it_has_started() {
    let (database, folder) = (Database::new().await, Folder::new("talkative"));
    let session = database.session().await;
    // It is the child that talks.
    let script = folder.stubborn("", r#"echo '{\"progress\": 1}';"#);
    let running = start(&database, &script, Some(Duration::from_secs(4))).await;
    let event = publish(&session, "a").await;
    until("it is given up", async || deliveries(&session, event).await == ["long|dead|1"]).await;
    assert_eq!(history(&session, event).await, ["dead timed out after 4s, its max_timeout"]);
    let pids = folder.pids();
    assert_eq!(pids.len(), 2);
    until("both processes are killed", async || !pids.iter().any(|&pid| lives(pid))).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_max_timeout_progress_is_kept_and_puts_nothing_off() {
    let database = Database::new().await;
    let session = database.session().await;
    let running = start(&database, r#"while :; do echo "{\"progress\": 1}"; sleep 0.1; done"#, None).await;
    let event = publish(&session, "a").await;
    until("it is given up", async || deliveries(&session, event).await == ["long|dead|1"]).await;
    assert_eq!(history(&session, event).await, ["dead timed out after 2s"]);
    assert_eq!(text(&session, "SELECT progress FROM outbox.delivery").await, "1");
    running.stop().await;
}

/// Several writers: there is always more to read.
const FLOOD: &str = r#"for n in 1 2 3 4; do yes "{\"progress\": {\"page\": $n}}" & done; wait"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_progress_is_written_once_a_second_and_ends_in_time() {
    let database = Database::new().await;
    let session = database.session().await;
    let count = "CREATE TABLE public.written (at timestamptz DEFAULT clock_timestamp()); \
                 CREATE FUNCTION public.count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 INSERT INTO public.written DEFAULT VALUES; RETURN NULL; END $$; \
                 CREATE TRIGGER written AFTER UPDATE OF progress ON outbox.open FOR EACH ROW \
                 WHEN (NEW.progress IS NOT NULL AND NEW.state = 'running') EXECUTE FUNCTION public.count_it()";
    session.client.batch_execute(count).await.unwrap();
    let running = start(&database, FLOOD, Some(Duration::from_secs(4))).await;
    let event = publish(&session, "a").await;
    until("it is given up", async || deliveries(&session, event).await == ["long|dead|1"]).await;
    assert_eq!(history(&session, event).await, ["dead timed out after 4s, its max_timeout"]);
    let ran = "SELECT ceil(extract(epoch FROM finished_at - started_at))::bigint FROM outbox.attempt";
    let (ran, written) = (text(&session, ran).await, text(&session, "SELECT count(*) FROM public.written").await);
    let (ran, written): (u64, u64) = (ran.parse().unwrap(), written.parse().unwrap());
    assert!(written >= 1 && written <= ran + 1, "{written} writes in {ran} s");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_rust_lives_as_long_as_it_says_so() {
    let database = Database::new().await;
    let session = database.session().await;
    let finish = Arc::new(Notify::new());
    let finished = Arc::clone(&finish);
    let alive = async |attempt: Attempt| {
        for _ in 0..u64::MAX {
            attempt.heartbeat(());
            sleep(BEAT).await;
        }
    };
    let running = Running::start(
        daemon(&database)
            .handler_with("ends", long(FOR_EVER), move |attempt: Attempt| {
                let finished = Arc::clone(&finished);
                async move {
                    let works = async {
                        loop {
                            // Cheap enough to be said all the time.
                            for page in 0..1000 {
                                attempt.heartbeat(json!({ "page": page }));
                            }
                            sleep(BEAT).await;
                        }
                    };
                    tokio::select! {
                        () = works => {}
                        () = finished.notified() => {}
                    }
                }
            })
            .handler_with("silent", long(FOR_EVER), async |attempt: Attempt| {
                attempt.heartbeat("nearly");
                std::future::pending::<()>().await;
            })
            .handler_with("talkative", long(Some(Duration::from_secs(4))), alive),
    )
    .await;
    let event = publish(&session, "a").await;
    let ends = "SELECT state = 'running' AND progress->>'page' = '999' AND clock_timestamp() - started_at > '5 s' \
                FROM outbox.delivery WHERE handler = 'ends'";
    until("it has outlived its timeout", async || text(&session, ends).await == "true").await;
    until("the others have not", async || {
        deliveries(&session, event).await == ["ends|running|1", "silent|dead|1", "talkative|dead|1"]
    })
    .await;
    let errors = texts(&session, "SELECT error FROM outbox.attempt ORDER BY handler").await;
    assert_eq!(errors, ["timed out after 2s without a heartbeat", "timed out after 4s, its max_timeout"]);
    finish.notify_one();
    until("it is done", async || deliveries(&session, event).await[0] == "ends|done|1").await;
    running.stop().await;
}

/// A service that says with outbox.heartbeat that it is alive, as a role that may do nothing else, until it is to finish.
async fn service(database: &Database, role: &str, finish: Arc<Notify>, is_mute: Arc<AtomicBool>) -> String {
    let owner = database.session().await;
    let grants = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA outbox TO {role}; GRANT EXECUTE ON FUNCTION outbox.heartbeat TO {role}"
    );
    owner.client.batch_execute(&grants).await.unwrap();
    let session = Arc::new(database.session().await);
    session.client.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |headers: HeaderMap| {
        let (session, finish, is_mute) = (Arc::clone(&session), Arc::clone(&finish), is_mute.load(Relaxed));
        async move {
            let header = |name: &str| headers[name].to_str().unwrap().to_owned();
            let (event, attempt): (i64, i32) =
                (header("ce-id").parse().unwrap(), header("outbox-attempt").parse().unwrap());
            let handler = header("outbox-handler");
            let works = async {
                let sql = "SELECT outbox.heartbeat($1, $2, $3, '\"from the service\"')";
                loop {
                    session.client.query_one(sql, &[&event, &handler, &attempt]).await.unwrap();
                    sleep(BEAT).await;
                }
            };
            tokio::select! {
                () = works, if !is_mute => {}
                () = finish.notified() => {}
            }
        }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_behind_http_says_it_in_sql() {
    let database = Database::new().await;
    let session = database.session().await;
    let (finish, role) = (Arc::new(Notify::new()), format!("service_{}", database.name()));
    let is_mute = Arc::new(AtomicBool::new(false));
    let url = service(&database, &role, Arc::clone(&finish), Arc::clone(&is_mute)).await;
    let text = format!("[handler.long]\ntopics = [\"#\"]\ntimeout = \"2s\"\n{ONCE}\nhttp.url = \"{url}\"\n");
    let running = start_with(&database, &text, FOR_EVER).await;
    let event = publish(&session, "a").await;
    until("it has outlived its timeout", async || outlives(&session, event).await).await;
    finish.notify_one();
    until("it is done", async || deliveries(&session, event).await == ["long|done|1"]).await;

    is_mute.store(true, Relaxed);
    let event = publish(&session, "a").await;
    until("it is given up", async || deliveries(&session, event).await == ["long|dead|1"]).await;
    assert_eq!(history(&session, event).await, ["dead timed out after 2s without a heartbeat"]);
    running.stop().await;
    session.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_of_another_attempt_is_refused() {
    let database = Database::new().await;
    let session = database.session().await;
    let retry = RetryPolicy { max_attempts: 2, base: Duration::from_millis(1), ..RetryPolicy::default() };
    let handle = async |attempt: Attempt| {
        attempt.heartbeat(json!(format!("attempt {}", attempt.number)));
        if attempt.number == 1 {
            return Outcome::Retry { after: None, failure: Failure::new("once more") };
        }
        std::future::pending().await
    };
    let delivery = DeliveryConfig { retry, timeout: Duration::from_hours(1), ..long(FOR_EVER) };
    let running = Running::start(daemon(&database).handler_with("long", delivery, handle)).await;
    let event = publish(&session, "a").await;
    let progress = async || text(&session, "SELECT progress FROM outbox.open").await;
    let said = "SELECT count(*) FROM outbox.open WHERE attempt = 2 AND progress IS NOT NULL";
    until("the second attempt has spoken", async || text(&session, said).await == "1").await;
    assert_eq!(progress().await, "\"attempt 2\"");
    let row = "SELECT o FROM outbox.open o";
    let before = text(&session, row).await;
    let beat = async |event: i64, handler: &str, attempt: i32| {
        let sql = format!("SELECT outbox.heartbeat({event}, '{handler}', {attempt}, '\"by hand\"')");
        text(&session, &sql).await
    };
    for (event, handler, attempt) in
        [(event, "long", 1), (event, "long", 3), (event, "other", 2), (event + 1, "long", 2)]
    {
        assert_eq!(beat(event, handler, attempt).await, "false");
    }
    assert_eq!(text(&session, row).await, before, "nothing has changed");
    assert_eq!(beat(event, "long", 2).await, "true");
    assert_eq!(progress().await, "\"by hand\"");
    running.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_that_cannot_be_kept_becomes_a_note_and_no_failure() {
    let database = Database::new().await;
    let session = database.session().await;
    let finish = Arc::new(Notify::new());
    let says = |progress: Value| {
        let finish = Arc::clone(&finish);
        move |attempt: Attempt| {
            attempt.heartbeat(progress.clone());
            let finish = Arc::clone(&finish);
            async move { finish.notified().await }
        }
    };
    let hour = || DeliveryConfig { timeout: Duration::from_hours(1), ..long(None) };
    let running = Running::start(
        daemon(&database)
            .handler_with("long", hour(), says(json!("x".repeat(40_000))))
            .handler_with("nul", hour(), says(json!("a\0b")))
            .handler_with("small", hour(), says(json!("x".repeat(32_000))))
            // Short as text, and long as PostgreSQL stores it.
            .handler_with("wide", hour(), says(json!(vec![1; 16_000]))),
    )
    .await;
    let event = publish(&session, "a").await;
    let notes = "SELECT handler || ': ' || coalesce(progress->>'outboxd', octet_length(progress::text)::text) \
                 FROM outbox.open WHERE progress IS NOT NULL ORDER BY handler";
    until("each has its progress", async || texts(&session, notes).await.len() == 4).await;
    let notes = texts(&session, notes).await;
    assert_eq!(notes[0], "long: the progress had 40002 bytes; at most 32768 are kept");
    assert_eq!(notes[1], "nul: the progress held a NUL character, which PostgreSQL cannot store");
    assert_eq!(notes[2], "small: 32002");
    assert_eq!(notes[3], "wide: the progress took more than 65536 bytes as jsonb");
    finish.notify_waiters();
    until("all are done", async || deliveries(&session, event).await.iter().all(|d| d.ends_with("|done|1"))).await;
    running.stop().await;
}
