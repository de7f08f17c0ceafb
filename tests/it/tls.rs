//! TLS to PostgreSQL: the server proves who it is, the client too if it is asked, and everything that the daemon does goes through it.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use outboxd::postgres::migrate::migrate;
use outboxd::postgres::throwaway::Options;
use outboxd::postgres::{Target, ThrowawayPostgres};
use outboxd::{Config, Daemon};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::harness::{Programs, Running, Server, deliveries, publish, text, until};

/// An authority, what it has certified, and the server that shows that.
struct Secured {
    server: Server,
    folder: PathBuf,
    address: String,
    _throwaway: ThrowawayPostgres,
}

/// A file that the server's account may read, and nobody else.
fn write(path: &Path, text: &str, account: &std::fs::Metadata) {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(path, Some(account.uid()), Some(account.gid())).unwrap();
    }
}

impl Secured {
    async fn new() -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(2);
        let mut throwaway = ThrowawayPostgres::start(Options::default()).await.unwrap();
        let programs = Programs::of(&throwaway).await;
        let folder = throwaway.make_subfolder("tls").unwrap();
        let account = std::fs::metadata(throwaway.socket_dir()).unwrap();
        let file = |name: &str, text: &str| write(&folder.join(name), text, &account);

        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        file("ca.crt", &params.self_signed(&key).unwrap().pem());
        let authority = Issuer::new(params, key);
        let certify = |name: &str, whose: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            file(&format!("{whose}.crt"), &params.signed_by(&key, &authority).unwrap().pem());
            file(&format!("{whose}.key"), &key.serialize_pem());
        };
        certify("db.example", "server");
        certify("certified", "client");
        file(
            "hba.conf",
            "local all all trust\nhostssl all certified all cert\nhostssl all guarded all scram-sha-256\nhostssl all all all trust\n",
        );

        // An address of its own: every server has the same port, and the tests run side by side.
        let (pid, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.{}.{}.{number}", 1 + pid / 250 % 250, 1 + pid % 250);
        throwaway.crash().await.unwrap();
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let files = [path("server.crt"), path("server.key"), path("ca.crt"), path("hba.conf")];
        let settings = [
            ("listen_addresses", address.as_str()),
            ("ssl", "on"),
            ("ssl_cert_file", &files[0]),
            ("ssl_key_file", &files[1]),
            ("ssl_ca_file", &files[2]),
            ("hba_file", &files[3]),
        ];
        let server = programs.serve(throwaway.socket_dir(), &settings, &[]).await;
        let session = server.target("postgres").connect("test").await.unwrap();
        session
            .client
            .batch_execute("CREATE ROLE certified LOGIN; CREATE ROLE guarded LOGIN PASSWORD 'hunter2'")
            .await
            .unwrap();
        Self { server, folder, address, _throwaway: throwaway }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A target with these settings, or why there is none.
    fn target(&self, user: &str, host: &str, more: &str) -> Result<Target, String> {
        let pairs = format!("host={host} hostaddr={} dbname=postgres user={user} {more}", self.address);
        Target::resolve(Some(&pairs), None, &|_| None).map_err(|error| error.to_string())
    }

    async fn connects(&self, user: &str, host: &str, more: &str) -> Result<(), String> {
        let session = self.target(user, host, more)?.connect("test").await;
        session.map(drop).map_err(|error| outboxd::observe::chain(&error))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_s_certificate_and_its_name_are_verified() {
    let secured = Secured::new().await;
    let root = format!("sslrootcert={}", secured.path("ca.crt"));
    let connects = async |host: &str, more: &str| secured.connects("outboxd", host, more).await;
    let good = async |host: &str, mode: &str| connects(host, &format!("sslmode={mode} {root}")).await;
    assert_eq!(good("db.example", "verify-full").await, Ok(()));
    assert_eq!(good("db.example", "require").await, Ok(()));
    assert_eq!(good("other.example", "verify-ca").await, Ok(()));
    let bound = format!("sslmode=verify-full {root} channel_binding=require password=hunter2");
    assert_eq!(secured.connects("guarded", "db.example", &bound).await, Ok(()));
    for mode in ["verify-full", "require"] {
        let error = good("other.example", mode).await.unwrap_err();
        assert!(error.contains("not valid for name") && error.contains("other.example"), "{error}");
    }
    for mode in ["verify-full", "verify-ca", "require"] {
        let error = connects("db.example", &format!("sslmode={mode} sslrootcert={}", secured.path("client.crt"))).await;
        let error = error.unwrap_err();
        assert!(error.contains("certificate") && !error.contains('\n'), "{error}");
    }
    // This server takes nothing else.
    let error = connects("db.example", "sslmode=disable").await.unwrap_err();
    assert!(error.contains("no encryption"), "{error}");
    let error = connects("db.example", &format!("sslmode=require sslrootcert={}", secured.path("server.key"))).await;
    assert!(error.unwrap_err().contains("there is no certificate in it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_proves_who_it_is_with_a_key_that_nobody_else_may_read() {
    let secured = Secured::new().await;
    let (root, certificate) = (secured.path("ca.crt"), secured.path("client.crt"));
    let known = format!("sslmode=verify-full sslrootcert={root}");
    let with = |key: &str| format!("{known} sslcert={certificate} sslkey={}", secured.path(key));
    let connects = async |more: &str| secured.connects("certified", "db.example", more).await;
    assert_eq!(connects(&with("client.key")).await, Ok(()));
    let error = connects(&known).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    assert!(connects(&format!("{known} sslcert={certificate}")).await.unwrap_err().contains("sslkey is not"));
    let error = connects(&with("server.key")).await.unwrap_err();
    assert!(error.contains("client certificate"), "{error}");
    std::fs::set_permissions(secured.path("client.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = connects(&with("client.key")).await.unwrap_err();
    assert!(error.contains("others may read it; do: chmod 600"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_the_daemon_does_goes_through_it() {
    let secured = Secured::new().await;
    let root = secured.path("ca.crt");
    let target = secured.target("outboxd", "db.example", &format!("sslmode=verify-full sslrootcert={root}")).unwrap();
    migrate(&target).await.unwrap();
    let session = secured.server.target("postgres").connect("test").await.unwrap();
    let function = "CREATE SCHEMA app; CREATE FUNCTION app.f(outbox.event) RETURNS jsonb LANGUAGE sql \
                    AS 'SELECT to_jsonb(ssl) FROM pg_stat_ssl WHERE pid = pg_backend_pid()'";
    session.client.batch_execute(function).await.unwrap();
    let config = Config::parse("[handler.sql]\ntopics = [\"a\"]\nsql = \"app.f\"\n", "f", &|_| None).unwrap();
    let running = Running::start(Daemon::builder().target(target).config(config)).await;
    let event = publish(&session, "a").await;
    until("it is done", async || deliveries(&session, event).await == ["sql|done|1"]).await;
    assert_eq!(text(&session, "SELECT result FROM outbox.done").await, "true");
    let plain = "SELECT count(*) FILTER (WHERE s.ssl) || ' of ' || count(*) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
                 WHERE a.application_name LIKE 'outboxd%' AND a.application_name <> 'outboxd test'";
    let sessions = text(&session, plain).await;
    let (secure, all) = sessions.split_once(" of ").unwrap();
    assert!(secure == all && all.parse::<u32>().unwrap() >= 4, "{sessions}");
    running.stop().await;
}
