//! Leadership: one daemon dispatches, the one whose session holds an advisory lock. Others stand by.
//!
//! PostgreSQL drops the lock when the session ends, so a dead leader is followed within a second. A leader that is
//! frozen or cut off keeps its session; when it has said nothing for too long, a standby ends that session, which frees
//! the lock and fences the old leader in one act, because it writes on that session only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::error::SqlState;

use super::context::{Context, registrations};
use super::read::Earlier;
use super::term::{Links, Pids};
use crate::observe::Observation;
use crate::postgres::{ConnectError, MigrateError, SchemaStatus, Session, migrate};
use crate::store::registry::Holder;
use crate::store::{Error, Store};
use crate::systemd;

/// Between two tries for the lock.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// A leader speaks every five seconds; one that is silent for so long is frozen or cut off.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// So long may the tail of an earlier term take to end by itself, as it does when its daemon has ended or lost the lead.
const EARLIER_TAIL_MAX: Duration = Duration::from_secs(1);
const EARLIER_TAIL_PAUSE: Duration = Duration::from_millis(5);

/// Why the lead could not be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeadError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error(transparent)]
    Store(Error),
    /// Trying again does not help.
    #[error("{0}")]
    Setup(String),
}

impl LeadError {
    fn lacks_rights(which: &str) -> Self {
        Self::Setup(format!(
            "the daemon's role lacks rights: {which}. Run the daemon as the role that ran `outboxd migrate`, or make \
             its role a member of that one, or of outbox_daemon, which `outboxd migrate --roles` makes and keeps up to date"
        ))
    }
}

impl From<Error> for LeadError {
    fn from(error: Error) -> Self {
        // 42501: insufficient_privilege.
        if error.code().is_some_and(|code| code.code() == "42501") {
            return Self::lacks_rights(&error.to_string());
        }
        Self::Store(error)
    }
}

/// Connects, waits until the lock is ours, and prepares a term.
pub(super) async fn take(context: &Context) -> Result<Links, LeadError> {
    let target = &context.target;
    let session = target.connect("leader").await?;
    for text in target.warnings().iter().chain(&session.warnings) {
        context.observer.tell(&Observation::Notice { text: text.clone() });
    }
    check_schema(&session).await?;
    let leader = Store::new(session);
    let missing = leader.missing_rights().await?;
    if !missing.is_empty() {
        return Err(LeadError::lacks_rights(&missing.join("; ")));
    }
    stand_by(context, &leader).await?;
    // A newer outboxd may have migrated while this one stood by.
    check_schema(leader.session()).await?;

    // LISTEN is committed before anything is read: what happens from here on is heard.
    let wake = Arc::new(Notify::new());
    let bell = Store::new(target.listen("bell", Arc::clone(&wake)).await?);
    bell.listen().await?;
    let tail = Store::new(target.connect("tail").await?);
    fence_tail(context, &tail).await?;
    tail.pin_plans().await?;
    let pids = Pids { leader: leader.backend().await?, tail: tail.backend().await? };

    let installation = leader.installation().await?;
    let callback_key = leader.callback_key().await?;
    if !installation.same_cluster {
        let restamped = leader.adopt_cluster().await?;
        let (stored, found) = (installation.stored, installation.found);
        context.observer.tell(&Observation::ClusterChanged { stored, found, restamped });
    }
    leader.set_windows(context.daemon.dedup_window, context.daemon.once_window).await?;
    let mut watched = context.handlers.clone();
    let handlers = Arc::clone(&watched.borrow_and_update());
    let limits: Vec<_> =
        handlers.iter().map(|spec| (Arc::clone(&spec.name), spec.delivery.retry.max_attempts)).collect();
    let deliveries = leader.recover_running(&limits, "the daemon ended while this attempt ran").await?;
    if deliveries > 0 {
        context.observer.tell(&Observation::Recovered { deliveries });
    }
    // After the lock: whatever an earlier leader has settled is visible in this snapshot.
    let (snapshot, last_id) = leader.snapshot().await?;
    for handler in leader.register(&registrations(&handlers), &snapshot).await? {
        context.observer.tell(&Observation::HandlerAbsent { handler });
    }
    let names: Vec<_> = handlers.iter().map(|spec| Arc::clone(&spec.name)).collect();
    let beginnings = leader.beginnings(&names).await?;
    // Not before: at the beginning it waits as long as it takes.
    leader.pin_leader_plans().await?;
    let earlier = Earlier { snapshot, last_id };
    let handlers = (handlers, watched);
    let installation = installation.id;
    Ok(Links { leader, tail, bell, wake, pids, installation, callback_key, earlier, handlers, beginnings })
}

