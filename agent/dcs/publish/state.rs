//! What a publisher knows, and what it does next.

use super::store::{Change, Done, Kept, KeyStore, WriteError};
use super::{ANSWER, PAUSE};
use crate::clock;
use crate::report::{NobodyListens, Report};
use pgsquire_core::effect::{Effect, EffectId, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::time::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type KeyMap = BTreeMap<String, Vec<u8>>;
/// When a renewal was begun, on both clocks, and what came of it.
type Renewal = (Time, Instant, Result<Kept, String>);

/// Waits for what is under way; for ever if nothing is.
pub(super) async fn polled<T>(work: Option<&mut Boxed<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

/// Something to put. Without an order it is for the sake of the level.
struct Job {
    order: Option<(EffectId, Time)>,
    deadline: Instant,
    what: What,
}

#[derive(Clone)]
enum What {
    /// The leased keys that are wanted when its turn comes.
    Leased,
    /// A key without a lease.
    Key(String, Option<Vec<u8>>),
}

/// The job that is under way.
pub(super) struct Working<'a, L> {
    job: Job,
    /// The leased keys that the step leads to.
    target: KeyMap,
    pub(super) step: Boxed<'a, Step<L>>,
}

/// The end of a part of a job.
pub(super) enum Step<L> {
    Granted(Time, Instant, Result<(L, Duration), String>),
    Changed(L, Result<Done, WriteError>),
    Put(Result<(), String>),
}

/// The lease and what is bound to it.
struct Held<L> {
    lease: L,
    ttl: Duration,
    /// When to renew it.
    due: Instant,
    /// Keys that the store has confirmed; none: unknown.
    keys: Option<KeyMap>,
    /// Keys that may be bound to it.
    maybe: BTreeSet<String>,
}

pub(super) struct Publisher<'a, S: KeyStore> {
    cluster: String,
    store: &'a S,
    ttl: Duration,
    report: Report,
    wanted: KeyMap,
    held: Option<Held<S::Lease>>,
    /// Until when the lease lives, as it was told.
    told: Option<Instant>,
    /// Leases under which a change may be under way, and when they have ended by themselves.
    given_up: VecDeque<(S::Lease, Instant)>,
    queue: VecDeque<Job>,
    pub(super) working: Option<Working<'a, S::Lease>>,
    pub(super) renewing: Option<Boxed<'a, Renewal>>,
    pub(super) revoking: Option<Boxed<'a, Result<(), String>>>,
    /// When to put the wanted keys again without an order.
    restore: Option<Instant>,
    /// Pause after the next failure of that.
    pause: Duration,
    /// When to revoke again.
    revoke: Instant,
}

impl<'a, S: KeyStore> Publisher<'a, S> {
    pub(super) fn new(cluster: String, store: &'a S, ttl: Duration, report: Report) -> Self {
        Publisher {
            cluster,
            store,
            ttl,
            report,
            wanted: KeyMap::new(),
            held: None,
            told: None,
            given_up: VecDeque::new(),
            queue: VecDeque::new(),
            working: None,
            renewing: None,
            revoking: None,
            restore: None,
            pause: PAUSE.0,
            revoke: Instant::now(),
        }
    }

    /// Takes an order.
    pub(super) async fn take(&mut self, effect: Effect) -> Result<(), NobodyListens> {
        let Effect { id, order, .. } = effect;
        let started = clock::now();
        let what = match order {
            Order::Publish { cluster, keys } if cluster == self.cluster => {
                self.wanted = keys;
                self.supersede().await?;
                What::Leased
            }
            Order::PutKey { cluster, key, value } if cluster == self.cluster => What::Key(key, value),
            other => {
                let why =
                    format!("this is no order for the publisher of cluster {}: {other:?}", self.cluster);
                return self.report.done(id, started, Outcome::Failed { why }).await;
            }
        };
        let deadline = Instant::now() + ANSWER;
        self.queue.push_back(Job { order: Some((id, started)), deadline, what });
        Ok(())
    }

