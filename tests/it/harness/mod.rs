//! What the tests stand on: one PostgreSQL for the run, a migrated database for each test, and waiting for facts.

mod calls;
mod cluster;
mod daemon;
mod facts;
mod folder;
mod gate;
mod login;
mod process;
pub(crate) mod proxy;
mod scrape;
mod server;
#[cfg(target_os = "linux")]
mod shim;
mod spans;
mod systemd;
pub(crate) mod workload;

use std::time::Duration;

use tokio::time::{Instant, sleep};

pub(crate) use calls::Calls;
pub(crate) use cluster::{Database, cluster};
pub(crate) use daemon::{Running, daemon};
pub(crate) use facts::{deliveries, done, publish, publish_many, ring, text, texts};
pub(crate) use folder::Folder;
pub(crate) use gate::{Gate, lives};
pub(crate) use login::{Login, all_refused, refused};
pub(crate) use process::{BINARY, ConfigFile, Process, outboxd, outboxd_at, outboxd_output, url};
pub(crate) use scrape::{Scrape, get, scrape};
pub(crate) use server::{Programs, Server};
#[cfg(target_os = "linux")]
pub(crate) use shim::Shim;
pub(crate) use spans::{Collector, Mood, attribute, id};
pub(crate) use systemd::NotifySocket;

/// The longest a fact may take to come true on a machine that is busy with other things.
const FACT_MAX: Duration = Duration::from_secs(20);

/// Waits until `fact` is true; panics with `what` if it never is.
#[track_caller]
pub(crate) fn until<F, T>(what: &str, fact: F) -> impl Future<Output = ()> + use<F, T>
where
    F: FnMut() -> T,
    T: Future<Output = bool>,
{
    until_within(FACT_MAX.as_secs(), what, fact)
}

/// The same for a fact that takes longer: so many seconds.
#[track_caller]
pub(crate) fn until_within<F, T>(seconds: u64, what: &str, mut fact: F) -> impl Future<Output = ()> + use<F, T>
where
    F: FnMut() -> T,
    T: Future<Output = bool>,
{
    let (caller, what) = (std::panic::Location::caller(), what.to_owned());
    let bound = Duration::from_secs(seconds);
    async move {
        let started = Instant::now();
        let mut pause = Duration::from_millis(2);
        while !fact().await {
            assert!(started.elapsed() < bound, "{caller}: not within {bound:?}: {what}");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}