async fn check_schema(session: &Session) -> Result<(), LeadError> {
    match migrate::status(&session.client).await {
        Ok(SchemaStatus::Current) => Ok(()),
        Ok(status) => Err(LeadError::Setup(status.to_string())),
        Err(error @ MigrateError::Closed { .. }) => Err(LeadError::Setup(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Returns when no earlier tail can set the bell's flag any more. A frozen leader's could, when it wakes: the flag would
/// say "be silent" while this daemon sleeps.
async fn fence_tail(context: &Context, tail: &Store) -> Result<(), Error> {
    let (began, mut stranger) = (Instant::now(), Stranger(None));
    while let Err(holder) = tail.fence_tail().await? {
        let mut pause = EARLIER_TAIL_PAUSE;
        if let Some(holder) = holder.filter(|_| began.elapsed() > EARLIER_TAIL_MAX)
            && !stranger.end(context, tail, &holder).await?
        {
            context.progress.made(Instant::now());
            pause = TRY_EVERY;
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// A session that is in the way and that this role may not end: every role may take every advisory lock.
struct Stranger(Option<Holder>);

impl Stranger {
    /// Ends a session. Returns whether that was possible; if not, the log says once whose it is, and what to do.
    async fn end(&mut self, context: &Context, store: &Store, holder: &Holder) -> Result<bool, Error> {
        match store.depose(holder.pid).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                if self.0.as_ref() != Some(holder) {
                    let Holder { pid, role } = holder;
                    let text = format!(
                        "session {pid} of role {role} holds a lock of the daemon's, and this role may not end it: no daemon can lead. \
                         A superuser can, with pg_terminate_backend({pid}); `outboxd doctor` says how to keep {role} out"
                    );
                    context.observer.tell(&Observation::Notice { text });
                    self.0 = Some(holder.clone());
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Returns when this session leads.
async fn stand_by(context: &Context, store: &Store) -> Result<(), LeadError> {
    let mut told = None;
    // What its session was last seen to have said, and since when.
    let mut quiet = (None, Instant::now());
    let mut stranger = Stranger(None);
    while !store.lead().await? {
        context.progress.made(Instant::now());
        if let Some(leader) = store.leader().await? {
            let holder = Holder { pid: leader.pid, role: leader.role };
            if !leader.may_lead {
                // It does not lead, it is in the way. What is ended takes a moment to be gone.
                let ended = stranger.end(context, store, &holder).await?;
                tokio::time::sleep(if ended { EARLIER_TAIL_PAUSE } else { TRY_EVERY }).await;
                continue;
            }
            if told != Some(leader.pid) {
                told = Some(leader.pid);
                let text = format!("session {} from {}", leader.pid, leader.address);
                systemd::ready(&format!("standing by: {text} leads"));
                context.observer.tell(&Observation::StandingBy { leader: text });
            }
            // On our own clock: PostgreSQL's may be set forward, and no leader is silent for that, or back.
            let said = leader.silent.map(|_| (leader.pid, leader.said));
            if said != quiet.0 {
                quiet = (said, Instant::now());
            }
            let silent = quiet.1.elapsed();
            if quiet.0.is_some() && silent > SILENT_MAX && stranger.end(context, store, &holder).await? {
                context.observer.tell(&Observation::Deposed { pid: leader.pid, silent });
                quiet.1 = Instant::now();
                continue;
            }
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
    Ok(())
}