    /// A new order takes the place of one that is not begun.
    async fn supersede(&mut self) -> Result<(), NobodyListens> {
        let (old, rest) =
            std::mem::take(&mut self.queue).into_iter().partition(|job| matches!(job.what, What::Leased));
        self.queue = rest;
        let old: VecDeque<Job> = old;
        for job in old {
            self.answer(&job, Err("a newer order took its place before it was begun".into())).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, job: &Job, result: Result<(), String>) -> Result<(), NobodyListens> {
        let Some((id, started)) = job.order else {
            if let Err(why) = result {
                tracing::warn!("the keys of cluster {} are not put again yet: {why}", self.cluster);
            }
            return Ok(());
        };
        let outcome = match result {
            Ok(()) => Outcome::Done,
            Err(why) => Outcome::Failed { why },
        };
        self.report.done(id, started, outcome).await
    }

    async fn tell_lease(&mut self, lease: Option<(Time, Instant, Duration)>) -> Result<(), NobodyListens> {
        self.told = lease.map(|(_, at, ttl)| at + ttl);
        let lease = lease.map(|(started, _, ttl)| (started, ttl));
        self.report.say(Event::LeaseKept { cluster: self.cluster.clone(), lease }).await
    }

    /// Begins what is due.
    pub(super) async fn begin(&mut self) -> Result<(), NobodyListens> {
        let now = Instant::now();
        if self.restore.is_some_and(|at| at <= now) {
            self.restore = None;
            let pending = self.queue.iter().any(|job| matches!(job.what, What::Leased));
            if !pending {
                let (deadline, what) = (now + ANSWER, What::Leased);
                self.queue.push_back(Job { order: None, deadline, what });
            }
        }
        while self.working.is_none() {
            let Some(job) = self.queue.pop_front() else { break };
            self.work(job).await?;
        }
        let store = self.store;
        if let Some(held) = &self.held
            && self.renewing.is_none()
            && held.due <= now
        {
            let lease = held.lease.clone();
            let started = clock::now();
            self.renewing = Some(Box::pin(async move { (started, now, store.renew(&lease).await) }));
        }
        // Not before its keys are bound to another lease: they must not vanish in between.
        let moved = self.wanted.is_empty() || self.held.as_ref().is_some_and(|held| held.keys.is_some());
        if let Some((lease, _)) = self.given_up.front()
            && self.revoking.is_none()
            && moved
            && self.revoke <= now
        {
            let lease = lease.clone();
            self.revoking = Some(Box::pin(async move { store.revoke(&lease).await }));
        }
        Ok(())
    }

    /// Begins the next step of a job, or answers it if there is nothing to do.
    async fn work(&mut self, job: Job) -> Result<(), NobodyListens> {
        let store = self.store;
        let target = self.wanted.clone();
        let step: Boxed<'a, Step<S::Lease>> = match (job.what.clone(), &mut self.held) {
            (What::Key(key, value), _) => {
                Box::pin(async move { Step::Put(store.put(&key, value.as_deref()).await) })
            }
            (What::Leased, None) if target.is_empty() => return self.answer(&job, Ok(())).await,
            (What::Leased, None) => {
                let (started, at, ttl) = (clock::now(), Instant::now(), self.ttl);
                Box::pin(async move { Step::Granted(started, at, store.grant(ttl).await) })
            }
            (What::Leased, Some(held)) => {
                let change = Change::between(held.keys.as_ref(), &held.maybe, &target);
                if change.is_empty() {
                    return self.answer(&job, Ok(())).await;
                }
                held.maybe.extend(change.put.keys().cloned());
                let lease = held.lease.clone();
                Box::pin(async move {
                    let result = store.change(&lease, &change).await;
                    Step::Changed(lease, result)
                })
            }
        };
        self.working = Some(Working { job, target, step });
        Ok(())
    }

    /// A step ended.
    pub(super) async fn stepped(&mut self, step: Step<S::Lease>) -> Result<(), NobodyListens> {
        let Some(Working { job, target, .. }) = self.working.take() else { return Ok(()) };
        match step {
            Step::Put(result) => self.answer(&job, result).await,
            Step::Granted(_, _, Err(why)) => {
                self.restore_later();
                self.answer(&job, Err(why)).await
            }
            Step::Granted(started, at, Ok((lease, ttl))) => {
                // Nothing is bound to it yet, and a lease that was given up must not end before that.
                self.held = Some(Held { lease, ttl, due: at + ttl / 3, keys: None, maybe: BTreeSet::new() });
                self.renewing = None;
                self.tell_lease(Some((started, at, ttl))).await?;
                self.work(job).await
            }
            Step::Changed(lease, Ok(Done { unsure })) => {
                let Some(held) = self.held.as_mut().filter(|held| held.lease == lease) else {
                    // The lease was lost right after it.
                    return self.work(job).await;
                };
                held.maybe = target.keys().cloned().collect();
                held.keys = Some(target);
                self.pause = PAUSE.0;
                if unsure {
                    self.give_up();
                }
                self.answer(&job, Ok(())).await
            }
            Step::Changed(lease, Err(WriteError::LeaseLost)) => {
                self.lost(&lease).await?;
                self.work(job).await
            }
            Step::Changed(_, Err(WriteError::Failed { why, unsure })) => {
                self.failed(unsure);
                self.answer(&job, Err(why)).await
            }
        }
    }

