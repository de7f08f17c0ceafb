//! Doubt: a session that says nothing may be well, or lost without a word to us, because something between takes what is
//! sent for a server that is gone. The one that listens is asked to hear a ring. Of those that are asked and do not
//! answer, another session knows whether they are busy or wait for a lock.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::super::settle::Request;
use super::Term;
use crate::postgres::Target;
use crate::store::Store;

/// The daemon rings its own bell this often: a listener can be connected and deaf, and only a notification tells.
const LOOP_BACK_EVERY: Duration = Duration::from_mins(1);
/// So long may its own ring take to be heard.
const LOOP_BACK_MAX: Duration = Duration::from_secs(10);
/// After so long without an answer another session is asked.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A leader that knows of nothing that its session said for so long begins nothing: a standby ends it a second later.
const LEAD_MAX: Duration = Duration::from_secs(9);

/// The sessions of a term as PostgreSQL calls them.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Pids {
    pub(in super::super) leader: i32,
    pub(in super::super) tail: i32,
}

pub(super) struct Doubts {
    pids: Pids,
    /// When the last claim and the last job were asked for, and the last claim that was answered.
    pub(super) claim_asked: Instant,
    pub(super) job_asked: Instant,
    claim_answered: Instant,
    opinion: Option<BoxFuture<'static, Option<String>>>,
    ask_again: Instant,
    loop_back_at: Instant,
    /// A notification was heard since a ring was asked for.
    heard: bool,
    /// The ring must have been heard by then.
    deaf_at: Option<Instant>,
}

impl Doubts {
    pub(super) fn new(pids: Pids, now: Instant) -> Self {
        Self {
            pids,
            claim_asked: now,
            job_asked: now,
            claim_answered: now,
            opinion: None,
            ask_again: now,
            loop_back_at: now,
            heard: false,
            deaf_at: None,
        }
    }

    /// The answer of another session: why one of ours is lost, if one is.
    pub(super) async fn opinion(&mut self) -> Option<String> {
        match &mut self.opinion {
            Some(opinion) => opinion.await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn answered(&mut self, opinion: Option<String>) -> Result<(), String> {
        self.opinion = None;
        opinion.map_or(Ok(()), Err)
    }

    pub(super) fn claimed(&mut self) {
        self.claim_answered = self.claim_asked;
    }

    /// The bell was rung; before this moment it could not be heard, however long the leader's session was busy.
    pub(super) fn rung(&mut self, now: Instant) {
        self.deaf_at = (!self.heard).then_some(now + LOOP_BACK_MAX);
    }

    pub(super) fn heard(&mut self) {
        self.heard = true;
        self.deaf_at = None;
    }
}

impl Term<'_> {
    /// Whether a standby may be about to end the leader's session, or may have.
    pub(super) fn may_be_deposed(&self, now: Instant) -> bool {
        now >= self.doubts.claim_answered + LEAD_MAX
    }

    /// When to doubt again if nothing happens.
    pub(super) fn doubt_at(&self) -> Instant {
        let Doubts { claim_asked, job_asked, ref opinion, ask_again, loop_back_at, deaf_at, .. } = self.doubts;
        let asked = [self.claiming.then_some(claim_asked), self.job.is_some().then_some(job_asked)];
        let asked = asked.into_iter().flatten().min().filter(|_| opinion.is_none());
        let ask_at = asked.map(|asked| (asked + ANSWER_MAX).max(ask_again));
        ask_at.into_iter().chain(deaf_at).fold(loop_back_at, Instant::min)
    }

    pub(super) fn doubt(&mut self, now: Instant) -> Result<(), String> {
        if self.doubts.deaf_at.is_some_and(|at| at <= now) {
            return Err(format!(
                "the listening session is deaf: it did not hear a ring within {} s",
                LOOP_BACK_MAX.as_secs()
            ));
        }
        if self.doubts.loop_back_at <= now {
            self.doubts.loop_back_at = now + LOOP_BACK_EVERY;
            self.doubts.heard = false;
            self.request(Request::Ring);
        }
        let mut doubted = Vec::new();
        if self.claiming && now >= self.doubts.claim_asked + ANSWER_MAX {
            doubted.push(("the leader's session", self.doubts.pids.leader));
        }
        if self.job.is_some() && now >= self.doubts.job_asked + ANSWER_MAX {
            doubted.push(("the session that reads the log", self.doubts.pids.tail));
        }
        if !doubted.is_empty() && self.doubts.opinion.is_none() && self.doubts.ask_again <= now {
            self.doubts.ask_again = now + ANSWER_MAX;
            self.doubts.opinion = Some(Box::pin(opinion(self.context.target.clone(), doubted)));
        }
        Ok(())
    }
}

/// Without an answer to this either, the network is away; it gives back what it held, or TCP says that it does not.
async fn opinion(target: Target, doubted: Vec<(&'static str, i32)>) -> Option<String> {
    let asked = async {
        let store = Store::new(target.connect("doubt").await.ok()?);
        let pids: Vec<i32> = doubted.iter().map(|(_, pid)| *pid).collect();
        store.silent(&pids).await.ok()
    };
    let sessions = tokio::time::timeout(ANSWER_MAX, asked).await.ok().flatten()?;
    let lost = |pid: i32| {
        let found = sessions.iter().find(|session| session.0 == pid);
        found.is_none_or(|(_, silent)| silent.is_some_and(|silent| silent > ANSWER_MAX))
    };
    let (which, _) = doubted.into_iter().find(|(_, pid)| lost(*pid))?;
    Some(format!("{which} does not answer, and PostgreSQL waits for us there: the connection is lost"))
}
