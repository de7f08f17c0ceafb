//! One server for the process, started by the first test that asks. Nobody stops it: statics are not dropped, its guard
//! ends it with the process. `OUTBOXD_TEST_KEEP=1` leaves it running if a test failed.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Session, Target, ThrowawayError, ThrowawayPostgres};
use tokio::runtime::Builder;
use tokio::sync::Mutex;

const TEMPLATE: &str = "template_outbox";

/// The server of this run, with the migrated template in it.
pub(crate) fn cluster() -> &'static ThrowawayPostgres {
    static CLUSTER: OnceLock<ThrowawayPostgres> = OnceLock::new();
    // Made on a thread of its own: the caller is inside a runtime, which must not be blocked on from within.
    CLUSTER.get_or_init(|| {
        apart(async {
            let settings = [("max_connections", "300"), ("max_prepared_transactions", "20")];
            let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            let server = match ThrowawayPostgres::start(Options { durable: false, settings }).await {
                Err(missing @ ThrowawayError::NotFound(_)) => nothing_can_be_tested(&missing),
                started => started.unwrap(),
            };
            let admin = server.target("postgres").connect("tests").await.unwrap();
            admin.client.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
            migrate(&server.target(TEMPLATE)).await.unwrap();
            server
        })
    })
}

/// Without PostgreSQL's programs: one line for the whole run, past the capture of the tests' output, and no more tests.
fn nothing_can_be_tested(missing: &ThrowawayError) -> ! {
    let _ = writeln!(std::io::stderr(), "\ncannot test: {missing}");
    std::process::exit(1)
}

/// A database for one test. Dropped when the test succeeds; kept, and how to look at it printed, when it fails.
pub(crate) struct Database {
    name: String,
}

impl Database {
    /// With the schema in it.
    pub(crate) async fn new() -> Self {
        Self::from_template(TEMPLATE).await
    }

    /// Without a schema.
    pub(crate) async fn empty() -> Self {
        Self::from_template("template1").await
    }

    async fn from_template(template: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        // A template must have no other session while it is copied.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let name = format!("t_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = cluster().target("postgres").connect("tests").await.unwrap();
        let _turn = ONE_AT_A_TIME.lock().await;
        admin.client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await.unwrap();
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn target(&self) -> Target {
        cluster().target(&self.name)
    }

    pub(crate) async fn session(&self) -> Session {
        self.target().connect("test").await.unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let server = cluster();
        if std::thread::panicking() {
            eprintln!("the database of this test: {}", server.psql_line(&self.name));
            eprintln!("the server's log:          {}", server.log_file().display());
            if std::env::var_os("OUTBOXD_TEST_KEEP").is_some_and(|keep| keep == "1") {
                server.keep();
                let (pid, folder) = (server.pid().unwrap(), server.socket_dir().display());
                eprintln!("the server stays; end it:  kill {pid}; rm -r {folder}");
            } else {
                eprintln!("both end with this run; OUTBOXD_TEST_KEEP=1 keeps them");
            }
            return;
        }
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let dropped = std::panic::catch_unwind(|| {
            apart(async {
                let admin = server.target("postgres").connect("tests").await.unwrap();
                admin.client.batch_execute(&drop).await.unwrap();
            });
        });
        // A second panic would end the process and with it the other tests; the server ends with the run anyway.
        if dropped.is_err() {
            eprintln!("could not drop {}", self.name);
        }
    }
}

/// Runs to the end on a runtime and a thread of its own, so that it works inside and outside of any other runtime.
fn apart<T: Send>(task: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        scope.spawn(move || runtime.block_on(task)).join().unwrap()
    })
}