    /// A change was not confirmed.
    fn failed(&mut self, unsure: bool) {
        match &mut self.held {
            Some(_) if unsure => {
                self.give_up();
                self.restore_later();
            }
            Some(held) => held.keys = None,
            None => self.restore_later(),
        }
    }

    /// Puts the wanted keys again soon, and less soon each time. They are bound to no lease that lives on.
    fn restore_later(&mut self) {
        self.restore = Some(Instant::now() + self.pause);
        self.pause = PAUSE.1.min(self.pause * 2);
    }

    /// A change under this lease may be under way: the keys move to another.
    fn give_up(&mut self) {
        if let Some(Held { lease, ttl, .. }) = self.held.take() {
            tracing::info!(
                "a change of the keys of cluster {} may come late: its lease is left",
                self.cluster
            );
            let now = Instant::now();
            self.given_up.push_back((lease, now + self.store.longest(ttl)));
            self.renewing = None;
            self.restore = Some(now);
        }
    }

    /// The store does not know the lease.
    async fn lost(&mut self, lease: &S::Lease) -> Result<(), NobodyListens> {
        if self.held.as_ref().is_some_and(|held| held.lease == *lease) {
            self.held = None;
            self.renewing = None;
            self.restore = Some(Instant::now());
            self.tell_lease(None).await?;
        }
        Ok(())
    }

    /// A renewal ended.
    pub(super) async fn renewed(&mut self, (started, at, result): Renewal) -> Result<(), NobodyListens> {
        self.renewing = None;
        let Some(held) = &mut self.held else { return Ok(()) };
        match result {
            Ok(Kept::Yes) => {
                held.due = at + held.ttl / 3;
                let ttl = held.ttl;
                self.tell_lease(Some((started, at, ttl))).await
            }
            Ok(Kept::Lost) => {
                let lease = held.lease.clone();
                self.lost(&lease).await
            }
            Err(why) => {
                tracing::warn!("{why}");
                held.due = Instant::now() + PAUSE.0;
                Ok(())
            }
        }
    }

    /// A lease that was given up is revoked, or not.
    pub(super) fn revoked(&mut self, result: Result<(), String>) {
        self.revoking = None;
        let now = Instant::now();
        let ended = self.given_up.front().is_some_and(|(_, end)| *end <= now);
        if result.is_err() && !ended {
            self.revoke = now + PAUSE.0;
            return;
        }
        self.given_up.pop_front();
        // The late change may have taken keys over to the old lease, and they are gone with it.
        if let Some(held) = &mut self.held {
            held.keys = None;
            self.restore = Some(now);
        }
    }

    /// The next time something is due.
    pub(super) fn alarm(&self) -> Instant {
        let idle = Instant::now() + Duration::from_secs(3600);
        let jobs = self.working.iter().map(|w| w.job.deadline).chain(self.queue.iter().map(|j| j.deadline));
        let due = self.held.as_ref().filter(|_| self.renewing.is_none()).map(|held| held.due);
        let moved = self.wanted.is_empty() || self.held.as_ref().is_some_and(|held| held.keys.is_some());
        let revoke = (moved && self.revoking.is_none() && !self.given_up.is_empty()).then_some(self.revoke);
        jobs.chain([due, self.restore, revoke, self.told].into_iter().flatten()).min().unwrap_or(idle)
    }

    /// Ends what has waited too long.
    pub(super) async fn expire(&mut self) -> Result<(), NobodyListens> {
        let now = Instant::now();
        if self.told.is_some_and(|end| end <= now) {
            self.tell_lease(None).await?;
        }
        let late = || Err(format!("the store did not confirm it within {} ms", ANSWER.as_millis()));
        if let Some(working) = self.working.take_if(|working| working.job.deadline <= now) {
            if matches!(working.job.what, What::Leased) {
                self.failed(true);
            }
            self.answer(&working.job, late()).await?;
        }
        let (old, rest): (VecDeque<_>, _) =
            std::mem::take(&mut self.queue).into_iter().partition(|job: &Job| job.deadline <= now);
        self.queue = rest;
        for job in old {
            self.answer(&job, late()).await?;
        }
        Ok(())
    }

    /// Answers all that is not done.
    pub(super) async fn refuse(&mut self, why: &str) {
        let working = self.working.take().map(|working| working.job);
        for job in working.into_iter().chain(std::mem::take(&mut self.queue)) {
            if self.answer(&job, Err(why.to_owned())).await.is_err() {
                return;
            }
        }
    }

    /// Leaves the leases to somebody who ends them.
    pub(super) async fn close(mut self) -> Vec<S::Lease> {
        if self.told.is_some() {
            let _ = self.tell_lease(None).await;
        }
        let held = self.held.take().map(|held| held.lease);
        held.into_iter().chain(self.given_up.into_iter().map(|(lease, _)| lease)).collect()
    }
}
