//! PostgreSQL is found where psql would find it; what goes wrong is told in one line, and no password ever is.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use outboxd::config::Secret;
use outboxd::postgres::{ConnectError, Target};
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;

use crate::harness::{Database, cluster, until};

fn resolve(flag: Option<&str>, file: Option<&str>, env: &[(&str, &str)]) -> Result<Target, ConnectError> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    let file = file.map(|text| Secret::new(text.into()));
    Target::resolve(flag, file.as_ref(), &|name| env.get(name).map(ToString::to_string))
}

fn shown(flag: Option<&str>, file: Option<&str>, env: &[(&str, &str)]) -> String {
    resolve(flag, file, env).unwrap().to_string()
}

fn refused(url: &str) -> String {
    let error = resolve(Some(url), None, &[]).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    error.to_string()
}

/// A folder of files for one test.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("outboxd-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, mode: u32, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_nearest_place_that_names_a_database_counts() {
    let url = |name: &str| format!("postgresql://u@{name}.example/d");
    let (own, common) = (url("own"), url("common"));
    let all =
        [("OUTBOXD_DATABASE_URL", own.as_str()), ("DATABASE_URL", &common), ("PGHOST", "pghost"), ("PGUSER", "pu")];
    let table = [
        (Some(url("flag")), &all[..], r#"database "d" on flag.example:5432 as "u" (from --database-url)"#),
        (None, &all[..], r#"database "d" on own.example:5432 as "u" (from OUTBOXD_DATABASE_URL)"#),
        (None, &all[1..], r#"database "d" on common.example:5432 as "u" (from DATABASE_URL)"#),
        (None, &all[2..], r#"database "d" on file.example:5432 as "u" (from the configuration file)"#),
    ];
    for (flag, env, expected) in table {
        assert_eq!(shown(flag.as_deref(), Some(&url("file")), env), expected);
    }
    let from_env = r#"database "pu" on pghost:5432 as "pu" (from the PG* environment)"#;
    assert_eq!(shown(None, None, &all[2..]), from_env);
    let local = shown(None, None, &[("PGSSLMODE", "prefer"), ("DATABASE_URL", "")]);
    assert!(local.contains("/.s.PGSQL.5432 as ") && local.ends_with("(from the local socket)"), "{local}");
}

#[test]
fn what_a_url_leaves_out_comes_from_the_environment() {
    let env = [("PGHOST", "ignored"), ("PGPORT", "6000"), ("PGUSER", "ignored"), ("PGPASSWORD", "secret")];
    let target = resolve(Some("postgresql://u@h/d"), None, &env).unwrap();
    assert_eq!(target.to_string(), r#"database "d" on h:6000 as "u" (from --database-url)"#);
    assert_eq!(target.config().get_password(), Some(&b"secret"[..]));
}

#[test]
fn every_way_to_write_it_is_read() {
    let table = [
        ("postgres://u:p%40ss@h:1/d?sslmode=disable&connect_timeout=3", r#"database "d" on h:1 as "u""#),
        ("postgresql://%2Frun%2Fpg/d?user=u", r#"database "d" on /run/pg/.s.PGSQL.5432 as "u""#),
        ("postgresql:///d?host=/run/pg&port=7&user=u", r#"database "d" on /run/pg/.s.PGSQL.7 as "u""#),
        ("postgresql://u@[::1]:7,b/d?target_session_attrs=read-write", r#"database "d" on [::1]:7,b:5432 as "u""#),
        (r"host=h port=7 user='a \'b' dbname = d password=a\ b", r#"database "d" on h:7 as "a 'b""#),
        (
            "hostaddr=127.0.0.1 user=u application_name=mine keepalives_count=9",
            r#"database "u" on 127.0.0.1:5432 as "u""#,
        ),
    ];
    for (written, expected) in table {
        assert_eq!(shown(Some(written), None, &[]), format!("{expected} (from --database-url)"));
    }
    let target = resolve(Some(table[0].0), None, &[]).unwrap();
    assert_eq!(target.config().get_password(), Some(&b"p@ss"[..]));
}

#[test]
fn what_cannot_be_honoured_is_refused_and_no_password_is_told() {
    let table = [
        (
            "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/nonexistent",
            "sslrootcert /nonexistent cannot be read",
        ),
        ("postgres://u:hunter2@h/d?sslmode=hunter2", "sslmode is not one libpq knows"),
        ("postgres://u:hunter2@h/d?sslrootcert=system", "certificates are given without sslmode"),
        ("postgres://u:hunter2@h/d?channel_binding=require", "channel_binding=require is asked for without TLS"),
        ("postgres://u:hunter2@h/d?sslmode=require&sslcrl=hunter2", "sslcrl is given, which this version"),
        ("postgres://u:hunter2@h/d?frobnicate=1", "unknown option `frobnicate`"),
        ("postgres://u:hunter2@h:port/d", "a port in it is not a number"),
        ("postgres://u:1/hunter2@h/d", "has to be percent-encoded"),
        ("postgres://u:1?hunter2@h/d?a=b", "has to be percent-encoded"),
        ("postgres://u:hunter2%zz@h/d", "the password in it is not valid"),
        ("host=h password=hunter 2", "keyword without a value"),
        ("host=h password='hunter2", "a quote that is not closed"),
        ("hunter2", "neither a postgresql:// url"),
        ("postgres://h/d?service=hunter", "is in no service file"),
    ];
    for (written, expected) in table {
        let error = refused(written);
        assert!(error.contains(expected), "{written}: {error}");
        assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
    }
    let target = resolve(Some("postgres://u:hunter2@h/d"), None, &[]).unwrap();
    assert!(!format!("{target} {target:?} {:?}", target.config()).contains("hunter2"));
}

#[test]
fn a_password_file_is_used_if_only_its_owner_can_read_it() {
    let files = Files::new("pgpass");
    let lines = "h:7:d:u:right\nlocalhost:*:*:u:socket\na:*:*:*:one\nb:*:*:*:two\n";
    let (closed, open) = (files.write("closed", 0o600, lines), files.write("open", 0o640, lines));
    let password = |url: &str, file: &str| {
        let target = resolve(Some(url), None, &[("PGPASSFILE", file)]).unwrap();
        (target.config().get_password().map(|p| String::from_utf8(p.to_vec()).unwrap()), target.warnings().to_vec())
    };
    assert_eq!(password("postgres://u@h:7/d", &closed), (Some("right".into()), vec![]));
    assert_eq!(password("postgres://u:given@h:7/d", &closed), (Some("given".into()), vec![]));
    assert_eq!(password("postgres://u@h:8/d", &closed), (None, vec![]));
    assert_eq!(password("postgres://u@/d?host=/tmp", &closed), (Some("socket".into()), vec![]));
    assert_eq!(password("postgres://u@h:7/d", "/nowhere/pgpass"), (None, vec![]));
    let (none, warnings) = password("postgres://u@h:7/d", &open);
    assert!(none.is_none() && warnings[0].contains("chmod 600"), "{warnings:?}");
    let error = refused(&format!("postgres://u@a,b/d?passfile={closed}"));
    assert!(error.contains("different passwords for these hosts"), "{error}");
    files.write(".pgpass", 0o600, "*:*:*:*:home");
    let home = resolve(Some("postgres://u@h/d"), None, &[("HOME", files.0.to_str().unwrap())]).unwrap();
    assert_eq!(home.config().get_password(), Some(&b"home"[..]));
}

#[test]
fn a_service_wins_over_the_environment_and_loses_to_what_is_written() {
    let files = Files::new("service");
    let path = files.write(
        "services",
        0o644,
        "# ours\n[other]\nhost=no\n\n[prod]\nhost = s\nhost=t\nport=9\nuser=su\ndbname=sd\n",
    );
    let env = [("PGSERVICEFILE", path.as_str()), ("PGSERVICE", "prod"), ("PGUSER", "eu"), ("PGHOST", "eh")];
    assert_eq!(shown(None, None, &env), r#"database "sd" on s:9 as "su" (from the PG* environment)"#);
    let written = shown(Some("postgres://wu@/?service=prod"), None, &env[..1]);
    assert_eq!(written, r#"database "sd" on s:9 as "wu" (from --database-url)"#);
}

#[tokio::test]
async fn a_session_says_who_it_is_and_is_set_up_in_one_go() {
    let database = Database::new().await;
    let session = database.session().await;
    let settings = "SELECT current_setting('application_name') || ' ' || current_setting('TimeZone') || ' '
                        || coalesce(current_setting('idle_session_timeout', true), '0')";
    let row = session.client.query_one(settings, &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "outboxd test UTC 0");
    assert!(session.version >= 130_000);
    let pool = database.target().pool(2).unwrap();
    let row = pool.get().await.unwrap().query_one(settings, &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "outboxd pool UTC 0");
}

#[tokio::test]
async fn every_notification_is_a_wake_up() {
    let database = Database::new().await;
    let wake = Arc::new(Notify::new());
    let listener = database.target().listen("bell", wake.clone()).await.unwrap();
    listener.client.batch_execute("LISTEN outbox").await.unwrap();
    let sender = database.session().await;
    for _ in 0..3 {
        sender.client.batch_execute("NOTIFY outbox").await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), wake.notified()).await.unwrap();
    }
}

#[tokio::test]
async fn the_end_of_a_session_is_told_with_its_reason() {
    let database = Database::new().await;
    let (session, other) = (database.session().await, database.session().await);
    let closed = session.closed();
    // Kept: the closing of a statement is a request, too, and would get the reason for an answer.
    let statement = session.client.prepare("SELECT pg_backend_pid()").await.unwrap();
    let pid: i32 = session.client.query_one(&statement, &[]).await.unwrap().get(0);
    other.client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    assert_eq!(&*closed.await, "terminating connection due to administrator command (SQLSTATE 57P01)");
    assert!(session.client.is_closed());
    let dropped = other.closed();
    drop(other);
    assert_eq!(&*dropped.await, "the session was dropped");
}

#[tokio::test]
async fn a_dropped_session_is_closed_even_in_the_middle_of_a_query() {
    let database = Database::new().await;
    let (watcher, session) = (database.session().await, database.target().connect("sleeper").await.unwrap());
    if session.version < 140_000 {
        // Without the setting below a server notices a closed connection only when the query ends.
        return;
    }
    session.client.batch_execute("SET client_connection_check_interval = '20ms'").await.unwrap();
    let state = async |wanted: &str| {
        let query = "SELECT coalesce((SELECT wait_event FROM pg_stat_activity WHERE datname = current_database()
                                      AND application_name = 'outboxd sleeper'), 'gone') = $1";
        watcher.client.query_one(query, &[&wanted]).await.unwrap().get::<_, bool>(0)
    };
    let (closed, sleep) = (session.closed(), session.client.simple_query("SELECT pg_sleep(600)"));
    tokio::select! {
        answer = sleep => panic!("{answer:?}"),
        () = until("the query runs", || state("PgSleep")) => {}
    }
    drop(session);
    until("the server has no such session any more", || state("gone")).await;
    assert_eq!(&*closed.await, "the session was dropped");
}

#[tokio::test]
async fn nobody_there_is_told_apart_from_a_refusal() {
    let error =
        resolve(Some("postgres://u:hunter2@127.0.0.1:1/d"), None, &[]).unwrap().connect("test").await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 69);
    assert!(error.to_string().contains("127.0.0.1:1") && !format!("{error:?}").contains("hunter2"), "{error:?}");

    let no_socket = resolve(Some("postgres:///d?host=/nowhere&user=u"), None, &[]).unwrap();
    assert_eq!(no_socket.connect("test").await.unwrap_err().exit_code(), 69);

    let error = cluster().target("no_such_database").connect("test").await.unwrap_err();
    let ConnectError::Refused { code, message, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*code, SqlState::INVALID_CATALOG_NAME);
    assert_eq!(message, r#"database "no_such_database" does not exist"#);
    assert_eq!(error.exit_code(), 78);

    let url = format!("postgres://no_such_role:hunter2@/postgres?host={}", cluster().socket_dir().display());
    let error = resolve(Some(&url), None, &[]).unwrap().connect("test").await.unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains("(SQLSTATE 28000)") && !format!("{error:?}").contains("hunter2"), "{error:?}");
}
