//! SIGHUP: the configuration is read again, as a whole or not at all, and no delivery suffers.

use outboxd::postgres::Session;
use rustix::process::Signal;

use crate::harness::{
    ConfigFile, Database, Gate, NotifySocket, Process, deliveries, done, outboxd, outboxd_output, publish,
    publish_many, ring, text, texts, until,
};

fn handler(name: &str, gate: &Gate, more: &str) -> String {
    format!("[handler.{name}]\ntopics = [\"#\"]\n{more}\n{}", gate.command())
}

fn reload(daemon: &Process, config: &ConfigFile, handlers: &[String]) {
    config.write(&handlers.concat());
    daemon.signal(Signal::HUP);
}

/// Waits until the daemon's session of this role waits for a lock.
async fn waits_for_a_lock(session: &Session, role: &str) {
    let query = format!(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outboxd {role}' \
         AND wait_event_type = 'Lock'"
    );
    until(&format!("the {role} session waits for a lock"), async || !texts(session, &query).await.is_empty()).await;
}

#[tokio::test]
async fn a_new_handler_begins_and_changed_settings_apply_to_what_waits() {
    let (database, mut gate) = (Database::new().await, Gate::closed());
    let config = ConfigFile::new(&handler("old", &gate, "concurrency = 1"));
    let session = database.session().await;
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let before = publish_many(&session, "a", 3).await;
    gate.begun(1).await;
    let new = Gate::opened();
    reload(&daemon, &config, &[handler("old", &gate, "concurrency = 2"), handler("new", &new, "")]);
    daemon.logged("configuration reloaded handlers=2").await;
    gate.begun(2).await;
    let after = publish(&session, "a").await;
    until("the new handler has what came after it", async || done(&session, "new").await == [after]).await;
    gate.open();
    let all = [&before[..], &[after]].concat();
    until("the old one has everything", async || done(&session, "old").await == all).await;
    assert_eq!(gate.events("begin"), all, "nothing ran twice");
}

#[tokio::test]
async fn a_handler_that_leaves_finishes_what_runs_and_goes_on_there_when_it_returns() {
    let (database, mut gate, other) = (Database::new().await, Gate::closed(), Gate::opened());
    let (stays, leaves) = (handler("stays", &other, ""), handler("leaves", &gate, "concurrency = 1"));
    let config = ConfigFile::new(&[stays.clone(), leaves.clone()].concat());
    let session = database.session().await;
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let mut events = publish_many(&session, "a", 3).await;
    gate.begun(1).await;
    reload(&daemon, &config, std::slice::from_ref(&stays));
    daemon.logged("registered but not in the configuration; `outboxd forget` removes it handler=\"leaves\"").await;
    daemon.logged("configuration reloaded handlers=1").await;
    gate.open();
    until("what ran is done", async || done(&session, "leaves").await == events[..1]).await;

    let status = outboxd_output(Some(&database), &["status"]).await;
    assert!(String::from_utf8(status.stdout).unwrap().contains("leaves (absent)"));
    events.push(publish(&session, "a").await);
    until("the other handler goes on", async || done(&session, "stays").await == events).await;
    assert_eq!(gate.events("begin"), events[..1], "nothing began while it was absent");

    reload(&daemon, &config, &[stays, leaves]);
    until("it goes on where it was", async || done(&session, "leaves").await == events).await;
    assert_eq!(gate.events("begin"), events, "nothing ran twice");
    assert_eq!(text(&session, "SELECT count(*) FROM outbox.handler WHERE absent").await, "0");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_told() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let config = ConfigFile::new(&handler("mail", &gate, ""));
    let session = database.session().await;
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    reload(&daemon, &config, &[handler("other", &gate, "concurency = 2")]);
    daemon.logged("configuration not reloaded, the old one stays").await;
    daemon.logged(&format!("{}:3: handler.other.concurency: this key is unknown", config.path())).await;
    let event = publish(&session, "a").await;
    until("the old handler works", async || deliveries(&session, event).await == ["mail|done|1"]).await;
    // A file that is gone is a bad one, too.
    std::fs::remove_file(config.path()).unwrap();
    daemon.signal(Signal::HUP);
    daemon.logged("the configuration cannot be read: No such file or directory").await;
    let event = publish(&session, "a").await;
    until("the old handler works", async || deliveries(&session, event).await == ["mail|done|1"]).await;
}

