//! The systemd unit fits the daemon: its times, its exit codes, its command line.

use std::path::Path;
use std::time::Duration;

use outboxd::Config;
use outboxd::config::duration;

use crate::harness::outboxd_output;

/// The settings of `systemd/outboxd.service`, in order; a comment is none.
fn settings() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/outboxd.service");
    let text = std::fs::read_to_string(path).unwrap();
    let setting = |line: &str| {
        let (name, value) = line.split_once('=')?;
        (!line.starts_with('#')).then(|| (name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(setting).collect()
}

/// The value of a setting that is there once.
#[track_caller]
fn setting(name: &str) -> String {
    let mut values: Vec<_> = settings().into_iter().filter(|(n, _)| n == name).map(|(_, value)| value).collect();
    assert_eq!(values.len(), 1, "{name}= is there {} times", values.len());
    values.remove(0)
}

#[track_caller]
fn time(name: &str) -> Duration {
    duration::parse(&setting(name)).unwrap()
}

#[test]
fn the_service_waits_longer_than_a_drain_and_the_last_writes() {
    // Five seconds for the last outcomes, five for the positions, three for the last spans.
    let drain = Config::default().daemon.drain_timeout + Duration::from_secs(13);
    assert!(time("TimeoutStopSec") > drain, "a default drain of {drain:?} would be cut off");
}

#[test]
fn systemd_is_told_what_it_waits_for() {
    assert_eq!(setting("Type"), "notify");
    assert_eq!(setting("NotifyAccess"), "main");
    assert_eq!(setting("ExecReload"), "/bin/kill -HUP $MAINPID");
    // The leader's loop runs at least every five seconds.
    assert!(time("WatchdogSec") >= Duration::from_secs(20));
}

#[test]
fn it_is_started_again_except_after_a_wrong_configuration() {
    assert_eq!(setting("Restart"), "always");
    let never_after = setting("RestartPreventExitStatus");
    assert!(never_after.split_whitespace().any(|code| code == "78"), "{never_after}");
    // Reaching the database may take long; that must start it again.
    assert!(!never_after.split_whitespace().any(|code| code == "69"), "{never_after}");
}

#[tokio::test]
async fn its_command_line_is_one_that_the_binary_takes() {
    let started = setting("ExecStart");
    let (program, arguments) = started.split_once(' ').unwrap();
    assert_eq!(program, "/usr/bin/outboxd");
    let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
    assert_eq!(arguments, ["run", "--config", "/etc/outboxd/outboxd.toml"]);
    // Whatever the grammar knows is taken before --help; an unknown verb or flag is wrong usage, code 2.
    arguments.push("--help");
    let output = outboxd_output(None, &arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wrong = outboxd_output(None, &["run", "--configuration", "x"]).await;
    assert_eq!(wrong.status.code(), Some(2));
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_the_code_after_which_nothing_is_started_again() {
    let file = crate::harness::ConfigFile::new("[handler.x]\n");
    let output = outboxd_output(None, &["run", "--config", file.path()]).await;
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
}