#[tokio::test]
async fn an_open_breaker_that_is_switched_off_is_closed_for_everybody() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let session = database.session().await;
    // Nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let web = format!("[handler.web]\ntopics = [\"a\"]\nhttp.url = \"http://{address}/\"\nretry.base = \"1ms\"\n");
    let other = handler("other", &gate, "");
    let config = ConfigFile::new(&[web.clone(), other.clone()].concat());
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    publish_many(&session, "a", 20).await;
    let breaker = "SELECT breaker FROM outbox.handler WHERE name = 'web'";
    until("it is open", async || text(&session, breaker).await == "open").await;
    reload(&daemon, &config, &[web + "breaker = \"off\"\n", other]);
    daemon.logged("configuration reloaded handlers=2").await;
    until("it is closed", async || text(&session, breaker).await == "closed").await;
}

#[tokio::test]
async fn settings_that_need_a_restart_are_told() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let mail = handler("mail", &gate, "");
    let config = ConfigFile::new(&mail);
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    reload(&daemon, &config, &["[daemon]\npoll_interval = \"1m\"\n".to_owned(), mail]);
    daemon.logged("settings in [daemon] have changed; they apply from the next start").await;
    daemon.logged("configuration reloaded handlers=1").await;
}

#[tokio::test]
async fn only_an_absent_handler_can_be_forgotten() {
    let (database, gate) = (Database::new().await, Gate::opened());
    let (mail, audit) = (handler("mail", &gate, ""), handler("audit", &gate, ""));
    let config = ConfigFile::new(&[mail.clone(), audit].concat());
    let session = database.session().await;
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let event = publish(&session, "a").await;
    until("both are done", async || deliveries(&session, event).await == ["audit|done|1", "mail|done|1"]).await;
    // Something open, to be given up.
    session.client.batch_execute("SELECT outbox.publish('a', '{}', delay => '1 hour')").await.unwrap();
    until("it is scheduled", async || {
        text(&session, "SELECT count(*) FROM outbox.open WHERE state = 'scheduled'").await == "2"
    })
    .await;

    let forget = async |name: &str| {
        let output = outboxd_output(Some(&database), &["forget", name]).await;
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let refused = "outboxd: handler audit is in the configuration of the daemon; remove it there first\n";
    assert_eq!(forget("audit").await, (1, refused.to_owned()));
    let unknown = "outboxd: there is no handler nobody; registered are: audit, mail\n";
    assert_eq!(forget("nobody").await, (1, unknown.to_owned()));

    reload(&daemon, &config, &[mail]);
    daemon.logged("configuration reloaded handlers=1").await;
    let forgotten = "forgot handler audit; 1 open delivery was given up\n";
    until("its place in the daemon is empty", async || {
        text(&session, "SELECT count(*) FROM outbox.handler WHERE absent").await == "1"
    })
    .await;
    assert_eq!(forget("audit").await, (0, forgotten.to_owned()));
    assert_eq!(texts(&session, "SELECT name FROM outbox.handler").await, ["mail"]);
    // What it finished stays.
    assert_eq!(deliveries(&session, event).await, ["audit|done|1", "mail|done|1"]);
    let json = outboxd_output(Some(&database), &["forget", "audit", "--json"]).await;
    assert_eq!(String::from_utf8(json.stderr).unwrap(), "outboxd: there is no handler audit; registered are: mail\n");
}

#[tokio::test]
async fn of_two_reloads_the_second_counts_even_if_the_first_is_still_under_way() {
    let (database, gate, systemd) = (Database::new().await, Gate::opened(), NotifySocket::new());
    let [one, two, three] = ["one", "two", "three"].map(|name| handler(name, &gate, ""));
    let config = ConfigFile::new(&one);
    let session = database.session().await;
    let mut command = outboxd(Some(&database), &["run", "--config", config.path()]);
    command.env("NOTIFY_SOCKET", systemd.path());
    let daemon = Process::start(command);
    daemon.logged("leading").await;
    // The first registration waits for this lock.
    let mut writer = database.session().await;
    let transaction = writer.client.transaction().await.unwrap();
    transaction.batch_execute("LOCK TABLE outbox.handler IN SHARE MODE").await.unwrap();
    reload(&daemon, &config, &[one.clone(), two.clone()]);
    waits_for_a_lock(&session, "leader").await;
    reload(&daemon, &config, &[one, two, three]);
    systemd.heard("READY=1", 3).await;
    transaction.commit().await.unwrap();
    daemon.logged("configuration reloaded handlers=3").await;
    let event = publish(&session, "a").await;
    until("all three work", async || deliveries(&session, event).await == ["one|done|1", "three|done|1", "two|done|1"])
        .await;
}

#[tokio::test]
async fn an_event_that_is_being_read_while_its_handler_leaves_waits_for_its_return() {
    let (database, mut gate, other) = (Database::new().await, Gate::closed(), Gate::opened());
    let (stays, leaves) = (handler("stays", &other, ""), handler("leaves", &gate, ""));
    let config = ConfigFile::new(&[stays.clone(), leaves.clone()].concat());
    let session = database.session().await;
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    let first = publish(&session, "a").await;
    gate.begun(1).await;
    until("it has a row", async || deliveries(&session, first).await.contains(&"leaves|running|1".to_owned())).await;

    // The read of the second event waits for this lock, and the reload happens meanwhile.
    let mut writer = database.session().await;
    let transaction = writer.client.transaction().await.unwrap();
    transaction.batch_execute("LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let row = transaction.query_one("SELECT outbox.publish('a', '{}')", &[]).await.unwrap();
    let second: i64 = row.get(0);
    ring(&session).await;
    waits_for_a_lock(&session, "tail").await;
    reload(&daemon, &config, std::slice::from_ref(&stays));
    daemon.logged("configuration reloaded handlers=1").await;
    transaction.commit().await.unwrap();
    until("the other handler has it", async || done(&session, "stays").await == [first, second]).await;
    gate.open();
    until("what ran is done", async || done(&session, "leaves").await == [first]).await;

    reload(&daemon, &config, &[stays, leaves]);
    until("nothing was lost", async || done(&session, "leaves").await == [first, second]).await;
    assert!(!daemon.log().contains("the sweep found"), "the tail has to see it");
}

#[tokio::test]
async fn a_retry_that_is_being_claimed_while_its_handler_leaves_runs_to_its_end() {
    let (database, gate, other) = (Database::new().await, Gate::opened(), Gate::opened());
    let (stays, leaves) = (handler("stays", &other, ""), handler("leaves", &gate, ""));
    let config = ConfigFile::new(&[stays.clone(), leaves.clone()].concat());
    let session = database.session().await;
    let daemon = Process::run(&database, &config);
    daemon.logged("leading").await;
    session.client.batch_execute("SELECT outbox.publish('a', '{}', delay => '1 hour')").await.unwrap();
    let event = 1;
    until("it is scheduled", async || deliveries(&session, event).await == ["leaves|scheduled|0", "stays|scheduled|0"])
        .await;

    // The registration waits for this lock; the claim comes behind it.
    let mut writer = database.session().await;
    let transaction = writer.client.transaction().await.unwrap();
    transaction.batch_execute("SELECT FROM outbox.handler WHERE name = 'leaves' FOR UPDATE").await.unwrap();
    reload(&daemon, &config, std::slice::from_ref(&stays));
    waits_for_a_lock(&session, "leader").await;
    let rung = daemon.log().matches("the bell rang").count();
    session.client.batch_execute("SELECT outbox.retry(1, 'leaves'), outbox.retry(1, 'stays')").await.unwrap();
    daemon.logged_times("the bell rang", rung + 1).await;
    transaction.commit().await.unwrap();
    daemon.logged("configuration reloaded handlers=1").await;
    until("the claim is no dead end", async || {
        let leaves = &deliveries(&session, event).await[0];
        leaves == "leaves|done|1" || leaves == "leaves|scheduled|0"
    })
    .await;
    reload(&daemon, &config, &[stays, leaves]);
    daemon.logged_times("configuration reloaded", 2).await;
    until("both are done", async || deliveries(&session, event).await == ["leaves|done|1", "stays|done|1"]).await;
}
